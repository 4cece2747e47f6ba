//! The number of messages of FUSE in a measured time. With the cost of a message that needs no work
//! (the row [`EMPTY`]) it says how much of a ratio FUSE itself costs.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::program;

use crate::figures::report::{EMPTY_MESSAGES, Sample};
use crate::metadata::{one_file, timed};
use crate::subjects::Bed;

thread_local! {
    /// The mount whose messages are counted.
    static MOUNT: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
}

/// Lets [`counted`] count the messages of this mount; `None`: of none.
pub(crate) fn of(mount: Option<&Path>) {
    MOUNT.set(mount.map(Path::to_owned));
}

/// Adds to a sample the number of messages that were sent during the measurement.
pub(crate) fn counted(measure: impl FnOnce() -> Result<Sample, String>) -> Result<Sample, String> {
    let before = sent();
    let mut sample = measure()?;
    let after = sent();
    let difference = before.zip(after);
    // A row without a message may have been on another mount.
    sample.messages = difference
        .and_then(|(before, after)| after.checked_sub(before))
        .filter(|messages| *messages > 0);
    Ok(sample)
}

/// Returns the number of messages of the mount so far.
fn sent() -> Option<u64> {
    let mount = MOUNT.with_borrow(Option::clone)?;
    let stats = Command::new(program())
        .args(["stats", "--json"])
        .arg(mount)
        .output();
    let stats: serde_json::Value = serde_json::from_slice(&stats.ok()?.stdout).ok()?;
    let kinds = stats["requests"].as_object()?;
    Some(kinds.values().filter_map(serde_json::Value::as_u64).sum())
}

/// Asks for an xattr that the file does not have. Linux keeps no such answer of FUSE, so that each
/// is a message. The server knows the answer after the first one.
pub(crate) fn empty(bed: &mut Bed<'_>) -> Result<Sample, String> {
    let path = one_file(bed)?;
    timed(|| {
        for _ in 0..EMPTY_MESSAGES {
            let found = rustix::fs::getxattr(&path, "security.capability", &mut [0; 256]);
            assert!(found.is_err(), "the file has a capability");
        }
        Ok(())
    })
}
