//! The content of an image gives no rights on this machine unless an option requests it: set-id
//! programs and devices of images mounted by name.

use std::os::unix::fs::MetadataExt as _;

use testkit::home::{Home, Outcome};
use testkit::need;
use testkit::need::{can_mount, has_tools};

/// Returns a root file system with `id`, set-user-ID root, and a device like /dev/null that all
/// users may open.
fn rootfs() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind: tar::EntryType, mode, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(data.len() as u64);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        tar.append_data(&mut header, name, data).unwrap();
    };
    let id = std::fs::read("/usr/bin/id").unwrap();
    add("id", tar::EntryType::Regular, 0o4755, &id);
    add("null", tar::EntryType::Char, 0o666, b"");
    tar.into_inner().unwrap()
}

fn as_user(home: &Home, command: &str) -> Outcome {
    let mut setpriv = home.command("setpriv");
    setpriv.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    setpriv.args(["--inh-caps=-all", "sh", "-c", command]);
    setpriv.output().unwrap().into()
}

/// Returns the user's effective ID when the program runs, and whether the device can be opened.
fn rights(home: &Home) -> (String, bool) {
    let id = as_user(home, "mnt/id -u").ok().trim().to_owned();
    let opened = as_user(home, "echo > mnt/null");
    assert!(
        opened.code == Some(0) || opened.stderr.contains("Permission denied"),
        "{opened:?}"
    );
    (id, opened.code == Some(0))
}

#[test]
fn set_id_programs_and_devices_work_only_when_asked_for() {
    need!(can_mount());
    need!(has_tools(&["setpriv", "id"]));
    let home = Home::new();
    home.dirs(&["mnt", "upper", "work", "plain"]);
    std::fs::write(home.path("rootfs.tar"), rootfs()).unwrap();
    home.run(["import", "-q", "rootfs.tar", "app:1"]).ok();
    let (user, root) = ("65534".to_owned(), "0".to_owned());
    let cases: [(&[&str], &str, bool); 8] = [
        (&["-r", "app:1"], &user, false),
        (&["--ephemeral", "app:1"], &user, false),
        (&["--name", "work", "app:1"], &user, false),
        (
            &["--upper", "upper", "--work", "work", "app:1"],
            &user,
            false,
        ),
        (&["-r", "-o", "suid", "app:1"], &root, false),
        (&["-r", "-o", "dev", "app:1"], &user, true),
        (&["-r", "-o", "suid,dev", "app:1"], &root, true),
        (
            &["-r", "-o", "suid,dev,nosuid,nodev", "app:1"],
            &user,
            false,
        ),
    ];
    for (args, id, device) in cases {
        let args = [&["mount"], args, &["mnt"]].concat();
        home.run(&args).ok();
        // The bits are still shown and copied, although they have no effect.
        let meta = std::fs::metadata(home.path("mnt/id")).unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o7777), (0, 0o4755));
        assert_eq!(rights(&home), (id.to_owned(), device), "{args:?}");
        home.run(["umount", "mnt"]).ok();
    }
    // Interfaces for other programs keep the behaviour that these expect.
    let untar = home
        .command("tar")
        .args(["-xf", "rootfs.tar", "-C", "plain"])
        .status();
    assert!(untar.unwrap().success());
    home.run(["-o", "lowerdir=plain", "mnt"]).ok();
    assert_eq!(rights(&home), (root, true));
    home.run(["umount", "mnt"]).ok();
}
