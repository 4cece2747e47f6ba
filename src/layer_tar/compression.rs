//! How a layer's tar is compressed, told by its first bytes, and the tar out of it.

use std::io::{self, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

/// Bytes that tell a compression.
pub(crate) const MAGIC: usize = 6;
/// Bytes read at a time.
const CHUNK: usize = 256 << 10;
/// The largest window of a zstd frame, as a power of two: 128 MiB, which every decoder has to
/// support up to level 22; a frame may ask for much more memory.
const MAX_WINDOW: u32 = 27;

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    /// One that no image specification has; its name.
    Other(&'static str),
}

impl Compression {
    /// By the first bytes (RFC 1952, RFC 8878).
    pub(crate) fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Other("xz"),
            [b'B', b'Z', b'h', ..] => Self::Other("bzip2"),
            _ => Self::None,
        }
    }
}

/// A reader with its first bytes put back.
pub(crate) type Peeked<R> = io::Chain<io::Cursor<Vec<u8>>, R>;

/// What a stream is compressed with, and the stream from its beginning.
pub(crate) fn peek<R: Read>(mut input: R) -> io::Result<(Compression, Peeked<R>)> {
    let mut head = Vec::with_capacity(MAGIC);
    (&mut input).take(MAGIC as u64).read_to_end(&mut head)?;
    let compression = Compression::of(&head);
    Ok((compression, io::Cursor::new(head).chain(input)))
}

/// The stream itself, whatever it is compressed with.
pub(crate) fn decompress<'r>(
    input: impl Read + Send + 'r,
) -> io::Result<Box<dyn Read + Send + 'r>> {
    let (compression, input) = peek(input)?;
    decompress_as(compression, input)
}

/// The stream itself, which is compressed so.
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
        Compression::Other(name) => {
            let what = format!("compressed with {name}, which images are not: unpack it first");
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
    })
}
