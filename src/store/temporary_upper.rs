//! An upper for a mount without an upper and a name of its own. It is made below our own root and
//! stays after the mount, unless the mount is ephemeral (`unnamed_layer` finds it again). Also an empty directory, which is the lower of images without
//! layers (`FROM scratch`).
//!
//! ```text
//! <own root>/rw/<32 hex>/   0700
//!            diff/          mode, owner, times, xattrs of the topmost lower's root
//!            work/          0700
//!            origin.json    see `unnamed_layer`
//! <own root>/rw/empty/      0755
//! ```

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, XattrFlags};
use rustix::io::Errno;

use super::confined_dir::ConfinedDir;
use super::error::{Error, Result};
use super::random;
use super::unnamed_layer::{ORIGIN, UnnamedOrigin};
use crate::layer::at::{At, timestamps};
use crate::layer::markers::is_marker_xattr;
use crate::layer::{Dialect, LayerSpec, OpenDir, Records, UpperSpec};

/// The directory of such uppers, relative to the root.
pub(super) const DIR: &str = "rw";

/// The markers in uppers of images: only those that the union writes, as root or as a plain user,
/// so that every file name can be used.
pub const UPPER_DIALECT: Dialect = Dialect {
    trusted: true,
    user: true,
    fuse_overlayfs: false,
    wh_names: false,
    records: Records::Ignored,
};

/// The lower of images without layers, in [`DIR`].
const EMPTY: &str = "empty";

/// A temporary upper. Its name is random.
#[derive(Debug)]
pub struct TemporaryUpper {
    place: UpperLocation,
    diff: OpenDir,
    work: OpenDir,
    held: File,
}

/// The location of a temporary upper, for the process that removes it, which may be another process
/// and much later.
#[derive(Clone, Debug)]
pub struct UpperLocation {
    root: PathBuf,
    /// The device and inode of the directory of all such uppers.
    parent: (u64, u64),
    /// The name of the upper in that directory.
    name: String,
}

/// Makes an empty upper below `base` (see [`super::discovery::Environment::own_root`]). Its root
/// directory gets the attributes of that of `top`, the topmost lower.
///
/// # Errors
/// [`Error::NotSafe`] if this process is root and another user could replace the directory; else
/// those of mkdir(2) and of copying the attributes.
pub fn make_temporary_upper(base: &Path, top: &OpenDir) -> Result<TemporaryUpper> {
    let root = private_root(base)?;
    let name = loop {
        let name = random::hex(16)?;
        if root.make_dir(Path::new(DIR).join(&name), 0o700)? {
            break name;
        }
    };
    let place = UpperLocation {
        root: root.path().to_owned(),
        parent: parent(&root)?,
        name,
    };
    let filled = lock(
        &root,
        &place.relative(),
        FlockOperation::NonBlockingLockShared,
    )
    .and_then(|held| Ok((held, fill(&root, &place.relative(), top)?)));
    if filled.is_err() {
        // The first failure is the one to report.
        let _ = root.remove_tree(place.relative());
    }
    let (held, (diff, work)) = filled?;
    Ok(TemporaryUpper {
        place,
        diff,
        work,
        held,
    })
}

/// Locks the directory of an upper: shared from its making until its mount is live and has the locks
/// of `diff` and `work`, exclusively for its removal by another command.
///
/// # Errors
/// [`Error::Io`]; EWOULDBLOCK if another process has the lock.
pub(super) fn lock(root: &ConfinedDir, dir: &Path, how: FlockOperation) -> Result<File> {
    let gone = || Error::io("lock", &root.full(dir), Errno::NOENT);
    let fd = root.dir(dir, OFlags::RDONLY)?.ok_or_else(gone)?;
    rustix::fs::flock(&fd, how).map_err(|errno| Error::io("lock", &root.full(dir), errno))?;
    Ok(fd.into())
}

