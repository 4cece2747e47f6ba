//! Origins: a copied-up file records in an xattr which lower file it was copied from, as in kernel
//! overlayfs.
//!
//! `struct ovl_fb` of Linux fs/overlayfs/overlayfs.h, as stored in the `origin` xattr:
//!
//! ```text
//! version 0 | magic 0xfb | len (all bytes) | flags | handle type | uuid[16] | handle bytes
//! ```

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;

use super::at::{At, Stat};
use super::types::FileKind;
use crate::sys::handle::{FileHandle, name_to_handle, open_by_handle};

const MAGIC: u8 = 0xfb;
const HEADER: usize = 21;
/// OVL_FH_FLAG_BIG_ENDIAN: the handle was encoded by a big-endian machine.
const FLAG_BIG_ENDIAN: u8 = 1;
/// OVL_FH_FLAG_ANY_ENDIAN: the handle does not depend on byte order.
const FLAG_ANY_ENDIAN: u8 = 2;

/// The properties of a file that an origin leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginFile {
    /// The device and inode number.
    pub id: (u64, u64),
    /// The type.
    pub kind: FileKind,
    /// The number of hard links.
    pub nlink: u32,
}

impl OriginFile {
    /// Encodes it without its device number, for another process: inode number, links, type.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.id.1.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&self.nlink.to_ne_bytes());
        bytes.extend_from_slice(&self.kind.mode_bits().to_ne_bytes());
        bytes
    }

    /// Decodes such bytes for a file on the file system with this device number.
    pub fn from_bytes(dev: u64, bytes: &[u8]) -> Option<Self> {
        let (ino, rest) = bytes.split_first_chunk()?;
        let (nlink, rest) = rest.split_first_chunk()?;
        let (mode, _) = rest.split_first_chunk()?;
        Some(Self {
            id: (dev, u64::from_ne_bytes(*ino)),
            kind: FileKind::from_mode(u32::from_ne_bytes(*mode))?,
            nlink: u32::from_ne_bytes(*nlink),
        })
    }
}

impl From<&Stat> for OriginFile {
    fn from(stat: &Stat) -> Self {
        Self {
            id: stat.id(),
            kind: stat.kind,
            nlink: stat.nlink,
        }
    }
}

/// An encoded origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    bytes: Vec<u8>,
}

impl Origin {
    /// Returns the origin of `at`, on a file system with `uuid` (zero if it is not known).
    ///
    /// # Errors
    /// EOPNOTSUPP if the file system has no handles, else those of name_to_handle_at(2).
    pub fn of(at: At<'_>, uuid: Option<[u8; 16]>) -> Result<Self, Errno> {
        let name = CString::new(at.name).map_err(|_| Errno::INVAL)?;
        let handle = name_to_handle(at.dir, &name)?;
        let len = HEADER + handle.bytes.len();
        let kind = u8::try_from(handle.kind).map_err(|_| Errno::OPNOTSUPP)?;
        let flags = if cfg!(target_endian = "big") {
            FLAG_BIG_ENDIAN
        } else {
            0
        };
        let mut bytes = vec![0, MAGIC, u8::try_from(len).map_err(|_| Errno::OPNOTSUPP)?];
        bytes.extend([flags, kind]);
        bytes.extend(uuid.unwrap_or_default());
        bytes.extend(handle.bytes);
        Ok(Self { bytes })
    }

    /// Parses the value of an `origin` xattr; `None` for a malformed or foreign one.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let ours = if cfg!(target_endian = "big") {
            FLAG_BIG_ENDIAN
        } else {
            0
        };
        let well_formed = bytes.len() >= HEADER
            && bytes[0] == 0
            && bytes[1] == MAGIC
            && usize::from(bytes[2]) == bytes.len()
            && (bytes[3] & FLAG_ANY_ENDIAN != 0 || bytes[3] & FLAG_BIG_ENDIAN == ours);
        well_formed.then(|| Self {
            bytes: bytes.to_vec(),
        })
    }

    /// Returns the xattr value.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the name of the index entry for this origin (lower-case hex).
    pub fn index_name(&self) -> Vec<u8> {
        self.bytes
            .iter()
            .flat_map(|b| format!("{b:02x}").into_bytes())
            .collect()
    }

    /// Whether the origin can be on the file system with `uuid`.
    pub fn on_file_system(&self, uuid: Option<[u8; 16]>) -> bool {
        self.bytes[5..HEADER] == uuid.unwrap_or_default()
    }

    /// Opens the origin on the file system of `mount`, a descriptor opened for reading.
    ///
    /// # Errors
    /// EPERM without CAP_DAC_READ_SEARCH; ESTALE if the file no longer exists; else those of
    /// open_by_handle_at(2).
    pub fn open(&self, mount: impl AsFd) -> Result<OwnedFd, Errno> {
        let handle = FileHandle {
            kind: i32::from(self.bytes[4]),
            bytes: self.bytes[HEADER..].to_vec(),
        };
        open_by_handle(mount, &handle)
    }

    /// Finds the origin on the file system of `mount`.
    ///
    /// # Errors
    /// Those of [`Self::open`].
    pub fn find(&self, mount: impl AsFd) -> Result<OriginFile, Errno> {
        let stat = At::fd(self.open(mount)?.as_fd()).stat()?;
        Ok(OriginFile::from(&stat))
    }
}

#[cfg(test)]
mod tests {
    use testkit::need::skip;

    use super::*;

    #[test]
    fn encodes_and_finds_a_file_again() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "x").unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        let at = At::new(fd.as_fd(), b"f");
        let origin = match Origin::of(at, Some([7; 16])) {
            Err(Errno::OPNOTSUPP) => return skip(&"a file system without handles"),
            other => other.unwrap(),
        };
        assert_eq!(Origin::parse(origin.as_bytes()), Some(origin.clone()));
        assert!(origin.on_file_system(Some([7; 16])) && !origin.on_file_system(None));
        assert_eq!(origin.index_name().len(), origin.as_bytes().len() * 2);
        match origin.find(&fd) {
            Err(Errno::PERM) => {} // not privileged
            found => assert_eq!(found.unwrap().id, at.stat().unwrap().id()),
        }
    }

    #[test]
    fn malformed_origins_are_refused() {
        let good = [
            0, MAGIC, 22, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9,
        ];
        assert!(Origin::parse(&good).is_some());
        for cut in 0..good.len() {
            assert!(Origin::parse(&good[..cut]).is_none());
        }
        let mut bad = good;
        bad[1] = 0;
        assert!(Origin::parse(&bad).is_none());
    }
}
