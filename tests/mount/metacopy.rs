//! `metacopy=on`: changes of metadata, renames and links of lower files copy no data, in the format
//! of kernel overlayfs. `parity/deep` compares random scripts with the kernel's `metacopy=on`.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD};
use testkit::fixture::Fixture;
use testkit::layers::{Layer, big_data, net_raw_capability, set_xattr};
use testkit::mount::{Fs, KERNEL, Mounted, Scratch, Stack, UNIONFS};
use testkit::need::has_tools;
use testkit::strace::Trace;
use testkit::tree::{self, Mask};
use testkit::without::{self, Lack};
use testkit::{need, need_mounts};

const METACOPY: Fs = Fs::Unionfs("metacopy=on");
const KERNEL_METACOPY: Fs = Fs::Kernel("index=on,redirect_dir=on,metacopy=on,xino=auto");
const MARKER: &[u8] = b"trusted.overlay.metacopy";
const REDIRECT: &[u8] = b"trusted.overlay.redirect";

/// The files of the lower.
const FILES: [&str; 4] = ["f", "d/g", "h1", "h2"];

fn layer() -> Layer {
    let files = Layer::new()
        .dir("d")
        .file("f", big_data())
        .file("d/g", big_data());
    let links = files.file("h1", big_data()).link("h2", "h1");
    links.file("empty", "").dir("to")
}

fn union(fs: &Fs) -> Fixture {
    let scratch = Scratch::disk();
    let low = scratch.dir("low");
    layer().write(&low);
    let stack = Stack::writable(&scratch, vec![low]);
    Fixture::over(fs, scratch, stack)
}

/// Whether the upper has a metacopy of this name, which has the size of the data and no blocks for
/// it.
fn is_metacopy(f: &Fixture, name: &str) -> bool {
    let path = f.upper(name);
    if tree::xattr(&path, MARKER).is_err() {
        return false;
    }
    let meta = path.metadata().unwrap();
    assert!(meta.len() == 0 || meta.blocks() <= 16, "{name}: {meta:?}");
    assert_eq!(meta.len(), f.at(name).metadata().unwrap().len(), "{name}");
    true
}

fn assert_data(root: &Path, names: &[&str]) {
    for name in names {
        assert!(
            std::fs::read(root.join(name)).unwrap() == big_data(),
            "{name}"
        );
    }
}

/// Mounts the stack of a union that is not mounted by the kernel, compares the trees, and returns the
/// mount.
fn same_in_the_kernel(f: &mut Fixture) -> Mounted {
    let ours = f.tree();
    f.unmount();
    let kernel = KERNEL_METACOPY.mount(&f.stack);
    let theirs = tree::list(kernel.path());
    tree::assert_same("the kernel's tree", &ours, &theirs, &Mask::ALL);
    kernel
}

#[test]
fn changes_of_metadata_copy_no_data() {
    need_mounts!();
    for change in [
        "chmod f 600",
        "chown f 5 6",
        "utimens f 1.1 2.2",
        "setxattr f user.new value",
        "setacl f access 1000 6",
    ] {
        let mut f = union(&METACOPY);
        let blocks = f.at("f").metadata().unwrap().blocks();
        f.ok(change);
        assert!(is_metacopy(&f, "f"), "{change}");
        // The caller sees the blocks of the data, and no marker.
        assert_eq!(f.at("f").metadata().unwrap().blocks(), blocks, "{change}");
        let names = tree::xattr_names(&f.at("f")).unwrap();
        assert!(
            !names.iter().any(|n| n.starts_with(b"trusted.overlay")),
            "{change}"
        );
        assert_data(f.root(), &["f"]);
        same_in_the_kernel(&mut f).unmount();
        f.remount();
        assert_data(f.root(), &["f"]);
        assert!(is_metacopy(&f, "f"), "{change}: the visits changed it");
    }
    // Without the option the data is copied.
    let f = union(&UNIONFS);
    f.ok("chmod f 600");
    assert!(!is_metacopy(&f, "f"));
}