/// Returns the lower of an image without layers: an empty directory below `base`, mode 0755 as the
/// root of such an image of Docker. The directory is made if it does not exist.
///
/// # Errors
/// [`Error::NotSafe`] if this process is root and another user could replace the directory;
/// [`Error::NotEmpty`] if the directory contains files; else those of mkdir(2).
pub fn empty_layer(base: &Path) -> Result<LayerSpec> {
    let root = private_root(base)?;
    let path = Path::new(DIR).join(EMPTY);
    root.make_dir(&path, 0o755)?;
    if !root.list(&path)?.is_empty() {
        let path = root.full(path);
        return Err(Error::NotEmpty { path });
    }
    Ok(LayerSpec {
        dir: root.layer_dir(&path)?,
        dialect: Dialect::KERNEL,
    })
}

/// Opens our own root and makes the directory of all uppers in it.
fn private_root(base: &Path) -> Result<ConfinedDir> {
    let root = ConfinedDir::make(base)?;
    root.require_ours("")?;
    if !root.make_dir(DIR, 0o700)? {
        root.require_ours(DIR)?;
    }
    Ok(root)
}

/// Returns the device and inode of the directory of all uppers.
fn parent(root: &ConfinedDir) -> Result<(u64, u64)> {
    let gone = || Error::io("look up", &root.full(DIR), Errno::NOENT);
    let stat = root.look(DIR)?.ok_or_else(gone)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Makes `diff` and `work`.
fn fill(root: &ConfinedDir, dir: &Path, top: &OpenDir) -> Result<(OpenDir, OpenDir)> {
    let make = |name: &str| {
        let path = dir.join(name);
        root.new_dir(&path, 0o700)?;
        root.layer_dir(&path)
    };
    let work = make("work")?;
    let diff = make("diff")?;
    dress_like(top, &diff)?;
    Ok((diff, work))
}

/// Gives an empty directory the owner, mode, times and xattrs of another, as far as this user has
/// the permission.
pub(crate) fn dress_like(top: &OpenDir, diff: &OpenDir) -> Result<()> {
    let (from, to) = (At::fd(top.as_fd()), At::fd(diff.as_fd()));
    let fail = |action| move |errno| Error::io(action, diff.path(), errno);
    let like = from
        .stat()
        .map_err(|errno| Error::io("stat", top.path(), errno))?;
    match to.chown(Some(like.uid), Some(like.gid)) {
        // Only root may change the owner; in a user's own mount the user owns the directory.
        Ok(()) | Err(Errno::PERM | Errno::INVAL) => (),
        Err(errno) => return Err(fail("chown")(errno)),
    }
    to.chmod(like.perm).map_err(fail("chmod"))?;
    copy_xattrs(from, to);
    // Last, because nothing changes the directory any more. The access time does not matter.
    let times = timestamps(like.atime, like.mtime);
    to.set_times(&times).map_err(fail("set the times of"))
}

/// Copies xattrs (ACLs, labels, the users' own) as far as this user may set them. An overlay's
/// markers belong to their layer and are not copied.
fn copy_xattrs(from: At<'_>, to: At<'_>) {
    let names = from.list_xattrs().unwrap_or_default();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(text) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        if is_marker_xattr(name) {
            continue;
        }
        if let Ok(Some(value)) = from.xattr(text) {
            // Errors are ignored: a union without the label is better than none.
            let _ = to.set_xattr(text, &value, XattrFlags::empty());
        }
    }
}

impl TemporaryUpper {
    /// Returns the upper for the union.
    pub fn spec(&self, dialect: Dialect) -> UpperSpec {
        UpperSpec {
            layer: LayerSpec {
                dir: self.diff.clone(),
                dialect,
            },
            work: self.work.clone(),
        }
    }

