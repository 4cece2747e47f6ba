//! Whiteouts where the upper takes no character device 0:0: an upper on an overlay, which
//! refuses to make one but takes `overlay.*` xattrs (escaped). Then the xattr form is written.

use crate::common::fixture::Fixture;
use crate::common::layers::{self, Form};
use crate::common::mount::{Fs, KERNEL, Scratch, Stack, UNIONFS};
use crate::common::need_mounts;
use crate::common::tree::{self, Mask};

/// Without an upper there is no index.
const KERNEL_READ_ONLY: Fs = Fs::Kernel("redirect_dir=follow,metacopy=off");

#[test]
fn the_xattr_form_hides_and_comes_back() {
    need_mounts!();
    let outer = Scratch::disk();
    let stack = Stack {
        lowers: vec![outer.dir("low")],
        upper: Some((outer.dir("upper"), outer.dir("work"))),
        mnt: outer.dir("mnt"),
    };
    let base = KERNEL.mount(&stack);
    let scratch = Scratch::disk();
    let (upper, work) = (base.path().join("up"), base.path().join("wk"));
    std::fs::create_dir(&upper).unwrap();
    std::fs::create_dir(&work).unwrap();
    let stack = Stack {
        lowers: layers::write_all(&layers::standard(), scratch.path(), Form::Kernel),
        upper: Some((upper.clone(), work)),
        mnt: scratch.dir("mnt"),
    };
    let mut f = Fixture::over(&UNIONFS, scratch, stack);
    f.ok("unlink plain.txt
          rename both.txt moved.txt
          rename merged merged2
          unlink merged2/over
          unlink empty.txt
          create empty.txt 600");
    let check = [
        ("stat plain.txt", "ENOENT"),
        ("stat both.txt", "ENOENT"),
        ("stat merged", "ENOENT"),
        ("stat merged2/over", "ENOENT"),
        (
            "stat empty.txt",
            "mode 100600 owner 0:0 size 0 nlink 1 rdev 0",
        ),
    ];
    f.expect(&check);
    let whiteout = std::fs::symlink_metadata(upper.join("plain.txt")).unwrap();
    assert!(whiteout.is_file(), "no device could be made");
    f.remount();
    f.expect(&check);
    let names: Vec<_> = std::fs::read_dir(f.root())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert!(
        !names
            .iter()
            .any(|n| n == "plain.txt" || n == "both.txt" || n == "merged")
    );
    f.ok("mkdir plain.txt 755\nrmdir plain.txt");
    f.expect(&check[..1]);
    // The kernel reads the form, here as that of a lower: it takes no overlay as an upper.
    let tree = f.tree();
    f.unmount();
    let lowers = [&[upper][..], &f.stack.lowers].concat();
    let over = Stack {
        lowers,
        upper: None,
        mnt: f.scratch.dir("over"),
    };
    let kernel = KERNEL_READ_ONLY.mount(&over);
    let theirs = tree::list(kernel.path());
    kernel.unmount();
    tree::assert_same("shown by the kernel", &tree, &theirs, &Mask::ALL);
    drop(f);
    base.unmount();
}
