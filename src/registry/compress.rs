//! Compresses a layer's tar into the blob that is pushed, on several threads. The same tar always
//! gives the same bytes.
//!
//! gzip (RFC 1952): the tar is cut into blocks of a fixed size. Each block is compressed
//! separately, with the end of the previous block as the dictionary, to a piece of one deflate
//! stream (RFC 1951; a piece ends at a byte boundary, by an empty stored block). Data that deflate
//! cannot shorten is stored. The bytes depend on neither the number of threads nor their order.
//! zstd (RFC 8878): the library does the same with its own jobs. zstd:chunked needs to know the tar's
//! entries, which one thread reads while the caller writes (`chunked`).
//!
//! ```text
//! write ─ block ─┬─ thread ─┬─ pieces in order ─ out
//!                └─ thread ─┘
//! ```

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::num::NonZero;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use flate2::{Compress, Crc, FlushCompress, Status};
use parking_lot::Mutex;

use super::chunked::Chunked;
use crate::layer_tar::zstd_chunked::{Annotations, Scratch};

/// The size of a block in bytes. Smaller blocks compress worse, larger ones keep threads waiting.
const BLOCK: usize = 512 << 10;
/// The size in bytes of a segment, which is either compressed or stored. It fits into a stored
/// block.
const SEGMENT: usize = 32 << 10;
/// The bytes of a segment that are compressed as a test.
const SAMPLE: usize = 4 << 10;
/// The window of deflate in bytes (RFC 1951).
const WINDOW: usize = 32 << 10;
/// The limit of threads that compress one layer: several layers are compressed at once.
const MAX_THREADS: usize = 8;

/// The compression of layers that the registry does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayerCompression {
    /// gzip, which every engine reads; levels 1 to 9.
    Gzip(u32),
    /// zstd, with OCI media types; levels 1 to 20.
    Zstd(i32),
    /// zstd with a table of contents, from which podman and CRI-O pull only files that they do not
    /// have; levels 1 to 20.
    ZstdChunked(i32),
}

impl LayerCompression {
    /// Whether it is gzip, which manifests of every format may have.
    pub(super) fn is_gzip(self) -> bool {
        matches!(self, Self::Gzip(_))
    }

    /// Returns the number of files without a name that one layer needs while it is compressed.
    pub fn files_per_layer(self) -> usize {
        match self {
            Self::Gzip(_) | Self::Zstd(_) => 1,
            Self::ZstdChunked(_) => 4,
        }
    }
}

impl Default for LayerCompression {
    fn default() -> Self {
        Self::Gzip(4)
    }
}

/// A writer of a compressed blob.
pub(super) enum Compressor<W: Write> {
    Gzip(Gzip<W>),
    Zstd(zstd::Encoder<'static, W>),
    Chunked(Chunked<W>),
}

/// A complete blob.
pub(super) struct Finished<W> {
    /// The underlying writer.
    pub(super) out: W,
    /// The annotations that readers need to use the blob's table of contents.
    pub(super) annotations: Annotations,
    /// The files that were needed meanwhile.
    pub(super) scratch: Vec<File>,
}

impl<W: Write + Send + 'static> Compressor<W> {
    /// Begins a blob. `scratch` makes files without a name.
    ///
    /// # Errors
    /// Those of starting threads and of writing.
    pub(super) fn new(
        compression: LayerCompression,
        out: W,
        scratch: impl FnMut() -> io::Result<File>,
    ) -> io::Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self::with_threads(compression, out, threads.min(MAX_THREADS), scratch)
    }

    fn with_threads(
        compression: LayerCompression,
        out: W,
        threads: usize,
        mut scratch: impl FnMut() -> io::Result<File>,
    ) -> io::Result<Self> {
        match compression {
            LayerCompression::Gzip(level) => Ok(Self::Gzip(Gzip::new(level, out, threads)?)),
            LayerCompression::Zstd(level) => {
                let mut encoder = zstd::Encoder::new(out, level)?;
                // Not 0, which gives different bytes.
                encoder.multithread(u32::try_from(threads).unwrap_or(1))?;
                Ok(Self::Zstd(encoder))
            }
            LayerCompression::ZstdChunked(level) => {
                let scratch = Scratch {
                    paths: scratch()?,
                    table: scratch()?,
                    split: scratch()?,
                };
                Ok(Self::Chunked(Chunked::new(level, out, scratch)?))
            }
        }
    }

    /// Writes the end of the blob.
    ///
    /// # Errors
    /// Those of writing.
    pub(super) fn finish(self) -> io::Result<Finished<W>> {
        let out = match self {
            Self::Gzip(gzip) => gzip.finish()?,
            Self::Zstd(encoder) => encoder.finish()?,
            Self::Chunked(chunked) => return chunked.finish(),
        };
        Ok(Finished {
            out,
            annotations: Annotations::new(),
            scratch: Vec::new(),
        })
    }
}

