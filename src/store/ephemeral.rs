//! A private upper for a mount without one of its own: made below our own root,
//! removed when the mount ends. Called by the cli's `mount`.
//!
//! ```text
//! <own root>/rw/<32 hex>/   0700
//!            diff/          mode, owner, times, xattrs of the topmost lower's root
//!            work/          0700
//! ```

use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::error::{Error, Result};
use crate::layer::at::{At, timestamps};
use crate::layer::markers::is_marker_xattr;
use crate::layer::{Dialect, LayerSpec, OpenDir, UpperSpec};

/// An upper that nobody has a name for.
#[derive(Debug)]
pub struct Ephemeral {
    dir: PathBuf,
    diff: OpenDir,
    work: OpenDir,
}

/// Makes an empty upper below `base` (see [`super::roots::Environment::own_root`]),
/// whose root directory looks like that of `top`, the topmost lower.
pub fn ephemeral_upper(base: &Path, top: &OpenDir) -> Result<Ephemeral> {
    let parent = base.join("rw");
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |error: io::Error| Error::io("create", &path, errno(&error))
    };
    make_dir(true, &parent).map_err(fail(&parent))?;
    // Uppers must be absolute: the server leaves its working directory.
    let parent = parent.canonicalize().map_err(fail(&parent))?;
    let dir = loop {
        let dir = parent.join(random_name()?);
        match make_dir(false, &dir) {
            Ok(()) => break dir,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
            Err(error) => return Err(fail(&dir)(error)),
        }
    };
    let filled = fill(&dir, top);
    if filled.is_err() {
        // The first failure is the one to report.
        let _ = remove_upper(&dir);
    }
    let (diff, work) = filled?;
    Ok(Ephemeral { dir, diff, work })
}

/// Makes `diff` and `work`.
fn fill(dir: &Path, top: &OpenDir) -> Result<(OpenDir, OpenDir)> {
    let make = |name: &str| {
        let path = dir.join(name);
        make_dir(false, &path).map_err(|e| Error::io("create", &path, errno(&e)))?;
        OpenDir::open(&path).map_err(Error::open)
    };
    let work = make("work")?;
    let diff = make("diff")?;
    dress_like(top, &diff)?;
    Ok((diff, work))
}

/// Gives an empty directory the owner, mode, times and xattrs of another, as far as this
/// user may.
pub(crate) fn dress_like(top: &OpenDir, diff: &OpenDir) -> Result<()> {
    let (from, to) = (At::fd(top.as_fd()), At::fd(diff.as_fd()));
    let fail = |action| move |errno| Error::io(action, diff.path(), errno);
    let like = from
        .stat()
        .map_err(|errno| Error::io("stat", top.path(), errno))?;
    match to.chown(Some(like.uid), Some(like.gid)) {
        // Only root may give a directory away; a user's own mount shows the user's.
        Ok(()) | Err(Errno::PERM | Errno::INVAL) => (),
        Err(errno) => return Err(fail("chown")(errno)),
    }
    to.chmod(like.perm).map_err(fail("chmod"))?;
    copy_xattrs(from, to);
    // Last, as nothing changes below any more. The access time does not matter.
    let times = timestamps(like.atime, like.mtime);
    to.set_times(&times).map_err(fail("set the times of"))
}

/// Xattrs (ACLs, labels, users' own) as far as this user may set them; an overlay's
/// markers belong to the layer they are in.
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
            // Refused: a union without the label is better than none.
            let _ = to.set_xattr(text, &value, XattrFlags::empty());
        }
    }
}

impl Ephemeral {
    /// What to give to the union.
    pub fn spec(&self, dialect: Dialect) -> UpperSpec {
        UpperSpec {
            layer: LayerSpec {
                dir: self.diff.clone(),
                dialect,
            },
            work: self.work.clone(),
        }
    }

    /// The directory that holds it all, for whoever removes it from another process.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Removes it with everything that was written. Nothing may use it any more.
    pub fn remove(self) -> Result<()> {
        remove_upper(&self.dir)
    }
}

/// As [`Ephemeral::remove`], given [`Ephemeral::dir`]. Symlinks are removed, not followed.
pub fn remove_upper(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // Directories that even their owner may not enter: open them up, once more.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => open_up(dir),
        Err(_) => (),
    }
    std::fs::remove_dir_all(dir).map_err(|error| Error::io("remove", dir, errno(&error)))
}

/// Gives the owner access to all directories of a tree that is about to be removed.
fn open_up(dir: &Path) {
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        // What fails here fails again, and is reported, in the removal.
        let _ = std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700));
        let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        let directories = entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
        todo.extend(directories.map(|entry| entry.path()));
    }
}

fn make_dir(with_parents: bool, path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(with_parents)
        .mode(0o700)
        .create(path)
}

fn random_name() -> Result<String> {
    let mut bytes = [0u8; 16];
    let flags = rustix::rand::GetRandomFlags::empty();
    let filled = rustix::rand::getrandom(&mut bytes, flags);
    match filled {
        Ok(16) => Ok(format!("{:032x}", u128::from_ne_bytes(bytes))),
        Ok(_) => Err(Error::io("read", Path::new("random bytes"), Errno::IO)),
        Err(errno) => Err(Error::io("read", Path::new("random bytes"), errno)),
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn an_upper_is_private_looks_like_the_top_layer_and_goes_away() {
        let temp = tempfile::tempdir().unwrap();
        let top = temp.path().join("top");
        std::fs::create_dir(&top).unwrap();
        std::fs::set_permissions(&top, std::fs::Permissions::from_mode(0o1751)).unwrap();
        std::fs::File::open(&top)
            .and_then(|dir| dir.set_modified(std::time::UNIX_EPOCH))
            .unwrap();
        let base = temp.path().join("own/store");
        let upper = ephemeral_upper(&base, &OpenDir::open(&top).unwrap()).unwrap();
        let other = ephemeral_upper(&base, &OpenDir::open(&top).unwrap()).unwrap();
        assert_ne!(upper.dir(), other.dir());
        let mode = |path: &Path| path.metadata().unwrap().mode() & 0o7777;
        let spec = upper.spec(Dialect::KERNEL);
        assert_eq!(mode(spec.layer.path()), 0o1751);
        let modified = |path: &Path| path.metadata().unwrap().modified().unwrap();
        assert_eq!(modified(spec.layer.path()), modified(&top));
        assert_eq!(mode(upper.dir()), 0o700);
        assert_eq!(mode(spec.work.path()), 0o700);

        let locked = spec.layer.path().join("locked/in");
        std::fs::create_dir_all(&locked).unwrap();
        std::os::unix::fs::symlink(&top, locked.join("link")).unwrap();
        std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o000)).unwrap();
        let dir = upper.dir().to_owned();
        upper.remove().unwrap();
        assert!(!dir.exists() && top.exists() && other.dir().exists());
        remove_upper(&dir).unwrap();
    }

    #[test]
    fn a_failure_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        // A descriptor of no type of file has no attributes to copy.
        let eventfd = |_| rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC);
        let no_file = OpenDir::open_by(Path::new("eventfd"), eventfd).unwrap();
        let error = ephemeral_upper(temp.path(), &no_file).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::IO));
        assert_eq!(
            std::fs::read_dir(temp.path().join("rw")).unwrap().count(),
            0
        );
    }
}
