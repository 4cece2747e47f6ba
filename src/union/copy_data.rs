//! Copies file data for copy-up: by reflink (FICLONE) if the file system supports it, else extent
//! by extent, so that holes stay holes. Works on descriptors only.

use std::os::fd::OwnedFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::interrupted::Interruptions;
use crate::sys::sync::atomic::{AtomicBool, Ordering};

/// The number of bytes per copy_file_range(2), or per read and write if the kernel cannot copy. A
/// kernel without preemption (`preempt=none`) runs no other thread on the CPU during a call, not
/// even one that serves a lookup. Between two calls it gives way: with the short slices of a server
/// ([`crate::sys::schedule::short_slices`]) a lookup then takes 0.6 ms at p99, otherwise 2 ms.
const STEP: usize = 256 << 10;
/// The number of bytes after which write-back begins.
const PIECE: u64 = 16 << 20;

/// The options of a copy.
pub(crate) struct How<'a> {
    /// Copy the whole file.
    pub whole: bool,
    /// Whether to skip the search for holes, because the file has almost none.
    pub dense: bool,
    /// Whether no data will be synced.
    pub volatile: bool,
    /// Whether to try a reflink; cleared once the target's file system has refused one.
    pub clones: &'a AtomicBool,
}

/// The result of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copied {
    /// The extents are shared, and are on the disk: FICLONE writes the dirty pages of the source
    /// back first.
    Cloned,
    /// This number of bytes of data was written. They may not be on the disk yet.
    Written(u64),
}

/// Copies `len` bytes: by reflink if the file system supports it, else extent by extent (holes stay
/// holes).
///
/// Unless `volatile`, write-back of each piece begins while the next one is copied, which shortens
/// the fsync that follows.
///
/// # Errors
/// Those of read(2), write(2) and copy_file_range(2).
pub(crate) fn copy_file(
    from: &OwnedFd,
    to: &OwnedFd,
    len: u64,
    how: &How<'_>,
) -> Result<Copied, Errno> {
    if how.whole && how.clones.load(Ordering::Relaxed) {
        match rustix::fs::ioctl_ficlone(to, from) {
            Ok(()) => return Ok(Copied::Cloned),
            Err(Errno::OPNOTSUPP | Errno::NOTTY) => how.clones.store(false, Ordering::Relaxed),
            // The file has no reflinks, or there are none between these file systems.
            Err(_) => {}
        }
    }
    if how.dense && len <= PIECE && copy_extent(from, to, 0, len)? == len {
        return Ok(Copied::Written(len));
    }
    rustix::fs::ftruncate(to, len)?;
    let (mut pos, mut copied) = (0, 0);
    while pos < len {
        let start = match rustix::fs::seek(from, SeekFrom::Data(pos)) {
            // A file system in user space can name an earlier place. The copy must end.
            Ok(start) => start.max(pos),
            // Only a hole follows, up to the end.
            Err(Errno::NXIO) => break,
            // The file system does not report holes. Everything counts as data.
            Err(_) => pos,
        };
        let end = match rustix::fs::seek(from, SeekFrom::Hole(start)) {
            Ok(end) if end > start => end.min(len),
            _ => len,
        };
        if start >= len {
            break;
        }
        for piece in pieces(start, end) {
            copied += copy_extent(from, to, piece.start, piece.end)?;
            if !how.volatile && piece.end - piece.start == PIECE {
                crate::sys::writeback::start(to, piece.start, PIECE);
            }
        }
        pos = end;
    }
    Ok(Copied::Written(copied))
}

/// Cuts a range into pieces of at most [`PIECE`].
fn pieces(start: u64, end: u64) -> impl Iterator<Item = std::ops::Range<u64>> {
    let mut pos = start;
    std::iter::from_fn(move || {
        let piece = pos..end.min(pos + PIECE);
        pos = piece.end;
        (piece.start < piece.end).then_some(piece)
    })
}

fn copy_extent(from: &OwnedFd, to: &OwnedFd, start: u64, end: u64) -> Result<u64, Errno> {
    let mut pos = start;
    let mut interruptions = Interruptions::default();
    while pos < end {
        let piece = usize::try_from(end - pos).map_or(STEP, |left| left.min(STEP));
        let (mut from_off, mut to_off) = (pos, pos);
        match rustix::fs::copy_file_range(from, Some(&mut from_off), to, Some(&mut to_off), piece) {
            Ok(0) => break,
            Ok(n) => {
                pos += n as u64;
                give_way(pos < end);
            }
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::IO) => {
                return copy_by_hand(from, to, pos, end).map(|n| pos - start + n);
            }
            Err(e) => interruptions.ignore(e)?,
        }
    }
    Ok(pos - start)
}

/// Lets a thread run that waits for this CPU, between two steps of a copy.
fn give_way(between: bool) {
    if between {
        std::thread::yield_now();
    }
}

fn copy_by_hand(from: &OwnedFd, to: &OwnedFd, start: u64, end: u64) -> Result<u64, Errno> {
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(STEP).map_err(|_| Errno::NOMEM)?;
    buffer.resize(STEP, 0u8);
    let mut pos = start;
    let mut interruptions = Interruptions::default();
    while pos < end {
        let want = usize::try_from(end - pos)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let got = match rustix::io::pread(from, &mut buffer[..want], pos) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) => {
                interruptions.ignore(e)?;
                continue;
            }
        };
        let mut done = 0;
        while done < got {
            match rustix::io::pwrite(to, &buffer[done..got], pos + done as u64) {
                // Only a file system in user space answers so.
                Ok(0) => return Err(Errno::IO),
                Ok(n) => done += n,
                Err(e) => interruptions.ignore(e)?,
            }
        }
        pos += got as u64;
        give_way(pos < end);
    }
    Ok(pos - start)
}