impl<W: Write + Send + 'static> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(gzip) => gzip.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
            Self::Chunked(chunked) => chunked.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            // The data is complete only after `finish`.
            Self::Gzip(_) | Self::Chunked(_) => Ok(()),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}

/// A piece of the stream to compress.
struct Job {
    block: Vec<u8>,
    /// The end of the previous block.
    dictionary: Vec<u8>,
    place: Place,
    piece: SyncSender<io::Result<Vec<u8>>>,
}

/// The position of a piece in the stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Inner,
    Last,
}

/// A gzip stream of one member.
pub(super) struct Gzip<W> {
    out: W,
    block: Vec<u8>,
    dictionary: Vec<u8>,
    crc: Crc,
    /// The queue of jobs; `None` after the last one.
    jobs: Option<SyncSender<Job>>,
    /// The receivers of the pieces that are not written yet, in order.
    pending: VecDeque<Receiver<io::Result<Vec<u8>>>>,
    threads: Vec<JoinHandle<()>>,
}

impl<W: Write> Gzip<W> {
    fn new(level: u32, mut out: W, threads: usize) -> io::Result<Self> {
        // The header has no name, time or system: equal tars give equal blobs.
        out.write_all(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff])?;
        let (jobs, taken) = sync_channel::<Job>(threads);
        let taken = Arc::new(Mutex::new(taken));
        let spawn = |number: usize| {
            let taken = Arc::clone(&taken);
            let thread = std::thread::Builder::new().name(format!("unionfs-gzip-{number}"));
            thread.spawn(move || work(&taken, level))
        };
        Ok(Self {
            out,
            block: Vec::with_capacity(BLOCK),
            dictionary: Vec::new(),
            crc: Crc::new(),
            jobs: Some(jobs),
            pending: VecDeque::new(),
            threads: (0..threads).map(spawn).collect::<io::Result<_>>()?,
        })
    }

    /// Gives the block to a thread; writes pieces if too many are pending.
    fn dispatch(&mut self, place: Place) -> io::Result<()> {
        let block = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK));
        let from = block.len().saturating_sub(WINDOW);
        let next = block.get(from..).unwrap_or_default().to_vec();
        let (piece, answer) = sync_channel(1);
        let job = Job {
            dictionary: std::mem::replace(&mut self.dictionary, next),
            block,
            place,
            piece,
        };
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(job));
        if !matches!(sent, Some(Ok(()))) {
            return Err(io::Error::other("the threads that compress have ended"));
        }
        self.pending.push_back(answer);
        while self.pending.len() > 2 * self.threads.len() {
            self.write_piece()?;
        }
        Ok(())
    }

    /// Writes the oldest piece that is not written yet.
    fn write_piece(&mut self) -> io::Result<()> {
        let Some(answer) = self.pending.pop_front() else {
            return Ok(());
        };
        let ended = |_| io::Error::other("a thread that compresses has ended");
        self.out.write_all(&answer.recv().map_err(ended)??)
    }

    fn finish(mut self) -> io::Result<W> {
        self.dispatch(Place::Last)?;
        // The threads end when the queue is closed.
        self.jobs = None;
        while !self.pending.is_empty() {
            self.write_piece()?;
        }
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            ended.map_err(|_| io::Error::other("a thread that compresses has panicked"))?;
        }
        self.out.write_all(&self.crc.sum().to_le_bytes())?;
        // Modulo 2^32 (RFC 1952).
        self.out.write_all(&self.crc.amount().to_le_bytes())?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Gzip<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.block.len() == BLOCK {
            self.dispatch(Place::Inner)?;
        }
        let taken = bytes.len().min(BLOCK - self.block.len());
        let taken = bytes.get(..taken).unwrap_or_default();
        self.crc.update(taken);
        self.block.extend_from_slice(taken);
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Compresses until the queue is closed.
fn work(jobs: &Mutex<Receiver<Job>>, level: u32) {
    loop {
        // The lock is held while the thread waits: one thread waits for a job, the others for the
        // lock.
        let Ok(job) = jobs.lock().recv() else {
            return;
        };
        let piece = compressed(&job, level);
        // The receiver is gone if writing has failed.
        let _ = job.piece.send(piece);
    }
}

