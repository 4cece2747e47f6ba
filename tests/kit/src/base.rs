//! File systems for an upper that refuse to store markers, made with features of every kernel. An
//! overlay refuses device 0:0, as virtiofs and NFS do for a plain user, or an old kernel in a user
//! namespace. An overlay on ramfs refuses xattrs too.

use std::path::PathBuf;

use rustix::mount::{MountFlags, UnmountFlags};

use super::mount::{Fs, Mounted, Scratch, Stack};

/// The markers that are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusing {
    /// Device 0:0.
    Devices,
    /// Device 0:0 and xattrs of every name.
    DevicesAndXattrs,
}

/// Without an index, the overlay needs no xattrs in its own upper.
const OVERLAY: Fs = Fs::Kernel("index=off,redirect_dir=nofollow,metacopy=off");

/// Such a file system, mounted until dropped.
pub struct Base {
    // The fields are dropped in this order.
    overlay: Option<Mounted>,
    ramfs: Option<PathBuf>,
    _scratch: Scratch,
}

impl Base {
    /// Mounts such a file system.
    pub fn mount(refusing: Refusing) -> Self {
        let scratch = Scratch::tmpfs();
        let below = scratch.dir("below");
        let ramfs = refusing == Refusing::DevicesAndXattrs;
        if ramfs {
            let none = MountFlags::empty();
            rustix::mount::mount("ramfs", &below, "ramfs", none, Some(c"mode=755")).unwrap();
        }
        let dir = |name: &str| scratch.dir(&format!("below/{name}"));
        let stack = Stack {
            lowers: vec![dir("lower")],
            upper: Some((dir("upper"), dir("work"))),
            mnt: scratch.dir("mnt"),
        };
        let base = Self {
            overlay: Some(OVERLAY.mount(&stack)),
            ramfs: ramfs.then_some(below),
            _scratch: scratch,
        };
        let (upper, work) = base.upper();
        std::fs::create_dir(upper).unwrap();
        std::fs::create_dir(work).unwrap();
        base
    }

    /// Returns an upper directory on it, and its work directory.
    pub fn upper(&self) -> (PathBuf, PathBuf) {
        let root = self.overlay.as_ref().unwrap().path();
        (root.join("upper"), root.join("work"))
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        self.overlay = None;
        if let Some(ramfs) = &self.ramfs {
            let _ = rustix::mount::unmount(ramfs, UnmountFlags::DETACH);
        }
    }
}
