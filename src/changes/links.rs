//! Hard links that reach into the lowers: a file of the image with several names that was changed
//! under one of them shows its change under all (`index=on`), although the upper has only that one
//! name.

use std::os::fd::AsFd as _;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{Error, Result};
use crate::layer::UpperSpec;
use crate::layer::at::At;
use crate::layer::lower::read_names;
use crate::layer::markers::Markers;

/// Whether names that the upper does not have may show files of the upper. Only the image knows
/// which, so all of its names must be visited then.
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
    read_names(&index, &mut names).map_err(fail)?;
    for name in names {
        let at = At::new(index.as_fd(), &name);
        let nlink = Markers::read(at, upper.layer.dialect).map_err(fail)?.nlink;
        if nlink.is_some_and(|nlink| more_names(&nlink)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether an index entry's link count allows further names. `U-1` means that the names are those
/// of the upper file without the index entry, so the upper has them all. A count relative to the
/// lower file does not show this.
fn more_names(nlink: &[u8]) -> bool {
    nlink != b"U-1"
}
