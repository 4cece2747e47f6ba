//! The kernel's caches of names and inodes, which the whole machine has in common: a test that drops them is alone
//! among those that count on them, in whatever process they are.

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

/// Nobody drops the caches meanwhile.
pub fn undisturbed() -> Held {
    lock(FlockOperation::LockShared)
}

/// Nobody else drops them or counts on them meanwhile.
pub fn alone() -> Held {
    lock(FlockOperation::LockExclusive)
}

/// Drops what is not in use.
pub fn drop_names_and_inodes() {
    std::fs::write(SWITCH, "2").unwrap();
}
