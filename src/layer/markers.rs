//! Markers: the xattrs and file names by which overlay file systems record whiteouts, opaque
//! directories, redirects and the like in their layers. All prefixes and names are defined here.
//!
//! Sources: Linux fs/overlayfs (xattrs below `trusted.overlay.` or, with `userxattr`,
//! `user.overlay.`), fuse-overlayfs (`user.fuseoverlayfs.`), AUFS and OCI (names with `.wh.`).

use std::ffi::{CStr, CString};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::at::At;
use super::recorded::{self, Form};
use super::{Dialect, Records};

/// The prefix of a file name that is a whiteout for the rest of the name.
pub const WH_PREFIX: &[u8] = b".wh.";
/// The name of a file that makes its directory opaque.
pub const WH_OPAQUE: &[u8] = b".wh..wh..opq";
/// The prefix of AUFS' own files, such as `.wh..wh.plnk`.
pub const WH_AUFS_PREFIX: &[u8] = b".wh..wh.";

const TRUSTED: &[u8] = b"trusted.overlay.";
const USER: &[u8] = b"user.overlay.";
const FUSE: &[u8] = b"user.fuseoverlayfs.";

/// Whether an xattr is a marker in some dialect.
pub fn is_marker_xattr(name: &[u8]) -> bool {
    [TRUSTED, USER, FUSE]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// Whether the name of an xattr is that of an opaque directory's marker.
pub fn is_opaque_xattr(name: &[u8]) -> bool {
    let prefixes = [TRUSTED, USER, FUSE];
    let marker = prefixes
        .iter()
        .find_map(|prefix| name.strip_prefix(*prefix));
    marker == Some(b"opaque")
}

/// The markers of a file or directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Markers {
    /// `opaque` = `y`: the directory hides the lower ones.
    pub opaque: bool,
    /// `opaque` = `x`: the directory may contain whiteouts in the xattr form.
    pub xwhiteouts: bool,
    /// `redirect`: the name or path of this directory or file data in the lower layers.
    pub redirect: Option<Vec<u8>>,
    /// `metacopy`: the data of this file is in a lower layer.
    pub metacopy: bool,
    /// `whiteout`: this file is a whiteout.
    pub whiteout: bool,
    /// `origin`: the encoded handle of the file that this one was copied up from.
    pub origin: Option<Vec<u8>>,
    /// Which of `redirect`, `metacopy` and `origin` are in `user.*`, which every user may set who
    /// may write the file.
    pub from_user: FromUser,
    /// `impure`: the directory may contain copied-up files.
    pub impure: bool,
    /// `whnames` = `y`: names in this directory that begin with `.wh.` are files, in every dialect.
    pub wh_files: bool,
    /// `nlink`: link count of an indexed file, relative to that of the upper or lower file.
    pub nlink: Option<Vec<u8>>,
    /// `protattr`: the union shows the file as immutable or append-only.
    pub protection: Protection,
    /// The file has no xattrs at all, on a file system that has xattrs.
    pub is_bare: bool,
}

/// Whether a file is immutable, append-only, both, or neither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protection(u8);

impl Protection {
    /// Neither immutable nor append-only.
    pub const NONE: Self = Self(0);
    const IMMUTABLE: u8 = 1;
    const APPEND: u8 = 2;
    /// The longest `protattr` that the kernel reads, in bytes.
    const MOST: usize = 32;

    /// Makes a protection from two bits of `flags`.
    pub fn of(flags: u32, immutable: u32, append: u32) -> Self {
        let has = |flag: u32, bit| if flags & flag != 0 { bit } else { 0 };
        Self(has(immutable, Self::IMMUTABLE) | has(append, Self::APPEND))
    }

    /// Returns the protection as two bits.
    pub fn bits(self, immutable: u32, append: u32) -> u32 {
        let has = |is, flag| if is { flag } else { 0 };
        has(self.is_immutable(), immutable) | has(self.is_append(), append)
    }

    /// Returns the protection as a number below 4.
    pub fn number(self) -> u8 {
        self.0
    }

    /// The inverse of [`Self::number`].
    pub fn from_number(number: u8) -> Self {
        Self(number & (Self::IMMUTABLE | Self::APPEND))
    }

    /// Whether nothing about the file may change.
    pub fn is_immutable(self) -> bool {
        self.0 & Self::IMMUTABLE != 0
    }

    /// Whether data may only be appended, and names only be created.
    pub fn is_append(self) -> bool {
        self.0 & Self::APPEND != 0
    }

