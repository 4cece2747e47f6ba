//! A layer directory: access to its files, and the meaning of markers.

pub mod at;
pub mod dir;
pub mod fds;
pub mod file_system;
pub mod lower;
pub mod markers;
pub mod origin;
pub mod private;
pub mod recorded;
pub mod trust;
pub mod types;

use std::path::Path;

pub use dir::{OpenDir, OpenError};
pub use recorded::Records;

/// The markers on disk that a layer may have. Everything else is data.
///
/// Sources: Linux `Documentation/filesystems/overlayfs.rst` (char 0:0, `overlay.whiteout`,
/// `overlay.opaque`), fuse-overlayfs (`user.fuseoverlayfs.opaque`), AUFS and the OCI image
/// specification (`.wh.NAME`, `.wh..wh..opq`). Char 0:0 is a whiteout in every dialect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// `trusted.overlay.*` xattrs are markers (privileged kernel overlayfs, dockerd's overlay2).
    pub trusted: bool,
    /// `user.overlay.*` xattrs are markers (kernel overlayfs with `userxattr`).
    pub user: bool,
    /// `user.fuseoverlayfs.*` xattrs are markers.
    pub fuse_overlayfs: bool,
    /// `.wh.NAME` hides NAME, `.wh..wh..opq` makes its directory opaque.
    pub wh_names: bool,
    /// Owners, modes and devices that are recorded beside the files.
    pub records: Records,
}

impl Dialect {
    /// All markers of all known writers: for plain directories and fuse-overlayfs stores.
    pub const ALL: Self = Self {
        trusted: true,
        user: true,
        fuse_overlayfs: true,
        wh_names: true,
        records: Records::Ignored,
    };
    /// The markers of privileged kernel overlayfs: Docker's overlay2 store.
    pub const KERNEL: Self = Self {
        trusted: true,
        user: false,
        fuse_overlayfs: false,
        wh_names: false,
        records: Records::Ignored,
    };
    /// The markers of kernel overlayfs with `userxattr`: rootless Docker's overlay2 store.
    pub const KERNEL_USERXATTR: Self = Self {
        trusted: false,
        user: true,
        fuse_overlayfs: false,
        wh_names: false,
        records: Records::Ignored,
    };
}

/// A layer as the store or the command line specifies it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSpec {
    /// The root directory of the layer.
    pub dir: OpenDir,
    /// The markers that are read.
    pub dialect: Dialect,
}

impl LayerSpec {
    /// Opens the directory in `path`; renaming it afterwards has no effect.
    ///
    /// # Errors
    /// [`OpenError`] if it does not exist or cannot be opened.
    pub fn open(path: impl AsRef<Path>, dialect: Dialect) -> Result<Self, OpenError> {
        let dir = OpenDir::open(path)?;
        Ok(Self { dir, dialect })
    }

    /// Returns the path for messages and records.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// A layer stack: what the store passes to the union.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackSpec {
    /// The lower layers, top first; at least one.
    pub lowers: Vec<LayerSpec>,
    /// The data-only lowers (`lowerdir=a::data`), searched through absolute redirects only.
    pub data_only: Vec<LayerSpec>,
    /// The writable layer and its work directory; `None` for a read-only union.
    pub upper: Option<UpperSpec>,
}

impl StackSpec {
    /// Returns all directories: of the lowers, of the upper, and the work directory.
    pub fn dirs(&self) -> impl Iterator<Item = &OpenDir> {
        let lowers = self.lowers.iter().chain(&self.data_only);
        let upper = self.upper.iter().flat_map(|u| [&u.layer.dir, &u.work]);
        lowers.map(|lower| &lower.dir).chain(upper)
    }
}

/// The writable side of a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpperSpec {
    /// The upper directory.
    pub layer: LayerSpec,
    /// The work directory, on the file system of the upper. It is used for staging and the index.
    pub work: OpenDir,
}