    /// Records what the changes are made to.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the path of the store is not UTF-8; those of open(2) and write(2).
    pub fn record(&self, origin: &UnnamedOrigin) -> Result<()> {
        let path = self.place.relative().join(ORIGIN);
        let root = ConfinedDir::open(&self.place.root)?;
        let bytes = serde_json::to_vec(origin).map_err(|_| Error::Malformed {
            path: origin.source.root.clone(),
            found: "bytes in its name that are not UTF-8".to_owned(),
            expected: "a path that can be recorded",
        })?;
        root.write_new(path, 0o600, &bytes)
    }

    /// Returns a file that keeps other commands from removing the upper as long as it is open. The
    /// caller keeps it open until the mount is live.
    pub fn into_held(self) -> File {
        self.held
    }

    /// Returns the location.
    pub fn place(&self) -> &UpperLocation {
        &self.place
    }
}

impl UpperLocation {
    /// Returns the directory that contains `diff` and `work`, for messages.
    pub fn dir(&self) -> PathBuf {
        self.root.join(self.relative())
    }

    fn relative(&self) -> PathBuf {
        Path::new(DIR).join(&self.name)
    }

    /// Removes the upper with everything that was written. It is no error if it does not exist. The
    /// upper must not be in use any more. Symlinks are removed, not followed.
    ///
    /// # Errors
    /// ESTALE if another directory has replaced the directory of uppers, EBUSY if something is
    /// mounted in it, else those of unlink(2).
    pub fn remove(&self) -> Result<()> {
        let Some(root) = ConfinedDir::existing(&self.root)? else {
            return Ok(());
        };
        if parent(&root)? != self.parent {
            return Err(Error::io("remove", &self.dir(), Errno::STALE));
        }
        root.remove_tree(self.relative())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;

    #[test]
    fn an_upper_is_private_looks_like_the_top_layer_and_goes_away() {
        let temp = tempfile::tempdir().unwrap();
        let top = temp.path().join("top");
        std::fs::create_dir(&top).unwrap();
        std::fs::set_permissions(&top, std::fs::Permissions::from_mode(0o1751)).unwrap();
        File::open(&top)
            .and_then(|dir| dir.set_modified(std::time::UNIX_EPOCH))
            .unwrap();
        let base = temp.path().join("own/store");
        let upper = make_temporary_upper(&base, &OpenDir::open(&top).unwrap()).unwrap();
        let other = make_temporary_upper(&base, &OpenDir::open(&top).unwrap()).unwrap();
        let dir = upper.place().dir();
        assert_ne!(dir, other.place().dir());
        let mode = |path: &Path| path.metadata().unwrap().mode() & 0o7777;
        let spec = upper.spec(Dialect::KERNEL);
        assert_eq!(mode(spec.layer.path()), 0o1751);
        let modified = |path: &Path| path.metadata().unwrap().modified().unwrap();
        assert_eq!(modified(spec.layer.path()), modified(&top));
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(mode(&base), 0o700);
        assert_eq!(mode(spec.work.path()), 0o700);

        let locked = spec.layer.path().join("locked/in");
        std::fs::create_dir_all(&locked).unwrap();
        std::os::unix::fs::symlink(&top, locked.join("link")).unwrap();
        std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o000)).unwrap();
        upper.place().remove().unwrap();
        assert!(!dir.exists() && top.exists() && other.place().dir().exists());
        upper.place().remove().unwrap();

        // `remove` must not empty another directory of that name.
        std::fs::rename(base.join("rw"), base.join("aside")).unwrap();
        std::fs::create_dir_all(other.place().dir()).unwrap();
        let error = other.place().remove().unwrap_err();
        assert_eq!(error.errno(), Some(Errno::STALE));
        assert!(other.place().dir().exists());
    }

    #[test]
    fn a_failure_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        // A descriptor without a file type has no attributes to copy.
        let eventfd = |_| rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC);
        let no_file = OpenDir::open_by(Path::new("eventfd"), eventfd).unwrap();
        let error = make_temporary_upper(temp.path(), &no_file).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::IO));
        assert_eq!(
            std::fs::read_dir(temp.path().join("rw")).unwrap().count(),
            0
        );
    }
}
