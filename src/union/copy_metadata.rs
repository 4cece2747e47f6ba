//! Copies everything but the data of a file to its staged copy: owner, mode, xattrs, origin,
//! protection and times.

use std::sync::Arc;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::owners::Owners;
use super::types::FileKind;
use super::upper::{Owner, Upper};
use crate::layer::Dialect;
use crate::layer::at::{At, Stat, timestamps};
use crate::layer::markers::{Escape, Marker};
use crate::layer::origin::Origin;
use crate::lowers::LowerFile;

/// A staged copy that has no name in the upper yet.
pub(crate) struct Copied {
    /// Whether the copy has an origin marker.
    pub marked: bool,
    /// The stat of the copy when it was created. Only identity and type are still valid.
    pub stat: Stat,
    /// The file with the data, if the copy is a metacopy.
    pub metacopy: Option<Arc<LowerFile>>,
}

/// Returns the mode to create a copy with. It is the final mode if no later step changes it, else
/// `narrow`, so that no other user can open a file whose owner is not set yet.
pub(crate) fn first_perm(upper: &Upper, stat: &Stat, narrow: u32) -> u32 {
    if upper.privileged && Owner::of(stat) == upper.own_ids {
        stat.perm & 0o777
    } else {
        narrow
    }
}

/// The file that is copied.
pub(crate) struct Original<'a> {
    /// The file for its xattrs; `None` if it is known to have none.
    pub at: Option<At<'a>>,
    pub dialect: Dialect,
    pub stat: &'a Stat,
    pub owners: &'a Owners,
}

/// Copies owner, xattrs, mode, origin and times.
///
/// # Errors
/// Those of the upper's file system; EOVERFLOW for an owner outside of the mapping.
pub(crate) fn copy_metadata(
    upper: &Upper,
    from: &Original<'_>,
    to: At<'_>,
    origin: Option<&Origin>,
) -> Result<Copied, Errno> {
    let stat = &from.owners.copied(from.stat)?;
    let mut marked = false;
    let staged = to.stat()?;
    let owned = Owner::of(&staged) == Owner::of(stat) && !to.has_records();
    if !owned {
        let done = to.chown(Some(stat.uid), Some(stat.gid));
        from.owners.tolerate(done)?;
    }
    let plain = match from.at {
        Some(at) => copy_xattrs(upper, from, at, to)? == 0,
        None => true,
    };
    // A change of owner drops set-id bits, and an ACL changes permission bits.
    let settled = owned && plain && staged.perm == stat.perm;
    if stat.kind != FileKind::Symlink && !settled {
        to.chmod(stat.perm)?;
    }
    if let Some(origin) = origin {
        match upper.markers.set(to, Marker::Origin, origin.as_bytes()) {
            // Only files and directories can have user.* xattrs; other files get no origin.
            Ok(()) => marked = true,
            Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(e) => return Err(e),
        }
    }
    to.set_times(&timestamps(stat.atime, stat.mtime))?;
    Ok(Copied {
        marked,
        stat: staged,
        metacopy: None,
    })
}

/// Copies all xattrs except markers and returns their number. An xattr that the upper's file system
/// does not support is dropped, unless it affects access; overlayfs does the same.
fn copy_xattrs(upper: &Upper, from: &Original<'_>, at: At<'_>, to: At<'_>) -> Result<usize, Errno> {
    let mut count = 0;
    for stored in at
        .list_xattrs()?
        .split(|&b| b == 0)
        .filter(|n| !n.is_empty())
    {
        let Some(visible) = Escape(from.dialect).visible(stored) else {
            continue;
        };
        let source = std::ffi::CString::new(stored).map_err(|_| Errno::INVAL)?;
        let Some(value) = at.xattr(&source)? else {
            continue;
        };
        let name = match Escape(upper.layer.dialect).stored(&visible) {
            Ok(name) => name,
            Err(Errno::PERM) => continue,
            Err(e) => return Err(e),
        };
        count += 1;
        let must = visible.starts_with(b"system.posix_acl_") || visible.starts_with(b"security.");
        let value = from.owners.copied_xattr(&visible, &value)?;
        match to.set_xattr(&name, &value, XattrFlags::empty()) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP) if !must => {}
            // A plain user may not set security labels, and they have no effect (nosuid).
            Err(Errno::PERM | Errno::OPNOTSUPP)
                if !upper.privileged && visible.starts_with(b"security.") => {}
            Err(e) => return Err(e),
        }
    }
    Ok(count)
}