/// Compresses a job to a piece of a raw deflate stream.
fn compressed(job: &Job, level: u32) -> io::Result<Vec<u8>> {
    let block = job.block.as_slice();
    let mut piece = Vec::with_capacity(block.len() / 2 + 64);
    let mut segments = block.chunks(SEGMENT).peekable();
    let mut at = 0;
    while let Some(segment) = segments.next() {
        if is_noise(segment)? {
            store(segment, &mut piece);
            at += segment.len();
            continue;
        }
        let from = at;
        at += segment.len();
        while let Some(next) = segments.peek()
            && !is_noise(next)?
        {
            at += next.len();
            segments.next();
        }
        let before = match from {
            0 => job.dictionary.as_slice(),
            from => block
                .get(from.saturating_sub(WINDOW)..from)
                .unwrap_or_default(),
        };
        let run = block.get(from..at).unwrap_or_default();
        deflate(run, before, level, FlushCompress::Sync, &mut piece)?;
    }
    if job.place == Place::Last {
        deflate(&[], &[], level, FlushCompress::Finish, &mut piece)?;
    }
    Ok(piece)
}

/// Whether deflate could not shorten a segment, such as pictures, archives, or compressed data:
/// each byte value is about as frequent as the others, and a sample does not become shorter.
fn is_noise(segment: &[u8]) -> io::Result<bool> {
    let mut counts = [0_u64; 256];
    for byte in segment {
        if let Some(count) = counts.get_mut(usize::from(*byte)) {
            *count += 1;
        }
    }
    let length = segment.len() as u64;
    // The sum of squares is smallest for equal counts: length² / 256.
    let squares: u64 = counts.iter().map(|count| count * count).sum();
    if segment.len() < SEGMENT || squares * 256 > length * length * 21 / 20 {
        return Ok(false);
    }
    let sample = segment.get(..SAMPLE).unwrap_or(segment);
    let mut out = Vec::with_capacity(sample.len() + 64);
    deflate(sample, &[], 1, FlushCompress::Finish, &mut out)?;
    Ok(out.len() > sample.len() - sample.len() / 50)
}

/// Writes a stored block (RFC 1951, section 3.2.4), which begins at a byte boundary.
fn store(segment: &[u8], piece: &mut Vec<u8>) {
    // A segment is never longer.
    let length = u16::try_from(segment.len()).unwrap_or(u16::MAX);
    piece.push(0);
    piece.extend_from_slice(&length.to_le_bytes());
    piece.extend_from_slice(&(!length).to_le_bytes());
    piece.extend_from_slice(segment);
}

