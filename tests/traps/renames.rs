//! The rename family: every kind of entry onto every other, with every flag; merged directories,
//! whiteouts, hard links, sticky directories, a directory into itself.

use std::fmt::Write as _;

use testkit::layers::Layer;
use testkit::mount::{KERNEL, subject};
use testkit::runner::{Case, compare};
use testkit::{need_mounts, script};

use crate::same_on_standard;

/// The kinds of entries for each pair; the name is `KIND` with the number of the pair.
const KINDS: [&str; 10] = [
    "missing", "whiteout", "lower", "upper", "linked", "symlink", "empty", "lowerdir", "merged",
    "upperdir",
];

/// Makes entry `name` of `kind`: adds it to the two lower layers and to the script.
fn make(kind: &str, name: &str, lower: Layer, top: Layer, text: &mut String) -> (Layer, Layer) {
    match kind {
        "whiteout" => (lower.file(name, "hidden\n"), top.whiteout(name)),
        "lower" => (lower.file(name, format!("lower {name}\n")), top),
        "linked" => {
            let lower = lower.file(name, format!("linked {name}\n"));
            (lower.link(format!("{name}.other"), name), top)
        }
        "symlink" => (lower.symlink(name, "target"), top),
        "empty" => (lower.dir(name), top),
        "lowerdir" => (lower.dir(name).file(format!("{name}/in"), "in\n"), top),
        "merged" => {
            let lower = lower.dir(name).file(format!("{name}/below"), "below\n");
            let top = top.dir(name).file(format!("{name}/above"), "above\n");
            (lower, top)
        }
        "upper" => {
            writeln!(text, "create {name} 644\nwrite {name} 0 upper-{name}").unwrap();
            (lower, top)
        }
        "upperdir" => {
            writeln!(text, "mkdir {name} 755\ncreate {name}/new 644").unwrap();
            (lower, top)
        }
        _ => (lower, top),
    }
}

fn every_pair(flags: &str) {
    need_mounts!();
    let (mut lower, mut top, mut text) = (Layer::new(), Layer::new(), String::new());
    for from in KINDS {
        for to in KINDS {
            let (a, b) = (format!("{from}-{to}-a"), format!("{from}-{to}-b"));
            (lower, top) = make(from, &a, lower, top, &mut text);
            (lower, top) = make(to, &b, lower, top, &mut text);
            write!(
                text,
                "rename {a} {b} {flags}
                 stat {a}
                 stat {b}
                 read {a}
                 read {b}
                 readdir {a}
                 readdir {b}
                 "
            )
            .unwrap();
        }
    }
    // The uppers are not compared: after a failed rename the kernel may leave a copied-up
    // directory.
    let case = Case {
        layers: &[top, lower],
        script: &script::parse(&text),
        uppers: false,
        tmpfs: false,
        made: None,
    };
    let found = compare(&KERNEL, &subject(), &case);
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn every_kind_onto_every_kind() {
    every_pair("-");
}

#[test]
fn every_kind_with_noreplace() {
    every_pair("noreplace");
}

#[test]
fn every_kind_exchanged_with_every_kind() {
    every_pair("exchange");
}

/// A directory with content in three layers is moved, changed, moved again and replaced.
#[test]
fn merged_directories_of_three_layers() {
    need_mounts!();
    same_on_standard(
        "write merged/bottom 0 changed
         create merged/upper 644
         rename merged moved
         readdir moved
         readdir moved/sub
         mkdir merged 755
         readdir merged
         rename moved/sub merged/sub
         readdir merged/sub
         rename merged/sub moved/sub
         rename moved/gone x
         create moved/gone 644
         unlink moved/top
         rename moved merged
         readdir merged
         rename deep merged/deep
         rename merged/deep/a a
         readdir a/b/c
         rename a deep
         readdir deep
         read deep/b/c/leaf",
    );
}

#[test]
fn into_its_own_subtree() {
    need_mounts!();
    same_on_standard(
        "rename deep deep/x
         rename deep deep/a
         rename deep deep/a/b/c/d
         rename deep deep/a exchange
         rename deep/a deep exchange
         rename deep/a/b deep
         rename merged merged/sub/x
         rename merged merged
         rename merged ./merged
         rename deep/a deep/a/
         rename plain.txt plain.txt/x
         rename plain.txt plain.txt
         rename h1 h2
         stat h1
         stat h2
         rename h1 h2 exchange
         rename . x
         rename x .",
    );
}

#[test]
fn sticky_directories() {
    need_mounts!();
    same_on_standard(
        "mkdir free 777
         chmod free 777
         mkdir tmp 1777
         chmod tmp 1777
         as 1000 1000
         create tmp/a 644
         create free/a 644
         mkdir tmp/d 755
         as 1001 1001
         create tmp/b 644
         create free/b 644
         rename tmp/a free/x
         rename tmp/b tmp/a
         rename free/b tmp/a
         rename tmp/b tmp/a exchange
         rename free/b tmp/a exchange
         rename sticky/of-1000 free/x
         rename sticky/of-1001 free/x
         rename free/a sticky/of-1000
         rename free/x sticky/of-1000 exchange
         rename tmp/d free/d
         as 1000 1000
         rename tmp/d free/d
         rename free/d tmp/d
         rename sticky/of-1000 tmp/mine
         as 0 0
         rename sticky/of-1001 tmp/theirs
         readdir tmp
         readdir free
         readdir sticky",
    );
}

/// The steps of package managers: the new file beside the old, a link of the old one as a backup, a
/// rename over it.
#[test]
fn replaced_like_a_package() {
    need_mounts!();
    same_on_standard(
        "create plain.txt.dpkg-new 600
         write plain.txt.dpkg-new 0 version-2
         chown plain.txt.dpkg-new 1000 1001
         chmod plain.txt.dpkg-new 640
         utimens plain.txt.dpkg-new 1600000000.0 1600000000.0
         link plain.txt plain.txt.dpkg-tmp
         rename plain.txt.dpkg-new plain.txt
         read plain.txt
         stat plain.txt.dpkg-tmp
         unlink plain.txt.dpkg-tmp
         stat plain.txt.dpkg-tmp",
    );
}

/// A directory is replaced by each other type and back.
#[test]
fn removed_and_made_again_as_every_type() {
    need_mounts!();
    let remove = "unlink deep/a/b/c/leaf
         rmdir deep/a/b/c
         rmdir deep/a/b
         rmdir deep/a
         rmdir deep
         stat deep
         ";
    for again in [
        "mkdir deep 755\nreaddir deep\nmkdir deep/a 755\nreaddir deep/a",
        "create deep 644\nread deep",
        "symlink merged deep\nreaddir deep",
        "mknod deep 10644 0 0\nstat deep",
        "mknod deep 20600 1 3\nstat deep",
        "mknod deep 140755 0 0\nstat deep",
        "link plain.txt deep\nread deep",
        "rename merged deep\nreaddir deep",
        "rename opaque deep\nreaddir deep",
        "rename both.txt deep\nread deep\nunlink deep\nmkdir deep 700\nreaddir deep",
    ] {
        same_on_standard(&format!("{remove}{again}"));
    }
}
