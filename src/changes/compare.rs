//! Decides whether a file has changed.
//!
//! As in `docker diff`, type, mode, owner and device number are compared, and size and modification
//! time of everything but directories (moby, pkg/archive/changes_unix.go). In addition xattrs and
//! symlink targets are compared, and the data where all else is equal.

use super::paths::Node;
use super::{Result, Tree, read_error};
use crate::union::{Attr, Caching, FileKind, Ino, Union};

/// Bytes compared at a time.
const CHUNK: usize = 128 << 10;

impl Tree {
    /// Whether the file at `path` differs.
    pub(super) fn differs(&self, path: &[u8], before: &Attr, after: &Attr) -> Result<bool> {
        let Some(lower) = &self.before else {
            return Ok(true);
        };
        if stat_differs(before, after) {
            return Ok(true);
        }
        if same_file(before, after) {
            return Ok(false);
        }
        let fail = read_error(path);
        let (old, new) = (
            xattrs(lower, before.ino).map_err(&fail)?,
            xattrs(&self.after, after.ino).map_err(&fail)?,
        );
        if old != new {
            return Ok(true);
        }
        let same = match after.kind {
            FileKind::Symlink => {
                let old = lower.readlink(before.ino).map_err(&fail)?;
                old == self.after.readlink(after.ino).map_err(&fail)?
            }
            FileKind::Regular => {
                same_data(lower, before.ino, &self.after, after.ino).map_err(&fail)?
            }
            _ => true,
        };
        Ok(!same)
    }
}

/// Whether both are the same file of the same layer. Inode numbers alone do not tell: the two
/// unions may number the layers' file systems differently.
pub(super) fn same_file(before: &Attr, after: &Attr) -> bool {
    (before.ino, before.ctime, before.btime) == (after.ino, after.ctime, after.btime)
}

fn stat_differs(before: &Attr, after: &Attr) -> bool {
    let owner = |a: &Attr| (a.kind, a.perm, a.uid, a.gid, a.rdev);
    let data = |a: &Attr| (a.size, a.mtime);
    owner(before) != owner(after)
        || after.kind != FileKind::Directory && data(before) != data(after)
}

/// Returns all extended attributes that users see, sorted by name.
pub(super) fn xattrs(union: &Union, ino: Ino) -> crate::union::Result<Vec<Xattr>> {
    // All names, as for a privileged caller.
    let list = union.listxattr(ino, &|| true)?;
    let mut found = Vec::new();
    for name in list.split(|b| *b == 0).filter(|name| !name.is_empty()) {
        match union.getxattr(ino, name) {
            Ok(value) => found.push((name.to_vec(), value)),
            // It was removed after it had been listed.
            Err(e) if e.errno() == rustix::io::Errno::NODATA.raw_os_error() => {}
            Err(e) => return Err(e),
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Name and value of an extended attribute.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// Whether two regular files have the same data.
///
/// # Errors
/// Those of reading one of them.
pub(super) fn same_data_of(before: &Node<'_>, after: &Node<'_>) -> Result<bool> {
    let same = same_data(before.union(), before.ino(), after.union(), after.ino());
    same.map_err(read_error(after.path()))
}

fn same_data(before: &Union, old: Ino, after: &Union, new: Ino) -> crate::union::Result<bool> {
    let (mut left, mut right) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut offset = 0;
    loop {
        let read = before.read(old, offset, &mut left, Caching::Cached)?;
        let mut filled = 0;
        while filled < read {
            let at = offset + filled as u64;
            match after.read(new, at, &mut right[filled..read], Caching::Cached)? {
                0 => return Ok(false),
                more => filled += more,
            }
        }
        if left[..read] != right[..read] {
            return Ok(false);
        }
        if read == 0 {
            return Ok(after.read(new, offset, &mut right, Caching::Cached)? == 0);
        }
        offset += read as u64;
    }
}
