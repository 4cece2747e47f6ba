//! A layer's bytes on their way in: hashed as they are in the archive, decompressed, and handed to
//! the one who unpacks by another thread, so that reading, hashing and decompressing go on beside
//! it.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::layer_tar::compression::{Compression, decompress_as, peek};
use crate::oci::Digest;
use crate::sys::interrupt;

/// Bytes handed over at a time, and how many such buffers are on the way.
const CHUNK: usize = 256 << 10;
const BUFFERS: usize = 4;

/// How often somebody who waits for bytes looks whether it is interrupted.
const LOOK: Duration = Duration::from_millis(100);

/// Whether the bytes are hashed as they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hashing {
    /// Nobody asks.
    No,
    /// If they are compressed, as whoever unpacks hashes what comes out.
    Compressed,
    /// In any case.
    Yes,
}

/// Hashes what is read through it.
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

/// A stream being read and decompressed by a thread of its own.
pub(super) struct Pipeline {
    chunks: Receiver<io::Result<Vec<u8>>>,
    current: io::Cursor<Vec<u8>>,
    thread: JoinHandle<Option<Digest>>,
}

impl Pipeline {
    /// `passed` is told, by that thread, how many bytes of `input` were read.
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

    /// Waits for the end; the digest of the bytes as they came, where they were hashed. What
    /// nobody read any more is thrown away.
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
        // The other side may have given up first.
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
    // What follows the compressed stream belongs to the blob's digest too.
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
