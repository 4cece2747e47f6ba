//! The source of a layer's files when its tar is rebuilt: a directory, or another container of
//! named files.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{OFlags, SeekFrom};
use rustix::io::Errno;

use super::checksum::Checksum;
use super::extractor::open_in;
use crate::layer::types::FileKind;
use crate::sys::interrupt;

/// The files of a layer.
pub(crate) trait LayerFiles {
    /// Opens the regular file of a clean path. Symlinks on the way are resolved with the layer as
    /// root; a symlink at the end is an error.
    ///
    /// # Errors
    /// The fault of the file, as a clause about it: "is missing".
    fn open(&mut self, path: &[u8]) -> Result<LayerFile<'_>, String>;
}

/// A regular file of a layer, at its beginning.
pub(crate) struct LayerFile<'f> {
    /// The length in bytes.
    pub(crate) length: u64,
    pub(crate) content: Content<'f>,
}

/// The content of a file.
pub(crate) enum Content<'f> {
    File(File),
    Stream(Box<dyn Read + 'f>),
}

impl Read for Content<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::File(file) => file.read(bytes),
            Self::Stream(stream) => stream.read(bytes),
        }
    }
}

impl LayerFile<'_> {
    /// Adds the content to the checksum. Holes of a file are not read.
    pub(super) fn sum(&mut self, buffer: &mut [u8], sum: &mut Checksum) -> std::io::Result<()> {
        match &mut self.content {
            Content::File(file) => sum_sparse(file, self.length, buffer, sum),
            Content::Stream(stream) => sum_stream(&mut **stream, self.length, buffer, sum),
        }
    }
}

/// The files of a directory.
pub(crate) struct DirFiles<D>(pub(crate) D);

impl<D: AsFd> LayerFiles for DirFiles<D> {
    fn open(&mut self, path: &[u8]) -> Result<LayerFile<'_>, String> {
        let open = |flags| {
            open_in(self.0.as_fd(), path, flags | OFlags::NOFOLLOW).map_err(|errno| match errno {
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
        // The type is checked before the file is opened, because opening a device may have side
        // effects.
        regular(&open(OFlags::PATH)?)?;
        // NONBLOCK: if the file has become a FIFO meanwhile, the open must not hang.
        let fd = open(OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        let stat = regular(&fd)?;
        Ok(LayerFile {
            length: u64::try_from(stat.st_size).unwrap_or(0),
            content: Content::File(File::from(fd)),
        })
    }
}

/// Adds a file to the checksum. Its holes are not read.
fn sum_sparse(
    file: &File,
    length: u64,
    buffer: &mut [u8],
    sum: &mut Checksum,
) -> std::io::Result<()> {
    let mut at = 0;
    while at < length {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data.min(length),
            Err(Errno::NXIO) => length,
            // The file system does not report holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            Err(errno) => return Err(errno.into()),
        };
        sum.zeros(data.saturating_sub(at));
        at = data.max(at);
        let hole = match rustix::fs::seek(file, SeekFrom::Hole(at)) {
            Ok(hole) if hole > at => hole.min(length),
            _ => length,
        };
        while at < hole {
            interrupt::check()?;
            let most = (hole - at).min(buffer.len() as u64) as usize;
            let room = buffer.get_mut(..most).unwrap_or_default();
            match file.read_at(room, at) {
                Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    sum.update(&room[..read]);
                    at += read as u64;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(())
}

fn sum_stream(
    stream: &mut dyn Read,
    length: u64,
    buffer: &mut [u8],
    sum: &mut Checksum,
) -> std::io::Result<()> {
    let mut left = length;
    while left > 0 {
        interrupt::check()?;
        let most = left.min(buffer.len() as u64) as usize;
        let room = buffer.get_mut(..most).unwrap_or_default();
        match stream.read(room) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                sum.update(&room[..read]);
                left -= read as u64;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
