//! Counts what a catalog saves: a cold walk makes no request to the layers, and costs the same over
//! one layer as over five hundred.

use std::path::Path;

use testkit::layers::{self, Form, Layer};
use testkit::mount::{Fs, Scratch, Stack};
use testkit::need::has_tools;
use testkit::strace::Trace;
use testkit::{need, need_mounts};

/// Returns the same tree over any number of layers: every layer has every directory and its share
/// of the files.
fn spread(layers: usize) -> Vec<Layer> {
    let mut all = vec![Layer::new(); layers];
    for layer in &mut all {
        let mut made = std::mem::take(layer);
        for dir in ["a", "a/b", "a/b/c", "d"] {
            made = made.dir(dir);
        }
        *layer = made;
    }
    for n in 0..600 {
        let dir = ["a", "a/b", "a/b/c", "d"][n % 4];
        let layer = &mut all[n % layers];
        let made = std::mem::take(layer);
        *layer = match n % 10 {
            0 => made.symlink(format!("{dir}/l{n}"), "target"),
            _ => made.file(format!("{dir}/f{n}"), "data"),
        };
    }
    all
}

/// Reads names, sizes, link targets and xattrs of everything, and looks up names that do not exist.
fn walk(dir: &Path) -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = path.symlink_metadata().unwrap();
        count += 1;
        let mut buffer = [0u8; 64];
        assert_eq!(rustix::fs::llistxattr(&path, &mut buffer[..]), Ok(0));
        let capability = rustix::fs::lgetxattr(&path, "security.capability", &mut buffer[..]);
        assert_eq!(capability, Err(rustix::io::Errno::NODATA));
        if meta.is_symlink() {
            assert_eq!(std::fs::read_link(&path).unwrap(), Path::new("target"));
        } else if meta.is_dir() {
            assert!(path.join("absent").symlink_metadata().is_err());
            count += walk(&path);
        }
    }
    count
}

/// System calls that reach a layer.
const ON_LAYERS: [&str; 11] = [
    "open",
    "openat",
    "openat2",
    "statx",
    "newfstatat",
    "getdents64",
    "readlinkat",
    "lgetxattr",
    "getxattr",
    "llistxattr",
    "name_to_handle_at",
];

/// Returns how many of those calls, and how many requests, a cold walk makes.
fn cold_walk(fs: &Fs, count: usize) -> (u64, u64) {
    let scratch = Scratch::disk();
    let stack = Stack {
        lowers: layers::write_all(&spread(count), scratch.path(), Form::Kernel),
        upper: None,
        mnt: scratch.dir("mnt"),
    };
    let mounted = fs.mount(&stack);
    let trace = Trace::attach(mounted.servers()[0], scratch.path(), &[]);
    assert_eq!(walk(mounted.path()), 604);
    let calls = trace.calls();
    let count = |names: &[&str]| calls.iter().filter(|c| names.contains(&&***c)).count() as u64;
    assert!(count(&["read"]) > 0, "strace saw nothing: {calls:?}");
    (count(&ON_LAYERS), count(&["writev"]))
}

#[test]
fn a_cold_walk_asks_nothing_of_the_layers_however_many() {
    need_mounts!();
    need!(has_tools(&["strace"]));
    let (without, requests) = cold_walk(&Fs::Unionfs(""), 32);
    assert!(without > 1000, "{without} calls without a catalog");
    for count in [1, 4, 32, 128, 500] {
        let (asked, sent) = cold_walk(&Fs::Catalogued(""), count);
        // The server learns once for each kind of file how the file system reports a missing xattr
        // (ENODATA or EOPNOTSUPP). For a directory it opens the layer's root, opens and checks the
        // directory, and reads the xattr. For a file and for a symlink it opens the layer's root,
        // opens and checks each directory on the way (three at most), then opens and checks the
        // file and reads the xattr. The order of a listing decides in which directory the first of
        // them is.
        assert!(asked <= 4 + 10 + 10, "{asked} calls over {count} layers");
        // The server may have answered the requests of the mounting itself before strace was
        // attached.
        assert!(
            sent.abs_diff(requests) <= 4,
            "{count} layers: {sent} of {requests}"
        );
    }
}
