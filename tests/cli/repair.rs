//! `load --repair` gives new files to damaged layers of our own store, and everything that lies on
//! them still works.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;

use testkit::home::{Home, wait_until};
use testkit::need;
use testkit::need::{Needed, can_mount};

use super::engines::shell;

/// Returns a home with `app:1` and `app:2` on the same layer, both also in `app.tar`, and the
/// read-write layer `work` on `app:2`, which has changed a file.
fn home() -> Needed<Home> {
    can_mount()?;
    let home = Home::new();
    home.dirs(&["mnt", "rootfs"]);
    shell(
        &home,
        "cd rootfs; mkdir dir; seq 1000 > dir/file; echo x > other; chmod 640 other; ln other dir/linked",
    );
    home.run(["import", "-q", "rootfs", "app:1"]).ok();
    home.run(["mount", "--name", "made", "app:1", "mnt"]).ok();
    fs::write(home.path("mnt/top"), "top").unwrap();
    home.run(["umount", "mnt"]).ok();
    home.run(["commit", "-q", "made", "app:2"]).ok();
    home.run(["rm", "made"]).ok();
    home.run(["save", "-q", "-o", "app.tar", "app:1", "app:2"])
        .ok();
    home.run(["mount", "--name", "work", "app:2", "mnt"]).ok();
    fs::write(home.path("mnt/work"), "work").unwrap();
    home.run(["umount", "mnt"]).ok();
    Ok(home)
}

fn base(home: &Home) -> PathBuf {
    let image = home.json(["inspect", "--json", "app:1"])[0].clone();
    PathBuf::from(image["layers"][0]["path"].as_str().unwrap())
}

/// Asserts that everything is whole and shows the same as before.
fn assert_whole(home: &Home) {
    assert!(home.run(["verify", "--all"]).ok().ends_with("no damage\n"));
    home.run(["mount", "--name", "work", "mnt"]).ok();
    for (file, content) in [("work", "work"), ("top", "top"), ("other", "x\n")] {
        let found = fs::read_to_string(home.path("mnt").join(file)).unwrap();
        assert_eq!(found, content);
    }
    let lines = fs::read_to_string(home.path("mnt/dir/file")).unwrap();
    assert_eq!(lines.lines().count(), 1000);
    home.run(["umount", "mnt"]).ok();
}

#[test]
fn a_damaged_layer_gets_new_files() {
    let home = need!(home());
    assert_whole(&home);
    let base = base(&home);
    let split = {
        let records = home.path("own/image/overlay2/layerdb/sha256");
        let records = fs::read_dir(records)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let id = base
            .parent()
            .unwrap()
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let mut records =
            records.filter(|path| fs::read_to_string(path.join("cache-id")).unwrap() == id);
        records.next().unwrap().join("tar-split.json.gz")
    };
    let damages: [(&str, &dyn Fn()); 5] = [
        ("content", &|| {
            fs::write(base.join("dir/file"), "damaged").unwrap();
        }),
        ("missing", &|| {
            fs::remove_dir_all(base.join("dir")).unwrap();
        }),
        ("extra", &|| {
            fs::write(base.join("extra"), "").unwrap();
        }),
        ("mode", &|| {
            let mode = fs::Permissions::from_mode(0o600);
            fs::set_permissions(base.join("other"), mode).unwrap();
        }),
        ("tar-split", &|| {
            fs::write(&split, "garbage").unwrap();
        }),
    ];
    for (what, damage) in damages {
        damage();
        let verified = home.run(["verify", "--all"]);
        verified.failed_with_output(&["unionfs load --repair -i ARCHIVE"]);
        // Existing layers are accepted unless `--repair` checks them.
        home.run(["load", "-q", "-i", "app.tar"]).ok();
        assert_eq!(home.run(["verify", "--all"]).code, Some(1), "{what}");
        let text = home.run(["load", "-q", "--repair", "-i", "app.tar"]).ok();
        assert_eq!(
            text.matches("Repaired layer: ").count(),
            1,
            "{what}: {text}"
        );
        assert_whole(&home);
    }
    let text = home.run(["load", "-q", "--repair", "-i", "app.tar"]).ok();
    assert!(!text.contains("Repaired"), "{text}");
    let left = fs::read_dir(home.path("own/overlay2")).unwrap().count();
    // Two layers, one read-write layer, and the short names.
    assert_eq!(left, 4);
    let pruned = home.run(["prune"]).ok();
    assert_whole(&home);
    assert!(!pruned.contains("layer"), "{pruned}");
}

