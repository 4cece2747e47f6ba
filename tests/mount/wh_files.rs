//! Files whose names begin with `.wh.` where such names are whiteouts: their directory is marked, so
//! they are files for unionfs and for kernel overlayfs at the next mount too.

use testkit::base::{Base, Refusing};
use testkit::fixture::Fixture;
use testkit::layers::{self, Form, Layer};
use testkit::mount::{Fs, KERNEL, Scratch, Stack, UNIONFS};
use testkit::tree::{self, Mask};
use testkit::without::{self, Lack};
use testkit::{need, need_mounts};

fn two_layers() -> [Layer; 2] {
    let below = Layer::new()
        .dir("d")
        .file("d/f", "f")
        .file("d/g", "g")
        .dir("d/sub")
        .file("d/sub/x", "x")
        .dir("e")
        .file("e/gone", "gone")
        .file("e/kept", "kept");
    let above = Layer::new().dir("e").file("e/.wh.gone", "");
    [above, below]
}

fn stack(scratch: &Scratch) -> Stack {
    let lowers = layers::write_all(&two_layers(), scratch.path(), Form::Kernel);
    Stack::writable(scratch, lowers)
}

const MADE: &str = "create d/.wh.f 640
    write d/.wh.f 0 data
    mkdir d/.wh.g 750
    create d/.wh.g/in 600
    symlink target d/.wh..wh..opq
    mknod d/.wh.fifo 10600 0 0
    link d/f d/.wh.linked
    rename d/g d/.wh.moved
    create .wh.d 644
    mkdir d/sub/.wh..wh..opq 700";

