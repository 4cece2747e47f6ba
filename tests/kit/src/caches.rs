//! The kernel's caches of names and inodes, which the whole machine shares. A test that drops them
//! must not run at the same time as tests that rely on them, in this or another process.

use std::fs::File;

use rustix::fs::{FlockOperation, flock};

const SWITCH: &str = "/proc/sys/vm/drop_caches";

/// A lock that is released when dropped.
pub struct Held {
    _file: File,
}

fn lock(operation: FlockOperation) -> Held {
    let file = File::options().write(true).open(SWITCH).unwrap();
    flock(&file, operation).unwrap();
    Held { _file: file }
}

/// Takes a shared lock: no test drops the caches while it is held.
pub fn undisturbed() -> Held {
    lock(FlockOperation::LockShared)
}

/// Takes an exclusive lock: no other test drops the caches or relies on them while it is held.
pub fn alone() -> Held {
    lock(FlockOperation::LockExclusive)
}

/// Drops the names and inodes that are not in use.
pub fn drop_names_and_inodes() {
    std::fs::write(SWITCH, "2").unwrap();
}
