//! Catalogs of directories that cannot change: squashfs and erofs get them by themselves, for as long
//! as they are mounted. Another image on the same place is another one, also if all its numbers and
//! times are equal.

use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::disk::Disk;
use testkit::home::{Home, wait_until};
use testkit::need;
use testkit::need::{Needed, can_mount, has_tools};

use crate::catalog::{catalogs, is_used};

/// The file systems, and the command that makes an image of a directory. All times are those of 1970.
const KINDS: [(&str, &str); 2] = [
    (
        "squashfs",
        "mksquashfs DIRECTORY IMAGE -quiet -no-progress -all-time 0 -mkfs-time 0",
    ),
    ("erofs", "mkfs.erofs -T0 -U UUID IMAGE DIRECTORY"),
];
const UUID: &str = "11111111-2222-3333-4444-555555555555";

fn tools() -> Needed {
    has_tools(&["mksquashfs", "mkfs.erofs"])
}

/// Mounts an image of `tree` on `low`.
fn mounted(home: &Home, kind: usize, tree: &str) -> Disk {
    let (kind, make) = KINDS[kind];
    let image = home.path("image");
    let _ = std::fs::remove_file(&image);
    let _ = std::fs::remove_dir(home.path("low"));
    let (tree, image) = (home.text(tree), home.text("image"));
    let mut words = make.split(' ').map(|word| match word {
        "DIRECTORY" => &tree,
        "IMAGE" => &image,
        "UUID" => UUID,
        word => word,
    });
    let made = Command::new(words.next().unwrap()).args(words).output();
    let made = made.unwrap();
    assert!(made.status.success(), "{made:?}");
    let low = home.path("low");
    Disk::mount(kind, Path::new(&image), &low, "ro").unwrap_or_else(|e| panic!("{e}"))
}

fn home() -> Home {
    let home = Home::new();
    home.dirs(&["mnt", "upper", "work", "one/dir", "two/dir", "data"]);
    for (tree, text) in [("one", "first"), ("two", "other")] {
        std::fs::write(home.path(tree).join("dir/file"), text).unwrap();
        std::fs::write(home.path(tree).join(text), "").unwrap();
        std::os::unix::fs::symlink(text, home.path(tree).join("link")).unwrap();
    }
    home
}

/// Mounts, and returns whether a catalog is used, and what is seen.
fn seen(home: &Home, options: &str) -> (bool, Vec<String>) {
    home.run(["-o", options, "mnt"]).ok();
    let used = is_used(home);
    let names = std::fs::read_dir(home.path("mnt")).unwrap();
    let mut seen: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    seen.sort();
    let link = std::fs::read_link(home.path("mnt/link")).unwrap();
    seen.push(link.into_os_string().into_string().unwrap());
    seen.push(std::fs::read_to_string(home.path("mnt/dir/file")).unwrap());
    (used, seen)
}

fn umount(home: &Home) {
    home.run(["umount", "mnt"]).ok();
}

/// Mounts until there is one catalog.
fn with_catalog(home: &Home, options: &str) -> PathBuf {
    let (used, _) = seen(home, options);
    assert!(!used, "there was none");
    wait_until("a catalog is made", || catalogs(home).len() == 1);
    umount(home);
    catalogs(home).remove(0)
}

const WRITABLE: &str = "lowerdir=low,upperdir=upper,workdir=work";

#[test]
fn the_first_mount_makes_one() {
    need!(can_mount());
    need!(tools());
    for kind in 0..KINDS.len() {
        let home = home();
        let disk = mounted(&home, kind, "one");
        let made = with_catalog(&home, "lowerdir=low");
        let first = ["dir", "first", "link", "first", "first"].map(str::to_owned);
        for options in ["lowerdir=low", WRITABLE] {
            assert_eq!(seen(&home, options), (true, first.to_vec()), "{options}");
            umount(&home);
        }
        let off = seen(&home, "lowerdir=low,catalog=off");
        assert_eq!(off, (false, first.to_vec()));
        umount(&home);
        let rows = home.json(["catalog", "ls", "--json"]);
        assert_eq!(rows[0]["driver"], "mounts");
        assert_eq!(rows[0]["path"], made.to_str().unwrap());
        // A directory of it is another lower.
        let inner = "lowerdir=low/dir";
        home.run(["-o", inner, "mnt"]).ok();
        assert!(!is_used(&home));
        umount(&home);
        home.run(["prune", "--force"]).ok();
        assert!(made.exists(), "it can be used again");
        drop(disk);
        home.run(["prune", "--force"]).ok();
        assert!(catalogs(&home).is_empty(), "of a mount that is gone");
    }
}

#[test]
fn another_image_on_the_same_place_is_another_one() {
    need!(can_mount());
    need!(tools());
    for kind in 0..KINDS.len() {
        let home = home();
        let disk = mounted(&home, kind, "one");
        let old = with_catalog(&home, "lowerdir=low");
        drop(disk);
        let disk = mounted(&home, kind, "two");
        let other = ["dir", "link", "other", "other", "other"].map(str::to_owned);
        assert_eq!(seen(&home, "lowerdir=low"), (false, other.to_vec()));
        wait_until("its own is made", || {
            !catalogs(&home).is_empty() && !catalogs(&home).contains(&old)
        });
        umount(&home);
        assert_eq!(seen(&home, WRITABLE), (true, other.to_vec()));
        umount(&home);
        assert_eq!(catalogs(&home).len(), 1, "the old one is gone");
        drop(disk);
    }
}

/// Nothing says that a directory of a writable file system does not change.
#[test]
fn with_a_writable_lower_there_is_none() {
    need!(can_mount());
    need!(tools());
    let home = home();
    let _disk = mounted(&home, 0, "one");
    for options in ["lowerdir=low:two", "lowerdir=two:low", "lowerdir=one"] {
        let (used, _) = seen(&home, options);
        // Nothing tells that no catalog is made. This is longer than it takes.
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert!(!used && catalogs(&home).is_empty(), "{options}");
        umount(&home);
    }
}

/// As composefs: names and attributes are on erofs, the data is in files of a writable file system.
#[test]
fn data_only_layers_may_be_writable() {
    need!(can_mount());
    need!(tools());
    let home = home();
    std::fs::write(home.path("data/object"), "first").unwrap();
    let file = home.path("one/dir/file");
    std::fs::write(&file, "").unwrap();
    std::fs::File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(5)
        .unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    for (name, value) in [("metacopy", ""), ("redirect", "/object")] {
        let name = format!("trusted.overlay.{name}");
        rustix::fs::setxattr(&file, name, value.as_bytes(), flags).unwrap();
    }
    let _disk = mounted(&home, 1, "one");
    let options = "lowerdir=low::data";
    with_catalog(&home, options);
    let first = ["dir", "first", "link", "first", "first"].map(str::to_owned);
    assert_eq!(seen(&home, options), (true, first.to_vec()));
    umount(&home);
}
