//! Whiteouts on an upper that accepts no character device 0:0: an upper on an overlay, which
//! refuses to make one but accepts `overlay.*` xattrs (escaped). Then unionfs writes the xattr
//! form. If xattrs are refused too, it writes `.wh.` files. (`parity/refused` tests this at
//! random.)

use testkit::base::{Base, Refusing};
use testkit::fixture::Fixture;
use testkit::layers::{self, Form, Layer};
use testkit::mount::{self, Fs, KERNEL, Scratch, Stack, UNIONFS};
use testkit::tree::{self, Mask};
use testkit::{exec, need, need_mounts, script, without};

/// Without an upper there is no index.
const KERNEL_READ_ONLY: Fs = Fs::Kernel("redirect_dir=follow,metacopy=off");

#[test]
fn the_xattr_form_hides_and_comes_back() {
    need_mounts!();
    need!(without::lists_trusted());
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
    // The kernel reads the form in a lower, because it accepts no overlay as an upper.
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

/// Makes a stack whose upper is on a file system that refuses markers.
fn on(base: &Base, layers: &[Layer]) -> (Scratch, Stack) {
    let scratch = Scratch::disk();
    let stack = Stack {
        lowers: layers::write_all(layers, scratch.path(), Form::Kernel),
        upper: Some(base.upper()),
        mnt: scratch.dir("mnt"),
    };
    (scratch, stack)
}

fn three_layers() -> [Layer; 2] {
    let below = Layer::new()
        .file("gone", "1")
        .file("file", "old")
        .dir("d")
        .file("d/f", "old")
        .dir("d/sub")
        .file("d/sub/g", "old")
        .dir("e")
        .file("e/x", "x")
        .file("e/y", "y")
        .file("moved", "m")
        .dir("again")
        .file("again/old", "old");
    let above = Layer::new()
        .dir("d")
        .file("d/h", "old")
        .dir("again")
        .file("again/newer", "old");
    [above, below]
}

/// Each way in which a name is hidden or returns, the listing of its directory afterwards, and a
/// rename over a directory that holds nothing but whiteouts.
#[test]
fn wh_files_hide_and_come_back() {
    need_mounts!();
    let base = Base::mount(Refusing::DevicesAndXattrs);
    let (scratch, stack) = on(&base, &three_layers());
    let mut f = Fixture::over(&UNIONFS, scratch, stack);
    f.ok("unlink gone
          unlink file
          mkdir file 750
          create file/in 600
          rename moved new
          unlink d/f
          unlink d/h
          unlink d/sub/g
          rmdir d/sub
          rmdir d
          mkdir d 700
          create d/new 600
          unlink e/x
          unlink e/y
          mkdir fresh 711
          create fresh/f 600
          rename fresh e
          unlink again/old
          unlink again/newer
          create again/old 640");
    let names = [
        (".", "again d e file new"),
        ("again", "old"),
        ("d", "new"),
        ("e", "f"),
        ("file", "in"),
    ];
    let check = |f: &Fixture, when: &str| {
        for (dir, expected) in names {
            let mut found: Vec<_> = std::fs::read_dir(f.at(dir))
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect();
            found.sort();
            assert_eq!(found.join(" "), expected, "{dir}, {when}");
        }
        let hidden = [
            "gone",
            "moved",
            "d/f",
            "d/sub",
            "e/x",
            "again/newer",
            "fresh",
        ];
        for name in hidden {
            assert_eq!(
                f.run(&format!("stat {name}")),
                [Err("ENOENT".into())],
                "{name}, {when}"
            );
        }
    };
    check(&f, "live");
    for form in [".wh.gone", ".wh.moved", "d/.wh..wh..opq", "again/.wh.newer"] {
        assert!(f.upper(form).exists(), "{form} was written");
    }
    assert!(
        !f.upper("again/.wh.old").exists(),
        "a name that is back has no whiteout"
    );
    let before = f.tree();
    f.remount();
    check(&f, "remounted");
    tree::assert_same("remounted", &before, &f.tree(), &Mask::ALL);
    // Hidden again, and present again as another type.
    f.ok("unlink again/old
          rmdir again
          create again 600
          unlink again
          symlink d again
          mkdir gone 700
          rename gone moved
          unlink e/f
          rmdir e");
    let before = f.tree();
    f.remount();
    tree::assert_same("changed after a remount", &before, &f.tree(), &Mask::ALL);
    f.expect(&[
        ("readlink again", "d"),
        ("stat gone", "ENOENT"),
        ("stat e", "ENOENT"),
        ("create .wh.x 600", "EINVAL"),
    ]);
}

/// unionfs reads what Debian's fuse-overlayfs leaves there, and fuse-overlayfs reads ours.
#[test]
fn wh_files_and_fuse_overlayfs() {
    need_mounts!();
    let peer = Fs::Program(need!(mount::fuse_overlayfs()));
    let changes = "unlink gone
        unlink d/f
        unlink d/h
        unlink d/sub/g
        rmdir d/sub
        rmdir d
        mkdir d 700
        create d/new 600
        unlink file
        mkdir file 755
        unlink e/x
        rename moved e/moved";
    let more = "unlink d/new
        rmdir d
        unlink e/y
        create gone 600
        rmdir file";
    for (writer, second) in [(&UNIONFS, &peer), (&peer, &UNIONFS)] {
        let base = Base::mount(Refusing::DevicesAndXattrs);
        let (_scratch, stack) = on(&base, &three_layers());
        let visit = |fs: &Fs, text: &str| {
            let mounted = fs.mount(&stack);
            let ops = script::parse(text);
            for (op, answer) in ops.iter().zip(exec::run(mounted.path(), &ops)) {
                assert!(answer.is_ok(), "{fs:?}: {op}: {answer:?}");
            }
            let mut tree = tree::list(mounted.path());
            mounted.unmount();
            // Link counts: each implementation counts in its own way, as does the kernel of a FUSE
            // mount.
            for entry in tree.values_mut() {
                entry.nlink = 1;
            }
            tree
        };
        let written = visit(writer, changes);
        let what = format!("written by {writer:?}, read by {second:?}");
        tree::assert_same(&what, &written, &visit(second, ""), &Mask::ALL);
        let changed = visit(second, more);
        let what = format!("changed by {second:?}, read by {writer:?}");
        tree::assert_same(&what, &changed, &visit(writer, ""), &Mask::ALL);
    }
}

/// Where `.wh.` files would be data, they are not written: the mount fails and gives the reason.
#[test]
fn wh_files_are_not_written_where_they_are_data() {
    need_mounts!();
    let base = Base::mount(Refusing::DevicesAndXattrs);
    let (_scratch, stack) = on(&base, &three_layers());
    let refused = Fs::Unionfs("dialect=overlay")
        .try_mount(&stack)
        .err()
        .unwrap();
    for word in ["whiteouts", "dialect=all", "upper"] {
        assert!(refused.contains(word), "{refused}");
    }
}

/// An upper in the xattr form is moved to a file system that allows devices: its whiteouts stay,
/// new ones are devices, and no directory lists either.
#[test]
fn the_xattr_form_moves_to_where_devices_are_taken() {
    need_mounts!();
    let scratch = Scratch::disk();
    let low = Layer::new()
        .dir("d")
        .file("d/a", "a")
        .file("d/b", "b")
        .file("d/c", "c");
    let low = low.file("x", "x").file("y", "y").file("z", "z");
    let up = Layer::new().dir("d").whiteout("d/a").whiteout("x");
    for form in [Form::TrustedXattr, Form::UserXattr] {
        let dir = |name: &str| scratch.dir(&format!("{form:?}-{name}"));
        let (lower, upper) = (dir("low"), dir("up"));
        low.write(&lower);
        up.write_as(&upper, form);
        let stack = Stack {
            lowers: vec![lower],
            upper: Some((upper, dir("work"))),
            mnt: dir("mnt"),
        };
        let mounted = UNIONFS.mount(&stack);
        let run = |text: &str| exec::run(mounted.path(), &script::parse(text));
        let listed = |dir: &str| {
            let entries = std::fs::read_dir(mounted.path().join(dir)).unwrap();
            let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(listed("."), ["d", "y", "z"], "{form:?}");
        assert_eq!(listed("d"), ["b", "c"], "{form:?}");
        let all = run("unlink d/b\nunlink y\ncreate x 600\nunlink x\nrmdir d");
        let expected = [true, true, true, true, false];
        let done: Vec<_> = all.iter().map(Result::is_ok).collect();
        assert_eq!(done, expected, "{form:?}: {all:?}");
        let tree = tree::list(mounted.path());
        mounted.unmount();
        let again = UNIONFS.mount(&stack);
        tree::assert_same("remounted", &tree, &tree::list(again.path()), &Mask::ALL);
        let emptied = exec::run(again.path(), &script::parse("unlink d/c\nrmdir d"));
        assert!(emptied.iter().all(Result::is_ok), "{form:?}: {emptied:?}");
        again.unmount();
    }
}
