//! tar-split and the files of a layer become the layer's tar again, byte for byte.
//! Called by `save`, `push` and `verify`.

use std::fs::File;
use std::io::{BufRead, Read as _, Write};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::clean;
use super::error::{Result, TarError};
use super::hash::Hasher;
use super::place::open_in;
use super::split::{CRC, Line, Reader};
use crate::layer::types::FileKind;
use crate::store::Digest;
use crate::store::error::excerpt;

/// Bytes of content read at a time.
const CHUNK: usize = 256 << 10;

/// A file of a layer that is not what the layer's tar-split says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Its name in the tar.
    pub path: Vec<u8>,
    /// What is wrong with it.
    pub what: String,
}

/// Writes the tar that was unpacked into `diff` with this tar-split (lines, not
/// compressed), and gives its digest, which the caller compares with the diff ID. A
/// damaged file is an error that names it.
pub fn rebuild(
    split: impl BufRead,
    diff: BorrowedFd<'_>,
    out: impl Write,
) -> crate::store::Result<Digest> {
    let stop = |damage: Damage| {
        Err(TarError::Damaged {
            path: excerpt(&damage.path),
            what: damage.what,
        })
    };
    let rebuilt = Rebuild::new(diff, out, stop)?.run(split)?;
    Ok(rebuilt)
}

/// As [`rebuild`], but writes nothing and goes on after damage: every damaged file is
/// given to `damaged`. The digest means something only if there is none. `progress` is
/// called with the number of bytes hashed since its last call.
pub fn check(
    split: impl BufRead,
    diff: BorrowedFd<'_>,
    mut damaged: impl FnMut(Damage),
    progress: impl FnMut(u64),
) -> crate::store::Result<Digest> {
    let note = |damage| {
        damaged(damage);
        Ok(())
    };
    let out = Counter(progress);
    Ok(Rebuild::new(diff, out, note)?.run(split)?)
}

/// Tells how much is written to it.
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
    diff: BorrowedFd<'d>,
    out: W,
    damaged: F,
    hasher: Hasher,
    buffer: Vec<u8>,
}

impl<'d, W: Write, F: FnMut(Damage) -> Result<()>> Rebuild<'d, W, F> {
    fn new(diff: BorrowedFd<'d>, out: W, damaged: F) -> Result<Self> {
        Ok(Self {
            diff,
            out,
            damaged,
            hasher: Hasher::new()?,
            buffer: vec![0; CHUNK],
        })
    }

    fn run(mut self, split: impl BufRead) -> Result<Digest> {
        let mut lines = Reader::new(split);
        while let Some(line) = lines.next_line()? {
            match line {
                Line::Segment(bytes) => {
                    self.hasher.update(&bytes)?;
                    self.out.write_all(&bytes).map_err(failed)?;
                }
                Line::File { name, size, crc } if size > 0 || crc.is_some() => {
                    if let Err(what) = self.file(&name, size, crc)? {
                        (self.damaged)(Damage { path: name, what })?;
                    }
                }
                Line::File { .. } => {}
            }
        }
        self.out.flush().map_err(failed)?;
        self.hasher.finish()
    }

    /// The content of a file, into the tar unless `size` is 0. The inner error: what is
    /// wrong with the file.
    fn file(
        &mut self,
        name: &[u8],
        size: u64,
        crc: Option<u64>,
    ) -> Result<std::result::Result<(), String>> {
        let mut file = match self.open(name, size) {
            Ok(file) => file,
            Err(what) => return Ok(Err(what)),
        };
        let mut sum = CRC.digest();
        let mut left = if size > 0 { size } else { u64::MAX };
        while left > 0 {
            let most = left.min(CHUNK as u64) as usize;
            let read = match file.read(&mut self.buffer[..most]) {
                Ok(0) => break,
                Ok(read) => read,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Ok(Err(format!("cannot be read: {e}"))),
            };
            let bytes = &self.buffer[..read];
            sum.update(bytes);
            if size > 0 {
                self.hasher.update(bytes)?;
                self.out.write_all(bytes).map_err(failed)?;
            }
            left -= read as u64;
        }
        if size > 0 && left > 0 {
            return Ok(Err(format!("is shorter than {size} bytes")));
        }
        match crc {
            Some(crc) if crc != sum.finalize() => Ok(Err("its content is damaged".to_owned())),
            _ => Ok(Ok(())),
        }
    }

    fn open(&self, name: &[u8], size: u64) -> std::result::Result<File, String> {
        let path = clean(name).ok_or("its path leads out of the layer")?;
        let open = |flags| {
            open_in(self.diff, &path, flags | OFlags::NOFOLLOW).map_err(|errno| match errno {
                Errno::NOENT | Errno::NOTDIR => "is missing".to_owned(),
                errno => format!("cannot be opened: {errno}"),
            })
        };
        let regular = |fd: &OwnedFd| {
            let stat = rustix::fs::fstat(fd).map_err(|e| format!("cannot be read: {e}"))?;
            match FileKind::from_mode(stat.st_mode) {
                Some(FileKind::Regular) => Ok(stat),
                Some(kind) => Err(format!("is a {kind}, not a file")),
                None => Err("is of no known type".to_owned()),
            }
        };
        // Before that is known it is not opened: to open a device may do anything.
        regular(&open(OFlags::PATH)?)?;
        // NONBLOCK: what became a fifo meanwhile must not hang.
        let fd = open(OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        let stat = regular(&fd)?;
        let length = u64::try_from(stat.st_size).unwrap_or(0);
        if size > 0 && length != size {
            return Err(format!("has {length} bytes, not {size}"));
        }
        Ok(File::from(fd))
    }
}

fn failed(source: std::io::Error) -> TarError {
    TarError::Write {
        what: "tar",
        source,
    }
}
