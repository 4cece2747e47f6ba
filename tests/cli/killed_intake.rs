//! Commands that take images in (`load`, `import`, `commit`), killed or failed at each of their
//! system calls. Afterwards either all images are there with their names, or none of them has a
//! name.

use std::path::Path;
use std::process::Command;

use testkit::home::{Home, Outcome};
use testkit::need;
use testkit::need::{Needed, can_mount, has_tools};

use crate::killed_store::{View, fail_everywhere, home, kill_everywhere};
use crate::own_store;

/// Returns the home of the other tests, with an archive of the images to be loaded: `two:1`, which
/// the store has, and `three:1` and `three:2`, which share a layer and have one of each kind of
/// entry that a tar can hold.
fn with_archive() -> Needed<Home> {
    let home = home()?;
    own_store::fill(&home.path("own"));
    std::fs::write(home.path("rootfs.tar"), rootfs()).unwrap();
    let run = |args: &[&str]| home.run(args);
    run(&["import", "-q", "rootfs.tar", "three:1"]).ok();
    run(&["mount", "--name", "work", "three:1", "mnt"]).ok();
    std::fs::write(home.path("mnt/changed"), "changed").unwrap();
    std::fs::remove_file(home.path("mnt/dir/file")).unwrap();
    run(&["umount", "mnt"]).ok();
    run(&["commit", "-q", "work", "three:2"]).ok();
    let images = ["two:1", "three:1", "three:2"];
    run(&[&["save", "-q", "-o", "images.tar"][..], &images].concat()).ok();
    std::fs::remove_dir_all(home.path("own")).unwrap();
    Ok(home)
}

/// Returns a small root file system with one of each kind of entry.
fn rootfs() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind: tar::EntryType, link: &str, data: &str| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o750);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        tar.append_data(&mut header, name, data.as_bytes()).unwrap();
    };
    add("dir/", tar::EntryType::Directory, "", "");
    add("dir/file", tar::EntryType::Regular, "", "content");
    add("dir/again", tar::EntryType::Link, "dir/file", "");
    add("symlink", tar::EntryType::Symlink, "dir", "");
    add("null", tar::EntryType::Char, "", "");
    add("fifo", tar::EntryType::Fifo, "", "");
    add(".wh.hidden", tar::EntryType::Regular, "", "");
    add("dir/.wh..wh..opq", tar::EntryType::Regular, "", "");
    tar.into_inner().unwrap()
}

/// Returns the names, without the images that have them.
fn names(view: &View) -> Vec<&str> {
    let named = view.iter().filter_map(|entry| entry.split_once(' '));
    named
        .filter(|(name, _)| *name != "named")
        .map(|(name, _)| name)
        .collect()
}

const BEFORE: [&str; 3] = ["one:1", "one:latest", "two:1"];

#[test]
fn load() {
    let home = need!(with_archive());
    let args = ["load", "-q", "-i", "images.tar"];
    // Images are stored before their names, and all names at once.
    kill_everywhere(&home, &args, |seen| names(seen) == BEFORE);
}

#[test]
fn a_load_that_fails_leaves_nothing() {
    let home = need!(with_archive());
    fail_everywhere(&home, &["load", "-q", "-i", "images.tar"]);
}

/// What is kept whole of a name is there completely, or not at all.
#[test]
fn kept_whole() {
    let home = need!(home());
    let within = |args: &[&str]| {
        std::fs::rename(home.path("template"), home.path("own")).unwrap();
        home.run(args).ok();
        std::fs::rename(home.path("own"), home.path("template")).unwrap();
    };
    within(&["save", "-q", "--format", "oci", "two:1", "-o", "two.tar"]);
    let load = ["load", "-q", "--all", "-i", "two.tar"];
    kill_everywhere(&home, &load, |_| false);
    fail_everywhere(&home, &load);
    std::fs::remove_dir_all(home.path("own")).unwrap();
    within(&load);
    let nameless = |seen: &View| {
        let images = seen.iter().filter(|entry| entry.starts_with("sha256:"));
        images.count() == 2 && !seen.iter().any(|entry| entry.starts_with("two"))
    };
    kill_everywhere(&home, &["rmi", "two:1"], nameless);
}

/// Each run gives another ID, because the image has the time in it.
fn one_more(seen: &View, name: &str) -> bool {
    let images = seen.iter().filter(|entry| entry.starts_with("sha256:"));
    let more = [&BEFORE[..], &[name]].concat();
    let same = |names: &[&str]| {
        let mut expected = names.to_vec();
        expected.sort_unstable();
        self::names(seen) == expected
    };
    images.count() == 3 && (same(&BEFORE) || same(&more))
}

#[test]
fn import() {
    let home = need!(home());
    std::fs::write(home.path("rootfs.tar"), rootfs()).unwrap();
    let args = ["import", "-q", "rootfs.tar", "made:1"];
    kill_everywhere(&home, &args, |seen| one_more(seen, "made:1"));
    fail_everywhere(&home, &args);
}

