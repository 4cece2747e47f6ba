//! Compresses a layer as zstd:chunked (`layer_tar::zstd_chunked`) while its tar is written: a thread
//! reads what the caller writes.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::compress::Finished;
use crate::layer_tar::zstd_chunked::{self, Scratch};
use crate::layer_tar::{Error, Result};

/// The bytes of the tar that are given to the thread at once.
const PIECE: usize = 256 << 10;
/// The limit of pieces that wait for the thread.
const WAITING: usize = 4;

/// A blob that a thread writes.
pub(super) struct Chunked<W> {
    piece: Vec<u8>,
    /// The queue of pieces; `None` after the end of the tar.
    pieces: Option<SyncSender<Vec<u8>>>,
    /// `None` after its failure was reported.
    thread: Option<JoinHandle<Result<Finished<W>>>>,
}

impl<W: Write + Send + 'static> Chunked<W> {
    /// Begins a blob.
    ///
    /// # Errors
    /// That of starting the thread.
    pub(super) fn new(level: i32, mut out: W, scratch: Scratch) -> io::Result<Self> {
        let (pieces, taken) = sync_channel(WAITING);
        let work = move || {
            let tar = Pieces {
                pieces: taken,
                piece: Vec::new(),
                read: 0,
            };
            let annotations = zstd_chunked::compress(tar, &mut out, level, &scratch)?;
            let Scratch {
                paths,
                table,
                split,
            } = scratch;
            Ok(Finished {
                out,
                annotations,
                scratch: vec![paths, table, split],
            })
        };
        let thread = std::thread::Builder::new().name("unionfs-chunked".to_owned());
        Ok(Self {
            piece: Vec::with_capacity(PIECE),
            pieces: Some(pieces),
            thread: Some(thread.spawn(work)?),
        })
    }

    /// Gives the current piece to the thread.
    fn send(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        match self.pieces.as_ref().map(|pieces| pieces.send(piece)) {
            Some(Ok(())) => Ok(()),
            // It ends before the tar only if it failed.
            _ => match self.join() {
                Ok(_) => Err(io::Error::other("the thread that compresses has ended")),
                Err(error) => Err(error),
            },
        }
    }

    fn join(&mut self) -> io::Result<Finished<W>> {
        self.pieces = None;
        let ended = || io::Error::other("the thread that compresses has ended");
        let thread = self.thread.take().ok_or_else(ended)?;
        thread
            .join()
            .map_err(|_| ended())?
            .map_err(|error| match error {
                Error::Write { source, .. } => source,
                error => io::Error::other(error),
            })
    }

    /// Writes the end of the blob.
    ///
    /// # Errors
    /// Those of the thread: the tar is not one of a layer, or the blob cannot be written.
    pub(super) fn finish(mut self) -> io::Result<Finished<W>> {
        if !self.piece.is_empty() {
            self.send()?;
        }
        self.join()
    }
}

impl<W: Write + Send + 'static> Write for Chunked<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.piece.len() == PIECE {
            self.send()?;
        }
        let taken = bytes.len().min(PIECE - self.piece.len());
        self.piece
            .extend_from_slice(bytes.get(..taken).unwrap_or_default());
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads the pieces of the tar.
struct Pieces {
    pieces: Receiver<Vec<u8>>,
    piece: Vec<u8>,
    read: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.piece.len() {
            // An error means that all pieces were taken and the writer has finished.
            self.piece = self.pieces.recv().unwrap_or_default();
            self.read = 0;
        }
        let rest = self.piece.get(self.read..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        let (Some(from), Some(to)) = (rest.get(..count), buffer.get_mut(..count)) else {
            return Ok(0);
        };
        to.copy_from_slice(from);
        self.read += count;
        Ok(count)
    }
}