/// Adds compressed bytes, which may refer to the bytes in `before`. With `Sync` they end at a byte
/// boundary.
fn deflate(
    bytes: &[u8],
    before: &[u8],
    level: u32,
    flush: FlushCompress,
    piece: &mut Vec<u8>,
) -> io::Result<()> {
    let mut compress = Compress::new(flate2::Compression::new(level), false);
    if !before.is_empty() {
        compress.set_dictionary(before)?;
    }
    loop {
        // More than a flush needs, so that the flush is not written twice.
        piece.reserve(1 << 10);
        let read = usize::try_from(compress.total_in()).unwrap_or(usize::MAX);
        let rest = bytes.get(read..).unwrap_or_default();
        let status = compress.compress_vec(rest, piece, flush)?;
        let is_flushed = flush == FlushCompress::Sync && piece.len() < piece.capacity();
        if status == Status::StreamEnd || is_flushed {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    /// Returns bytes that compress in part, the same each time.
    fn sample(length: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        };
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let random = next();
            let run = usize::from(next() % 40);
            bytes.extend(std::iter::repeat_n(random, run));
            bytes.extend((0..20).map(|_| next()));
        }
        bytes.truncate(length);
        bytes
    }

    fn blob(compression: LayerCompression, bytes: &[u8], threads: usize, step: usize) -> Vec<u8> {
        let out = Compressor::with_threads(compression, Vec::new(), threads, tempfile::tempfile);
        let mut out = out.unwrap();
        for part in bytes.chunks(step) {
            out.write_all(part).unwrap();
        }
        out.finish().unwrap().out
    }

    #[test]
    fn blobs_are_the_same_for_every_number_of_threads_and_give_the_tar_back() {
        for length in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 77] {
            let bytes = sample(length);
            let gzip = LayerCompression::default();
            let one = blob(gzip, &bytes, 1, usize::MAX);
            for (threads, step) in [(1, 1000), (2, 4096), (7, 300_000)] {
                assert!(
                    blob(gzip, &bytes, threads, step) == one,
                    "{length} {threads}"
                );
            }
            let mut back = Vec::new();
            // The stream has one member: some readers stop after the first.
            GzDecoder::new(one.as_slice())
                .read_to_end(&mut back)
                .unwrap();
            assert!(back == bytes, "{length}");
            let zstd = LayerCompression::Zstd(3);
            let one = blob(zstd, &bytes, 1, usize::MAX);
            assert!(blob(zstd, &bytes, 3, 1000) == one, "{length}");
            assert!(zstd::decode_all(one.as_slice()).unwrap() == bytes);
        }
    }

    #[test]
    fn what_cannot_be_compressed_grows_little_and_what_repeats_across_blocks_is_found() {
        let mut bytes = vec![0; 3 * BLOCK];
        let mut state = 1_u32;
        for byte in &mut bytes {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (state >> 24) as u8;
        }
        let out = blob(LayerCompression::default(), &bytes, 2, BLOCK);
        assert!(out.len() < bytes.len() + bytes.len() / 500, "{}", out.len());
        // The beginning of the second block is the end of the first.
        let mut repeated = bytes[..BLOCK].to_vec();
        repeated.extend_from_slice(&bytes[BLOCK - WINDOW / 2..BLOCK]);
        let out = blob(LayerCompression::default(), &repeated, 2, BLOCK);
        assert!(out.len() < BLOCK + WINDOW / 4, "{}", out.len());
    }

    #[test]
    fn equal_counts_alone_are_no_noise() {
        let counted: Vec<u8> = (0..SEGMENT).map(|at| at as u8).collect();
        assert!(!is_noise(&counted).unwrap());
        let text: Vec<u8> = sample(SEGMENT).iter().map(|byte| byte % 64).collect();
        assert!(!is_noise(&text).unwrap());
        let out = blob(LayerCompression::default(), &counted, 2, BLOCK);
        assert!(out.len() < 1000, "{}", out.len());
    }

    #[test]
    fn a_writer_that_fails_ends_it() {
        struct Full(usize);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let bytes = sample(20 * BLOCK);
        for compression in [LayerCompression::default(), LayerCompression::Zstd(3)] {
            let out = Compressor::with_threads(compression, Full(2), 2, tempfile::tempfile);
            let written = out.and_then(|mut out| {
                out.write_all(&bytes)?;
                out.finish().map(drop)
            });
            assert_eq!(written.unwrap_err().kind(), io::ErrorKind::StorageFull);
        }
    }
}