    /// Returns the value of `protattr`.
    pub fn text(self) -> &'static [u8] {
        match (self.is_append(), self.is_immutable()) {
            (true, true) => b"ai",
            (true, false) => b"a",
            (false, true) => b"i",
            (false, false) => b"",
        }
    }

    /// Parses a value of `protattr`; one with unknown content protects nothing.
    fn parse(text: &[u8]) -> Self {
        let mut bits = 0;
        for byte in text {
            bits |= match byte {
                b'i' => Self::IMMUTABLE,
                b'a' => Self::APPEND,
                _ => return Self::NONE,
            };
        }
        if text.len() > Self::MOST {
            return Self::NONE;
        }
        Self(bits)
    }

    /// Reads `protattr` alone.
    ///
    /// # Errors
    /// Those of getxattr(2).
    pub fn read(at: At<'_>, dialect: Dialect) -> Result<Self, Errno> {
        for (on, trusted) in [(dialect.trusted, true), (dialect.user, false)] {
            let name = Writer { trusted }.name(Marker::Protattr);
            if on && let Some(value) = readable(at.xattr(name))? {
                return Ok(Self::parse(&value));
            }
        }
        Ok(Self::NONE)
    }
}

impl std::ops::BitOr for Protection {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What ties a metacopy to its data, wherever it is renamed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tie<'a> {
    /// The origin, which the file with the data must have.
    Origin(&'a [u8]),
    /// The path of the file with the data, from the roots of the layers.
    Path,
    /// Nothing: it has the data of whatever file has its name.
    None,
}

/// The markers that were found in `user.*` only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FromUser {
    /// The redirect is from `user.*`.
    pub redirect: bool,
    /// The metacopy marker is from `user.*`.
    pub metacopy: bool,
    /// The origin is from `user.*`.
    pub origin: bool,
    /// The path in the data-only layers of the data of a metacopy that is not trusted otherwise.
    pub data: Option<Vec<u8>>,
}

impl Markers {
    /// Removes redirect and metacopy if they are from `user.*`. They may still lead into data-only
    /// layers, whose files have no names of their own in the union, as in overlayfs.
    #[must_use]
    pub fn without_users(mut self) -> Self {
        if self.from_user.metacopy {
            let path = |to: &Vec<u8>| to.starts_with(b"/");
            self.from_user.data = self.redirect.clone().filter(path);
            self.metacopy = false;
        }
        if self.from_user.redirect {
            self.redirect = None;
        }
        self
    }

    /// Returns what ties this metacopy to its data, if it is in a layer of a user with less rights.
    /// The user can rename it, but cannot set what is in `trusted.*`.
    pub fn tie(&self) -> Tie<'_> {
        let users = self.from_user.origin && !self.from_user.metacopy;
        match (&self.origin, &self.redirect) {
            (Some(origin), _) if !users => Tie::Origin(origin),
            (_, Some(path)) if path.starts_with(b"/") => Tie::Path,
            _ => Tie::None,
        }
    }

    /// Whether the markers show another file under the name.
    pub fn leads_elsewhere(&self) -> bool {
        self.metacopy || self.redirect.is_some() || self.from_user.data.is_some()
    }

    /// Reads the markers of `at`, in one system call if there are none.
    ///
    /// # Errors
    /// Those of listxattr(2) and getxattr(2).
    pub fn read(at: At<'_>, dialect: Dialect) -> Result<Self, Errno> {
        let list = match at.list_xattrs_opt() {
            Ok(Some(list)) => list,
            Ok(None) => return Ok(Self::default()),
            // No marker of a file that cannot be read can have an effect.
            Err(Errno::ACCESS | Errno::PERM) => return Ok(Self::default()),
            Err(e) => return Err(e),
        };
        let mut found = Self {
            is_bare: list.is_empty(),
            ..Self::default()
        };
        for name in list.split(|&b| b == 0).filter(|n| !n.is_empty()) {
            let Some(suffix) = marker_suffix(name, dialect) else {
                continue;
            };
            found.add(at, name, suffix)?;
        }
        Ok(found)
    }

    fn add(&mut self, at: At<'_>, name: &[u8], suffix: &[u8]) -> Result<(), Errno> {
        match suffix {
            b"metacopy" => {
                let known = self.metacopy && !self.from_user.metacopy;
                self.from_user.metacopy = !known && !name.starts_with(TRUSTED);
                self.metacopy = true;
            }
            b"whiteout" => self.whiteout = true,
            b"opaque" => match value(at, name) {
                Ok(Some(value)) if value == b"y" => self.opaque = true,
                Ok(Some(value)) if value == b"x" => self.xwhiteouts = true,
                Ok(_) => {}
                // Hiding too much is better than showing what was removed.
                Err(Errno::ACCESS) => self.opaque = true,
                Err(e) => return Err(e),
            },
            b"impure" => self.impure = true,
            b"whnames" => self.wh_files = readable(value(at, name))?.is_some_and(|v| v == b"y"),
            // `trusted.*` takes precedence, in whatever order the names are listed.
            b"redirect" if self.redirect.is_none() || name.starts_with(TRUSTED) => {
                self.redirect = value(at, name)?.filter(|r| is_valid_redirect(r));
                self.from_user.redirect = self.redirect.is_some() && !name.starts_with(TRUSTED);
            }
            b"origin" if self.origin.is_none() || name.starts_with(TRUSTED) => {
                self.origin = readable(value(at, name))?;
                self.from_user.origin = self.origin.is_some() && !name.starts_with(TRUSTED);
            }
            b"protattr" => {
                let value = readable(value(at, name))?;
                self.protection = value.map_or(Protection::NONE, |v| Protection::parse(&v));
            }
            b"nlink" => self.nlink = readable(value(at, name))?,
            _ => {}
        }
        Ok(())
    }
}

