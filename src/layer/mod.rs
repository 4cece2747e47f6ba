//! A layer directory: access to its files, and the meaning of markers.

pub mod at;
pub mod dir;
pub mod fds;
pub mod file_system;
pub mod held_name;
pub mod lower;
pub mod markers;
pub mod origin;
pub mod private;
pub mod recorded;
pub mod trust;
pub mod types;

use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::io::Errno;

use at::At;
use recorded::Form;

pub use dir::{OpenDir, OpenError};
pub use recorded::Records;

use crate::sys::process::is_root_of_machine;

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

    /// Whether owners are recorded beside the files of the layer.
    ///
    /// # Errors
    /// Those of getxattr(2).
    pub fn has_records(&self) -> Result<bool, Errno> {
        Ok(Form::of_layer(At::fd(self.dir.as_fd()))?.is_some())
    }

    /// Begins the records of an empty upper with those of `lower`'s root directory, if that has any.
    ///
    /// # Errors
    /// Those of getxattr(2) and setxattr(2).
    pub fn begin_records_of(&self, lower: &Self) -> Result<(), Errno> {
        let upper = At::fd(self.dir.as_fd());
        upper.begin_records_of(At::fd(lower.dir.as_fd()))
    }

    /// Returns the path for messages and records.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Records {
    /// Records are read if the layer has any, except where root of the machine reads: every user
    /// can set them.
    #[must_use]
    pub fn or_learnt(self) -> Self {
        match self {
            Self::Ignored if !is_root_of_machine() => Self::Learnt,
            other => other,
        }
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
    /// Returns the same stack; where layers have recorded owners, these are shown
    /// ([`Records::or_learnt`]).
    #[must_use]
    pub fn with_recorded_owners(mut self) -> Self {
        let lowers = self.lowers.iter_mut().chain(&mut self.data_only);
        let upper = self.upper.iter_mut().map(|upper| &mut upper.layer);
        for layer in lowers.chain(upper) {
            layer.dialect.records = layer.dialect.records.or_learnt();
        }
        self
    }

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
