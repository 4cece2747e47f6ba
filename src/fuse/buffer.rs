//! A buffer of each thread for what a request reads, kept between requests.

use std::cell::RefCell;

use super::operations::{DataReply, Failure};
use crate::union;

/// Bytes; as much as any disk asks of memory for O_DIRECT.
const PAGE: usize = 4096;

/// Runs `job` with a buffer of `size` bytes that begins with a page, so that O_DIRECT can read into it.
/// The size is never cut: a short answer would mean the end of the file to the kernel. Without memory
/// the answer is ENOMEM, else what `job` returns is returned.
pub(super) fn with_buffer<R: Failure, T>(
    size: u32,
    reply: R,
    job: impl FnOnce(&mut [u8], R) -> Option<T>,
) -> Option<T> {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    let size = size as usize;
    BUFFER.with_borrow_mut(|buffer| {
        if let Some(more) = (size + PAGE).checked_sub(buffer.len()) {
            if buffer.try_reserve(more).is_err() {
                reply.error(libc::ENOMEM);
                return None;
            }
            buffer.resize(size + PAGE, 0);
        }
        let start = buffer.as_ptr().align_offset(PAGE);
        job(
            buffer.get_mut(start..start + size).unwrap_or_default(),
            reply,
        )
    })
}

/// Answers with what `read` puts into such a buffer, or with its error. Nothing is answered, and the reply
/// comes back, when it fails with EAGAIN.
pub(super) fn answer_with_read<R: DataReply>(
    size: u32,
    reply: R,
    mut read: impl FnMut(&mut [u8]) -> union::Result<usize>,
) -> Option<R> {
    with_buffer(size, reply, |buffer, reply| match read(buffer) {
        Ok(count) => {
            reply.data(buffer.get(..count).unwrap_or_default());
            None
        }
        Err(error) if error.errno() == libc::EAGAIN => Some(reply),
        Err(error) => {
            reply.fail(&error);
            None
        }
    })
}
