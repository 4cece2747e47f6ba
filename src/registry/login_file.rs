//! The file with logins, which is changed.
//!
//! Invariant: it is written with mode 0600 beside its old version and renamed, under a lock, and never in a
//! place that another user controls.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, StatxFlags};
use serde_json::{Map, Value};

use super::credentials::bad;
use super::error::{Error, Result};
use crate::sys::walk::{self, Trust};

/// The size limit of a file with logins, in bytes.
const LIMIT: u64 = 4 << 20;
/// The limit of symlinks to such a file.
const MAX_LINKS: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    Make,
    Leave,
}

/// A file with logins that may be replaced. It is locked against other processes of ours.
pub(super) struct LoginFile {
    path: PathBuf,
    dir: OwnedFd,
    name: OsString,
    /// The lock.
    _locked: OwnedFd,
}

impl LoginFile {
    /// `None`: it does not exist.
    pub(super) fn open(path: &Path, missing: Missing) -> Result<Option<Self>> {
        let failed =
            |error: io::Error| bad(format!("{path:?}"), format!("cannot be used: {error}"));
        let mut at = std::path::absolute(path).map_err(failed)?;
        for _ in 0..MAX_LINKS {
            let above = at.parent().unwrap_or(Path::new("/"));
            let dir = match missing {
                Missing::Make => walk::make_directory(above, Trust::of_root(), 0o700),
                Missing::Leave => walk::open_directory(above, Trust::of_root()),
            };
            let dir = match dir {
                Ok(dir) => dir,
                Err(error) if missing == Missing::Leave && is_absent(&error) => return Ok(None),
                Err(error) => return Err(failed(error)),
            };
            let Some(name) = at.file_name() else {
                return Err(failed(io::ErrorKind::InvalidInput.into()));
            };
            match rustix::fs::readlinkat(&dir, name, Vec::new()) {
                // Configuration files are often links into a repository of the user.
                Ok(target) => {
                    walk::require_own_name(dir.as_fd(), name, Trust::of_root()).map_err(failed)?;
                    at = above.join(OsString::from_vec(target.into_bytes()));
                }
                Err(_) => return Self::lock(path, dir, name.to_owned(), missing),
            }
        }
        Err(failed(rustix::io::Errno::LOOP.into()))
    }

    fn lock(path: &Path, dir: OwnedFd, name: OsString, missing: Missing) -> Result<Option<Self>> {
        let shown = || format!("{path:?}");
        let failed = |error: io::Error| bad(shown(), format!("cannot be used: {error}"));
        let errno = |errno: rustix::io::Errno| failed(errno.into());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let locked = rustix::fs::openat(&dir, ".", flags, Mode::empty()).map_err(errno)?;
        let mask = StatxFlags::UID | StatxFlags::MODE;
        let st = walk::look(locked.as_fd(), mask).map_err(errno)?;
        let ours = [0, rustix::process::geteuid().as_raw()].contains(&st.stx_uid);
        let shared = st.stx_mode & 0o022 != 0 && st.stx_mode & 0o1000 == 0;
        if !ours || shared {
            let why = "is in a directory of another user, or one that others may write to: set HOME to \
                       your own, or give --authfile";
            return Err(bad(shown(), why));
        }
        if missing == Missing::Leave
            && rustix::fs::statat(&dir, &name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_err()
        {
            return Ok(None);
        }
        rustix::fs::flock(&locked, FlockOperation::LockExclusive).map_err(errno)?;
        Ok(Some(Self {
            path: path.to_owned(),
            dir,
            name,
            _locked: locked,
        }))
    }

    fn failed(&self, error: io::Error) -> Error {
        bad(
            format!("{:?}", self.path),
            format!("cannot be used: {error}"),
        )
    }

    pub(super) fn read(&self) -> Result<Map<String, Value>> {
        let file: File = match walk::open_file_in(self.dir.as_fd(), &self.name) {
            Ok(file) => file,
            Err(error) if is_absent(&error) => return Ok(Map::new()),
            Err(error) => return Err(self.failed(error)),
        };
        if !walk::is_trusted(&file).map_err(|error| self.failed(error))? {
            let why =
                "belongs to another user or can be written by others: no login is stored there";
            return Err(bad(format!("{:?}", self.path), why));
        }
        let mut bytes = Vec::new();
        let read = file.take(LIMIT).read_to_end(&mut bytes);
        read.map_err(|error| self.failed(error))?;
        if bytes.trim_ascii().is_empty() {
            return Ok(Map::new());
        }
        // serde's message is left out, because it may quote a password.
        serde_json::from_slice(&bytes).map_err(|_| {
            let why = "is not the JSON of `docker login`: repair or remove it";
            bad(format!("{:?}", self.path), why)
        })
    }

    pub(super) fn replace(&self, content: &Map<String, Value>) -> Result<()> {
        let failed = |error: io::Error| {
            bad(
                format!("{:?}", self.path),
                format!("cannot be written: {error}"),
            )
        };
        let text = serde_json::to_vec_pretty(content).map_err(|error| failed(error.into()))?;
        // The directory is held: its name may lead elsewhere by now.
        let dir = PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_raw_fd()));
        // tempfile gives the mode 0600.
        let staged = tempfile::Builder::new()
            .prefix(".unionfs-login-")
            .tempfile_in(&dir);
        let mut staged = staged.map_err(failed)?;
        let written = staged
            .write_all(&text)
            .and_then(|()| staged.write_all(b"\n"));
        let synced = written.and_then(|()| staged.as_file().sync_all());
        synced.map_err(failed)?;
        let renamed = staged.persist(dir.join(&self.name));
        renamed.map_err(|error| failed(error.error))?;
        Ok(())
    }
}

fn is_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}
