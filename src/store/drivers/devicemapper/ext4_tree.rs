//! The files of a layer in the ext4 on a thin device.
//!
//! ```text
//!  /id         the ID of the first device that was mounted of this line
//!  /rootfs/    the files of the layer and of all below it
//! ```
//! The crate `ext4_view` reads the file system. It gets no path with a symlink in it: symlinks are
//! resolved here, with `rootfs` as the root, because Docker unpacked the layer in this way.
//!
//! Sizes for which the crate allocates memory before it reads anything are checked first (the
//! geometry of the file system, the length of symlinks).

use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use ext4_view::{Ext4, Ext4Error, Metadata};
use lru::LruCache;

use super::bad;
use super::thin_device::ThinDevice;
use crate::layer_tar::layer_files::{Content, LayerFile, LayerFiles};
use crate::store::error::{Error, Result};

const ROOT: &[u8] = b"/rootfs";
/// The limit of symlinks on the way to a file, as in the kernel.
const MAX_LINKS: usize = 40;
/// The size limit of a symlink's target, and of a path, in bytes.
const MAX_PATH: usize = 4096;
/// The number of directories whose resolved paths are cached.
const KEPT: NonZeroUsize = NonZeroUsize::new(64).unwrap();
/// The limit of block groups, which usually have 128 MiB each.
const MAX_GROUPS: u64 = 1 << 20;
/// The number of bytes read at a time; a block is smaller.
const CHUNK: usize = 64 << 10;

const OTHERS: &str = "mount the device with the kernel, or save the image with the Docker that made it \
                      (docker save) and load it (unionfs load)";
const OF_XFS: &str = "save the image with the Docker that made it (docker save -o app.tar IMAGE) and load it \
                      (unionfs load -i app.tar), or mount the device with the kernel and import its files \
                      (unionfs import DIR/rootfs NAME)";
const AGAIN: &str = "load or pull the image again";

/// An opened file system.
pub(super) struct Ext4Tree {
    fs: Ext4,
    /// The longest file, in bytes.
    longest: u64,
    /// The resolved paths of directories, by their paths.
    dirs: LruCache<Vec<u8>, Vec<u8>>,
}

impl Ext4Tree {
    /// Opens the file system of a device.
    pub(super) fn open(mut device: ThinDevice) -> Result<Self> {
        let longest = expect_ext4(&mut device)?;
        let record = device.record().to_owned();
        let failed = |error: Ext4Error| failed(&record, error);
        let fs = Ext4::load(Box::new(device)).map_err(failed)?;
        let tree = Self {
            fs,
            longest,
            dirs: LruCache::new(KEPT),
        };
        match tree.look(ROOT) {
            Ok(root) if root.is_dir() => Ok(tree),
            Ok(_) | Err(Ext4Error::NotFound) => {
                let fault = "the file system on the device has no directory rootfs".to_owned();
                Err(bad(&record, fault, AGAIN))
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn look(&self, path: &[u8]) -> std::result::Result<Metadata, Ext4Error> {
        self.fs.symlink_metadata(path)
    }

    /// Returns the resolved path of a directory, given by a clean path.
    fn dir(&mut self, dir: &[u8]) -> std::result::Result<Vec<u8>, String> {
        if let Some(known) = self.dirs.get(dir) {
            return Ok(known.clone());
        }
        let found = self.resolve(dir)?;
        self.dirs.put(dir.to_vec(), found.clone());
        Ok(found)
    }

    fn resolve(&self, dir: &[u8]) -> std::result::Result<Vec<u8>, String> {
        let mut at = ROOT.to_vec();
        let mut todo = parts(dir);
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == b".." {
                let end = at.iter().rposition(|byte| *byte == b'/');
                at.truncate(end.unwrap_or(0).max(ROOT.len()));
                continue;
            }
            let next = [&at[..], b"/", &part].concat();
            if next.len() > MAX_PATH {
                return Err("has too long a path".to_owned());
            }
            let found = self.look(&next).map_err(|error| fault(&error))?;
            if found.is_symlink() {
                links += 1;
                if links > MAX_LINKS || found.len() > MAX_PATH as u64 {
                    return Err("has too many or too long symlinks on the way".to_owned());
                }
                let target = self.fs.read_link(&next[..]).map_err(|e| fault(&e))?;
                let target: &[u8] = target.as_ref();
                if target.starts_with(b"/") {
                    at = ROOT.to_vec();
                }
                todo.extend(parts(target));
            } else if found.is_dir() {
                at = next;
            } else {
                return Err("is missing".to_owned());
            }
        }
        Ok(at)
    }
}

/// Returns the names of a path, last first.
fn parts(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/').rev();
    let parts = parts.filter(|part| !part.is_empty() && *part != b".");
    parts.map(<[u8]>::to_vec).collect()
}

impl LayerFiles for Ext4Tree {
    fn open(&mut self, path: &[u8]) -> std::result::Result<LayerFile<'_>, String> {
        let end = path.iter().rposition(|byte| *byte == b'/');
        let (dir, name) = match end {
            Some(end) => (&path[..end], &path[end + 1..]),
            None => (&b""[..], path),
        };
        let path = [&self.dir(dir)?[..], b"/", name].concat();
        let found = self.look(&path).map_err(|error| fault(&error))?;
        if !found.file_type().is_regular_file() {
            return Err("is not a file".to_owned());
        }
        if found.len() > self.longest {
            return Err(format!(
                "has {} bytes, more than a map of blocks can describe",
                found.len()
            ));
        }
        let file = self.fs.open(&path[..]).map_err(|error| fault(&error))?;
        Ok(LayerFile {
            length: file.metadata().len(),
            content: Content::Stream(Box::new(io::BufReader::with_capacity(CHUNK, Whole(file)))),
        })
    }
}

/// Fills the whole buffer: the crate returns at most a block per read.
struct Whole<R>(R);

impl<R: Read> Read for Whole<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.0.read(rest)? {
                0 => break,
                read => filled += read,
            }
        }
        Ok(filled)
    }
}

