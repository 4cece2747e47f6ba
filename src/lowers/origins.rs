//! Finds the lower file of an origin, the marker of a copy in the upper.

use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::io::Errno;

use super::{Layers, LowerDirs};
use crate::layer::at::At;
use crate::layer::lower::LowerDir;
use crate::layer::origin::{Origin, OriginFile};

/// Finds the file of an origin on the file system with a device number. Its errors are those of
/// [`Origin::find`].
pub type FindOrigin = Box<dyn Fn(u64, &Origin) -> rustix::io::Result<OriginFile> + Send + Sync>;

/// As [`super::Lowers::dir_origin`].
pub(super) fn of_dir(dir: &LowerDir, held: BorrowedFd<'_>) -> Option<Origin> {
    Origin::of(At::fd(held), dir.layer.uuid).ok()
}

impl Layers {
    /// As [`super::Lowers::find_origin`].
    pub(super) fn find_origin(
        &self,
        origin: &Origin,
        finder: Option<&FindOrigin>,
    ) -> Result<Option<OriginFile>, Errno> {
        let mut asked = Vec::new();
        for root in self.roots() {
            let layer = &root.layer;
            if asked.contains(&layer.stat.dev) || !origin.on_file_system(layer.uuid) {
                continue;
            }
            asked.push(layer.stat.dev);
            let found = match finder {
                Some(finder) => finder(layer.stat.dev, origin),
                None => origin.find(&layer.root),
            };
            match found {
                Ok(found) => return Ok(Some(found)),
                Err(Errno::PERM) => return Err(Errno::PERM),
                Err(_) => {}
            }
        }
        Ok(None)
    }

    /// As [`super::Lowers::same_name_origin`].
    pub(super) fn same_name_origin(
        &self,
        dirs: &LowerDirs,
        name: &[u8],
        origin: &Origin,
    ) -> Option<OriginFile> {
        for dir in dirs.all().ok()? {
            let fd = self.fd(dir).ok()?;
            let at = At::new(fd.as_fd(), name);
            if let Ok(Some(stat)) = at.stat_opt() {
                let same = Origin::of(at, dir.layer.uuid).ok()? == *origin;
                return same.then(|| OriginFile::from(&stat));
            }
        }
        None
    }

    /// Checks that the data file of a metacopy is the one in its origin marker
    /// (`ovl_verify_origin`). The owner of a layer could otherwise redirect a metacopy to a file
    /// that they may not read. Layers of trusted owners are not checked: they may be copies whose
    /// origins are out of date.
    ///
    /// # Errors
    /// EIO when it is another file, and where the host has no file handles to tell it.
    pub(super) fn check_claim(
        &self,
        claimed: &[u8],
        dir: &LowerDir,
        name: &[u8],
    ) -> Result<(), Errno> {
        let claimed = Origin::parse(claimed).ok_or(Errno::IO)?;
        let fd = self.fd(dir)?;
        match Origin::of(At::new(fd.as_fd(), name), dir.layer.uuid) {
            Ok(origin) if origin == claimed => Ok(()),
            _ => Err(Errno::IO),
        }
    }
}