/// Each change of the data completes the copy. The kernel reads the data, and its mount without
/// metacopies too.
#[test]
fn the_first_change_of_data_completes_the_copy() {
    need_mounts!();
    for io in ["io=cached", "io=cached,writeback", "io=passthrough"] {
        for (change, len) in [
            ("write f 5 changed", 300_000),
            ("write f 300000 x a", 300_001),
            ("truncate f 1000", 1000),
            ("truncate f 400000", 400_000),
            ("truncate f 0", 0),
            ("create f 644 t", 0),
            ("fallocate f 0 300000 1000", 301_000),
            ("copyrange d/g 0 f 0 10", 300_000),
        ] {
            let options: &'static str = match io {
                "io=cached" => "metacopy=on,io=cached",
                "io=passthrough" => "metacopy=on,io=passthrough",
                _ => "metacopy=on,io=cached,writeback",
            };
            let mut f = union(&Fs::Unionfs(options));
            f.ok("chown f 5 6\nutimens f 1.1 2.2");
            let early = File::open(f.at("f")).unwrap();
            assert!(is_metacopy(&f, "f"));
            f.ok(change);
            let about = format!("{change}, {io}");
            assert_eq!(early.metadata().unwrap().len(), len, "{about}");
            drop(early);
            let seen = std::fs::read(f.at("f")).unwrap();
            f.unmount();
            assert!(tree::xattr(&f.upper("f"), MARKER).is_err(), "{about}");
            assert!(std::fs::read(f.upper("f")).unwrap() == seen, "{about}");
            f.remount();
            let meta = f.at("f").metadata().unwrap();
            assert_eq!((meta.uid(), meta.gid(), meta.len()), (5, 6, len), "{about}");
            let ours = f.tree();
            f.unmount();
            let kernel = KERNEL.mount(&f.stack);
            let theirs = tree::list(kernel.path());
            kernel.unmount();
            tree::assert_same(&about, &ours, &theirs, &Mask::ALL);
            f.remount();
        }
    }
}

/// Files that move or get further names stay metacopies, with a redirect. A name over the old one is
/// another file.
/// With passthrough, the open for writing gives a metacopy its data. It loses nothing by that.
#[test]
fn an_open_for_writing_keeps_capability_and_times() {
    need_mounts!();
    let mut f = union(&Fs::Unionfs("metacopy=on,io=passthrough"));
    let low = f.stack.lowers[0].join("f");
    set_xattr(&low, b"security.capability", &net_raw_capability());
    f.remount();
    f.ok("chmod f 711");
    assert!(is_metacopy(&f, "f"));
    let seen = |f: &Fixture| {
        let meta = f.upper("f").metadata().unwrap();
        let capability = tree::xattr(&f.upper("f"), b"security.capability").ok();
        (meta.mtime(), meta.mtime_nsec(), capability)
    };
    let before = seen(&f);
    assert!(before.2.is_some());
    drop(OpenOptions::new().write(true).open(f.at("f")).unwrap());
    assert!(tree::xattr(&f.upper("f"), MARKER).is_err());
    assert_data(f.root(), &["f"]);
    assert_eq!(seen(&f), before);
    f.lowers_are_changed_by_the_test();
}

