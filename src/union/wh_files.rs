//! Files whose names begin with `.wh.` in an upper where such names are whiteouts.
//!
//! Before the first of them gets its name, its directory gets the marker `whnames`. From then on all
//! `.wh.` names in that directory are files. Kernel overlayfs and Docker, for which they are files
//! anyway, see the same tree. A directory that has whiteouts in this form already never gets the
//! marker.

use std::os::fd::AsFd;

use rustix::io::Errno;

use super::copy_up::forget_answers;
use super::error::Result;
use super::inode::{Dir, Inode};
use super::names::Names;
use super::resolve::has_wh;
use super::stack::Stack;
use super::upper::{Upper, WhiteoutForm};
use crate::layer::at::At;
use crate::layer::markers::{Marker, WH_PREFIX};
use crate::sys::sync::atomic::Ordering;

impl Upper {
    /// Whether names in an upper directory that begin with `.wh.` are whiteouts.
    pub(crate) fn reads_wh_names(&self, dir: &Dir) -> bool {
        self.layer.dialect.wh_names && !dir.wh_files.load(Ordering::Acquire)
    }

    /// Whether a name is a file only in a marked directory.
    pub(crate) fn needs_mark(&self, name: &[u8]) -> bool {
        self.layer.dialect.wh_names && name.starts_with(WH_PREFIX)
    }

    /// Whether directories can be marked. Where devices are refused, fuse-overlayfs writes
    /// whiteouts as `.wh.` names, and would do so in a marked directory.
    pub(crate) fn has_node_whiteouts(&self) -> bool {
        self.form == WhiteoutForm::CharDevice
    }
}

/// Prepares the upper directory `parent` for an entry called `name`, a file or a whiteout: marks it
/// where the name would be a whiteout of another name.
///
/// # Errors
/// EINVAL if it has whiteouts in this form, or cannot be marked; else those of the upper's file
/// system.
pub(crate) fn allow_wh_name(
    stack: &Stack,
    names: &Names,
    parent: &Inode,
    name: &[u8],
) -> Result<()> {
    let (Some(dir), true) = (&parent.dir, name.starts_with(WH_PREFIX)) else {
        return Ok(());
    };
    let upper = stack.writable()?;
    if !upper.reads_wh_names(dir) {
        return Ok(());
    }
    let fd = stack.upper_dir(parent)?;
    if !upper.has_node_whiteouts() || has_wh(dir, &fd)? {
        return Err(Errno::INVAL.into());
    }
    match upper.markers.set(At::fd(fd.as_fd()), Marker::WhNames, b"y") {
        Err(Errno::OPNOTSUPP | Errno::PERM) => return Err(Errno::INVAL.into()),
        other => other?,
    }
    dir.wh_files.store(true, Ordering::Release);
    forget_answers(names, parent);
    Ok(())
}
