//! Waiting for the room of removed files. A caller goes on as soon as its unlink(2) is answered, but
//! the kernel forgets the inode by a message of its own, which nobody waits for. Until that has come
//! the file keeps its blocks and its inode, so that the next change may find a full disk that is not
//! full on overlayfs: that change is tried again for a short time.

use std::time::{Duration, Instant};

use crate::union::{Error, Result, Union};

/// A file that was removed so lately may be one of which the message is still on its way. It takes
/// microseconds, but on a busy machine whoever reads it waits for a processor.
const LATELY: Duration = Duration::from_secs(2);
/// How long it is tried then.
const LONG: Duration = Duration::from_secs(1);
/// How long it is tried while removed files have been in use for longer: what a change on a full disk
/// takes then.
const SHORT: Duration = Duration::from_millis(20);
/// Pauses between two tries, the first and the longest.
const FIRST: Duration = Duration::from_micros(100);
const LONGEST: Duration = Duration::from_millis(10);

fn is_full(error: &Error) -> bool {
    matches!(error.errno(), libc::ENOSPC | libc::EDQUOT)
}

/// The result of `change`, which is tried again once if there is no room for it, and as long as the
/// union keeps removed files. Where it then fails otherwise, what was said of room stays the answer:
/// a first try may have changed what a second one meets. The thread holds no lock while it waits.
pub(super) fn with_freed_room<T>(
    union: &Union,
    mut change: impl FnMut() -> Result<T>,
) -> Result<T> {
    let full = match change() {
        Err(error) if is_full(&error) => error,
        result => return result,
    };
    let began = Instant::now();
    let is_late = union
        .since_last_removal()
        .is_none_or(|since| since > LATELY);
    let limit = if is_late { SHORT } else { LONG };
    let mut pause = FIRST;
    while began.elapsed() < limit {
        // Asked before: the last one may go meanwhile.
        let are_kept = union.since_last_removal().is_some();
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST);
        match change() {
            Err(error) if is_full(&error) && are_kept => {}
            Err(_) => break,
            made => return made,
        }
    }
    Err(full)
}
