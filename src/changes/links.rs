//! Hard links that reach below the upper: a file of the image with several names, changed
//! under one of them, shows its change under all (index=on), though the upper has only
//! that one. Called by `Tree::open`.

use std::os::fd::AsFd as _;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{Error, Result};
use crate::layer::UpperSpec;
use crate::layer::at::At;
use crate::layer::lower::read_dir;
use crate::layer::markers::Markers;

/// Whether names that the upper has not may show files of the upper. Which ones is known
/// only to the image, all of which must then be gone through.
pub(super) fn reach_below(upper: &UpperSpec) -> Result<bool> {
    let fail = |source| Error::Layer {
        path: upper.work.path().join("index"),
        source,
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let index = match rustix::fs::openat(&upper.work, c"index", flags, Mode::empty()) {
        Ok(index) => index,
        Err(Errno::NOENT) => return Ok(false),
        Err(e) => return Err(fail(e)),
    };
    let mut names = Vec::new();
    read_dir(&index, |entry| names.push(entry.name)).map_err(fail)?;
    for name in names {
        let at = At::new(index.as_fd(), &name);
        let nlink = Markers::read(at, upper.layer.dialect).map_err(fail)?.nlink;
        if nlink.is_some_and(|nlink| more_names(&nlink)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `U-1`: the names are the upper's links but for the index's own, so the upper has all.
/// A count relative to the lower does not tell.
fn more_names(nlink: &[u8]) -> bool {
    nlink != b"U-1"
}
