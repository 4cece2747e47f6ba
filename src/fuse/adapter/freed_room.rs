//! Waits for the space of removed files. A caller continues when its unlink(2) is answered, but the
//! kernel forgets the inode by a later message, which no caller waits for. Until that message
//! arrives, the file keeps its blocks and its inode. So the next change may find a full disk that
//! would not be full on overlayfs. That change is tried again for a short time.

use std::time::{Duration, Instant};

use crate::union::{Error, Result, Union};

/// If a file was removed within this time, its message may still be under way. It takes
/// microseconds, but on a busy machine the thread that reads it waits for a processor.
const LATELY: Duration = Duration::from_secs(2);
/// The time for further tries after such a removal.
const LONG: Duration = Duration::from_secs(1);
/// The time for further tries if removed files have been in use for longer. Each change on a full
/// disk takes this long then.
const SHORT: Duration = Duration::from_millis(20);
/// The first and the longest pause between two tries.
const FIRST: Duration = Duration::from_micros(100);
const LONGEST: Duration = Duration::from_millis(10);

fn is_full(error: &Error) -> bool {
    matches!(error.errno(), libc::ENOSPC | libc::EDQUOT)
}

/// Returns the result of `change`. If there is no space for it, it is tried once more, and further
/// while the union keeps removed files. If a later try fails in another way, the error about space
/// is returned, because the first try may have changed something. The thread holds no lock while it
/// waits.
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
        // This is checked before the try, since the last removed file may go meanwhile.
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
