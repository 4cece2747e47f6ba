//! Whiteouts of a tar, `.wh.NAME` and `.wh..wh..opq`, become those of a layer directory. Source:
//! OCI image specification, layer.md.

use std::os::fd::AsFd as _;

use rustix::io::Errno;

use super::error::{Error, Result};
use super::extractor::{DIR, Extractor, open_in, split};
use super::header::Entry;
use crate::layer::at::{At, is_valid_name};
use crate::layer::markers::{Marker, WH_AUFS_PREFIX, WH_OPAQUE, WH_PREFIX, Writer};
use crate::layer::types::FileKind;

/// Whether an entry of this path is a whiteout, or a note that AUFS keeps for itself, such as
/// `.wh..wh.plnk/` and what is in it.
pub(super) fn is_marker(path: &[u8]) -> bool {
    let (parent, last) = split(path);
    is_note(parent, last) || last.starts_with(WH_PREFIX)
}

fn is_note(parent: &[u8], last: &[u8]) -> bool {
    let note = |part: &[u8]| part.starts_with(WH_AUFS_PREFIX);
    parent.split(|&b| b == b'/').any(note) || (note(last) && last != WH_OPAQUE)
}

impl Extractor<'_> {
    /// Makes the whiteout that an entry called `.wh.NAME` or `.wh..wh..opq` stands for.
    /// `false` if it is another entry.
    pub(super) fn whiteout(&mut self, path: &[u8], entry: &Entry) -> Result<bool> {
        let (parent, last) = split(path);
        if is_note(parent, last) {
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
        let dir = self.directory(&entry.name, parent)?;
        let at = At::new(dir.as_fd(), hidden);
        match at.mknod(FileKind::CharDevice, 0, (0, 0)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                // What this layer has itself stays; the whiteout is for those below.
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

fn empty_file(at: At<'_>) -> std::result::Result<(), Errno> {
    match at.mknod(FileKind::Regular, 0o600, (0, 0)) {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}
