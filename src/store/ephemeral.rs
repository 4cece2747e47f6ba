//! A private upper for a mount without one of its own: made below our own root,
//! removed when the mount ends. Called by the cli's `mount`.
//!
//! ```text
//! <own root>/rw/<32 hex>/   0700
//!            diff/          mode, owner, times, xattrs of the topmost lower's root
//!            work/          0700
//! ```

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::error::{Error, Result};
use crate::layer::{Dialect, LayerSpec, UpperSpec};

/// An upper that nobody has a name for.
#[derive(Debug)]
pub struct Ephemeral {
    dir: PathBuf,
    diff: PathBuf,
    work: PathBuf,
}

/// Makes an empty upper below `base` (see [`super::roots::Environment::own_root`]),
/// whose root directory looks like that of `top`, the topmost lower.
pub fn ephemeral_upper(base: &Path, top: &Path) -> Result<Ephemeral> {
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
    let upper = Ephemeral {
        diff: dir.join("diff"),
        work: dir.join("work"),
        dir,
    };
    match fill(&upper, top) {
        Ok(()) => Ok(upper),
        Err(error) => {
            // The first failure is the one to report.
            let _ = upper.remove();
            Err(error)
        }
    }
}

fn fill(upper: &Ephemeral, top: &Path) -> Result<()> {
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |error: io::Error| Error::io("create", &path, errno(&error))
    };
    make_dir(false, &upper.work).map_err(fail(&upper.work))?;
    make_dir(false, &upper.diff).map_err(fail(&upper.diff))?;
    dress_like(top, &upper.diff)
}

/// Gives an empty directory the owner, mode, times and xattrs of another, as far as this
/// user may.
pub(crate) fn dress_like(top: &Path, diff: &Path) -> Result<()> {
    let like = top
        .symlink_metadata()
        .map_err(|error| Error::io("stat", top, errno(&error)))?;
    let owner = (Uid::from_raw(like.uid()), Gid::from_raw(like.gid()));
    match rustix::fs::chownat(
        CWD,
        diff,
        Some(owner.0),
        Some(owner.1),
        AtFlags::SYMLINK_NOFOLLOW,
    ) {
        // Only root may give a directory away; a user's own mount shows the user's.
        Ok(()) | Err(Errno::PERM | Errno::INVAL) => (),
        Err(error) => return Err(Error::io("chown", diff, error)),
    }
    rustix::fs::chmod(diff, Mode::from_raw_mode(like.mode() & 0o7777))
        .map_err(|error| Error::io("chmod", diff, error))?;
    copy_xattrs(top, diff);
    // Last, as nothing changes below any more. The access time does not matter.
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time(like.atime(), like.atime_nsec()),
        last_modification: time(like.mtime(), like.mtime_nsec()),
    };
    rustix::fs::utimensat(CWD, diff, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| Error::io("set the times of", diff, error))
}

/// Xattrs (ACLs, labels, users' own) as far as this user may set them; an overlay's
/// markers belong to the layer they are in.
fn copy_xattrs(from: &Path, to: &Path) {
    let markers = [
        &b"trusted.overlay."[..],
        b"user.overlay.",
        b"user.fuseoverlayfs.",
    ];
    // The kernel's limit for both a list and a value is 64 KiB.
    let mut names = vec![0; 65536];
    let Ok(length) = rustix::fs::llistxattr(from, &mut names[..]) else {
        return;
    };
    names.truncate(length);
    for name in names.split(|byte| *byte == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0; 65536];
        if markers.iter().any(|marker| name.starts_with(marker)) {
            continue;
        }
        if let Ok(length) = rustix::fs::lgetxattr(from, name, &mut value[..]) {
            value.truncate(length);
            // Refused: a union without the label is better than none.
            let _ = rustix::fs::lsetxattr(to, name, &value, XattrFlags::empty());
        }
    }
}

impl Ephemeral {
    /// What to give to the union.
    pub fn spec(&self, dialect: Dialect) -> UpperSpec {
        UpperSpec {
            layer: LayerSpec {
                path: self.diff.clone(),
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
        let upper = ephemeral_upper(&base, &top).unwrap();
        let other = ephemeral_upper(&base, &top).unwrap();
        assert_ne!(upper.dir(), other.dir());
        let mode = |path: &Path| path.metadata().unwrap().mode() & 0o7777;
        let spec = upper.spec(Dialect::KERNEL);
        assert_eq!(mode(&spec.layer.path), 0o1751);
        let modified = |path: &Path| path.metadata().unwrap().modified().unwrap();
        assert_eq!(modified(&spec.layer.path), modified(&top));
        assert_eq!(mode(upper.dir()), 0o700);
        assert_eq!(mode(&spec.work), 0o700);

        let locked = spec.layer.path.join("locked/in");
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
        let error = ephemeral_upper(temp.path(), &temp.path().join("none")).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::NOENT));
        assert_eq!(
            std::fs::read_dir(temp.path().join("rw")).unwrap().count(),
            0
        );
    }
}
