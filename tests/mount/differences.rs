//! Options and deliberate differences that `docs/SEMANTICS.md` states and that belong to no file
//! about one operation.

use std::os::fd::AsFd;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use testkit::fixture::Fixture;
use testkit::layers::{Form, Layer, big_data, net_raw_capability, standard};
use testkit::mount::{Fs, KERNEL, Scratch, Stack, UNIONFS};
use testkit::stats::requests_of;
use testkit::{need_mounts, tree};

const REDIRECT_OFF: Fs = Fs::Unionfs("redirect_dir=off");
const KERNEL_DIALECT: Fs = Fs::Unionfs("dialect=overlay");

#[test]
fn without_redirects_directories_of_lowers_stay() {
    need_mounts!();
    let mut f = Fixture::with(&REDIRECT_OFF, &standard(), Form::Kernel, true);
    f.expect(&[
        ("rename merged m2", "EXDEV"),
        ("rename deep fresh", "EXDEV"),
        ("mkdir new 755", ""),
        ("rename new merged/new", ""),
        ("rename merged/new empty exchange", "EXDEV"),
    ]);
    f.remount();
    f.expect(&[
        ("readdir merged/new", ""),
        ("read merged/top", "\"merged\\x20top\\x0a\""),
    ]);
}

/// By default, too, where the kernel would not follow them.
#[test]
fn user_markers_turn_redirects_off() {
    need_mounts!();
    for (options, answer) in [("userxattr", "EXDEV"), ("redirect_dir=on", "")] {
        let f = Fixture::with(&Fs::Unionfs(options), &standard(), Form::UserOpaque, true);
        f.expect(&[("rename merged m2", answer)]);
    }
}

/// `dialect=overlay`: the names are data, as for kernel overlayfs.
#[test]
fn wh_names_are_data_in_the_kernels_dialect() {
    need_mounts!();
    let layers = [
        Layer::new().dir("d").file("d/.wh.f", "data"),
        Layer::new().dir("d").file("d/f", "shown"),
    ];
    let f = Fixture::with(&KERNEL_DIALECT, &layers, Form::Kernel, true);
    f.expect(&[
        ("readdir d", ".wh.f:f f:f"),
        ("read d/.wh.f", "\"data\""),
        ("create d/.wh.new 644", ""),
        ("unlink d/.wh.f", ""),
        ("readdir d", ".wh.new:f f:f"),
    ]);
}

/// Marker names that are set through the mount are kept as plain attributes, under an escaped name.
#[test]
fn marker_names_are_escaped() {
    need_mounts!();
    let mut f = Fixture::standard();
    let name = "trusted.overlay.opaque";
    let set = format!("setxattr merged {name} y");
    f.expect(&[
        (&set, ""),
        ("setxattr merged user.fuseoverlayfs.x 1", "EPERM"),
    ]);
    f.remount();
    f.expect(&[(&format!("getxattr merged {name}"), "\"y\"")]);
    let stored = tree::xattr(&f.upper("merged"), b"trusted.overlay.overlay.opaque");
    assert_eq!(stored, Ok(b"y".to_vec()));
}

/// The kernel keeps locks itself: they work without a request to the server.
#[test]
fn locks_are_the_kernels() {
    need_mounts!();
    let f = Fixture::standard();
    let open = || {
        let mut options = std::fs::File::options();
        options
            .read(true)
            .write(true)
            .open(f.at("plain.txt"))
            .unwrap()
    };
    let (first, second) = (open(), open());
    let sent = requests_of(f.root(), || {
        let lock = FlockOperation::NonBlockingLockExclusive;
        rustix::fs::flock(first.as_fd(), lock).unwrap();
        assert_eq!(
            rustix::fs::flock(second.as_fd(), lock),
            Err(Errno::WOULDBLOCK)
        );
        // Unlocked explicitly: a process that another test is just starting holds a copy of the
        // descriptor until its exec, so a close here would not be the last one.
        rustix::fs::flock(first.as_fd(), FlockOperation::Unlock).unwrap();
        rustix::fs::flock(second.as_fd(), lock).unwrap();
        rustix::fs::fcntl_lock(second.as_fd(), lock).unwrap();
    });
    assert!(!sent.keys().any(|op| op.contains("LK")), "{sent:?}");
}

