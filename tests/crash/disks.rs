//! Unions whose upper is on a file system of its own, an image on a loop device. This is the shared
//! part of the tests of real disks. Everything is removed on drop, the last parts together with the
//! mount namespace of the test.

use std::path::{Path, PathBuf};

use testkit::disk::Disk;
use testkit::exec::{self, Answer};
use testkit::layers::{self, Form};
use testkit::mount::{Fs, KERNEL, Mounted, Scratch, Stack};
use testkit::script;
use testkit::tree::{self, Tree};

/// unionfs with each policy of passing data on.
pub(crate) const POLICIES: [Fs; 3] = [
    Fs::Unionfs("io=passthrough"),
    Fs::Unionfs("io=cached"),
    Fs::Unionfs("io=cached,writeback"),
];

/// Returns kernel overlayfs, then unionfs with each policy.
pub(crate) fn everybody() -> impl Iterator<Item = Fs> {
    [KERNEL].into_iter().chain(POLICIES)
}

/// A union over the standard layers with the upper on a disk.
pub(crate) struct Union {
    mounted: Option<Mounted>,
    pub(crate) stack: Stack,
    pub(crate) disk: Disk,
    pub(crate) scratch: Scratch,
    pub(crate) fs: Fs,
}

impl Union {
    /// Starts a union on the disk that `make` makes in a directory; `Err` has the reason if it
    /// cannot.
    pub(crate) fn start(
        fs: Fs,
        make: impl FnOnce(&Path) -> Result<Disk, String>,
    ) -> Result<Self, String> {
        let scratch = Scratch::disk();
        let disk = make(scratch.path())?;
        let made = |name: &str| {
            let path = disk.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let stack = Stack {
            lowers: layers::write_all(&layers::standard(), scratch.path(), Form::Kernel),
            upper: Some((made("upper"), made("work"))),
            mnt: scratch.dir("mnt"),
        };
        Ok(Self {
            mounted: Some(fs.mount(&stack)),
            stack,
            disk,
            scratch,
            fs,
        })
    }

    /// Returns a path in the union.
    pub(crate) fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.stack.mnt.join(path)
    }

    /// Runs a script, whether it succeeds or fails.
    pub(crate) fn run(&self, text: &str) -> Vec<Answer> {
        exec::run(&self.stack.mnt, &script::parse(text))
    }

    /// Returns the first error of a script, or `ok`.
    pub(crate) fn outcome(&self, text: &str) -> String {
        let error = self.run(text).into_iter().find_map(Result::err);
        error.unwrap_or("ok".to_owned())
    }

    /// Runs a script that must succeed.
    pub(crate) fn ok(&self, text: &str) {
        assert_eq!(self.outcome(text), "ok", "{:?}: {text}", self.fs);
    }

    /// Returns the union's tree.
    pub(crate) fn tree(&self) -> Tree {
        tree::list(&self.stack.mnt)
    }

    /// Tells whether a server still serves the union; always true with kernel overlayfs.
    pub(crate) fn is_served(&self) -> bool {
        let mut servers = self.mounted.as_ref().unwrap().servers().iter();
        servers.all(|pid| Path::new(&format!("/proc/{pid}")).exists())
    }

    /// Unmounts, and waits until the server ends.
    pub(crate) fn unmount(&mut self) {
        self.mounted.take().unwrap().unmount();
    }

    /// Mounts the disk's layers with another implementation.
    pub(crate) fn mount(&mut self, fs: &Fs) {
        assert!(self.mounted.is_none());
        self.mounted = Some(fs.mount(&self.stack));
    }

    /// Returns the objects that are being made in the work directory.
    pub(crate) fn staged(&self) -> Vec<String> {
        let work = self.stack.upper.as_ref().unwrap().1.join("work");
        let entries = std::fs::read_dir(work).unwrap();
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.unwrap().file_name().to_string_lossy().into_owned()
        };
        entries.map(name).collect()
    }
}

impl Drop for Union {
    fn drop(&mut self) {
        // Unmounted before the disk that it is on.
        drop(self.mounted.take());
    }
}
