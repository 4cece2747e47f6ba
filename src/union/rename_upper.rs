//! The renameat2(2) of a rename in the upper directory, and the whiteout it must leave.
//!
//! One system call changes what is visible. It depends on what the upper has under both names, and
//! on the form of whiteout that the upper uses. The caller holds all locks of both sides.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::RenameFlags as Flags;
use rustix::io::Errno;

use super::inode::Inode;
use super::names::NameIn;
use super::remove::{clear_wh_name, remove_from_upper};
use super::resolve::WhiteoutKind;
use super::types::FileKind;
use super::upper::{Upper, WhiteoutForm};
use crate::layer::at::At;

/// One side of a rename: a name, and the upper directory that holds it.
pub(super) struct RenameSide<'a> {
    pub parent: &'a Arc<Inode>,
    pub name: &'a [u8],
    pub dir: Arc<OwnedFd>,
}

impl<'a> RenameSide<'a> {
    pub fn name_in(&self) -> NameIn<'a> {
        NameIn {
            parent: self.parent,
            name: self.name,
        }
    }

    pub fn at(&self) -> At<'_> {
        At::new(self.dir.as_fd(), self.name)
    }
}

/// The properties of a rename that select its system calls.
#[derive(Clone, Copy)]
pub(super) struct RenameStep {
    /// The source is a directory.
    pub is_dir: bool,
    /// Device and inode number of what the upper has at the new name, unless it is a whiteout.
    pub replaces: Option<(u64, u64)>,
    /// A lower has the old name, so the rename must leave a whiteout there.
    pub leaves_whiteout: bool,
}

/// Renames `old` to `new` in the upper. `whiteout` is the whiteout at the new name.
/// Returns the whiteout left at the old name.
pub(super) fn rename_in_upper(
    upper: &Upper,
    old: &RenameSide<'_>,
    new: &RenameSide<'_>,
    step: RenameStep,
    whiteout: Option<WhiteoutKind>,
) -> Result<Option<WhiteoutKind>, Errno> {
    let node = whiteout == Some(WhiteoutKind::Node);
    let RenameStep {
        is_dir,
        replaces,
        leaves_whiteout,
    } = step;
    let left = match (leaves_whiteout, node) {
        // The exchange moves the whiteout at the new name to the old one.
        (true, true) => {
            upper.exchange(old.at(), new.at())?;
            Some(WhiteoutKind::Node)
        }
        (false, true) if is_dir => {
            upper.exchange(old.at(), new.at())?;
            removed_or_left(old.at())
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
        (true, false) => Some(rename_and_hide(upper, old, new, step)?),
    };
    if whiteout == Some(WhiteoutKind::WhName)
        && let Err(error) = clear_wh_name(new.dir.as_fd(), new.name)
    {
        // The whiteout hides lower files of its name, but not the renamed file beside it.
        tracing::warn!(%error, "a whiteout stays beside what was renamed over it");
    }
    Ok(left)
}

/// Removes the whiteout that was exchanged with the renamed file. The rename has already happened:
/// if the removal fails, a whiteout stays that hides nothing.
fn removed_or_left(whiteout: At<'_>) -> Option<WhiteoutKind> {
    let error = whiteout.unlink().err()?;
    tracing::warn!(%error, "a whiteout that hides nothing stays");
    Some(WhiteoutKind::Node)
}

/// Returns the result of the step after an exchange of two names. If that step failed, the exchange
/// is undone.
fn or_back(
    upper: &Upper,
    old: &RenameSide<'_>,
    new: &RenameSide<'_>,
    done: Result<(), Errno>,
) -> Result<(), Errno> {
    let Err(error) = done else { return Ok(()) };
    if let Err(error) = upper.exchange(old.at(), new.at()) {
        tracing::error!(%error, "cannot undo the first step of a failed rename");
    }
    Err(error)
}

/// Renames a directory over one that is empty in the union but may contain `.wh.` files: the
/// two are exchanged, then the replaced directory is removed.
fn replace_dir(
    upper: &Upper,
    old: &RenameSide<'_>,
    new: &RenameSide<'_>,
    replaced: Option<(u64, u64)>,
) -> Result<(), Errno> {
    upper.exchange(old.at(), new.at())?;
    or_back(
        upper,
        old,
        new,
        remove_from_upper(upper, old.at(), replaced),
    )
}

/// Renames, and leaves a whiteout at the old name.
fn rename_and_hide(
    upper: &Upper,
    old: &RenameSide<'_>,
    new: &RenameSide<'_>,
    step: RenameStep,
) -> Result<WhiteoutKind, Errno> {
    let replaces = step.replaces;
    match upper.form {
        WhiteoutForm::CharDevice => {
            match old.at().rename_to(new.at(), Flags::WHITEOUT) {
                Ok(()) => return Ok(WhiteoutKind::Node),
                // The file system has no RENAME_WHITEOUT: two steps, below.
                Err(Errno::INVAL | Errno::PERM | Errno::NOSYS) => {}
                Err(e) => return Err(e),
            }
        }
        WhiteoutForm::Xattr => upper.mark_xwhiteouts(old.dir.as_fd())?,
        WhiteoutForm::WhName => {
            let kind = upper.whiteout(old.dir.as_fd(), old.name)?;
            if step.is_dir && replaces.is_some() {
                replace_dir(upper, old, new, replaces)?;
            } else {
                old.at().rename_to(new.at(), Flags::empty())?;
            }
            return Ok(kind);
        }
    }
    let staged = upper.stage_whiteout()?;
    if replaces.is_some() {
        let replaced_is_dir = new.at().stat()?.kind == FileKind::Directory;
        // Until the whiteout is in place, the old name shows the replaced file.
        upper.exchange(old.at(), new.at())?;
        let hidden = if replaced_is_dir {
            staged.replace(old.at(), replaces)
        } else {
            staged.publish(old.at(), Flags::empty())
        };
        or_back(upper, old, new, hidden)?;
    } else {
        staged.publish(new.at(), Flags::NOREPLACE)?;
        if let Err(error) = upper.exchange(old.at(), new.at()) {
            // The whiteout would hide the lower files of that name.
            new.at().unlink()?;
            return Err(error);
        }
    }
    Ok(WhiteoutKind::Node)
}
