//! The merged lower layers: lookup of names, attributes of files, and opening of files.
//!
//! This is the interface between the union and the implementations of the lowers. [`Layers`] reads
//! the layers' directories. [`crate::catalog::Mounted`] takes answers from a file, and asks
//! [`Layers`] for data that the file does not contain. The union itself never reads a directory of
//! a layer. Another implementation needs no change in [`crate::union`]: it implements [`Lowers`]
//! and [`MergedDir`], and the union gets a [`Source`] that opens it.
//!
//! ```text
//! union ──► Lowers, MergedDir ◄── Layers           directories
//!                             ◄── catalog::Mounted one file
//!                             ◄── Above            one small layer, above other lowers
//! ```
//!
//! Lowers never change while they are in use, so every answer stays true. An implementation that
//! detects a wrong answer reports it through [`Lowers::when_wrong`].

mod above;
mod file;
mod file_systems;
mod gather;
mod layers;
mod listed_name;
mod origins;

use std::ffi::CStr;
use std::fmt::Debug;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::StatVfs;
use rustix::io::Errno;

pub use above::{Above, Unfit};
pub use file::{DataPlace, LowerFile};
#[cfg(test)]
pub(crate) use gather::tests::listings as sample_listings;
pub(crate) use gather::{FIRST_OFFSET, Window, offset_of};
pub use gather::{FoundIn, Gather, LayerEntry, LayerListing, Visible, merge};
pub use layers::{Layers, OpenError, Seal};
pub use listed_name::ListedName;
pub(crate) use listed_name::{Names, in_order};
pub use origins::FindOrigin;

use crate::layer::at::Stat;
use crate::layer::held_name::HeldName;
use crate::layer::lower::LowerDir;
use crate::layer::origin::{Origin, OriginFile};

/// The number that an implementation of [`Lowers`] gives a file. [`Layers`] gives none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId(pub u32);

/// The result of the lookup of a name in the lowers.
#[derive(Debug)]
pub enum LowerLookup {
    /// Nothing.
    Absent,
    /// A file that is not a directory.
    File(LowerFile),
    /// A directory, merged from one or more layers.
    Dirs(LowerDirs),
}

/// The facts about a number or name that are known without reading a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plain {
    /// There is no such name.
    Absent,
    /// A file with one name that has its own data: its number and its attributes.
    File(FileId, Stat),
    /// This must be looked up.
    Unknown,
}

/// The lowers of a mount.
///
/// Methods that take a [`FileId`] are called only with numbers that the implementation gave.
pub trait Lowers: Debug + Send + Sync {
    /// Returns the layers' directories. Only the provided methods of this trait call it: an
    /// implementation that replaces each method that reads a layer needs no such directories.
    fn layers(&self) -> &Arc<Layers>;

    /// Returns the root directory, merged from all layers.
    fn root(&self) -> LowerDirs;

    /// Whether names and attributes come from another source than the layers' directories. This may
    /// become false, and does not become true again.
    fn is_indexed(&self) -> bool {
        false
    }

    /// Takes the name of the file that names and attributes come from. The caller removes it when these
    /// turn out to be wrong; else the lowers do that themselves.
    fn take_file_of_names(&self) -> Option<HeldName> {
        None
    }

    /// Registers `call`, which is called when answers turn out to have been wrong, after others that
    /// were registered before. The caller then forgets all that it derived from answers; from then on
    /// answers are right.
    fn when_wrong(&self, call: Box<dyn Fn() + Send + Sync>) {
        drop(call);
    }

    /// Returns what is known about a file without reading a layer.
    fn plain(&self, file: FileId) -> Plain {
        let _ = file;
        Plain::Unknown
    }

    /// Returns a file.
    ///
    /// # Errors
    /// EIO if there is no such file.
    fn file(&self, file: FileId) -> Result<LowerFile, Errno> {
        let _ = file;
        Err(Errno::IO)
    }

    /// Returns the attributes of a file.
    ///
    /// # Errors
    /// EIO if there is no such file.
    fn stat(&self, file: FileId) -> Result<Stat, Errno> {
        let _ = file;
        Err(Errno::IO)
    }

    /// Returns the target of a symlink, where it is known without reading a layer.
    fn target(&self, file: FileId) -> Option<Vec<u8>> {
        let _ = file;
        None
    }

