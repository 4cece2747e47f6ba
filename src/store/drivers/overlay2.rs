//! The layout that the drivers overlay2, fuse-overlayfs and podman's overlay share. Used through
//! [`super::Driver`].
//!
//! ```text
//! overlay2/<cache id>/diff/      the layer's files
//!                     link       26 characters: the layer's short name
//!                     lower      l/<parent's link>:<parent's lower>; absent for a base layer
//!                     work/      absent for a base layer
//! overlay2/l/<26 characters>     -> ../<cache id>/diff
//! ```
//! (moby, daemon/graphdriver/overlay2/overlay.go.) The chain of image layers is known
//! from layerdb; `link`, `lower` and `l/` must agree with it.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::{Below, Driver, LayerDir};
use crate::layer::{Dialect, LayerSpec, OpenDir};
use crate::oci::text::excerpt;
use crate::store::confined_dir::{ConfinedDir, SMALL};
use crate::store::error::{Error, Result};
use crate::store::layer_place::LayerPlace;
use crate::store::layerdb::CacheId;
use crate::sys::process::is_root_of_machine;

/// The size limit of a `lower` file, in bytes: 500 layers of 29 bytes fit.
const LOWER: u64 = 64 << 10;

#[derive(Debug)]
pub(super) struct Overlay2 {
    name: &'static str,
    dialect: Dialect,
    /// Whether layers may be images of composefs, as in podman's stores.
    may_be_composefs: bool,
}

impl Overlay2 {
    /// Returns the driver on the kernel's overlayfs.
    pub(super) fn kernel(owner: u32) -> Self {
        Self {
            name: "overlay2",
            dialect: kernel_dialect(owner),
            may_be_composefs: false,
        }
    }

    /// Returns the driver on fuse-overlayfs, which writes every kind of marker.
    pub(super) fn fuse_overlayfs() -> Self {
        Self {
            name: "fuse-overlayfs",
            dialect: Dialect::ALL,
            may_be_composefs: false,
        }
    }

    /// Returns podman's driver of the name overlay, with the same layout.
    pub(super) fn podman(dialect: Dialect) -> Self {
        Self {
            name: "overlay",
            dialect,
            may_be_composefs: true,
        }
    }

    fn path(&self, id: &CacheId, file: &str) -> PathBuf {
        PathBuf::from(self.name).join(id.as_str()).join(file)
    }

    /// Returns the layer's short name, after checking that it leads back to the layer. `files` is the
    /// layer's directory.
    fn link(&self, root: &ConfinedDir, id: &CacheId, files: &ConfinedDir) -> Result<String> {
        let path = files.full("link");
        let bytes = files
            .read("link", SMALL)?
            .ok_or_else(|| Error::LayerDirMissing { path: path.clone() })?;
        let link = bytes.trim_ascii();
        let plain = |b: &u8| b.is_ascii_uppercase() || b.is_ascii_digit();
        let link = match std::str::from_utf8(link) {
            Ok(text) if text.len() == 26 && link.iter().all(plain) => text,
            _ => {
                return Err(Error::Malformed {
                    path,
                    found: excerpt(&bytes),
                    expected: "a short name of 26 capital letters and digits",
                });
            }
        };
        let dir = format!("{}/l", self.name);
        let expected = format!("../{id}/diff");
        let target = root.link(&dir, link)?;
        if target.as_ref().is_none_or(|t| t != expected.as_str()) {
            return Err(Error::BadLink {
                path: root.full(dir).join(link),
                found: target.map_or("nothing".to_owned(), |t| excerpt(t.as_bytes())),
                expected,
            });
        }
        Ok(link.to_owned())
    }
}

impl Driver for Overlay2 {
    fn name(&self) -> &'static str {
        self.name
    }

    fn dialect(&self) -> Dialect {
        self.dialect
    }

    fn layer(
        &self,
        root: &ConfinedDir,
        id: &CacheId,
        parent: Option<&LayerDir>,
    ) -> Result<LayerDir> {
        let Some(files) = root.below(Path::new(self.name).join(id.as_str()))? else {
            let path = root.full(self.path(id, "diff"));
            return Err(Error::LayerDirMissing { path });
        };
        let dir = files.layer_dir("diff")?;
        if self.may_be_composefs && files.exists("composefs-data")? {
            let path = files.full("composefs-data");
            return Err(Error::Composefs { path });
        }
        let link = self.link(root, id, &files)?;
        let lower = files.read("lower", LOWER)?;
        let expected = parent.map(|parent| parent.chain.as_str());
        if lower.as_deref().map(<[u8]>::trim_ascii) != expected.map(str::as_bytes) {
            let text = |l: Option<&[u8]>| l.map_or("nothing".to_owned(), excerpt);
            return Err(Error::ChainMismatch {
                path: files.full("lower"),
                found: text(lower.as_deref()),
                expected: text(expected.map(str::as_bytes)),
            });
        }
        let chain = match expected {
            Some(below) => format!("l/{link}:{below}"),
            None => format!("l/{link}"),
        };
        let dialect = self.dialect;
        Ok(LayerDir {
            place: LayerPlace::Dir(LayerSpec { dir, dialect }),
            chain,
            below: Below::Layers,
        })
    }

    fn own_dir(&self) -> Option<&'static str> {
        Some("diff")
    }

    fn work(&self, root: &ConfinedDir, id: &CacheId) -> Result<Option<OpenDir>> {
        root.layer_dir(self.path(id, "work")).map(Some)
    }
}

/// Returns the dialect of kernel overlayfs in a store of `owner`, as far as this process can read
/// it.
pub(super) fn kernel_dialect(owner: u32) -> Dialect {
    // A rootless dockerd mounts with `userxattr` and writes user.overlay.*; only a
    // privileged process can read trusted.overlay.* at all.
    if owner == 0 && is_root_of_machine() {
        Dialect::KERNEL
    } else {
        Dialect::KERNEL_USERXATTR
    }
}