/// Maps an error of reading a marker. A plain user may not read `user.*` xattrs of a file without
/// read permission, not even of their own; the file must be visible all the same.
fn readable(value: Result<Option<Vec<u8>>, Errno>) -> Result<Option<Vec<u8>>, Errno> {
    match value {
        Err(Errno::ACCESS) => Ok(None),
        other => other,
    }
}

fn value(at: At<'_>, name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    at.xattr(&name)
}

/// Returns the part of an xattr name after the marker prefix, if `dialect` reads it as a marker.
fn marker_suffix(name: &[u8], dialect: Dialect) -> Option<&[u8]> {
    let strip = |on: bool, prefix: &[u8]| if on { name.strip_prefix(prefix) } else { None };
    strip(dialect.trusted, TRUSTED)
        .or_else(|| strip(dialect.user, USER))
        .or_else(|| strip(dialect.fuse_overlayfs, FUSE))
}

/// Whether a redirect is valid: one component, or an absolute path without empty, `.` and `..`
/// components.
fn is_valid_redirect(redirect: &[u8]) -> bool {
    let path = redirect.strip_prefix(b"/").unwrap_or(redirect);
    let relative_ok = redirect.starts_with(b"/") || !path.contains(&b'/');
    relative_ok && path.split(|&b| b == b'/').all(super::at::is_valid_name)
}

/// Maps users' xattr names to stored ones. Markers are hidden, and a user's xattr that looks like a
/// marker is stored with an additional `overlay.` (Linux 6.7, "nesting").
///
/// ```text
/// user's name            stored name
/// user.comment           user.comment
/// user.overlay.opaque    user.overlay.overlay.opaque
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Escape(pub Dialect);

impl Escape {
    /// Returns the stored name of the user's xattr `name`.
    ///
    /// # Errors
    /// EPERM for a name that cannot be stored without becoming a marker.
    pub fn stored(&self, name: &[u8]) -> Result<CString, Errno> {
        if let Some(stored) = self.recorded(name) {
            return stored;
        }
        let escaped = match self.prefix(name) {
            Some(FUSE) => return Err(Errno::PERM),
            Some(prefix) => [prefix, b"overlay.", &name[prefix.len()..]].concat(),
            None => name.to_vec(),
        };
        CString::new(escaped).map_err(|_| Errno::INVAL)
    }

    /// Returns the user's name of a stored xattr; `None` for a marker.
    pub fn visible(&self, stored: &[u8]) -> Option<Vec<u8>> {
        if self.has_records() {
            if recorded::is_record(stored) {
                return None;
            }
            if let Some(name) = stored.strip_prefix(recorded::OVERRIDE) {
                return Some(name.to_vec());
            }
        }
        let Some(prefix) = self.prefix(stored) else {
            return Some(stored.to_vec());
        };
        let rest = stored[prefix.len()..].strip_prefix(b"overlay.")?;
        Some([prefix, rest].concat())
    }

    fn has_records(&self) -> bool {
        matches!(self.0.records, Records::Kept(_))
    }

    /// Returns the stored name in a layer with records: what a plain user may not set is stored
    /// under another name.
    fn recorded(&self, name: &[u8]) -> Option<Result<CString, Errno>> {
        let Records::Kept(form) = self.0.records else {
            return None;
        };
        if recorded::is_record(name) || name.starts_with(recorded::OVERRIDE) {
            return Some(Err(Errno::PERM));
        }
        let has_names = matches!(form, Form::Containers | Form::BothUser);
        if !has_names || !name.starts_with(b"security.") {
            return None;
        }
        let stored = [recorded::OVERRIDE, name].concat();
        Some(CString::new(stored).map_err(|_| Errno::INVAL))
    }

