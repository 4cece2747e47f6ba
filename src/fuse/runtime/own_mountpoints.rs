//! Mountpoints for mounts without one: `unionfs mount IMAGE` makes a directory in the runtime
//! directory, and `unionfs umount` removes it.
//!
//! ```text
//! <runtime directory>/mnt/<name>-<8 hex>    0755
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::Mode;
use rustix::io::Errno;

use super::directory::Directory;
use super::{candidates, usable_dir};
use crate::fuse::error::{Error, Result};

/// The directory of such mountpoints in the runtime directory.
const DIR: &str = "mnt";
/// The longest part of the name that comes from the image.
const LONGEST: usize = 40;
/// Younger directories may be those of mounts that are just beginning.
const YOUNG: Duration = Duration::from_secs(60);

/// Makes a mountpoint whose name shows what is mounted on it. Mountpoints that were left by mounts
/// that ended otherwise are removed.
///
/// # Errors
/// [`Error::NoRuntimeDir`], [`Error::Runtime`].
pub fn make_mountpoint(what: &str) -> Result<PathBuf> {
    let (_, dir) = usable_dir()?;
    let dir = dir.join(DIR);
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Runtime { path, source }
    };
    Directory::make(&dir).map_err(fail(&dir))?;
    sweep(&dir);
    let plain = |c: char| {
        let is_plain = c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if is_plain { c } else { '_' }
    };
    let name: String = what.chars().map(plain).take(LONGEST).collect();
    let name = name.trim_start_matches('.');
    loop {
        let mut random = [0; 4];
        let flags = rustix::rand::GetRandomFlags::empty();
        let filled = rustix::rand::getrandom(&mut random, flags);
        filled.map_err(|errno| fail(&dir)(errno.into()))?;
        let path = dir.join(format!("{name}-{:08x}", u32::from_ne_bytes(random)));
        match rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755)) {
            Ok(()) => return Ok(path),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(fail(&path)(errno.into())),
        }
    }
}

/// Removes a mountpoint that [`make_mountpoint`] has made. Any other directory stays.
///
/// # Errors
/// Those of rmdir(2).
pub fn remove_mountpoint(path: &Path) -> io::Result<()> {
    let parent = path.parent().unwrap_or(path);
    let is_ours = |dir: PathBuf| {
        let dir = dir.join(DIR);
        Directory::open(&dir).is_ok() && dir.canonicalize().is_ok_and(|dir| dir == parent)
    };
    if !candidates().into_iter().any(is_ours) {
        return Ok(());
    }
    match rustix::fs::rmdir(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Removes empty directories on which nothing is mounted: rmdir(2) refuses all others.
fn sweep(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let modified = entry.metadata().and_then(|meta| meta.modified());
        let age = modified.map(|time| SystemTime::now().duration_since(time));
        if matches!(age, Ok(Ok(age)) if age > YOUNG) {
            let _ = rustix::fs::rmdir(entry.path());
        }
    }
}