    /// Whether a file or directory is known to have no xattrs.
    fn has_no_xattrs(&self, file: FileId) -> bool {
        let _ = file;
        false
    }

    /// Returns the error for an xattr of a file or directory that is known to be absent; `None`
    /// when the file may have it. `ask` asks the layer for the xattr by its name there.
    fn absent_xattr(
        &self,
        file: FileId,
        name: &[u8],
        ask: &mut dyn FnMut(&CStr) -> Result<(), Errno>,
    ) -> Option<Errno> {
        let _ = (file, name, ask);
        None
    }

    /// Opens a directory of a layer for its metadata (`O_PATH`).
    ///
    /// # Errors
    /// ESTALE when another directory has its name by now; else those of openat2(2).
    fn hold_dir(&self, dir: &LowerDir) -> Result<Arc<OwnedFd>, Errno> {
        self.layers().fd(dir)
    }

    /// Returns the encoded handle of a file, which marks its copy in the upper as a copy; `None` if
    /// the file system has no handles.
    ///
    /// # Errors
    /// Those of name_to_handle_at(2).
    fn origin(&self, file: &LowerFile) -> Result<Option<Origin>, Errno> {
        self.layers().origin_of(file)
    }

    /// Returns the encoded handle of a directory that [`Lowers::hold_dir`] opened as `held`; `None`
    /// if the file system has no handles.
    fn dir_origin(&self, dir: &LowerDir, held: BorrowedFd<'_>) -> Option<Origin> {
        origins::of_dir(dir, held)
    }

    /// Returns the file that an origin leads to. `finder` opens origins for a process that may not
    /// do it itself.
    ///
    /// # Errors
    /// EPERM where the process lacks the privilege to open origins, and there is no `finder`.
    fn find_origin(
        &self,
        origin: &Origin,
        finder: Option<&FindOrigin>,
    ) -> Result<Option<OriginFile>, Errno> {
        Layers::find_origin(self.layers(), origin, finder)
    }

    /// Returns the topmost file of the name in a directory, if `origin` is its origin.
    fn same_name_origin(
        &self,
        dir: &LowerDirs,
        name: &[u8],
        origin: &Origin,
    ) -> Option<OriginFile> {
        Layers::same_name_origin(self.layers(), dir, name, origin)
    }

    /// Checks that a metacopy of the upper, which claims an origin, has the data of that file. The
    /// owner of the upper could otherwise redirect it to a file that they may not read.
    ///
    /// # Errors
    /// EIO when `file` is another one, and where nothing can tell it.
    fn check_claim(&self, claimed: &[u8], file: &LowerFile) -> Result<(), Errno> {
        Layers::check_claim(self.layers(), claimed, &file.dir, &file.name)
    }

    /// Returns statistics of the file system of the topmost layer.
    ///
    /// # Errors
    /// Those of fstatvfs(3).
    fn statfs(&self) -> Result<StatVfs, Errno> {
        Layers::statfs(self.layers())
    }

    /// Returns the device numbers of all layers, top first.
    fn devices(&self) -> Vec<u64> {
        Layers::devices(self.layers())
    }

    /// Returns the longest name that any layer allows, in bytes.
    fn name_max(&self) -> usize {
        Layers::name_max(self.layers())
    }

    /// Whether some layer can carry POSIX ACLs.
    fn has_acl(&self) -> bool {
        Layers::has_acl(self.layers())
    }

    /// Whether the data of some file is on a file system that stacks others itself.
    fn is_stacked(&self) -> bool {
        Layers::is_stacked(self.layers())
    }

    /// Returns the directories that the lowers read, for a sandbox that allows only these.
    fn places(&self) -> Vec<BorrowedFd<'_>> {
        Layers::places(self.layers())
    }

    /// Returns the file systems on which [`Lowers::find_origin`] searches: the device number, and a
    /// directory there.
    fn file_systems(&self) -> Vec<(u64, BorrowedFd<'_>)> {
        Layers::file_systems(self.layers())
    }

    /// Opens a file for its metadata, without access to its data (`O_PATH`).
    ///
    /// # Errors
    /// ESTALE when another file has its name by now; else those of openat2(2).
    fn hold(&self, file: &LowerFile) -> Result<OwnedFd, Errno> {
        self.layers().hold_file(file)
    }

    /// Opens the data of a file for reading.
    ///
    /// # Errors
    /// ESTALE when another file has its name by now, or the file was changed; else those of
    /// open(2).
    fn open(&self, file: &LowerFile) -> Result<OwnedFd, Errno> {
        self.layers().open_data(file)
    }

    /// Checks that a file has not changed since it was described; called before it is copied up.
    ///
    /// # Errors
    /// ESTALE when it has.
    fn check(&self, file: &LowerFile) -> Result<(), Errno> {
        let _ = file;
        Ok(())
    }
}