/// Makes files whose data kernel overlayfs left in a lower: a metacopy, once with its original name
/// and once renamed, so that it has a redirect.
fn metacopies() -> (Scratch, Stack) {
    let scratch = Scratch::disk();
    let low = scratch.dir("low");
    let layer = Layer::new().dir("d").file("f", big_data());
    layer.file("moved", big_data()).write(&low);
    let stack = Stack::writable(&scratch, vec![low]);
    let kernel = Fs::Kernel("metacopy=on,redirect_dir=on,index=off").mount(&stack);
    let script = "chmod f 600\nchmod moved 600\nrename moved d/g";
    let script = testkit::script::parse(script);
    let answers = testkit::exec::run(kernel.path(), &script);
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    kernel.unmount();
    for name in ["f", "d/g"] {
        let path = stack.upper.as_ref().unwrap().0.join(name);
        let marker = tree::xattr(&path, b"trusted.overlay.metacopy");
        assert!(marker.is_ok(), "the kernel made no metacopy of {name}");
    }
    (scratch, stack)
}

fn assert_data(f: &Fixture, names: &[&str]) {
    for name in names {
        let meta = f.at(name).metadata().unwrap();
        let mode = std::os::unix::fs::MetadataExt::mode(&meta);
        assert_eq!((meta.len(), mode & 0o7777), (300_000, 0o600), "{name}");
        assert!(std::fs::read(f.at(name)).unwrap() == big_data(), "{name}");
    }
}

/// In an upper: reads come from the lower, and the first write copies the data.
#[test]
fn metacopies_in_the_upper() {
    need_mounts!();
    let (scratch, stack) = metacopies();
    let mut f = Fixture::over(&UNIONFS, scratch, stack);
    assert_data(&f, &["f", "d/g"]);
    f.ok("write f 0 X\nwrite d/g 299999 X");
    f.remount();
    for (name, place) in [("f", 0), ("d/g", 299_999)] {
        let mut expected = big_data();
        expected[place] = b'X';
        assert!(std::fs::read(f.at(name)).unwrap() == expected, "{name}");
        assert!(std::fs::read(f.upper(name)).unwrap() == expected, "{name}");
    }
}

/// In a lower, with the data in the layer below.
#[test]
fn metacopies_in_a_lower() {
    need_mounts!();
    let (scratch, mut stack) = metacopies();
    stack.lowers.insert(0, scratch.path().join("upper"));
    stack.upper = Some((scratch.dir("upper2"), scratch.dir("work2")));
    let f = Fixture::over(&UNIONFS, scratch, stack);
    assert_data(&f, &["f", "d/g"]);
    f.ok("chmod d/g 600\nwrite f 0 X");
    assert_data(&f, &["d/g"]);
}

/// In a lower, with the data in a data-only layer: only a redirect refers to it, and without a
/// redirect the answer is an error, never zeros.
#[test]
fn metacopies_over_a_data_only_lower() {
    need_mounts!();
    let (scratch, mut stack) = metacopies();
    let low = stack.lowers.remove(0);
    // `upper::low`.
    stack.lowers = vec![scratch.path().join("upper"), "".into(), low];
    stack.upper = None;
    let f = Fixture::over(&UNIONFS, scratch, stack);
    assert_data(&f, &["d/g"]);
    f.expect(&[
        ("read f", "EIO"),
        // The file is still listed, as by the kernel: a name that is left out would be a lost file.
        ("readdir .", "d:d f:f"),
        ("stat moved", "ENOENT"),
    ]);
}