#[test]
fn files_of_a_mounted_layer_stay() {
    let home = need!(home());
    let base = base(&home);
    fs::write(base.join("extra"), "").unwrap();
    home.run(["mount", "app:2", "mnt"]).ok();
    let refused = home.run(["load", "-q", "--repair", "-i", "app.tar"]);
    refused.failed(1, &["damaged layer sha256:", "unionfs umount"]);
    assert!(home.path("mnt/dir/file").exists());
    home.run(["umount", "mnt"]).ok();
    home.run(["load", "-q", "--repair", "-i", "app.tar"]).ok();
    assert_whole(&home);
}

/// Another archive does not have the bytes of the layer: nothing changes.
#[test]
fn what_cannot_be_repaired_stays_as_it_is() {
    let home = need!(home());
    let base = base(&home);
    fs::write(base.join("extra"), "").unwrap();
    let mut archive = fs::read(home.path("app.tar")).unwrap();
    let seen = archive
        .windows(8)
        .position(|bytes| bytes == b"999\n1000")
        .unwrap();
    archive[seen] = b'8';
    fs::write(home.path("bad.tar"), archive).unwrap();
    let refused = home.run(["load", "-q", "--repair", "-i", "bad.tar"]);
    refused.failed(1, &["its SHA-256 is"]);
    assert!(base.join("dir/file").exists() && base.join("extra").exists());
    home.run(["load", "-q", "--repair", "-i", "app.tar"]).ok();
    assert_whole(&home);
}

/// Any `load` writes a damaged record again; everything that lies on the layer still works.
#[test]
fn what_lies_on_a_layer_with_a_damaged_record_goes_on() {
    let home = need!(home());
    for (file, content) in [
        ("size", "x"),
        ("diff", "sha256:0"),
        ("tar-split.json.gz", ""),
    ] {
        let records = home.path("own/image/overlay2/layerdb/sha256");
        let records = fs::read_dir(records)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let base = records
            .filter(|path| !path.join("parent").exists() && path.join("cache-id").exists())
            .find(|path| !path.to_str().unwrap().ends_with("-removing"));
        fs::write(base.unwrap().join(file), content).unwrap();
        assert_eq!(home.run(["verify", "--all"]).code, Some(1), "{file}");
        let text = home.run(["load", "-q", "--repair", "-i", "app.tar"]).ok();
        assert!(text.ends_with("Loaded image: app:2\n"), "{text}");
        assert_whole(&home);
        home.run(["prune"]).ok();
        assert_whole(&home);
    }
}

/// A mount that begins while the archive still arrives keeps its files.
#[test]
fn a_mount_that_begins_during_the_repair_keeps_its_files() {
    let home = need!(home());
    let base = base(&home);
    fs::write(base.join("extra"), "").unwrap();
    let mut repair = home
        .command(testkit::program())
        .args(["load", "-q", "--repair"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let archive = fs::read(home.path("app.tar")).unwrap();
    let mut stdin = repair.stdin.take().unwrap();
    stdin.write_all(&archive[..512]).unwrap();
    // The command reads in its sandbox, with the store locked.
    wait_until("the beginning is read", || {
        rustix::io::ioctl_fionread(&stdin).unwrap() == 0
    });
    home.run(["mount", "app:2", "mnt"]).ok();
    stdin.write_all(&archive[512..]).unwrap();
    drop(stdin);
    let refused = repair.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("unionfs umount"), "{stderr}");
    let lines = fs::read_to_string(home.path("mnt/dir/file")).unwrap();
    assert_eq!(lines.lines().count(), 1000);
    home.run(["umount", "mnt"]).ok();
    home.run(["load", "-q", "--repair", "-i", "app.tar"]).ok();
    assert_whole(&home);
}
