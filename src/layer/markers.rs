//! Markers: the xattrs and names that overlay file systems leave in their layers.
//! Called by the union to read and write them, and to hide them from users.
//!
//! Sources: Linux fs/overlayfs (names under `trusted.overlay.` or, with `userxattr`,
//! `user.overlay.`), fuse-overlayfs (`user.fuseoverlayfs.`), AUFS and OCI (`.wh.`).

use std::ffi::{CStr, CString};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::Dialect;
use super::at::At;

/// Prefix of a file name that is a whiteout for the rest of the name.
pub const WH_PREFIX: &[u8] = b".wh.";
/// The file that makes its directory opaque.
pub const WH_OPAQUE: &[u8] = b".wh..wh..opq";

const TRUSTED: &[u8] = b"trusted.overlay.";
const USER: &[u8] = b"user.overlay.";
const FUSE: &[u8] = b"user.fuseoverlayfs.";

/// The markers found on one file or directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Markers {
    /// `opaque` = `y`: nothing below this directory shows through.
    pub opaque: bool,
    /// `opaque` = `x`: the directory may hold whiteouts in the xattr form.
    pub xwhiteouts: bool,
    /// `redirect`: where the lower layers have this directory or file data.
    pub redirect: Option<Vec<u8>>,
    /// `metacopy`: the data of this file is in a lower layer.
    pub metacopy: bool,
    /// `whiteout`: this file is a whiteout.
    pub whiteout: bool,
    /// `origin`: the encoded handle of the file this one was copied up from.
    pub origin: Option<Vec<u8>>,
    /// `redirect`, `metacopy`, `origin`: those that anybody may set who may write the file.
    pub from_user: FromUser,
    /// `impure`: the directory may hold files that were copied up.
    pub impure: bool,
    /// `nlink`: link count of an indexed file, relative to upper or lower.
    pub nlink: Option<Vec<u8>>,
    /// `protattr`: the union shows this file as immutable or append-only.
    pub protection: Protection,
}

/// Whether a file is immutable, append-only, both or neither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protection(u8);

impl Protection {
    /// Neither.
    pub const NONE: Self = Self(0);
    const IMMUTABLE: u8 = 1;
    const APPEND: u8 = 2;
    /// The kernel reads no longer `protattr`.
    const MOST: usize = 32;

    /// From two bits of `flags`.
    pub fn of(flags: u32, immutable: u32, append: u32) -> Self {
        let has = |flag: u32, bit| if flags & flag != 0 { bit } else { 0 };
        Self(has(immutable, Self::IMMUTABLE) | has(append, Self::APPEND))
    }

    /// As two bits.
    pub fn bits(self, immutable: u32, append: u32) -> u32 {
        let has = |is, flag| if is { flag } else { 0 };
        has(self.is_immutable(), immutable) | has(self.is_append(), append)
    }

    /// As a number below 4.
    pub fn number(self) -> u8 {
        self.0
    }

    /// The inverse of [`Self::number`].
    pub fn from_number(number: u8) -> Self {
        Self(number & (Self::IMMUTABLE | Self::APPEND))
    }

    /// Nothing about the file may change.
    pub fn is_immutable(self) -> bool {
        self.0 & Self::IMMUTABLE != 0
    }

    /// Data may only be added at the end, names only be made.
    pub fn is_append(self) -> bool {
        self.0 & Self::APPEND != 0
    }

    /// The value of `protattr` for it.
    pub fn text(self) -> &'static [u8] {
        match (self.is_append(), self.is_immutable()) {
            (true, true) => b"ai",
            (true, false) => b"a",
            (false, true) => b"i",
            (false, false) => b"",
        }
    }

    /// What a value of `protattr` says; nothing when it has anything that is not known.
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

    /// Reads the marker alone.
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

/// Which markers were found in `user.*` only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FromUser {
    /// The redirect.
    pub redirect: bool,
    /// The metacopy.
    pub metacopy: bool,
    /// The origin.
    pub origin: bool,
    /// Where the data-only layers have the data of a metacopy that is not believed otherwise.
    pub data: Option<Vec<u8>>,
}

impl Markers {
    /// Without the redirect and the metacopy that came from `user.*`. Into data-only layers,
    /// which show by no name of their own, they may lead all the same, as in overlayfs.
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

    /// Whether they show under the name what is somewhere else.
    pub fn leads_elsewhere(&self) -> bool {
        self.metacopy || self.redirect.is_some() || self.from_user.data.is_some()
    }