    fn prefix(&self, name: &[u8]) -> Option<&'static [u8]> {
        let on = |on: bool, prefix: &'static [u8]| on && name.starts_with(prefix);
        [
            (self.0.trusted, TRUSTED),
            (self.0.user, USER),
            (self.0.fuse_overlayfs, FUSE),
        ]
        .into_iter()
        .find(|&(enabled, prefix)| on(enabled, prefix))
        .map(|(_, prefix)| prefix)
    }
}

/// Writes markers in the namespace that kernel overlayfs would use for this mount.
#[derive(Clone, Copy, Debug)]
pub struct Writer {
    /// Use `trusted.overlay.*`, else `user.overlay.*`.
    pub trusted: bool,
}

macro_rules! marker_names {
    ($($name:ident => $text:literal;)*) => {
        /// The markers that are written.
        #[derive(Clone, Copy, Debug)]
        #[allow(missing_docs)]
        pub enum Marker { $($name,)* }

        impl Writer {
            /// Returns the full xattr name of a marker.
            pub fn name(&self, marker: Marker) -> &'static CStr {
                // Both forms of every name are literals with their NUL; a test checks them.
                let (trusted, user): (&[u8], &[u8]) = match marker {
                    $(Marker::$name => (
                        concat!("trusted.overlay.", $text, "\0").as_bytes(),
                        concat!("user.overlay.", $text, "\0").as_bytes(),
                    ),)*
                };
                CStr::from_bytes_with_nul(if self.trusted { trusted } else { user })
                    .unwrap_or_default()
            }
        }
    };
}

marker_names! {
    Opaque => "opaque";
    Redirect => "redirect";
    Metacopy => "metacopy";
    Origin => "origin";
    Impure => "impure";
    Nlink => "nlink";
    Protattr => "protattr";
    Whiteout => "whiteout";
    WhNames => "whnames";
}

impl Writer {
    /// Sets a marker. The kernel refuses `user.*` xattrs on a file that a plain user owns but may
    /// not write, so the file is made writable for the call.
    ///
    /// # Errors
    /// Those of setxattr(2).
    pub fn set(&self, at: At<'_>, marker: Marker, value: &[u8]) -> Result<(), Errno> {
        let set = || at.set_xattr(self.name(marker), value, XattrFlags::empty());
        match set() {
            Err(Errno::ACCESS) if !self.trusted => {}
            other => return other,
        }
        let stat = at.stat()?;
        if stat.kind == super::types::FileKind::Symlink || stat.perm & 0o200 != 0 {
            return Err(Errno::ACCESS);
        }
        at.chmod(stat.perm | 0o200)?;
        let done = set();
        at.chmod(stat.perm)?;
        done
    }

    /// Removes a marker, if it is set.
    ///
    /// # Errors
    /// Those of removexattr(2).
    pub fn clear(&self, at: At<'_>, marker: Marker) -> Result<(), Errno> {
        match at.remove_xattr(self.name(marker)) {
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_with_traps_are_ignored() {
        for good in [&b"a"[..], b"/a", b"/a/b", b"..x", b"/a/.b"] {
            assert!(is_valid_redirect(good), "{good:?}");
        }
        for bad in [
            &b""[..],
            b"/",
            b"..",
            b".",
            b"a/b",
            b"/a/../b",
            b"/a//b",
            b"/a/",
            b"a\0b",
        ] {
            assert!(!is_valid_redirect(bad), "{bad:?}");
        }
    }

    #[test]
    fn users_can_neither_see_nor_forge_markers() {
        let escape = Escape(Dialect::ALL);
        assert_eq!(escape.visible(b"trusted.overlay.opaque"), None);
        assert_eq!(escape.visible(b"user.fuseoverlayfs.opaque"), None);
        assert_eq!(escape.visible(b"user.mine"), Some(b"user.mine".to_vec()));
        let stored = escape.stored(b"trusted.overlay.opaque").unwrap();
        assert_eq!(stored.as_bytes(), b"trusted.overlay.overlay.opaque");
        assert_eq!(
            escape.visible(stored.as_bytes()),
            Some(b"trusted.overlay.opaque".to_vec())
        );
        assert_eq!(
            escape.stored(b"user.fuseoverlayfs.opaque"),
            Err(Errno::PERM)
        );
        // Privileged kernel overlayfs does not use user.overlay.*.
        let kernel = Escape(Dialect::KERNEL);
        assert_eq!(
            kernel.visible(b"user.overlay.opaque"),
            Some(b"user.overlay.opaque".to_vec())
        );
    }

    #[test]
    fn marker_names_are_complete() {
        use Marker::*;
        for marker in [
            Opaque, Redirect, Metacopy, Origin, Impure, Nlink, Whiteout, WhNames,
        ] {
            for trusted in [true, false] {
                let name = Writer { trusted }.name(marker).to_bytes();
                assert!(name.starts_with(if trusted { TRUSTED } else { USER }));
            }
        }
    }
}
