//! Hard links of the layers stay links: across copy-up, rename, unlink and remount.

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use testkit::fixture::Fixture;
use testkit::layers::{Layer, set_xattr};
use testkit::{need, need_mounts, without};

const LINKS: [&str; 3] = ["h1", "h2", "merged/h3"];

fn assert_linked(f: &Fixture, names: &[&str], content: &str) {
    let stat = |name: &&str| {
        let meta = f.at(name).symlink_metadata().unwrap();
        (meta.ino(), meta.nlink())
    };
    let all: Vec<_> = names.iter().map(stat).collect();
    let first = (all[0].0, names.len() as u64);
    assert!(all.iter().all(|s| *s == first), "{names:?}: {all:?}");
    for name in names {
        assert_eq!(
            std::fs::read_to_string(f.at(name)).unwrap(),
            content,
            "{name}"
        );
    }
}

#[test]
fn lower_links_are_one_file() {
    need_mounts!();
    assert_linked(&Fixture::standard(), &LINKS, "hard\n");
}

#[test]
fn copy_up_of_one_is_copy_up_of_all() {
    need_mounts!();
    need!(without::has_file_handles());
    for written in LINKS {
        let mut f = Fixture::standard();
        f.ok(&format!("write {written} 0 HARD"));
        assert_linked(&f, &LINKS, "HARD\n");
        f.remount();
        assert_linked(&f, &LINKS, "HARD\n");
        f.ok("chmod h2 600\nwrite h1 0 again");
        assert_linked(&f, &LINKS, "again");
    }
}

#[test]
fn links_come_and_go() {
    need_mounts!();
    need!(without::has_file_handles());
    let mut f = Fixture::standard();
    f.ok("unlink h1");
    assert_linked(&f, &["h2", "merged/h3"], "hard\n");
    f.ok("link h2 h4\nwrite h4 0 HARD\nrename merged/h3 removed.txt");
    let names = ["h2", "h4", "removed.txt"];
    assert_linked(&f, &names, "HARD\n");
    f.remount();
    assert_linked(&f, &names, "HARD\n");
    f.ok("rename h2 h4");
    // POSIX: renaming one link to another does nothing.
    assert_linked(&f, &names, "HARD\n");
    f.ok("unlink h2\nunlink h4");
    assert_linked(&f, &["removed.txt"], "HARD\n");
}

/// Equal content does not make two files one.
#[test]
fn different_files_are_not_linked() {
    need_mounts!();
    let f = Fixture::standard();
    f.ok("create a 644\ncreate b 644\nwrite a 0 x\nunlink a\ncreate c 644");
    let ino = |name: &str| f.at(name).metadata().unwrap().ino();
    assert_ne!(ino("b"), ino("c"));
    assert_eq!(std::fs::read_to_string(f.at("c")).unwrap(), "");
}

/// A file that lost its only known name is the same file under a name that is looked up later.
#[test]
fn another_name_of_an_open_file_is_found_after_the_first_is_gone() {
    need_mounts!();
    let mut f = Fixture::standard();
    f.ok("create a 644\nlink a b");
    f.remount();
    let mut open = std::fs::File::options()
        .read(true)
        .write(true)
        .open(f.at("a"))
        .unwrap();
    f.ok("unlink a");
    std::io::Write::write_all(&mut open, b"through a").unwrap();
    let (held, named) = (open.metadata().unwrap(), f.at("b").metadata().unwrap());
    assert_eq!((held.ino(), named.nlink()), (named.ino(), 1));
    assert_eq!(std::fs::read_to_string(f.at("b")).unwrap(), "through a");
    f.ok("rename b c\nchmod c 600");
    assert_eq!(open.metadata().unwrap().mode() & 0o777, 0o600);
}

/// A copy-up that fails at its last step leaves no index entry, which would block the next one.
#[test]
fn a_failed_copy_up_leaves_nothing_in_the_index() {
    need_mounts!();
    need!(without::has_file_handles());
    let f = Fixture::new(&[Layer::new().dir("d").file("d/a", "data").link("d/b", "d/a")]);
    f.ok("chmod d 700");
    let immutable = |flag: &str| {
        let chattr = Command::new("chattr").arg(flag).arg(f.upper("d")).status();
        chattr.is_ok_and(|status| status.success())
    };
    // The disk of the tests supports immutable files; a tmpfs does not.
    need!(if immutable("+i") {
        Ok(())
    } else {
        Err("needs chattr and a file system with immutable files")
    });
    let answers = f.run("chmod d/a 600");
    assert!(immutable("-i"));
    assert_eq!(answers, [Err("EPERM".to_owned())]);
    let index = f.stack.upper.as_ref().unwrap().1.join("index");
    assert_eq!(std::fs::read_dir(index).unwrap().count(), 0);
    f.ok("chmod d/a 600");
    assert_linked(&f, &["d/a", "d/b"], "data");
}

/// Hard links of other types than regular files.
#[test]
fn links_of_symlinks_and_fifos_stay_links() {
    need_mounts!();
    need!(without::has_file_handles());
    let lower = Layer::new().symlink("s1", "to").link("s2", "s1");
    let lower = lower.fifo("p1").link("p2", "p1");
    let mut f = Fixture::new(&[lower]);
    let linked = |f: &Fixture, names: [&str; 2], uid: u32| {
        let stat = |name: &str| {
            let meta = f.at(name).symlink_metadata().unwrap();
            (meta.ino(), meta.nlink(), meta.uid())
        };
        let (a, b) = (stat(names[0]), stat(names[1]));
        assert_eq!((a, a.1, a.2), (b, 2, uid), "{names:?}");
    };
    for name in ["s1", "p1"] {
        std::os::unix::fs::lchown(f.at(name), Some(7), None).unwrap();
    }
    f.remount();
    linked(&f, ["s1", "s2"], 7);
    linked(&f, ["p1", "p2"], 7);
    f.ok("rename s2 s3\nrename p2 p3");
    linked(&f, ["s1", "s3"], 7);
    linked(&f, ["p1", "p3"], 7);
    f.remount();
    linked(&f, ["s1", "s3"], 7);
    linked(&f, ["p1", "p3"], 7);
}

/// A link count that no file can have is ignored, and adding it causes no panic.
#[test]
fn hostile_link_counts_do_no_harm() {
    need_mounts!();
    need!(without::has_file_handles());
    for count in ["U+9223372036854775807", "L-9", "U+4294967292", "U", "L+x"] {
        let mut f = Fixture::new(&[Layer::new().file("a", "data").link("b", "a")]);
        f.ok("chmod a 600");
        f.unmount();
        set_xattr(&f.upper("a"), b"trusted.overlay.nlink", count.as_bytes());
        f.remount();
        f.ok("stat a\nlink a c\nlink b d\nstat c\nunlink a\nunlink b\nwrite d 0 DATA");
        assert_eq!(std::fs::read(f.at("c")).unwrap(), b"DATA", "{count}");
    }
}
