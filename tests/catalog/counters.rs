//! What a catalog saves, counted: a cold walk asks nothing of the layers, and costs the same
//! over one layer as over five hundred.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::common::layers::{self, Form, Layer};
use crate::common::mount::{Fs, Scratch, Stack};
use crate::common::{need_mounts, skip};

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

/// `strace -c` on a process with all its threads.
struct Counter(Child);

impl Counter {
    fn attach(pid: u32) -> Self {
        let mut child = Command::new("strace")
            .args(["-f", "-c", "-p", &pid.to_string()])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It says so once it holds them all.
        let mut line = String::new();
        let stderr = child.stderr.as_mut().unwrap();
        let mut byte = [0];
        while !line.contains("attached") {
            stderr.read_exact(&mut byte).unwrap();
            line.push(byte[0].into());
        }
        Self(child)
    }

    /// Calls by name.
    fn stop(mut self) -> BTreeMap<String, u64> {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let stderr = BufReader::new(self.0.stderr.take().unwrap());
        let mut calls = BTreeMap::new();
        for line in stderr.lines() {
            let line = line.unwrap();
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [_, _, _, count, .., name] = words[..]
                && let Ok(count) = count.parse()
            {
                calls.insert(name.to_owned(), count);
            }
        }
        self.0.wait().unwrap();
        calls
    }
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
    let counter = Counter::attach(mounted.servers()[0]);
    assert_eq!(walk(mounted.path()), 604);
    let calls = counter.stop();
    assert!(calls.contains_key("read"), "strace saw nothing: {calls:?}");
    let asked = ON_LAYERS.iter().filter_map(|name| calls.get(*name)).sum();
    (asked, calls["writev"])
}

#[test]
fn a_cold_walk_asks_nothing_of_the_layers_however_many() {
    need_mounts!();
    if Command::new("strace").arg("-V").output().is_err() {
        return skip("strace is not installed");
    }
    let (without, requests) = cold_walk(&Fs::Unionfs(""), 32);
    assert!(without > 1000, "{without} calls without a catalog");
    for count in [1, 4, 32, 128, 500] {
        let (asked, sent) = cold_walk(&Fs::Catalogued(""), count);
        // How the file system says that there is no such xattr: asked once for each kind of
        // file, by way of a descriptor for its directory.
        assert!(asked <= 16, "{asked} calls over {count} layers");
        // What the mounting itself asked may have been answered before strace was there.
        assert!(
            sent.abs_diff(requests) <= 4,
            "{count} layers: {sent} of {requests}"
        );
    }
}
