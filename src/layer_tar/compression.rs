//! Recognizes the compression of a layer's tar by its first bytes, and decompresses it.

use std::io::{self, BufReader, Read};

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;

/// The number of bytes that identify a compression.
pub(crate) const MAGIC: usize = 10;
/// The number of bytes read at a time.
const CHUNK: usize = 256 << 10;
/// The largest window of a zstd frame, as a power of two: 128 MiB, which every decoder has to
/// support up to level 22; a frame may ask for much more memory.
const MAX_WINDOW: u32 = 27;
/// The memory limit of an xz stream in KiB: twice the dictionary of `xz -9`, and some overhead.
const MAX_XZ: u32 = (128 << 10) + 1024;

/// The compression of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    Xz,
    Bzip2,
}

impl Compression {
    /// Recognizes a compression by the first bytes (RFC 1952, RFC 8878, the .xz file format 1.2.1).
    /// The magic of bzip2 alone could be a file's name in a tar, so the magic of the first block is
    /// also needed.
    pub(crate) fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', block @ ..]
                if block.starts_with(b"\x31\x41\x59\x26\x53\x59")
                    || block.starts_with(b"\x17\x72\x45\x38\x50\x90") =>
            {
                Self::Bzip2
            }
            _ => Self::None,
        }
    }
}

/// A reader with its first bytes put back.
pub(crate) type Peeked<R> = io::Chain<io::Cursor<Vec<u8>>, R>;

/// Returns the compression of a stream, and the stream from its beginning.
pub(crate) fn peek<R: Read>(mut input: R) -> io::Result<(Compression, Peeked<R>)> {
    let mut head = Vec::with_capacity(MAGIC);
    (&mut input).take(MAGIC as u64).read_to_end(&mut head)?;
    let compression = Compression::of(&head);
    Ok((compression, io::Cursor::new(head).chain(input)))
}

/// Returns the decompressed stream, for any compression.
pub(crate) fn decompress<'r>(
    input: impl Read + Send + 'r,
) -> io::Result<Box<dyn Read + Send + 'r>> {
    let (compression, input) = peek(input)?;
    decompress_as(compression, input)
}

/// Returns the decompressed stream, for this compression.
pub(crate) fn decompress_as<'r>(
    compression: Compression,
    input: impl Read + Send + 'r,
) -> io::Result<Box<dyn Read + Send + 'r>> {
    let input = BufReader::with_capacity(CHUNK, input);
    Ok(match compression {
        Compression::None => Box::new(input),
        Compression::Gzip => Box::new(MultiGzDecoder::new(input)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(MAX_WINDOW)?;
            Box::new(decoder)
        }
        Compression::Xz => Box::new(Xz(XzReader::new_mem_limit(input, true, MAX_XZ))),
        Compression::Bzip2 => Box::new(MultiBzDecoder::new(input)),
    })
}

/// An xz reader whose error says if a stream needs more memory than is allowed.
struct Xz<R: Read>(XzReader<R>);

impl<R: Read> Read for Xz<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf).map_err(|error| match error.kind() {
            io::ErrorKind::OutOfMemory => {
                let what = format!(
                    "the xz stream asks for more than {} MiB of memory: compress it with a smaller \
                     dictionary",
                    MAX_XZ >> 10
                );
                io::Error::new(io::ErrorKind::Unsupported, what)
            }
            _ => error,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_a_tar_may_be_called_like_a_compression() {
        let of = |head: &[u8]| Compression::of(head);
        assert_eq!(of(b"BZh9-notes"), Compression::None);
        assert_eq!(of(b"BZh9\x31\x41\x59\x26\x53\x59"), Compression::Bzip2);
        assert_eq!(of(b"BZh1\x17\x72\x45\x38\x50\x90"), Compression::Bzip2);
        assert_eq!(of(b"\xfd7zXZ\0"), Compression::Xz);
        assert_eq!(of(b"\xfd7zX"), Compression::None);
    }
}
