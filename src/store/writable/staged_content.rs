//! Fills a staged layer from a layer tar, which is read, or which a thread writes at the same time.
//!
//! ```text
//!  pack (a thread) ──tar──► pipe ──unpack (the caller's thread)──► files, tar-split, diff ID
//! ```

use std::io::{self, BufReader, BufWriter, PipeWriter, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use super::StagedLayer;
use crate::layer_tar::{Limits, Unpacked, unpack};
use crate::progress::Counted;
use crate::store::error::{Error, Result};

/// The number of bytes that go through the pipe at a time.
const CHUNK: usize = 256 << 10;

impl StagedLayer<'_> {
    /// Unpacks a layer tar, which is not compressed.
    ///
    /// # Errors
    /// Those of [`crate::layer_tar::unpack`].
    pub fn unpack(&mut self, tar: impl Read, limits: &Limits) -> Result<Unpacked> {
        let dialect = self.dialect();
        let (diff, split) = self.parts();
        Ok(unpack(tar, diff, dialect, split, limits)?)
    }

    /// Unpacks the layer tar that `pack` writes in a thread of its own. `passed` gets the number of
    /// further bytes that were read.
    ///
    /// # Errors
    /// The error that came first: that of `pack`, or that of unpacking, which closes the pipe.
    pub fn unpack_from<E: From<Error> + Send>(
        &mut self,
        limits: &Limits,
        pack: impl FnOnce(&mut dyn Write) -> std::result::Result<(), E> + Send,
        passed: impl FnMut(u64),
    ) -> std::result::Result<Unpacked, E> {
        let (reader, pipe) = io::pipe().map_err(|e| {
            let errno = Errno::from_io_error(&e).unwrap_or(Errno::IO);
            Error::io("make a pipe to fill", &self.diff_path(), errno)
        })?;
        let broken = AtomicBool::new(false);
        let (packed, unpacked) = std::thread::scope(|scope| {
            let broken = &broken;
            let packing = scope.spawn(move || {
                let mut out = BufWriter::with_capacity(CHUNK, Pipe { pipe, broken });
                pack(&mut out)
            });
            let mut reader = BufReader::with_capacity(CHUNK, Counted::new(reader, passed));
            let unpacked = self.unpack(&mut reader, limits);
            // The writer must not wait for a reader that has failed.
            drop(reader);
            (packing.join(), unpacked)
        });
        match packed {
            Err(panic) => std::panic::resume_unwind(panic),
            // If the reader closed the pipe, the reader's error is the cause.
            Ok(Err(error)) if !broken.load(Ordering::Relaxed) => Err(error),
            Ok(packed) => match unpacked {
                Err(error) => Err(error.into()),
                Ok(unpacked) => packed.map(|()| unpacked),
            },
        }
    }
}

/// The writing end, which records whether the reader has closed the pipe.
struct Pipe<'b> {
    pipe: PipeWriter,
    broken: &'b AtomicBool,
}

impl Write for Pipe<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.pipe.write(buf).inspect_err(|error| {
            if error.kind() == io::ErrorKind::BrokenPipe {
                self.broken.store(true, Ordering::Relaxed);
            }
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