#[test]
fn merged_directories_have_one_link() {
    need_mounts!();
    let f = Fixture::standard();
    f.ok("mkdir new 755\nmkdir new/sub 755");
    let nlink = |path: &str| std::os::unix::fs::MetadataExt::nlink(&f.at(path).metadata().unwrap());
    assert_eq!((nlink("merged"), nlink("new")), (1, 3));
}

/// A tmpfs mounted on a directory until dropped.
struct Submount(std::path::PathBuf);

impl Submount {
    fn new(path: std::path::PathBuf) -> Self {
        use rustix::mount::{MountFlags, mount};
        mount("tmpfs", &path, "tmpfs", MountFlags::empty(), None).unwrap();
        Self(path)
    }
}

impl Drop for Submount {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// The kernel reads the directory under a mount in a lower; unionfs shows the mount, as any program
/// that walks the lower sees it.
#[test]
fn mounts_in_a_lower_show() {
    need_mounts!();
    // Declared first, dropped last: its directory can be removed only without the submount.
    let mut f;
    let scratch = Scratch::disk();
    let low = scratch.dir("low");
    let submount = Submount::new(scratch.dir("low/sub"));
    std::fs::write(low.join("sub/f"), "mounted").unwrap();
    let stack = Stack::writable(&scratch, vec![low]);
    f = Fixture::over(&UNIONFS, scratch, stack);
    f.lowers_are_changed_by_the_test();
    let dev = |path: &str| std::os::unix::fs::MetadataExt::dev(&f.at(path).metadata().unwrap());
    assert_eq!(dev("sub/f"), dev("."));
    f.expect(&[
        ("read sub/f", "\"mounted\""),
        ("write sub/f 0 M", "1"),
        ("read sub/f", "\"Mounted\""),
    ]);
    assert_eq!(std::fs::read(submount.0.join("f")).unwrap(), b"mounted");
}

/// The kernel copies the data of the file when it is opened, which gives it a new mtime.
#[test]
fn opening_a_metacopy_for_writing_keeps_its_mtime() {
    need_mounts!();
    let (scratch, stack) = metacopies();
    let mut f = Fixture::over(&UNIONFS, scratch, stack);
    f.ok("utimens f 1200000000.7 1200000000.9\ncreate f 644");
    let mtime = |f: &Fixture| tree::list(f.root())[&b"f"[..]].mtime;
    assert_eq!(mtime(&f), (1_200_000_000, 9));
    f.remount();
    assert_eq!(mtime(&f), (1_200_000_000, 9));
    f.ok("write f 0 x");
    assert!(mtime(&f) > (1_200_000_000, 9));
}

/// Answered by the kernel's FUSE client; EINVAL on kernel overlayfs.
#[test]
fn seeking_data_in_a_directory() {
    need_mounts!();
    let f = Fixture::standard();
    let table = [
        ("seekdata merged 70000", "ENXIO"),
        ("seekhole merged 70000", "ENXIO"),
    ];
    f.expect(&table);
}

/// The request before it cannot be distinguished from one that must drop the bits. A truncation
/// states it exactly.
#[test]
fn a_write_by_root_drops_set_id_bits_of_a_file_with_a_capability() {
    need_mounts!();
    let file = |layer: Layer, name: &str| layer.file(name, "content").mode(0o6755);
    let capable = |layer: Layer| layer.xattr("security.capability", net_raw_capability());
    let layer = capable(file(capable(file(Layer::new(), "both")), "cut"));
    let layer = file(layer, "bits");
    for (fs, kept) in [(KERNEL, "106755"), (UNIONFS, "100755")] {
        let f = Fixture::with(&fs, std::slice::from_ref(&layer), Form::Kernel, true);
        f.ok("write both 0 C\nwrite bits 0 C\ntruncate cut 7");
        let line = |mode: &str| format!("mode {mode} owner 0:0 size 7 nlink 1 rdev 0");
        assert_eq!(f.ok("stat cut")[0], line("106755"));
        f.expect(&[("stat bits", &line("106755")), ("stat both", &line(kept))]);
    }
}
