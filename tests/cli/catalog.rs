//! Catalogs of images: made automatically, used, checked, listed, and removed with their image.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use testkit::home::{Home, wait_until};
use testkit::need::{can_mount, has_tools};
use testkit::{need, program, strace};

use crate::own_store::fill;

fn home() -> Home {
    let home = Home::new();
    home.dirs(&["mnt"]);
    fill(&home.path("own"));
    home
}

/// Returns the finished catalogs.
pub(super) fn catalogs(home: &Home) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(home.path("own/unionfs/catalogs")) else {
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = paths.filter(|p| p.extension().is_none()).collect();
    paths.sort();
    paths
}

pub(super) fn is_used(home: &Home) -> bool {
    let stats = home.json(["stats", "--json", "mnt"]);
    stats["union"]["catalogued"].as_bool().unwrap()
}

fn names(home: &Home) -> Vec<String> {
    let entries = std::fs::read_dir(home.path("mnt")).unwrap();
    let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

#[test]
fn the_first_mount_makes_what_the_next_uses() {
    need!(can_mount());
    let home = home();
    home.run(["mount", "--read-only", "one", "mnt"]).ok();
    assert!(!is_used(&home), "there was none");
    let end = Instant::now() + Duration::from_secs(60);
    while catalogs(&home).is_empty() {
        assert!(Instant::now() < end, "none was made");
        std::thread::sleep(Duration::from_millis(10));
    }
    let shown = names(&home);
    assert_eq!(shown, ["base", "middle", "top"]);
    home.run(["umount", "mnt"]).ok();
    home.run(["mount", "--ephemeral", "one", "mnt"]).ok();
    assert!(is_used(&home));
    assert_eq!(names(&home), shown);
    home.run(["umount", "mnt"]).ok();
    // A named layer on the same image has the same catalog.
    home.run(["mount", "--name", "work", "one", "mnt"]).ok();
    assert!(is_used(&home));
    home.run(["umount", "mnt"]).ok();
    let off = ["mount", "--read-only", "-o", "catalog=off", "one", "mnt"];
    home.run(off).ok();
    assert!(!is_used(&home));
    home.run(["umount", "mnt"]).ok();
    assert_eq!(catalogs(&home).len(), 1);
}

/// The two lines that strace writes for calls of two tasks at once are read as one call a line
/// (`strace::text`).
#[test]
fn calls_cut_in_two_are_whole() {
    let cut = "\
7  openat(3, \"a\" <unfinished ...>
8  read(4,  <unfinished ...>
7  <... openat resumed>, O_RDONLY) = 5
9  close(1) = 0
7  futex(0x1, FUTEX_WAIT, 1, NULL <unfinished ...>
8  <... read resumed>\"x\", 10) = 1
7  +++ exited with 0 +++
";
    let whole = "\
7  openat(3, \"a\", O_RDONLY) = 5
8  read(4, \"x\", 10) = 1
9  close(1) = 0
7  futex(0x1, FUTEX_WAIT, 1, NULL <unfinished ...>
7  +++ exited with 0 +++
";
    let home = Home::new();
    for text in [cut, whole] {
        std::fs::write(home.path("calls"), text).unwrap();
        assert_eq!(strace::text(&home.path("calls")), whole);
    }
}

/// The process that makes a catalog enters its sandbox before it reads the first directory of a
/// layer.
#[test]
fn a_catalog_is_made_in_a_sandbox() {
    need!(can_mount());
    need!(has_tools(&["strace"]));
    let home = home();
    let calls = "trace=openat,getdents64,landlock_restrict_self,seccomp,capset";
    let log = home.path("calls");
    let log = log.to_str().unwrap();
    let strace = ["-f", "-qq", "-o", log, "-e", calls, program()];
    let mount = ["mount", "--read-only", "one", "mnt"];
    let mut command = home.command("strace");
    // The daemon inherits the output too, so the test must not wait for its end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut traced = command.args(strace).args(mount).spawn().unwrap();
    wait_until("a catalog is made", || !catalogs(&home).is_empty());
    home.run(["umount", "mnt"]).ok();
    traced.wait().unwrap();
    let text = strace::text(&home.path("calls"));
    let made = |line: &&str| line.contains(".new\"") && line.contains("O_EXCL");
    let line = text.lines().find(made).unwrap();
    let pid = line.split(' ').next().unwrap();
    let own = text
        .lines()
        .filter(|line| line.split(' ').next() == Some(pid));
    let own: Vec<_> = own.skip_while(|line| !made(line)).collect();
    let position = |what: &str| own.iter().position(|line| line.contains(what));
    let first_read = position("getdents64(").unwrap();
    for part in [
        "landlock_restrict_self(",
        "SECCOMP_SET_MODE_FILTER",
        "capset(",
    ] {
        let entered = position(part).unwrap_or_else(|| panic!("{part}: {own:#?}"));
        assert!(entered < first_read, "{part} {own:#?}");
        assert!(own[entered].ends_with("= 0"), "{}", own[entered]);
    }
}

#[test]
fn without_being_asked_for_none_is_made() {
    need!(can_mount());
    let home = home();
    let off = ["mount", "--read-only", "-o", "catalog=off", "one", "mnt"];
    home.run(off).ok();
    home.run(["umount", "mnt"]).ok();
    home.dirs(&["lower", "upper", "work"]);
    home.mount();
    home.run(["umount", "mnt"]).ok();
    assert!(!home.path("own/unionfs/catalogs").exists());
}

#[test]
fn build_verify_ls_rm() {
    let home = home();
    let report = home.json(["catalog", "build", "--json", "one:1"]);
    assert_eq!(
        (report["names"].as_u64(), report["layers"].as_u64()),
        (Some(3), Some(3))
    );
    let [path] = &catalogs(&home)[..] else {
        panic!("one catalog");
    };
    assert_eq!(report["path"], path.to_str().unwrap());
    let said = home.run(["catalog", "verify", "one"]).ok();
    assert!(said.contains("agree"), "{said}");
    let rows = home.json(["catalog", "ls", "--json"]);
    assert_eq!(rows[0]["store"], home.path("own").to_str().unwrap());
    assert!(home.json(["df", "--json"])["catalogs"].as_u64() > Some(0));

    // A file of the middle layer is changed: the output has its name and the difference.
    let layers = home.json(["layers", "--json", "one"]).to_string();
    let dirs = layers.split('"').filter(|text| text.ends_with("/diff"));
    let file = dirs.map(|dir| PathBuf::from(dir).join("middle"));
    let file = file.into_iter().find(|file| file.exists()).unwrap();
    std::fs::write(&file, "more than before").unwrap();
    let report = home.run(["catalog", "verify", "--json", "one"]);
    let json: serde_json::Value = serde_json::from_str(&report.stdout).unwrap();
    assert_eq!(json["differences"][0]["path"], "middle");
    home.run(["catalog", "verify", "one"])
        .failed_with_output(&["1 name differs", "catalog build"]);
    home.run(["catalog", "build", "one"]).ok();
    home.run(["catalog", "verify", "one"]).ok();

    // A bit of the body is flipped.
    let mut bytes = std::fs::read(path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(path, bytes).unwrap();
    home.run(["catalog", "verify", "one"])
        .failed(1, &["damaged", "catalog build"]);
    assert!(home.run(["catalog", "rm", "one"]).ok().contains("removed"));
    assert!(home.run(["catalog", "rm", "one"]).ok().contains("none"));
    home.run(["catalog", "verify", "one"])
        .failed(1, &["catalog build"]);
}

#[test]
fn catalogs_go_with_their_image() {
    let home = home();
    home.run(["catalog", "build", "one:1"]).ok();
    home.run(["catalog", "build", "two:1"]).ok();
    assert_eq!(catalogs(&home).len(), 2);
    home.run(["rmi", "one:1"]).ok();
    assert_eq!(catalogs(&home).len(), 2, "it has another name");
    home.run(["rmi", "one"]).ok();
    assert_eq!(catalogs(&home).len(), 1);
    // A catalog that no image needs is removed, however it was made.
    let [kept] = &catalogs(&home)[..] else {
        panic!("one catalog");
    };
    let dir = home.path("own/unionfs/catalogs");
    std::fs::write(dir.join("unfinished.new"), "x").unwrap();
    std::fs::write(dir.join("no-catalog"), "x").unwrap();
    let listed = home.run(["prune", "--dry-run"]).ok();
    assert_eq!(listed.matches("catalog of no layer").count(), 2, "{listed}");
    home.run(["prune"]).ok();
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
    assert!(kept.exists());
}

#[test]
fn a_catalog_of_directories_is_used_where_it_is_named() {
    need!(can_mount());
    let home = home();
    home.dirs(&["a", "b"]);
    std::fs::write(home.path("a/in-a"), "").unwrap();
    let build = ["catalog", "build", "-o", "lowerdir=b:a", "ab.catalog"];
    home.run(build).ok();
    home.run(["-o", "lowerdir=b:a,catalog=./ab.catalog", "mnt"])
        .ok();
    assert!(is_used(&home));
    assert_eq!(names(&home), ["in-a"]);
    home.run(["umount", "mnt"]).ok();
    // The catalog belongs to other layers: the mount does not use it.
    home.run(["-o", "lowerdir=a:b,catalog=./ab.catalog", "mnt"])
        .ok();
    assert!(!is_used(&home));
    assert_eq!(names(&home), ["in-a"]);
    home.run(["umount", "mnt"]).ok();
    let bad = ["-o", "lowerdir=a,catalog=maybe", "mnt"];
    home.refused(2, bad, &["catalog=maybe", "on, off"]);
}

/// An image with a catalog is mounted without reading the records of its layers, as long as nobody
/// has replaced a record.
#[test]
fn where_the_layers_are_is_noted_until_a_record_is_replaced() {
    need!(can_mount());
    let home = home();
    home.run(["catalog", "build", "one"]).ok();
    let layers = home.path("own/image/overlay2/layerdb/sha256");
    let mut records = std::fs::read_dir(&layers)
        .unwrap()
        .map(|e| e.unwrap().path());
    // The top of this image is the only layer whose parent has a parent.
    let parent = |record: &Path| {
        let text = std::fs::read_to_string(record.join("parent")).ok()?;
        Some(layers.join(text.strip_prefix("sha256:")?))
    };
    let is_top = |record: &PathBuf| parent(record).is_some_and(|below| parent(&below).is_some());
    let record = records.find(is_top).unwrap();
    let (file, other) = (record.join("diff"), record.join("other"));
    let right = std::fs::read(&file).unwrap();
    let wrong = std::fs::read(record.join("parent")).unwrap();
    let mount = ["mount", "--read-only", "one", "mnt"];
    // The change is not noticed, so the records were not read.
    std::fs::write(&file, &wrong).unwrap();
    home.run(mount).ok();
    assert_eq!(names(&home), ["base", "middle", "top"]);
    home.run(["umount", "mnt"]).ok();
    let off = ["mount", "--read-only", "-o", "catalog=off", "one", "mnt"];
    home.run(off).failed(1, &["diff"]);

    let replace = |text: &[u8]| {
        std::fs::write(&other, text).unwrap();
        std::fs::rename(&other, &file).unwrap();
    };
    replace(&wrong);
    home.run(mount).failed(1, &["diff"]);
    // After the correct file is back, it is read once more and noted again.
    replace(&right);
    let inode = || {
        catalogs(&home)
            .first()
            .map(|path| path.metadata().unwrap().ino())
    };
    let before = inode();
    home.run(mount).ok();
    assert!(is_used(&home));
    let end = Instant::now() + Duration::from_secs(60);
    while inode() == before {
        assert!(Instant::now() < end, "no new note was made");
        std::thread::sleep(Duration::from_millis(10));
    }
    home.run(["umount", "mnt"]).ok();
    std::fs::write(&file, &wrong).unwrap();
    home.run(mount).ok();
    home.run(["umount", "mnt"]).ok();
}