/// If the directory cannot be read to its end, the name stays with the image that had it.
#[test]
fn an_import_that_fails_half_way_takes_no_name() {
    let home = need!(home());
    std::fs::rename(home.path("template"), home.path("own")).unwrap();
    home.dirs(&["rootfs/a"]);
    std::fs::write(home.path("rootfs/a/first"), "first").unwrap();
    std::fs::write(home.path("rootfs/last"), "last").unwrap();
    let before = crate::killed_store::view(&home.path("own"), "before");
    let mut command = home.command("strace");
    command
        .args(["-f", "-qq", "-o", "/dev/null", "-P"])
        .arg(home.path("rootfs/last"));
    command.args([
        "-e",
        "trace=pread64,read,preadv2",
        "-e",
        "inject=pread64,read,preadv2:error=EIO",
    ]);
    command.args([testkit::program(), "import", "-q", "rootfs", "one:1"]);
    let outcome = Outcome::from(command.output().unwrap());
    outcome.failed(1, &["/last", "Input/output error"]);
    assert_eq!(
        crate::killed_store::view(&home.path("own"), "after"),
        before
    );
    assert_eq!(
        home.json(["prune", "--json"])["items"],
        serde_json::json!([])
    );
    home.run(["import", "-q", "rootfs", "one:1"]).ok();
}

/// Returns a home with a named layer that has a change of every kind.
fn with_changes() -> Needed<Home> {
    let home = home()?;
    std::fs::rename(home.path("template"), home.path("own")).unwrap();
    home.run(["mount", "--name", "work", "one:1", "mnt"]).ok();
    let mnt = home.path("mnt");
    std::fs::remove_file(mnt.join("base")).unwrap();
    std::fs::create_dir(mnt.join("new")).unwrap();
    std::fs::write(mnt.join("new/file"), "file").unwrap();
    std::fs::hard_link(mnt.join("new/file"), mnt.join("new/link")).unwrap();
    std::os::unix::fs::symlink("file", mnt.join("new/symlink")).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(mnt.join("new/file"), "user.note", b"value", flags).unwrap();
    home.run(["umount", "mnt"]).ok();
    std::fs::rename(home.path("own"), home.path("template")).unwrap();
    Ok(home)
}

#[test]
fn commit() {
    let home = need!(with_changes());
    let args = ["commit", "-q", "work", "made:1"];
    kill_everywhere(&home, &args, |seen| one_more(seen, "made:1"));
}

#[test]
fn a_commit_that_fails_leaves_nothing() {
    let home = need!(with_changes());
    fail_everywhere(&home, &["commit", "-q", "work", "made:1"]);
}

/// A file system that is too small for the layers: a real full disk, in the middle of a layer.
#[test]
fn a_really_full_disk_is_one_error_and_no_residue() {
    need!(can_mount());
    need!(has_tools(&["mount"]));
    let home = Home::new();
    home.dirs(&["small", "rootfs"]);
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=3m", "none"])
        .arg(home.path("small"))
        .status();
    assert!(mount.unwrap().success());
    let root = home.text("small/own");
    let run = |args: &[&str]| home.run([&["--store", &root, "--root", &root], args].concat());
    let fill = |count: usize| {
        for n in 0..count {
            std::fs::write(home.path(&format!("rootfs/{n}")), vec![1; 256 << 10]).unwrap();
        }
    };
    fill(4);
    run(&["import", "-q", "rootfs", "fits:1"]).ok();
    let used = free(&home.path("small"));
    fill(20);
    run(&["import", "-q", "rootfs", "fits:1"]).failed(1, &["free some space"]);
    // The archive comes from a store with enough room. The image has one layer that fits and one
    // that does not.
    let other = home.text("other");
    let elsewhere =
        |args: &[&str]| home.run([&["--store", &other, "--root", &other], args].concat());
    elsewhere(&["import", "-q", "rootfs", "big:1"]).ok();
    elsewhere(&["save", "-q", "-o", "big.tar", "big:1"]).ok();
    run(&["load", "-q", "-i", "big.tar"]).failed(1, &["free some space"]);
    // From a pipe, if the archive itself does not fit.
    let piped = home
        .command("sh")
        .args(["-c", "cat big.tar | exec \"$0\" --store \"$1\" load -q"])
        .args([testkit::program(), &root])
        .output();
    Outcome::from(piped.unwrap()).failed(1, &["cannot write the archive", "free some space"]);
    assert_eq!(free(&home.path("small")), used, "something was left");
    assert!(run(&["verify", "--all"]).ok().ends_with("no damage\n"));
}

fn free(path: &Path) -> u64 {
    rustix::fs::statvfs(path).unwrap().f_bfree
}
