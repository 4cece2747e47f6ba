//! `/proc/thread-self/mountinfo` (format: proc_pid_mountinfo(5)) lists mounts without touching
//! them, so a dead or hung server cannot block the caller.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The file system type of our mounts in the mount table.
pub(crate) const UNIONFS: &str = "fuse.unionfs";

/// One mount of this mount namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MountEntry {
    /// The number of the mount. The kernel uses it again after the mount is gone.
    pub id: u64,
    /// The device number (major, minor) of the file system.
    pub device: (u32, u32),
    /// The mountpoint, as seen from the root directory of this process.
    pub mountpoint: PathBuf,
    /// The options of this mount (`rw,nosuid,...`).
    pub options: OsString,
    /// The file system type with its subtype (`fuse.unionfs`).
    pub fs_type: OsString,
    /// The source shown in /proc/mounts.
    pub source: OsString,
}

impl MountEntry {
    /// Whether the mount is a FUSE file system of any subtype.
    pub fn is_fuse(&self) -> bool {
        let kind = self.fs_type.as_bytes();
        kind == b"fuse" || kind.starts_with(b"fuse.")
    }

    /// Whether the mount maps owners (`mount_setattr(2)` with `MOUNT_ATTR_IDMAP`).
    pub fn is_idmapped(&self) -> bool {
        let mut options = self.options.as_bytes().split(|&b| b == b',');
        options.any(|option| option == b"idmapped")
    }

    /// Whether the mount is one of unionfs.
    pub fn is_unionfs(&self) -> bool {
        self.fs_type == UNIONFS
    }
}

/// Returns all mounts of this mount namespace, in mount order.
///
/// # Errors
/// Those of reading `/proc/thread-self/mountinfo`.
pub fn list() -> io::Result<Vec<MountEntry>> {
    read_list("/proc/thread-self/mountinfo")
}

/// Returns the mounts of the mount namespace of the whole process, in mount order. The sandbox of a
/// command has only `/proc/self` of /proc.
///
/// # Errors
/// Those of reading `/proc/self/mountinfo`.
pub(super) fn list_of_process() -> io::Result<Vec<MountEntry>> {
    read_list("/proc/self/mountinfo")
}

fn read_list(path: &str) -> io::Result<Vec<MountEntry>> {
    // The file does not tell its size: one large read replaces a dozen growing ones.
    let mut text = Vec::with_capacity(64 << 10);
    std::fs::File::open(path)?.read_to_end(&mut text)?;
    Ok(text.split(|&b| b == b'\n').filter_map(parse_line).collect())
}

/// Returns the topmost mount on exactly `mountpoint` (an absolute path without symlinks).
pub fn find(mountpoint: &Path) -> Option<MountEntry> {
    list()
        .ok()?
        .into_iter()
        .rev()
        .find(|m| m.mountpoint == mountpoint)
}

/// `36 35 98:0 /root /mountpoint rw,noatime master:1 - type source superoptions`
pub(super) fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&b| b == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = parse_device(fields.nth(1)?)?;
    let mountpoint = unescape(fields.nth(1)?);
    let options = unescape(fields.next()?);
    // Optional fields run up to a lone "-".
    fields.find(|f| *f == b"-")?;
    Some(MountEntry {
        id,
        device,
        mountpoint: PathBuf::from(mountpoint),
        options,
        fs_type: unescape(fields.next()?),
        source: unescape(fields.next()?),
    })
}

fn parse_device(field: &[u8]) -> Option<(u32, u32)> {
    let (major, minor) = std::str::from_utf8(field).ok()?.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Decodes a field. The kernel writes space, tab, newline, backslash (and `#`) as `\ooo`.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        match octal(rest) {
            Some(decoded) => {
                out.push(decoded);
                rest = rest.get(4..).unwrap_or_default();
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

fn octal(text: &[u8]) -> Option<u8> {
    let [b'\\', digits @ ..] = text else {
        return None;
    };
    let value = digits.get(..3)?.iter().try_fold(0u32, |value, digit| {
        matches!(digit, b'0'..=b'7').then(|| value * 8 + u32::from(digit - b'0'))
    })?;
    u8::try_from(value).ok()
}

/// Converts the bytes of a path or option to an `OsStr`.
pub(crate) fn os(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_with_escapes_and_optional_fields() {
        let line = br"36 35 0:52 / /mnt/a\040b\134 rw,noatime shared:1 master:2 - fuse.unionfs my\011src rw,user_id=0";
        let entry = parse_line(line).unwrap();
        assert_eq!((entry.id, entry.device), (36, (0, 52)));
        assert_eq!(entry.mountpoint, Path::new("/mnt/a b\\"));
        assert_eq!(entry.options, "rw,noatime");
        assert_eq!(entry.source, "my\tsrc");
        assert!(entry.is_fuse() && entry.is_unionfs());
    }

    #[test]
    fn broken_lines_are_skipped() {
        for line in [
            &b""[..],
            b"1 2 3",
            b"1 2 x:y / /mnt rw - a b c",
            b"1 2 0:1 / /m rw",
        ] {
            assert_eq!(parse_line(line), None);
        }
        assert_eq!(unescape(br"a\04"), os(br"a\04"));
        assert_eq!(unescape(br"\777\0409"), os(br"\777 9"));
    }

    #[test]
    fn own_root_is_listed() {
        assert!(find(Path::new("/")).is_some());
    }
}
