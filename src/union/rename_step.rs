//! The one system call of a rename that changes what is visible, chosen by what is at both places
//! and by the form in which the upper takes whiteouts. Called by `rename` with all locks held.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::RenameFlags as Flags;
use rustix::io::Errno;

use super::inode::Inode;
use super::remove::{clear_wh_name, remove_from_upper};
use super::resolve::WhiteoutKind;
use super::types::FileKind;
use super::upper::{Upper, WhiteoutForm};
use crate::layer::at::At;

/// One side of a rename.
pub(super) struct Side<'a> {
    pub parent: &'a Arc<Inode>,
    pub name: &'a [u8],
    pub dir: Arc<OwnedFd>,
}

impl Side<'_> {
    pub fn at(&self) -> At<'_> {
        At::new(self.dir.as_fd(), self.name)
    }
}

/// What decides about the step of a rename.
#[derive(Clone, Copy)]
pub(super) struct Kinds {
    /// A directory moves.
    pub is_dir: bool,
    /// What the upper has at the new place, when that is no whiteout.
    pub replaces: Option<(u64, u64)>,
    /// A lower has the old name, so it must be hidden when the upper has it no more.
    pub below: bool,
}

/// The one step. Answers what hides the old name now.
pub(super) fn step(
    upper: &Upper,
    old: &Side<'_>,
    new: &Side<'_>,
    Kinds {
        is_dir,
        replaces,
        below,
    }: Kinds,
    whiteout: Option<WhiteoutKind>,
) -> Result<Option<WhiteoutKind>, Errno> {
    let node = whiteout == Some(WhiteoutKind::Node);
    let left = match (below, node) {
        // The whiteout at the new place goes to the old one, where it is needed or removed.
        (true, true) => {
            old.at().rename_to(new.at(), Flags::EXCHANGE)?;
            Some(WhiteoutKind::Node)
        }
        (false, true) if is_dir => {
            old.at().rename_to(new.at(), Flags::EXCHANGE)?;
            old.at().unlink()?;
            None
        }
        (false, false) if is_dir && replaces.is_some() && upper.form == WhiteoutForm::WhName => {
            replace_dir(upper, old, new, replaces)?;
            None
        }
        (false, _) => {
            let flags = if node || replaces.is_some() {
                Flags::empty()
            } else {
                Flags::NOREPLACE
            };
            old.at().rename_to(new.at(), flags)?;
            None
        }
        (true, false) => Some(rename_and_hide(upper, old, new, (is_dir, replaces))?),
    };
    if whiteout == Some(WhiteoutKind::WhName) {
        clear_wh_name(&new.dir, new.name)?;
    }
    Ok(left)
}

/// Renames a directory over one that shows nothing but may hold whiteouts, which here are files
/// in it: the two change places, and then that one goes.
fn replace_dir(
    upper: &Upper,
    old: &Side<'_>,
    new: &Side<'_>,
    replaced: Option<(u64, u64)>,
) -> Result<(), Errno> {
    old.at().rename_to(new.at(), Flags::EXCHANGE)?;
    remove_from_upper(upper, old.at(), replaced)
}

/// Renames and leaves a whiteout behind.
fn rename_and_hide(
    upper: &Upper,
    old: &Side<'_>,
    new: &Side<'_>,
    (is_dir, replaces): (bool, Option<(u64, u64)>),
) -> Result<WhiteoutKind, Errno> {
    match upper.form {
        WhiteoutForm::CharDevice => {
            match old.at().rename_to(new.at(), Flags::WHITEOUT) {
                Ok(()) => return Ok(WhiteoutKind::Node),
                // Not on this file system; then in two steps, below.
                Err(Errno::INVAL | Errno::PERM | Errno::NOSYS) => {}
                Err(e) => return Err(e),
            }
        }
        WhiteoutForm::Xattr => upper.mark_xwhiteouts(old.dir.as_fd())?,
        WhiteoutForm::WhName => {
            let kind = upper.whiteout(old.dir.as_fd(), old.name)?;
            if is_dir && replaces.is_some() {
                replace_dir(upper, old, new, replaces)?;
            } else {
                old.at().rename_to(new.at(), Flags::empty())?;
            }
            return Ok(kind);
        }
    }
    if replaces.is_some() {
        // The old name is hidden last: for a moment it shows what it replaced.
        old.at().rename_to(new.at(), Flags::EXCHANGE)?;
        let is_dir = old.at().stat()?.kind == FileKind::Directory;
        let whiteout = upper.stage_whiteout()?;
        match is_dir {
            true => whiteout.replace(old.at(), replaces)?,
            false => whiteout.publish(old.at(), Flags::empty())?,
        }
    } else {
        upper
            .stage_whiteout()?
            .publish(new.at(), Flags::NOREPLACE)?;
        old.at().rename_to(new.at(), Flags::EXCHANGE)?;
    }
    Ok(WhiteoutKind::Node)
}
