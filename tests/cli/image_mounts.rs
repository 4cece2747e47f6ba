//! The library mounts an image by name as the command does: with its catalog, and with an upper
//! that is made for it. The program in `examples/images.rs` does what its comment says.

use std::fs;
use std::path::Path;

use testkit::home::Home;
use testkit::need;
use testkit::need::can_mount;
use unionfs::image_mounts::{Error, ImageMount};
use unionfs::store::Stores;
use unionfs::store::discovery::Environment;

fn home() -> Home {
    let home = Home::with_layers();
    home.run(["import", "-q", "lower", "app:1"]).ok();
    home
}

fn found(home: &Home) -> ImageMount {
    let own = home.path("own");
    let stores = Stores::discover(Some(&own), &Environment::default()).unwrap();
    ImageMount::find_in(stores, "app:1", own).unwrap()
}

fn catalogs(home: &Home) -> usize {
    let listed = home.json(["catalog", "ls", "--json"]);
    listed.as_array().unwrap().len()
}

#[test]
fn the_library_mounts_an_image_as_the_tool_does() {
    need!(can_mount());
    let home = home();
    let mountpoint = home.path("mnt");
    let mounted = found(&home).with_catalog().unwrap();
    assert_eq!(catalogs(&home), 1);
    let mounted = mounted.mount(&mountpoint).unwrap();
    let upper = mounted.upper().unwrap().to_owned();
    assert!(upper.starts_with(home.path("own/rw")), "{upper:?}");
    let background = mounted.spawn().unwrap();
    assert_eq!(
        fs::read_to_string(mountpoint.join("file")).unwrap(),
        "lower\n"
    );
    fs::write(mountpoint.join("new"), "new").unwrap();
    let line = mount_line(&mountpoint);
    assert!(line.contains("nosuid") && line.contains("nodev"), "{line}");
    background.unmount().unwrap();
    assert_eq!(fs::read_to_string(upper.join("new")).unwrap(), "new");

    let background = found(&home).read_only().mount(&mountpoint).unwrap();
    assert_eq!(background.upper(), None);
    let background = background.spawn().unwrap();
    let refused = fs::write(mountpoint.join("new"), "").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    background.unmount().unwrap();
    assert_eq!(mount_line(&mountpoint), "");
}

fn mount_line(mountpoint: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let at = format!(" {} ", mountpoint.display());
    mounts
        .lines()
        .find(|line| line.contains(&at))
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn a_mount_that_fails_leaves_no_upper() {
    need!(can_mount());
    let home = home();
    let absent = home.path("absent");
    let failed = found(&home).mount(&absent).unwrap_err();
    assert!(matches!(failed, Error::Mount(_)), "{failed}");
    assert_eq!(fs::read_dir(home.path("own/rw")).unwrap().count(), 0);
    let stores = Stores::discover(Some(&home.path("own")), &Environment::default()).unwrap();
    let unknown = ImageMount::find_in(stores, "other:1", home.path("own"));
    assert!(matches!(unknown, Err(Error::Store(_))));
}

/// An image with several names is known by the one that was typed.
#[test]
fn a_mount_has_the_name_by_which_the_image_was_mounted() {
    need!(can_mount());
    let home = crate::own_store::home();
    home.dirs(&["second"]);
    for name in ["one:latest", "one:1"] {
        home.run(["mount", "-r", name, "mnt"]).ok();
        home.run(["mount", "--name", "work", name, "second"]).ok();
        let shown = home.run(["ps", "--format", "{{.Source}}"]).ok();
        assert_eq!(shown, format!("{name}\n{name}\n"));
        home.run(["umount", "second"]).ok();
        home.run(["umount", name]).ok();
        home.run(["rm", "work"]).ok();
    }
    let squashed = ["squash", "--from", "0123456", "one:latest", "new:1"];
    home.run(squashed).failed(1, &["one:latest has no layer"]);
}
