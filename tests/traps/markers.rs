//! Objects of users that look like markers: they are refused as overlayfs does or kept unchanged,
//! and are never a marker at the next mount. The `.wh.` names of lowers are markers.

use testkit::fixture::Fixture;
use testkit::layers::{Form, Layer, standard};
use testkit::mount::{Fs, KERNEL, subject};
use testkit::runner::{Case, compare};
use testkit::tree::{self, Mask};
use testkit::{need_mounts, script};

/// Private attributes of every kind, set on everything by root through the mount.
#[test]
fn attributes_of_overlays_set_inside() {
    need_mounts!();
    let mut text = String::from("create new 644\nmkdir newdir 755\ncreate newdir/f 644\n");
    for name in ["new", "newdir", "plain.txt", "merged", "deep/a"] {
        for (xattr, value) in [
            ("opaque", "y"),
            ("opaque", "x"),
            ("whiteout", "y"),
            ("redirect", "/deep"),
            ("metacopy", "-"),
            ("origin", "x"),
            ("overlay.opaque", "y"),
            ("other", "1"),
        ] {
            text += &format!(
                "setxattr {name} trusted.overlay.{xattr} {value}
                 getxattr {name} trusted.overlay.{xattr}
                 listxattr {name}
                 setxattr {name} user.overlay.{xattr} {value}
                 getxattr {name} user.overlay.{xattr}
                 "
            );
        }
        text += &format!("removexattr {name} trusted.overlay.redirect\nlistxattr {name}\n");
    }
    text += "readdir newdir\nread new\nread plain.txt\nreaddir merged\nreaddir deep/a";
    // The kernel of `KERNEL` reads trusted.overlay.* only, as `dialect=overlay` does.
    let case = Case {
        layers: &standard(),
        script: &script::parse(&text),
        uppers: true,
        tmpfs: false,
        made: None,
    };
    let found = compare(&KERNEL, &Fs::Unionfs("dialect=overlay"), &case);
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// `.wh.` names are data in the kernel's dialect, through every operation.
#[test]
fn wh_names_made_inside() {
    need_mounts!();
    let text = "create .wh.plain.txt 644
         create merged/.wh..wh..opq 644
         mkdir .wh.dir 755
         create .wh.dir/.wh.x 644
         symlink plain.txt .wh.big.bin
         rename top.txt .wh.both.txt
         mknod .wh.h1 10644 0 0
         link h1 .wh.h2
         mknod w 20000 0 0
         mknod merged/w 20644 0 0
         readdir .
         readdir merged
         read plain.txt
         unlink .wh.both.txt
         read both.txt";
    let case = Case {
        layers: &standard(),
        script: &script::parse(text),
        uppers: true,
        tmpfs: false,
        made: None,
    };
    let found = compare(&KERNEL, &Fs::Unionfs("dialect=overlay"), &case);
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// A whiteout in a middle layer hides the names below, though a higher layer has the name again.
fn middle_whiteouts() -> Vec<Layer> {
    let top = Layer::new()
        .dir("d")
        .file("d/new", "new\n")
        .file("again", "again\n")
        .dir("dir-again")
        .file("dir-again/top", "top\n");
    let middle = Layer::new()
        .whiteout("d")
        .whiteout("again")
        .whiteout("dir-again")
        .whiteout("gone")
        .dir("opaque")
        .opaque()
        .whiteout("opaque/in")
        .whiteout("opaque/never")
        .file("opaque/kept", "kept\n");
    let bottom = Layer::new()
        .dir("d")
        .file("d/old", "old\n")
        .file("again", "hidden\n")
        .dir("dir-again")
        .file("dir-again/old", "old\n")
        .file("gone", "gone\n")
        .dir("opaque")
        .file("opaque/in", "in\n")
        .file("opaque/kept", "hidden\n")
        .file("opaque/old", "old\n");
    vec![top, middle, bottom]
}

#[test]
fn whiteouts_in_a_middle_layer() {
    need_mounts!();
    // The upper's root is made again each time.
    let mask = Mask::from_now();
    let expected = Fixture::new(&middle_whiteouts()).tree();
    let names: Vec<_> = expected
        .keys()
        .map(|n| String::from_utf8_lossy(n))
        .collect();
    let told = "|again|d|d/new|dir-again|dir-again/top|opaque|opaque/kept";
    assert_eq!(names.join("|"), told);
    assert_eq!(expected[&b"opaque/kept"[..]].size, 5, "of the middle layer");
    // An opaque directory cannot hold whiteouts of the xattr form: `opaque` has one value.
    for form in [
        Form::Kernel,
        Form::WhNames,
        Form::UserOpaque,
        Form::FuseOverlayfs,
    ] {
        let mut f = Fixture::with(&subject(), &middle_whiteouts(), form, true);
        tree::assert_same(&format!("{form:?}"), &expected, &f.tree(), &mask);
        f.remount();
        tree::assert_same(&format!("{form:?} again"), &expected, &f.tree(), &mask);
    }
}

/// The order of lookups and listings does not change the result.
#[test]
fn the_order_of_lookups_changes_nothing() {
    need_mounts!();
    for form in [Form::Kernel, Form::WhNames] {
        let mut f = Fixture::with(&subject(), &middle_whiteouts(), form, true);
        let expected = f.tree();
        let names = [
            "d/old",
            "d",
            "opaque/in",
            "opaque",
            "dir-again/old",
            "gone",
            "again",
        ];
        // Each name once as the first, the others after it in turn, forwards and backwards.
        for first in 0..names.len() {
            for backwards in [false, true] {
                f.remount();
                for n in 0..names.len() {
                    let n = if backwards {
                        first + names.len() - n
                    } else {
                        first + n
                    };
                    let name = names[n % names.len()];
                    let found = std::fs::symlink_metadata(f.at(name)).is_ok();
                    let should = expected.contains_key(name.as_bytes());
                    assert_eq!(found, should, "{name} in {form:?}");
                    if let Ok(entries) = std::fs::read_dir(f.at(name)) {
                        assert!(entries.count() > 0);
                    }
                }
                tree::assert_same("the tree", &expected, &f.tree(), &Mask::ALL);
            }
        }
    }
}