#[test]
fn renames_and_links_copy_no_data() {
    need_mounts!();
    need!(without::has(&[Lack::RenameFlags]));
    let mut f = union(&METACOPY);
    f.ok("rename f to/f\nrename d/g d/new\nlink to/f d/link\nrename h2 to/h\nmkdir own 755");
    f.ok("rename to/f own/f\ncreate f 600\nchmod own/f 640");
    for name in ["own/f", "d/link", "d/new", "to/h"] {
        assert!(is_metacopy(&f, name), "{name}");
        let redirect = tree::xattr(&f.upper(name), REDIRECT).unwrap();
        assert!(redirect.starts_with(b"/"), "{name}");
    }
    assert_data(f.root(), &["own/f", "d/link", "d/new", "to/h", "h1"]);
    assert_eq!(f.at("own/f").metadata().unwrap().nlink(), 2);
    let kernel = same_in_the_kernel(&mut f);
    assert_data(kernel.path(), &["own/f", "d/link", "d/new", "to/h", "h1"]);
    // The kernel moves them on.
    std::fs::rename(kernel.path().join("d/link"), kernel.path().join("moved")).unwrap();
    kernel.unmount();
    f.remount();
    assert_data(f.root(), &["own/f", "moved", "d/new", "to/h", "h1"]);
    f.ok("rename moved f\nrename own/f h1 exchange\nrename d/new own/new\nrename own elsewhere");
    assert_data(
        f.root(),
        &["f", "h1", "elsewhere/new", "elsewhere/f", "to/h"],
    );
    let kernel = same_in_the_kernel(&mut f);
    assert_data(
        kernel.path(),
        &["f", "h1", "elsewhere/new", "elsewhere/f", "to/h"],
    );
    kernel.unmount();
    f.remount();
    f.ok("write elsewhere/new 0 X");
    let mut expected = big_data();
    expected[0] = b'X';
    assert!(std::fs::read(f.at("elsewhere/new")).unwrap() == expected);
}

/// A path that is too long for a redirect: the data is copied.
#[test]
fn what_no_redirect_can_reach_gets_its_data() {
    need_mounts!();
    let scratch = Scratch::disk();
    let low = scratch.dir("low");
    // Twice 2,500 bytes, because a path in a system call has at most 4,095.
    let half = |name: &str| [name; 10].map(|n| n.repeat(250)).join("/");
    let (upper_half, lower_half) = (half("u"), half("l"));
    for name in ["f", "g"] {
        let path = low.join(&lower_half);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join(name), big_data()).unwrap();
    }
    std::fs::create_dir_all(low.join(&upper_half)).unwrap();
    let open = |root: &Path| File::open(root.join(&upper_half)).unwrap();
    let top = "l".repeat(250);
    rustix::fs::renameat(CWD, low.join(&top), open(&low), &top).unwrap();
    let stack = Stack::writable(&scratch, vec![low]);
    // Paths of the fixture's listings would be too long.
    let mounted = METACOPY.mount(&stack);
    let at = |name: &str| format!("{lower_half}/{name}");
    let dir = open(mounted.path());
    rustix::fs::renameat(&dir, at("f"), &dir, at("moved")).unwrap();
    rustix::fs::linkat(&dir, at("g"), &dir, at("link"), AtFlags::empty()).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::chmodat(&dir, at("link"), mode, AtFlags::empty()).unwrap();
    let upper = open(&stack.upper.as_ref().unwrap().0);
    for name in ["moved", "link", "g"] {
        let flags = rustix::fs::OFlags::RDONLY;
        let file = rustix::fs::openat(&upper, at(name), flags, mode).unwrap();
        let mut marker = [0; 16];
        let read = rustix::fs::fgetxattr(&file, "trusted.overlay.metacopy", &mut marker);
        assert_eq!(read, Err(rustix::io::Errno::NODATA), "{name}");
        let mut data = Vec::new();
        File::from(file).read_to_end(&mut data).unwrap();
        assert!(data == big_data(), "{name}");
    }
    drop((dir, upper));
    mounted.unmount();
}

#[test]
fn what_is_removed_while_open_keeps_its_data() {
    need_mounts!();
    for options in ["metacopy=on,io=cached", "metacopy=on,io=passthrough"] {
        let f = union(&Fs::Unionfs(options));
        f.ok("chmod f 600\nchmod d/g 600");
        let read = File::open(f.at("f")).unwrap();
        let mut both = OpenOptions::new();
        let write = both.read(true).write(true).open(f.at("d/g")).unwrap();
        f.ok("unlink f\nunlink d/g");
        let mut data = vec![0; 300_000];
        read.read_exact_at(&mut data, 0).unwrap();
        assert!(data == big_data());
        write.write_all_at(b"X", 0).unwrap();
        write.read_exact_at(&mut data, 0).unwrap();
        assert!(data[0] == b'X' && data[1..] == big_data()[1..]);
        read.set_permissions(PermissionsExt::from_mode(0o640))
            .unwrap();
        assert_eq!(read.metadata().unwrap().mode() & 0o7777, 0o640);
    }
}

