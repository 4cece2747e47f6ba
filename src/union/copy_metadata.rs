//! What a copy has beside its data: owner, mode, xattrs, origin, times. Called by `copy_up`
//! for what it has staged.

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::types::FileKind;
use super::upper::Upper;
use crate::layer::Dialect;
use crate::layer::at::{At, Stat, timestamps};
use crate::layer::markers::{Escape, Marker};
use crate::layer::origin::Origin;

/// A copy before it has its name.
#[derive(Clone, Copy)]
pub(crate) struct Copied {
    /// It says its origin.
    pub marked: bool,
    /// As it was made: only its identity and type are those of the copy.
    pub stat: Stat,
}

/// The mode in which a copy is made: its last one where nothing will have to change it, else
/// `narrow`, as what is to be another's is nobody else's until it is.
pub(crate) fn first_perm(upper: &Upper, stat: &Stat, narrow: u32) -> u32 {
    match upper.privileged && (stat.uid, stat.gid) == upper.own_ids {
        true => stat.perm & 0o777,
        false => narrow,
    }
}

/// Copies owner, xattrs, mode, origin and times. `bare`: there are no xattrs.
pub(crate) fn copy_metadata(
    upper: &Upper,
    (from, dialect, stat): (At<'_>, Dialect, &Stat),
    (to, bare): (At<'_>, bool),
    origin: Option<&Origin>,
) -> Result<Copied, Errno> {
    let mut marked = false;
    let staged = to.stat()?;
    let owned = (staged.uid, staged.gid) == (stat.uid, stat.gid);
    if !owned {
        to.chown(Some(stat.uid), Some(stat.gid))?;
    }
    let plain = bare || copy_xattrs(upper, (from, dialect), to)? == 0;
    // A change of the owner drops set-id bits, an ACL brings permissions.
    let settled = owned && plain && staged.perm == stat.perm;
    if stat.kind != FileKind::Symlink && !settled {
        to.chmod(stat.perm)?;
    }
    if let Some(origin) = origin {
        match upper.markers.set(to, Marker::Origin, origin.as_bytes()) {
            // user.* xattrs exist on files and directories only; then there is no origin.
            Ok(()) => marked = true,
            Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(e) => return Err(e),
        }
    }
    to.set_times(&timestamps(stat.atime, stat.mtime))?;
    Ok(Copied {
        marked,
        stat: staged,
    })
}

/// Copies all xattrs but markers. One the upper's file system does not know may be lost
/// unless it decides about access, as overlayfs has it. How many there were.
fn copy_xattrs(
    upper: &Upper,
    (from, dialect): (At<'_>, Dialect),
    to: At<'_>,
) -> Result<usize, Errno> {
    let mut count = 0;
    for stored in from
        .list_xattrs()?
        .split(|&b| b == 0)
        .filter(|n| !n.is_empty())
    {
        let Some(visible) = Escape(dialect).visible(stored) else {
            continue;
        };
        let source = std::ffi::CString::new(stored).map_err(|_| Errno::INVAL)?;
        let Some(value) = from.xattr(&source)? else {
            continue;
        };
        let name = match Escape(upper.layer.dialect).stored(&visible) {
            Ok(name) => name,
            Err(Errno::PERM) => continue,
            Err(e) => return Err(e),
        };
        count += 1;
        let must = visible.starts_with(b"system.posix_acl_") || visible.starts_with(b"security.");
        match to.set_xattr(&name, &value, XattrFlags::empty()) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP) if !must => {}
            // Security labels are not a plain user's to set, nor in force for one (nosuid).
            Err(Errno::PERM | Errno::OPNOTSUPP)
                if !upper.privileged && visible.starts_with(b"security.") => {}
            Err(e) => return Err(e),
        }
    }
    Ok(count)
}
