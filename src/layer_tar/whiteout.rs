//! Converts whiteouts of a tar, `.wh.NAME` and `.wh..wh..opq`, to those of a layer directory.
//! Source: OCI image specification, layer.md.

use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::io::Errno;

use super::clean;
use super::error::{Error, Result};
use super::extractor::{DIR, Extractor, open_in, split};
use super::header::Entry;
use crate::layer::Dialect;
use crate::layer::at::{At, is_valid_name};
use crate::layer::markers::{Marker, WH_AUFS_PREFIX, WH_OPAQUE, WH_PREFIX, Writer};
use crate::layer::types::FileKind;

/// Whether an entry with this path is a whiteout or has a reserved name, so that it is no file of
/// the layer.
pub(super) fn is_marker(path: &[u8]) -> bool {
    split(path).1.starts_with(WH_PREFIX)
}

/// Whether a name is reserved by AUFS, such as `.wh..wh.plnk` or `.wh..wh.aufs`. Such entries are
/// not unpacked. Entries in such a directory are files: hard links with other names have them as
/// targets.
pub(super) fn is_note(last: &[u8]) -> bool {
    last.starts_with(WH_AUFS_PREFIX) && last != WH_OPAQUE
}

/// Whether a path leads through a directory with such a name.
pub(super) fn is_below_note(path: &[u8]) -> bool {
    let mut parts = split(path).0.split(|&b| b == b'/');
    parts.any(|part| part.starts_with(WH_AUFS_PREFIX))
}

impl Extractor<'_> {
    /// Makes the whiteout of an entry `.wh.NAME` or `.wh..wh..opq`. Returns `false` if it is
    /// another entry.
    pub(super) fn whiteout(&mut self, path: &[u8], entry: &Entry) -> Result<bool> {
        let (parent, last) = split(path);
        if is_note(last) {
            return Ok(true);
        }
        if last == WH_OPAQUE {
            self.directory(&entry.name, parent)?;
            self.set_opaque(&entry.name, parent)?;
            return Ok(true);
        }
        let Some(hidden) = last.strip_prefix(WH_PREFIX) else {
            return Ok(false);
        };
        if !is_valid_name(hidden) {
            let what = "is a whiteout of nothing; not a valid layer";
            return Err(Error::entry(&entry.name, what));
        }
        let fail = |e| Error::place(&entry.name, "create the whiteout", e);
        let wh_names = self.dialect.wh_names;
        if is_whited_out(self.root, self.dialect, parent) {
            // Paths below the whiteout are hidden already: old versions of umoci have written such
            // layers.
            return Ok(true);
        }
        let dir = self.directory(&entry.name, parent)?;
        let at = At::new(dir.as_fd(), hidden);
        match at.mknod(FileKind::CharDevice, 0, (0, 0)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                // A directory of this layer itself stays; the whiteout hides those of the layers
                // below.
                if at.stat().map_err(fail)?.kind == FileKind::Directory {
                    let path = [parent, hidden].join(&b'/');
                    self.set_opaque(&entry.name, &path)?;
                }
            }
            Err(Errno::PERM) if wh_names => empty_file(At::new(dir.as_fd(), last)).map_err(fail)?,
            Err(e) => return Err(fail(e)),
        }
        Ok(true)
    }

    pub(super) fn set_opaque(&self, name: &[u8], path: &[u8]) -> Result<()> {
        let fail = |e| Error::place(name, "make the directory opaque", e);
        let clean_path = path.strip_prefix(b"/").unwrap_or(path);
        let dir = open_in(self.root, clean_path, DIR).map_err(fail)?;
        let at = At::fd(dir.as_fd());
        let mut last = Errno::OPNOTSUPP;
        for (on, trusted) in [(self.dialect.trusted, true), (self.dialect.user, false)] {
            if on {
                match (Writer { trusted }).set(at, Marker::Opaque, b"y") {
                    Ok(()) => return Ok(()),
                    Err(errno) => last = errno,
                }
            }
        }
        if self.dialect.wh_names {
            return empty_file(At::new(dir.as_fd(), WH_OPAQUE)).map_err(fail);
        }
        Err(fail(last))
    }
}

/// Whether this layer has a whiteout in place of the directory, or of one of its ancestors.
pub(super) fn is_whited_out(root: BorrowedFd<'_>, dialect: Dialect, dir: &[u8]) -> bool {
    // The usual case comes first: it needs one call.
    if dir.is_empty() || open_in(root, dir, DIR).is_ok() {
        return false;
    }
    let ends = dir.iter().enumerate().filter(|&(_, &b)| b == b'/');
    for end in ends.map(|(at, _)| at).chain([dir.len()]) {
        let (above, name) = split(&dir[..end]);
        let Ok(above) = open_in(root, above, DIR) else {
            return false;
        };
        match At::new(above.as_fd(), name).stat() {
            Ok(stat) if stat.kind == FileKind::Directory => {}
            Ok(stat) => return stat.is_chardev_whiteout(),
            Err(_) => {
                let file = [WH_PREFIX, name].concat();
                return dialect.wh_names && At::new(above.as_fd(), &file).stat().is_ok();
            }
        }
    }
    false
}

/// Says why engines do not keep the content of an entry, as a clause about the entry; `None` if they
/// do. Such content is not in the layer's directory, and its tar cannot be made again.
pub(super) fn why_not_kept(name: &[u8]) -> Option<&'static str> {
    let path = clean(name)?;
    let last = path.rsplit(|&b| b == b'/').next().unwrap_or_default();
    if path.is_empty() {
        return Some("is a file with the name of the layer's root, which engines ignore");
    }
    let hidden = last.strip_prefix(WH_PREFIX);
    let is_marker = last == WH_OPAQUE || hidden.is_some_and(is_valid_name);
    is_marker.then_some("is a whiteout with content, which engines do not keep")
}

fn empty_file(at: At<'_>) -> std::result::Result<(), Errno> {
    match at.mknod(FileKind::Regular, 0o600, (0, 0)) {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}