/// The data may be two layers below, and a catalog may describe the lowers.
#[test]
fn metacopies_of_metacopies() {
    need_mounts!();
    let scratch = Scratch::disk();
    let low = scratch.dir("low");
    layer().write(&low);
    let mut stack = Stack::writable(&scratch, vec![low]);
    let f = Fixture::over(&METACOPY, scratch, stack.clone());
    f.ok("chmod f 600\nrename d/g to/g\nchmod h1 600");
    let blocks = f.at("f").metadata().unwrap().blocks();
    let mut f = f;
    f.unmount();
    stack.lowers.insert(0, stack.upper.take().unwrap().0);
    for fs in [METACOPY, Fs::Catalogued("metacopy=on")] {
        let scratch = Scratch::disk();
        let stack = Stack::writable(&scratch, stack.lowers.clone());
        let mut g = Fixture::over(&fs, scratch, stack);
        assert_eq!(g.at("f").metadata().unwrap().blocks(), blocks);
        g.ok("chown f 5 5\nrename to/g top\nchown h1 5 5");
        assert_data(g.root(), &["f", "top", "h1"]);
        assert!(is_metacopy(&g, "f") && is_metacopy(&g, "top"));
        assert_eq!(g.at("f").metadata().unwrap().blocks(), blocks);
        let kernel = same_in_the_kernel(&mut g);
        let meta = kernel.path().join("f").metadata().unwrap();
        assert_eq!(meta.blocks(), blocks, "in the kernel");
        kernel.unmount();
        g.remount();
        g.ok("write top 0 X");
        assert_eq!(std::fs::read(g.at("top")).unwrap()[0], b'X');
    }
}

