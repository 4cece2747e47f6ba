//! SHA-256 in a thread of its own: it hashes the bytes that another thread reads or writes.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use sha2::{Digest as _, Sha256};

use super::error::{Error, Result};
use crate::oci::Digest;

/// The size of a buffer in bytes, and the number of buffers.
const CHUNK: usize = 256 << 10;
const BUFFERS: usize = 4;

/// A running hash.
pub(super) struct Hasher {
    full: SyncSender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
    current: Vec<u8>,
    made: usize,
    thread: JoinHandle<Sha256>,
}

impl Hasher {
    pub(super) fn new() -> Result<Self> {
        let (full, todo) = sync_channel::<Vec<u8>>(BUFFERS);
        let (done, empty) = sync_channel::<Vec<u8>>(BUFFERS);
        let work = move || {
            let mut hash = Sha256::new();
            for mut buffer in todo {
                hash.update(&buffer);
                buffer.clear();
                // The receiver may have ended already.
                let _ = done.try_send(buffer);
            }
            hash
        };
        let thread = std::thread::Builder::new()
            .name("sha256".to_owned())
            .spawn(work)
            .map_err(Error::Hash)?;
        Ok(Self {
            full,
            empty,
            current: Vec::new(),
            made: 1,
            thread,
        })
    }

    pub(super) fn update(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let room = CHUNK.saturating_sub(self.current.len());
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.current.extend_from_slice(now);
            bytes = later;
            if self.current.len() >= CHUNK {
                let next = self.buffer()?;
                let buffer = std::mem::replace(&mut self.current, next);
                self.full.send(buffer).map_err(|_| gone())?;
            }
        }
        Ok(())
    }

    fn buffer(&mut self) -> Result<Vec<u8>> {
        if let Ok(buffer) = self.empty.try_recv() {
            return Ok(buffer);
        }
        if self.made < BUFFERS {
            self.made += 1;
            return Ok(Vec::with_capacity(CHUNK));
        }
        self.empty.recv().map_err(|_| gone())
    }

    pub(super) fn finish(self) -> Result<Digest> {
        self.full.send(self.current).map_err(|_| gone())?;
        drop(self.full);
        let hash = self.thread.join().map_err(|_| gone())?;
        Ok(Digest::from_hash(hash))
    }
}

fn gone() -> Error {
    Error::Hash(io::Error::other("its thread has ended"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_digest_of_all_bytes_in_order() {
        let bytes: Vec<u8> = (0..3 * CHUNK + 17).map(|i| (i % 251) as u8).collect();
        for step in [1000, CHUNK - 1, CHUNK, bytes.len()] {
            let mut hasher = Hasher::new().unwrap();
            for part in bytes.chunks(step) {
                hasher.update(part).unwrap();
            }
            assert_eq!(hasher.finish().unwrap(), Digest::of(&bytes));
        }
        assert_eq!(Hasher::new().unwrap().finish().unwrap(), Digest::of(b""));
    }
}
