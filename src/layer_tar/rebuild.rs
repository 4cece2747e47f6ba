//! Rebuilds a layer's tar from its tar-split and its files, byte for byte.

use std::io::{BufRead, Read as _, Write};
use std::os::fd::BorrowedFd;

use super::checksum::Checksum;
use super::clean;
use super::error::{Error, Result};
use super::hash::Hasher;
use super::layer_files::{DirFiles, LayerFile, LayerFiles};
use super::tar_split::{TarSplitLine, TarSplitReader};
use super::whiteout::why_not_kept;
use crate::oci::Digest;
use crate::oci::text::excerpt;

/// The number of bytes of content read at a time.
const CHUNK: usize = 256 << 10;

/// A file of a layer that differs from the layer's tar-split.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// The file's name in the tar.
    pub path: Vec<u8>,
    /// The damage.
    pub what: String,
    /// Whether it is damage.
    pub cause: Cause,
}

/// The reason why a file differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// The file was changed.
    Damaged,
    /// The engine that unpacked the layer has not kept the content of an entry. The tar cannot be made
    /// again, by the engine neither.
    NotKept,
}

/// Rebuilds the tar that was unpacked into `diff` from this tar-split (lines, not compressed).
/// Returns its digest, which the caller compares with the diff ID. A damaged file is an error that
/// names the file.
///
/// # Errors
/// [`Error::Split`] for a malformed tar-split; [`Error::Damaged`] for a file that differs from the
/// tar-split; [`Error::NotKept`] for content that the engine has not kept; [`Error::Write`] if `out`
/// fails; [`Error::Hash`] if the hashing thread cannot be
/// started.
pub fn rebuild(split: impl BufRead, diff: BorrowedFd<'_>, out: impl Write) -> Result<Digest> {
    rebuild_from(split, &mut DirFiles(diff), out)
}

/// As [`rebuild`], for a layer whose files need not be in a directory.
pub(crate) fn rebuild_from(
    split: impl BufRead,
    files: &mut dyn LayerFiles,
    out: impl Write,
) -> Result<Digest> {
    let stop = |damage: Damage| {
        let (path, what) = (excerpt(&damage.path), damage.what);
        Err(match damage.cause {
            Cause::Damaged => Error::Damaged { path, what },
            Cause::NotKept => Error::NotKept { path, what },
        })
    };
    Rebuild::new(files, out, stop)?.run(split)
}

/// As [`rebuild`], but writes nothing and continues after damage: `damaged` is called with every
/// damaged file. The digest is valid only if there is none. `progress` is called with the number of
/// bytes hashed since its last call.
///
/// # Errors
/// [`Error::Split`] for a malformed tar-split; [`Error::Hash`] if the hashing thread cannot be
/// started.
pub fn check(
    split: impl BufRead,
    diff: BorrowedFd<'_>,
    damaged: impl FnMut(Damage),
    progress: impl FnMut(u64),
) -> Result<Digest> {
    check_from(split, &mut DirFiles(diff), damaged, progress)
}

/// As [`check`], for a layer whose files need not be in a directory.
pub(crate) fn check_from(
    split: impl BufRead,
    files: &mut dyn LayerFiles,
    mut damaged: impl FnMut(Damage),
    progress: impl FnMut(u64),
) -> Result<Digest> {
    let note = |damage| {
        damaged(damage);
        Ok(())
    };
    let out = Counter(progress);
    Rebuild::new(files, out, note)?.run(split)
}

/// A writer that reports the number of bytes written.
struct Counter<F>(F);

impl<F: FnMut(u64)> Write for Counter<F> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        (self.0)(bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Rebuild<'d, W, F> {
    files: &'d mut dyn LayerFiles,
    out: W,
    damaged: F,
    hasher: Hasher,
    buffer: Vec<u8>,
}

impl<'d, W: Write, F: FnMut(Damage) -> Result<()>> Rebuild<'d, W, F> {
    fn new(files: &'d mut dyn LayerFiles, out: W, damaged: F) -> Result<Self> {
        Ok(Self {
            files,
            out,
            damaged,
            hasher: Hasher::new()?,
            buffer: vec![0; CHUNK],
        })
    }

    fn run(mut self, split: impl BufRead) -> Result<Digest> {
        let mut lines = TarSplitReader::new(split);
        while let Some(line) = lines.next_line()? {
            match line {
                TarSplitLine::Segment(bytes) => {
                    self.hasher.update(&bytes)?;
                    self.out.write_all(&bytes).map_err(Error::writing_tar)?;
                }
                TarSplitLine::File { name, size, crc } if size > 0 || crc.is_some() => {
                    let not_kept = why_not_kept(&name).filter(|_| size > 0);
                    let (what, cause) = match not_kept {
                        Some(why) => (Some(why.to_owned()), Cause::NotKept),
                        None => (self.file(&name, size, crc)?.err(), Cause::Damaged),
                    };
                    if let Some(what) = what {
                        let path = name;
                        (self.damaged)(Damage { path, what, cause })?;
                    }
                }
                TarSplitLine::File { .. } => {}
            }
        }
        self.out.flush().map_err(Error::writing_tar)?;
        self.hasher.finish()
    }

    /// Writes the content of a file to the tar, or only adds it to the checksum if `size` is 0. The
    /// inner error is the fault of the file.
    fn file(
        &mut self,
        name: &[u8],
        size: u64,
        crc: Option<u64>,
    ) -> Result<std::result::Result<(), String>> {
        let mut file = match open(self.files, name, size) {
            Ok(opened) => opened,
            Err(what) => return Ok(Err(what)),
        };
        let mut sum = Checksum::new();
        if size == 0 {
            // The content is in tar-split. The file may be sparse and of any length.
            return Ok(match file.sum(&mut self.buffer, &mut sum) {
                Ok(()) => fits(crc, sum),
                Err(e) => Err(format!("cannot be read: {e}")),
            });
        }
        let mut left = size;
        while left > 0 {
            let most = left.min(CHUNK as u64) as usize;
            let read = match file.content.read(&mut self.buffer[..most]) {
                Ok(0) => break,
                Ok(read) => read,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Ok(Err(format!("cannot be read: {e}"))),
            };
            let bytes = &self.buffer[..read];
            sum.update(bytes);
            self.hasher.update(bytes)?;
            self.out.write_all(bytes).map_err(Error::writing_tar)?;
            left -= read as u64;
        }
        match left {
            0 => Ok(fits(crc, sum)),
            _ => Ok(Err(format!("is shorter than {size} bytes"))),
        }
    }
}

/// Opens a regular file, which must have `size` bytes unless `size` is 0.
fn open<'f>(
    files: &'f mut dyn LayerFiles,
    name: &[u8],
    size: u64,
) -> std::result::Result<LayerFile<'f>, String> {
    let path = clean(name).ok_or("its path leads out of the layer")?;
    let file = files.open(&path)?;
    if size > 0 && file.length != size {
        return Err(format!("has {} bytes, not {size}", file.length));
    }
    Ok(file)
}

fn fits(crc: Option<u64>, sum: Checksum) -> std::result::Result<(), String> {
    match crc {
        Some(crc) if crc != sum.finish() => Err("its content is damaged".to_owned()),
        _ => Ok(()),
    }
}
