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
    /// The upper has something at the new place, and no whiteout.
    pub replaces: bool,
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
        (false, false) if is_dir && replaces && upper.form == WhiteoutForm::WhName => {
            replace_dir(upper, old, new)?;
            None
        }
        (false, _) => {
            let flags = if node || replaces {
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
fn replace_dir(upper: &Upper, old: &Side<'_>, new: &Side<'_>) -> Result<(), Errno> {
    old.at().rename_to(new.at(), Flags::EXCHANGE)?;
    remove_from_upper(upper, old.at(), true)
}

/// Renames and leaves a whiteout behind.
fn rename_and_hide(
    upper: &Upper,
    old: &Side<'_>,
    new: &Side<'_>,
    (is_dir, replaces): (bool, bool),
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
            if is_dir && replaces {
                replace_dir(upper, old, new)?;
            } else {
                old.at().rename_to(new.at(), Flags::empty())?;
            }
            return Ok(kind);
        }
    }
    if replaces {
        // The old name is hidden last: for a moment it shows what it replaced.
        old.at().rename_to(new.at(), Flags::EXCHANGE)?;
        let is_dir = old.at().stat()?.kind == FileKind::Directory;
        let flags = if is_dir {
            Flags::EXCHANGE
        } else {
            Flags::empty()
        };
        upper.stage_whiteout()?.publish(old.at(), flags)?;
    } else {
        upper
            .stage_whiteout()?
            .publish(new.at(), Flags::NOREPLACE)?;
        old.at().rename_to(new.at(), Flags::EXCHANGE)?;
    }
    Ok(WhiteoutKind::Node)
}