/// Returns the fault of a file, as a clause about it.
fn fault(error: &Ext4Error) -> String {
    match error {
        Ext4Error::NotFound | Ext4Error::NotADirectory => "is missing".to_owned(),
        Ext4Error::Io(error) => format!("cannot be read: {error}"),
        error => format!("cannot be read: {error}"),
    }
}

fn failed(record: &Path, error: Ext4Error) -> Error {
    match error {
        Ext4Error::Io(error) => match error.downcast::<Error>() {
            Ok(error) => *error,
            Err(error) => bad(record, format!("its file system: {error}"), AGAIN),
        },
        Ext4Error::Incompatible(what) => {
            bad(record, format!("its ext4 cannot be read: {what}"), OTHERS)
        }
        error => bad(
            record,
            format!("its file system is damaged: {error}"),
            AGAIN,
        ),
    }
}

/// Returns the length of the longest file that block maps can describe, in bytes: 12 blocks and
/// three levels of maps (ext4's block maps, Documentation/filesystems/ext4/blockmap.rst). Extents
/// can describe longer files, of 16 GiB and more, with blocks of 1 KiB; such files are refused.
fn longest_file(block_size: u64) -> u64 {
    let numbers = block_size / 4;
    (12 + numbers + numbers.pow(2) + numbers.pow(3)).saturating_mul(block_size)
}

/// Fails unless there is an ext4 with a geometry that the device can have. Returns the length of
/// the longest file, in bytes.
fn expect_ext4(device: &mut ThinDevice) -> Result<u64> {
    let record: PathBuf = device.record().to_owned();
    let mut first = [0; 2048];
    if device.size() < first.len() as u64 {
        return Err(bad(&record, "it has no file system".to_owned(), AGAIN));
    }
    device.read_at(0, &mut first)?;
    if first.starts_with(b"XFSB") {
        let fault = "the file system on the device is xfs, which is not read".to_owned();
        return Err(bad(&record, fault, OF_XFS));
    }
    let u16_at = |at: usize| u16::from_le_bytes([first[1024 + at], first[1025 + at]]);
    let u32_at = |at: usize| u64::from(u16_at(at)) | u64::from(u16_at(at + 2)) << 16;
    if u16_at(0x38) != 0xef53 {
        let fault = "the file system on the device is neither ext4 nor xfs".to_owned();
        return Err(bad(&record, fault, OTHERS));
    }
    let is_64_bit = u32_at(0x60) & 0x80 != 0;
    let high = if is_64_bit { u32_at(0x150) } else { 0 };
    let blocks = u32_at(4) | high << 32;
    let (log_block_size, of_group) = (u32_at(0x18), u32_at(0x20));
    let fits = log_block_size <= 6
        && blocks <= device.size() >> (10 + log_block_size)
        && of_group > 0
        && blocks.div_ceil(of_group) <= MAX_GROUPS;
    if fits {
        return Ok(longest_file(1024 << log_block_size));
    }
    let fault = "the geometry of its ext4 is not one that the device can have".to_owned();
    Err(bad(&record, fault, AGAIN))
}