#[test]
fn every_kind_of_file_can_have_such_a_name() {
    need_mounts!();
    need!(without::has(&[Lack::Whiteouts]));
    let scratch = Scratch::disk();
    let stack = stack(&scratch);
    let mut f = Fixture::over(&UNIONFS, scratch, stack);
    f.ok(MADE);
    let shown = [
        (
            "readdir d",
            ".wh..wh..opq:l .wh.f:f .wh.fifo:p .wh.g:d .wh.linked:f .wh.moved:f f:f sub:d",
        ),
        ("readdir d/sub", ".wh..wh..opq:d x:f"),
        ("read d/.wh.f", "\"data\""),
        ("read d/f", "\"f\""),
        ("read d/.wh.linked", "\"f\""),
        ("read d/.wh.moved", "\"g\""),
        ("readdir d/.wh.g", "in:f"),
        ("stat d/g", "ENOENT"),
        ("stat d/.wh.x", "ENOENT"),
        ("readdir e", "kept:f"),
        ("stat e/.wh.gone", "ENOENT"),
    ];
    f.expect(&shown);
    let tree = f.tree();
    f.remount();
    f.expect(&shown);
    tree::assert_same("mounted again", &tree, &f.tree(), &Mask::ALL);
    f.unmount();
    // For the kernel all such names are files, so it shows the whiteout of the lower too.
    let kernel = KERNEL.mount(&f.stack);
    let mut theirs = tree::list(kernel.path());
    kernel.unmount();
    assert!(theirs.remove(&b"e/.wh.gone"[..]).is_some());
    theirs.remove(&b"e/gone"[..]);
    tree::assert_same("shown by the kernel", &tree, &theirs, &Mask::ALL);
    f.remount();
    f.ok("unlink d/.wh.f
        unlink d/.wh.g/in
        rmdir d/.wh.g
        rename d/.wh.moved d/g
        unlink d/.wh..wh..opq
        unlink d/.wh.fifo
        unlink d/.wh.linked
        rmdir d/sub/.wh..wh..opq");
    f.expect(&[
        ("readdir d", "f:f g:f sub:d"),
        ("readdir d/sub", "x:f"),
        ("unlink d/f", ""),
        ("readdir d", "g:f sub:d"),
    ]);
}

/// Such an upper as a lower: its files are changed, removed and moved like others, also with a
/// catalog.
#[test]
fn files_of_lowers_with_such_names() {
    need_mounts!();
    need!(without::has(&[Lack::Whiteouts]));
    for fs in [UNIONFS, Fs::Catalogued("")] {
        let scratch = Scratch::disk();
        let mut made = stack(&scratch);
        let first = UNIONFS.mount(&made);
        testkit::exec::run(first.path(), &testkit::script::parse(MADE))
            .into_iter()
            .for_each(|answer| drop(answer.unwrap()));
        let mut tree = tree::list(first.path());
        first.unmount();
        let (upper, _) = made.upper.take().unwrap();
        let second = Stack {
            lowers: [&[upper][..], &made.lowers].concat(),
            upper: Some((scratch.dir("upper2"), scratch.dir("work2"))),
            mnt: scratch.dir("mnt2"),
        };
        let mut f = Fixture::over(&fs, scratch, second);
        // The root is that of the new upper.
        let mut again = f.tree();
        for tree in [&mut tree, &mut again] {
            tree.retain(|path, _| !path.is_empty());
        }
        tree::assert_same("as a lower", &tree, &again, &Mask::ALL);
        f.ok("chmod d/.wh.f 600
            unlink d/.wh.moved
            rename d/.wh.linked d/.wh.again
            unlink d/.wh.fifo
            create d/.wh.fifo 644");
        for _ in 0..2 {
            f.expect(&[
                (
                    "readdir d",
                    ".wh..wh..opq:l .wh.again:f .wh.f:f .wh.fifo:f .wh.g:d f:f sub:d",
                ),
                ("read d/.wh.f", "\"data\""),
                ("read d/.wh.again", "\"f\""),
                ("stat d/.wh.moved", "ENOENT"),
                ("read d/f", "\"f\""),
                ("readdir d/sub", ".wh..wh..opq:d x:f"),
                ("readdir d/.wh.g", "in:f"),
            ]);
            f.remount();
        }
    }
}

/// A directory of the upper that has whiteouts in this form keeps them.
#[test]
fn whiteouts_of_the_upper_stay_whiteouts() {
    need_mounts!();
    need!(without::has(&[Lack::Whiteouts]));
    let scratch = Scratch::disk();
    let stack = stack(&scratch);
    let upper = stack.upper.as_ref().unwrap().0.clone();
    std::fs::create_dir(upper.join("d")).unwrap();
    std::fs::write(upper.join("d/.wh.f"), "").unwrap();
    let mut f = Fixture::over(&UNIONFS, scratch, stack);
    for _ in 0..2 {
        f.expect(&[
            ("create d/.wh.new 644", "EINVAL"),
            ("mkdir d/.wh..wh..opq 755", "EINVAL"),
            ("link d/g d/.wh.x", "EINVAL"),
            ("rename d/g d/.wh.x", "EINVAL"),
            ("stat d/.wh.f", "ENOENT"),
            ("readdir d", "g:f sub:d"),
            ("create d/sub/.wh.x 600", ""),
            ("unlink d/sub/.wh.x", ""),
        ]);
        f.remount();
    }
}

/// Where the upper refuses devices, fuse-overlayfs would write its whiteouts in this form.
#[test]
fn uppers_without_devices_take_no_such_names() {
    need_mounts!();
    for refusing in [Refusing::Devices, Refusing::DevicesAndXattrs] {
        let base = Base::mount(refusing);
        let scratch = Scratch::disk();
        let stack = Stack {
            lowers: layers::write_all(&two_layers(), scratch.path(), Form::Kernel),
            upper: Some(base.upper()),
            mnt: scratch.dir("mnt"),
        };
        let f = Fixture::over(&UNIONFS, scratch, stack);
        f.expect(&[
            ("create d/.wh.f 644", "EINVAL"),
            ("mkdir d/.wh.top 755", "EINVAL"),
            ("symlink x .wh..wh..opq", "EINVAL"),
            ("link d/f .wh.x", "EINVAL"),
            ("rename d/f d/.wh.top", "EINVAL"),
            ("stat .wh.d", "ENOENT"),
            ("unlink d/f", ""),
            ("readdir d", "g:f sub:d"),
        ]);
    }
}