    /// Reads the markers of `at` in one or (when there are any) a few system calls.
    pub fn read(at: At<'_>, dialect: Dialect) -> Result<Self, Errno> {
        let list = match at.list_xattrs() {
            Ok(list) => list,
            // A directory or file of ours that we may not read carries no marker we could obey.
            Err(Errno::ACCESS | Errno::PERM) => return Ok(Self::default()),
            Err(e) => return Err(e),
        };
        let mut found = Self::default();
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
                // Too much hidden is better than what was removed showing again.
                Err(Errno::ACCESS) => self.opaque = true,
                Err(e) => return Err(e),
            },
            b"impure" => self.impure = true,
            // What `trusted.*` says counts, in whatever order they are listed.
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

/// `user.*` values are hidden from a plain user on a file without read permission, also
/// his own; the file must show all the same.
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

/// What follows the marker prefix of an xattr name, if `dialect` reads it as a marker.
fn marker_suffix(name: &[u8], dialect: Dialect) -> Option<&[u8]> {
    let strip = |on: bool, prefix: &[u8]| if on { name.strip_prefix(prefix) } else { None };
    strip(dialect.trusted, TRUSTED)
        .or_else(|| strip(dialect.user, USER))
        .or_else(|| strip(dialect.fuse_overlayfs, FUSE))
}

/// A redirect is one component, or an absolute path without empty, `.` or `..` components.
fn is_valid_redirect(redirect: &[u8]) -> bool {
    let path = redirect.strip_prefix(b"/").unwrap_or(redirect);
    let relative_ok = redirect.starts_with(b"/") || !path.contains(&b'/');
    relative_ok && path.split(|&b| b == b'/').all(super::at::is_valid_name)
}

/// How users' xattr names map to stored ones: markers are hidden, and a user's attribute
/// that looks like a marker is stored with an extra `overlay.` (Linux 6.7, "nesting").
#[derive(Clone, Copy, Debug)]
pub struct Escape(pub Dialect);

impl Escape {
    /// The stored name of the attribute a user calls `name`; EPERM for names that cannot be
    /// stored without becoming a marker.
    pub fn stored(&self, name: &[u8]) -> Result<CString, Errno> {
        let escaped = match self.prefix(name) {
            Some(FUSE) => return Err(Errno::PERM),
            Some(prefix) => [prefix, b"overlay.", &name[prefix.len()..]].concat(),
            None => name.to_vec(),
        };
        CString::new(escaped).map_err(|_| Errno::INVAL)
    }

    /// The name a user sees for a stored one; `None` for a marker.
    pub fn visible(&self, stored: &[u8]) -> Option<Vec<u8>> {
        let Some(prefix) = self.prefix(stored) else {
            return Some(stored.to_vec());
        };
        let rest = stored[prefix.len()..].strip_prefix(b"overlay.")?;
        Some([prefix, rest].concat())
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

/// Writes markers, in the namespace kernel overlayfs would use for this mount.
#[derive(Clone, Copy, Debug)]
pub struct Writer {
    /// `trusted.overlay.*` if true, else `user.overlay.*`.
    pub trusted: bool,
}

macro_rules! marker_names {
    ($($name:ident => $text:literal;)*) => {
        /// The markers we write.
        #[derive(Clone, Copy, Debug)]
        #[allow(missing_docs)]
        pub enum Marker { $($name,)* }

        impl Writer {
            /// The full name of a marker.
            pub fn name(&self, marker: Marker) -> &'static CStr {
                // Both forms of every name are literals with their NUL, checked by a test.
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
}

impl Writer {
    /// Sets a marker. On a file of its own that a plain user may not write, the kernel
    /// refuses `user.*`: it becomes writable for that moment.
    pub fn set(&self, at: At<'_>, marker: Marker, value: &[u8]) -> Result<(), Errno> {
        let set = || at.set_xattr(self.name(marker), value, XattrFlags::empty());
        match set() {
            Err(Errno::ACCESS) if !self.trusted => {}
            other => return other,
        }
        let stat = at.stat()?;
        if stat.kind == crate::union::FileKind::Symlink || stat.perm & 0o200 != 0 {
            return Err(Errno::ACCESS);
        }
        at.chmod(stat.perm | 0o200)?;
        let done = set();
        at.chmod(stat.perm)?;
        done
    }

    /// Removes a marker; absent is fine.
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
        // Privileged kernel overlayfs leaves user.overlay.* alone.
        let kernel = Escape(Dialect::KERNEL);
        assert_eq!(
            kernel.visible(b"user.overlay.opaque"),
            Some(b"user.overlay.opaque".to_vec())
        );
    }

    #[test]
    fn marker_names_are_complete() {
        use Marker::*;
        for marker in [Opaque, Redirect, Metacopy, Origin, Impure, Nlink, Whiteout] {
            for trusted in [true, false] {
                let name = Writer { trusted }.name(marker).to_bytes();
                assert!(name.starts_with(if trusted { TRUSTED } else { USER }));
            }
        }
    }
}
