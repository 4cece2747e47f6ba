//! What a catalog saves, counted: a cold walk asks nothing of the layers, and costs the same
//! over one layer as over five hundred.

use std::path::Path;

use testkit::layers::{self, Form, Layer};
use testkit::mount::{Fs, Scratch, Stack};
use testkit::need::has_tools;
use testkit::strace::Trace;
use testkit::{need, need_mounts};

/// The same tree over any number of layers: every layer has every directory, and its share
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

/// Names, sizes, link targets and xattrs of everything, and names that are not there.
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

/// A cold walk: how many of those calls, and how many requests.
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
        // How the file system says that there is no such xattr (ENODATA or EOPNOTSUPP): asked once
        // for each kind of file. Of a directory: its layer's root is opened, the directory opened and
        // checked, the xattr asked for. Of a file and of a symlink: the layer's root is opened, each
        // directory down to its own, three at most, opened and checked, then the file opened, checked
        // and asked. In which directory the first of them is depends on the order of a listing.
        assert!(asked <= 4 + 10 + 10, "{asked} calls over {count} layers");
        // What the mounting itself asked may have been answered before strace was there.
        assert!(
            sent.abs_diff(requests) <= 4,
            "{count} layers: {sent} of {requests}"
        );
    }
}
