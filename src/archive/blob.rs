//! Reads a layer's blob in a thread of its own: hashes it as it is in the archive, decompresses it,
//! and hands the bytes to the thread that unpacks. Thus reading, hashing and decompressing run in
//! parallel with unpacking.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::layer_tar::compression::{Compression, decompress_as, peek};
use crate::oci::Digest;
use crate::sys::interrupt;

/// The size of a buffer in bytes, and the number of buffers in the queue.
const CHUNK: usize = 256 << 10;
const BUFFERS: usize = 4;

/// The interval at which a thread that waits for bytes checks for an interruption.
const LOOK: Duration = Duration::from_millis(100);

/// Whether the bytes are hashed while they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hashing {
    /// They are not hashed.
    No,
    /// They are hashed if they are compressed. The unpacker hashes the decompressed bytes.
    Compressed,
    /// They are always hashed.
    Yes,
}

/// Hashes all bytes that are read through it.
struct Hashed<R> {
    inner: R,
    hash: Option<Sha256>,
    passed: Box<dyn FnMut(u64) + Send>,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buf)?;
        if let Some(hash) = &mut self.hash {
            hash.update(&buf[..got]);
        }
        (self.passed)(got as u64);
        Ok(got)
    }
}

/// A stream that is read and decompressed by a thread of its own.
pub(super) struct Pipeline {
    chunks: Receiver<io::Result<Vec<u8>>>,
    current: io::Cursor<Vec<u8>>,
    thread: JoinHandle<Option<Digest>>,
}

impl Pipeline {
    /// Starts the thread. It calls `passed` with the number of bytes of `input` that it has read.
    pub(super) fn start(
        input: impl Read + Send + 'static,
        hashing: Hashing,
        passed: impl FnMut(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, chunks) = sync_channel(BUFFERS);
        let thread = std::thread::Builder::new()
            .name("decompress".to_owned())
            .spawn(move || run(input, hashing, Box::new(passed), &sender))?;
        Ok(Self {
            chunks,
            current: io::Cursor::default(),
            thread,
        })
    }

    /// Waits for the end. Returns the digest of the bytes of the archive, if they were hashed.
    /// Bytes that were not read are discarded.
    pub(super) fn finish(mut self) -> io::Result<Option<Digest>> {
        io::copy(&mut self, &mut io::sink())?;
        let ended = |_| io::Error::other("the thread that decompresses ended early");
        self.thread.join().map_err(ended)
    }
}

fn run(
    input: impl Read + Send + 'static,
    hashing: Hashing,
    passed: Box<dyn FnMut(u64) + Send>,
    sender: &SyncSender<io::Result<Vec<u8>>>,
) -> Option<Digest> {
    let outcome = peek(input).and_then(|(compression, inner)| {
        let wanted = match hashing {
            Hashing::No => false,
            Hashing::Compressed => compression != Compression::None,
            Hashing::Yes => true,
        };
        let mut input = Hashed {
            inner,
            hash: wanted.then(Sha256::new),
            passed,
        };
        send_all(&mut input, compression, sender)?;
        Ok(input.hash.map(Digest::from_hash))
    });
    outcome.unwrap_or_else(|error| {
        // The receiver may have ended first.
        let _ = sender.send(Err(error));
        None
    })
}

fn send_all(
    input: &mut (impl Read + Send),
    compression: Compression,
    sender: &SyncSender<io::Result<Vec<u8>>>,
) -> io::Result<()> {
    {
        let mut stream = decompress_as(compression, &mut *input)?;
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            (&mut stream).take(CHUNK as u64).read_to_end(&mut chunk)?;
            if chunk.is_empty() {
                break;
            }
            if sender.send(Ok(chunk)).is_err() {
                return Ok(());
            }
        }
    }
    // Bytes after the compressed stream belong to the blob's digest too.
    io::copy(input, &mut io::sink()).map(drop)
}

impl Read for Pipeline {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let got = self.current.read(buf)?;
            if got > 0 || buf.is_empty() {
                return Ok(got);
            }
            match self.chunks.recv_timeout(LOOK) {
                Ok(Ok(chunk)) => self.current = io::Cursor::new(chunk),
                Ok(Err(error)) => return Err(error),
                Err(RecvTimeoutError::Timeout) => interrupt::check()?,
                Err(RecvTimeoutError::Disconnected) => return Ok(0),
            }
        }
    }
}