/// A later mount without the option follows them, and completes them at the first change.
#[test]
fn a_mount_without_the_option_follows_them() {
    need_mounts!();
    let mut f = union(&METACOPY);
    f.ok("chmod f 600\nrename d/g to/g");
    f.unmount();
    let mounted = UNIONFS.mount(&f.stack);
    assert_data(mounted.path(), &["f", "to/g"]);
    std::fs::rename(mounted.path().join("to/g"), mounted.path().join("g")).unwrap();
    mounted.unmount();
    assert!(tree::xattr(&f.upper("g"), MARKER).is_err());
    assert!(std::fs::read(f.upper("g")).unwrap() == big_data());
    // The kernel refuses the one that is left without `metacopy=on`, and finds the other.
    let kernel = KERNEL.mount(&f.stack);
    let refused = std::fs::read(kernel.path().join("f")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
    assert_data(kernel.path(), &["g"]);
    kernel.unmount();
    f.remount();
}

#[test]
fn combinations_that_cannot_work_are_refused() {
    need_mounts!();
    let scratch = Scratch::disk();
    let low = scratch.dir("low");
    layer().write(&low);
    let stack = Stack::writable(&scratch, vec![low]);
    for (options, remedy) in [
        ("metacopy=on,redirect_dir=off", "redirect_dir=on"),
        ("metacopy=on,userxattr", "trusted.*"),
        ("metacopy=on,xattr_permissions=1", "xattr_permissions"),
        ("metacopy=yes", "metacopy=on"),
    ] {
        let refused = Fs::Unionfs(options).try_mount(&stack);
        let why = refused.err().unwrap_or_else(|| panic!("{options}"));
        assert!(why.contains(remedy), "{options}: {why}");
    }
    // Without an upper nothing is written.
    let read_only = Stack {
        upper: None,
        ..stack
    };
    METACOPY.mount(&read_only).unmount();
}

/// The owner of an upper can rename metacopies in it. One without an origin could take the place of
/// any file, so it gets its data. (Lowers on overlayfs have no file handles, and so no origins.)
#[test]
fn in_uppers_of_others_a_metacopy_has_an_origin() {
    need_mounts!();
    let base = union(&KERNEL);
    let lower = base.root().to_path_buf();
    for (owner, metacopy) in [(0, true), (1000, false)] {
        let scratch = Scratch::disk();
        let stack = Stack::writable(&scratch, vec![lower.clone()]);
        let upper = &stack.upper.as_ref().unwrap().0;
        std::os::unix::fs::chown(upper, Some(owner), Some(owner)).unwrap();
        let mut f = Fixture::over(&METACOPY, scratch, stack);
        f.ok("chmod f 600\nmkdir new 755\nrename d/g new/g\nlink h1 new/h");
        f.remount();
        for name in ["f", "new/g", "new/h"] {
            assert_eq!(is_metacopy(&f, name), metacopy, "{owner} {name}");
        }
        assert_data(f.root(), &["f", "new/g", "new/h", "h1"]);
    }
}

/// With an origin, a metacopy in the upper of another user is tied to its data. Files of another
/// user's lower get their data: the user can give another file of it their name.
#[test]
fn layers_of_others() {
    need_mounts!();
    need!(without::has_file_handles());
    for (foreign, metacopy) in [("upper", true), ("low", false)] {
        let scratch = Scratch::disk();
        let low = scratch.dir("low");
        layer().write(&low);
        let stack = Stack::writable(&scratch, vec![low]);
        let owned = scratch.path().join(foreign);
        std::os::unix::fs::chown(owned, Some(1000), Some(1000)).unwrap();
        let f = Fixture::over(&METACOPY, scratch, stack);
        f.ok("chmod f 600\nlink d/g to/g");
        for name in ["f", "to/g"] {
            assert_eq!(is_metacopy(&f, name), metacopy, "{foreign} {name}");
        }
    }
}

/// fsync(2) reaches the metadata in the upper, and not the file of the lower. chattr and lsattr
/// concern the file in the upper.
#[test]
fn syncs_and_flags_concern_the_upper() {
    need_mounts!();
    need!(has_tools(&["strace", "lsattr"]));
    let f = union(&METACOPY);
    f.ok("chmod f 600");
    let file = File::open(f.at("f")).unwrap();
    let trace = Trace::of(&f, &["-y", "-e", "trace=fsync,fdatasync"]);
    file.sync_all().unwrap();
    file.sync_data().unwrap();
    let calls = trace.end().join("\n");
    assert!(
        calls.contains("fsync(") && calls.contains("/upper/f>"),
        "{calls}"
    );
    assert!(
        !calls.contains("/low/") && !calls.contains("fdatasync("),
        "{calls}"
    );
    let run = |program: &str, args: &[&str]| {
        let mut command = std::process::Command::new(program);
        let output = command.args(args).arg(f.at("f")).output().unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    run("chattr", &["+d"]);
    let flags = run("lsattr", &["-l"]);
    assert!(flags.contains("No_Dump"), "{flags}");
    assert!(is_metacopy(&f, "f"));
}

/// Metadata of many files, one of each kind of name, is followed by the kernel.
#[test]
fn all_files_at_once() {
    need_mounts!();
    need!(without::has_file_handles());
    let mut f = union(&METACOPY);
    for name in FILES {
        f.ok(&format!("chown {name} 7 7"));
    }
    f.ok("chown empty 7 7");
    assert!(is_metacopy(&f, "empty"));
    assert_data(f.root(), &FILES);
    let kernel = same_in_the_kernel(&mut f);
    assert_data(kernel.path(), &FILES);
    kernel.unmount();
    f.remount();
    f.ok("write empty 0 x\nwrite h2 0 X");
    assert_eq!(f.ok("read empty"), ["\"x\""]);
    assert_eq!(std::fs::read(f.at("h1")).unwrap()[0], b'X');
    same_in_the_kernel(&mut f).unmount();
    f.remount();
}