/// A directory that is merged from lower layers, top first.
pub trait MergedDir: Debug + Send + Sync {
    /// Returns the number of layers that have the directory, at least 1.
    fn parts(&self) -> usize;

    /// Returns the topmost directory, whose attributes the union shows.
    fn top(&self) -> &Arc<LowerDir>;

    /// Returns the directories of all layers that have it.
    ///
    /// # Errors
    /// EIO when the lowers are damaged.
    fn all(&self) -> Result<&[Arc<LowerDir>], Errno>;

    /// Returns the number of the directory.
    fn id(&self) -> Option<FileId> {
        None
    }

    /// Looks up `name`, or what `redirect` replaces it by. The first `skip` parts are known not to
    /// have the name.
    ///
    /// # Errors
    /// EIO for a metacopy without data or with a forged redirect; else those of the layers' file
    /// systems.
    fn lookup(
        &self,
        name: &[u8],
        redirect: Option<&[u8]>,
        skip: usize,
    ) -> Result<LowerLookup, Errno>;

    /// Returns what is known about a name without reading a layer.
    fn plain(&self, name: &[u8]) -> Plain {
        let _ = name;
        Plain::Unknown
    }

    /// Collects the names.
    ///
    /// # Errors
    /// Those of the layers' file systems.
    fn list(&self, gather: &mut Gather<'_>) -> Result<(), Errno>;

    /// Checks that the directory has not changed since it was described; called before it is copied
    /// up.
    ///
    /// # Errors
    /// ESTALE when it has.
    fn check(&self) -> Result<(), Errno> {
        Ok(())
    }
}

/// Opens the [`Lowers`] of a mount once its layers are open.
pub trait Source: Debug + Send + Sync {
    /// Returns the lowers; `None` to use the layers' directories, which is logged.
    fn open(&self, layers: &Arc<Layers>) -> Option<Arc<dyn Lowers>>;
}

/// The lower side of a directory: none, or one merged directory.
#[derive(Clone, Debug, Default)]
pub struct LowerDirs(Option<Arc<dyn MergedDir>>);

impl<D: MergedDir + 'static> From<Arc<D>> for LowerDirs {
    fn from(dir: Arc<D>) -> Self {
        Self(Some(dir))
    }
}

impl LowerDirs {
    /// Returns the merged directory, if the lowers have one.
    pub fn merged(&self) -> Option<&dyn MergedDir> {
        self.0.as_deref()
    }

    /// Returns the number of layers that have the directory.
    pub fn len(&self) -> usize {
        self.merged().map_or(0, MergedDir::parts)
    }

    /// Whether no layer has the directory.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// As [`MergedDir::top`].
    pub fn top(&self) -> Option<&Arc<LowerDir>> {
        self.merged().map(MergedDir::top)
    }

    /// As [`MergedDir::all`].
    ///
    /// # Errors
    /// As [`MergedDir::all`].
    pub fn all(&self) -> Result<&[Arc<LowerDir>], Errno> {
        self.merged().map_or(Ok(&[]), MergedDir::all)
    }

    /// As [`MergedDir::id`].
    pub fn id(&self) -> Option<FileId> {
        self.merged()?.id()
    }

    /// As [`MergedDir::lookup`].
    ///
    /// # Errors
    /// As [`MergedDir::lookup`].
    pub fn lookup(
        &self,
        name: &[u8],
        redirect: Option<&[u8]>,
        skip: usize,
    ) -> Result<LowerLookup, Errno> {
        match self.merged() {
            Some(dir) => dir.lookup(name, redirect, skip),
            None => Ok(LowerLookup::Absent),
        }
    }

    /// As [`MergedDir::list`].
    ///
    /// # Errors
    /// As [`MergedDir::list`].
    pub fn list(&self, gather: &mut Gather<'_>) -> Result<(), Errno> {
        self.merged().map_or(Ok(()), |dir| dir.list(gather))
    }
}
