//! A buffer of each thread for the data that a request reads. It is kept between requests.

use std::cell::RefCell;

use super::operations::{DataReply, Failure};
use crate::union;

/// The alignment in bytes: the largest that any disk requires for O_DIRECT.
const PAGE: usize = 4096;

/// Runs `job` with a buffer of `size` bytes that starts at a page boundary, so that O_DIRECT can
/// read into it. The size is never reduced: for the kernel, a short answer would mean the end of
/// the file. Without memory it answers ENOMEM, else it returns the result of `job`.
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

/// Answers with the data that `read` writes into such a buffer, or with its error. If the error is
/// EAGAIN, the reply is returned unanswered.
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
