//! One small layer above lowers that know their names without reading a layer, such as the layer that
//! Docker makes for each container above a catalog of its image. All names of the small layer are read
//! at once and kept. The directories that only the others have are those of the others, so an answer
//! there costs what it costs without the small layer.
//!
//! ```text
//! top     etc/hosts                 read and kept
//! others  etc/passwd  usr/bin/env   a catalog; usr is its own directory
//! ```
//!
//! The top layer leads nowhere: it has no redirects and no metacopies. Layers that have some are
//! refused ([`Unfit`]), and so are large ones.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use rustix::io::Errno;

use super::{FileId, Gather, Layers, LowerDirs, LowerFile, LowerLookup, Lowers, MergedDir, Plain};
use crate::layer::at::Stat;
use crate::layer::held_name::HeldName;
use crate::layer::lower::{LowerDir, Single};

/// The maximum number of names in the top layer. The layers of Docker's containers have about 10.
const MOST: usize = 1024;
/// The maximum number of levels of directories in the top layer, with its root.
const DEEPEST: usize = 32;

/// The reason why a layer cannot be put above others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It has too many names, or directories that are too deep.
    #[error("it has more than {names} names, or more than {levels} levels of directories", names = MOST, levels = DEEPEST)]
    Large,
    /// It has a redirect or a metacopy.
    #[error("it has a redirect or a metacopy")]
    LeadsElsewhere,
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] Errno),
}

/// The lowers of a mount: the topmost layer, and what is below.
#[derive(Debug)]
pub struct Above {
    shared: Arc<Shared>,
    root: Arc<DirAbove>,
}

#[derive(Debug)]
struct Shared {
    /// All layers.
    layers: Arc<Layers>,
    below: Arc<dyn Lowers>,
}

/// A directory of the top layer, merged with the one that the lowers below have under its name.
struct DirAbove {
    shared: Arc<Shared>,
    top: Arc<LowerDir>,
    names: BTreeMap<Box<[u8]>, Name>,
    below: LowerDirs,
    /// The directories of all layers, found on first use.
    all: OnceLock<Vec<Arc<LowerDir>>>,
}

/// The meaning of a name in a directory of the top layer.
enum Name {
    Whiteout,
    /// A file. It is looked up in the layer each time, so that its attributes are those of the moment.
    File,
    Dir(Arc<DirAbove>),
}

impl std::fmt::Debug for DirAbove {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DirAbove")
            .field("top", &self.top)
            .field("names", &self.names.len())
            .finish_non_exhaustive()
    }
}

impl Above {
    /// Reads the topmost layer. `below` has the names of the others, merged.
    ///
    /// # Errors
    /// [`Unfit`] with the reason.
    pub fn open(layers: &Arc<Layers>, below: Arc<dyn Lowers>) -> Result<Self, Unfit> {
        let top = layers.roots().first().ok_or(Errno::IO)?;
        let shared = Arc::new(Shared {
            layers: Arc::clone(layers),
            below,
        });
        let root = shared.below.root();
        let mut left = MOST;
        let root = DirAbove::read(&shared, Arc::clone(top), root, &mut left, DEEPEST)?;
        Ok(Self { shared, root })
    }
}

impl DirAbove {
    fn read(
        shared: &Arc<Shared>,
        top: Arc<LowerDir>,
        below: LowerDirs,
        left: &mut usize,
        levels: usize,
    ) -> Result<Arc<Self>, Unfit> {
        let levels = levels.checked_sub(1).ok_or(Unfit::Large)?;
        let mut names = BTreeMap::new();
        for name in shared.layers.names_of(&top, left)?.ok_or(Unfit::Large)? {
            let known = match shared.layers.single(&top, &name)? {
                Single::Absent => continue,
                Single::Whiteout => Name::Whiteout,
                Single::File { markers, .. } if markers.leads_elsewhere() => {
                    return Err(Unfit::LeadsElsewhere);
                }
                Single::File { .. } => Name::File,
                Single::Dir {
                    redirect: Some(_), ..
                } => return Err(Unfit::LeadsElsewhere),
                Single::Dir { dir, opaque, .. } => {
                    let below = if opaque {
                        LowerLookup::Absent
                    } else {
                        below.lookup(&name, None, 0)?
                    };
                    let below = match below {
                        LowerLookup::Dirs(below) => below,
                        LowerLookup::Absent | LowerLookup::File(_) => LowerDirs::default(),
                    };
                    Name::Dir(Self::read(shared, dir, below, left, levels)?)
                }
            };
            names.insert(name, known);
        }
        Ok(Arc::new(Self {
            shared: Arc::clone(shared),
            top,
            names,
            below,
            all: OnceLock::new(),
        }))
    }
}

impl MergedDir for DirAbove {
    fn parts(&self) -> usize {
        1 + self.below.len()
    }

    fn top(&self) -> &Arc<LowerDir> {
        &self.top
    }

    fn all(&self) -> Result<&[Arc<LowerDir>], Errno> {
        if let Some(all) = self.all.get() {
            return Ok(all);
        }
        let mut all = vec![Arc::clone(&self.top)];
        all.extend_from_slice(self.below.all()?);
        Ok(self.all.get_or_init(|| all))
    }

    fn lookup(
        &self,
        name: &[u8],
        redirect: Option<&[u8]>,
        skip: usize,
    ) -> Result<LowerLookup, Errno> {
        let Shared { layers, below } = &*self.shared;
        // An absolute redirect is resolved in the layers' own directories, not in the merged ones. What
        // the lowers below have said may be wrong if they do not know their names any more.
        if !below.is_indexed() || redirect.is_some_and(|to| to.starts_with(b"/")) {
            let dirs = self.all()?.get(skip..).unwrap_or_default();
            return layers.lookup(dirs, name, redirect);
        }
        let target = redirect.unwrap_or(name);
        match self.names.get(target) {
            Some(Name::Whiteout) => Ok(LowerLookup::Absent),
            Some(Name::File) => layers.lookup(std::slice::from_ref(&self.top), target, None),
            Some(Name::Dir(dir)) => Ok(LowerLookup::Dirs(Arc::clone(dir).into())),
            None => self.below.lookup(name, redirect, skip.saturating_sub(1)),
        }
    }

    fn list(&self, gather: &mut Gather<'_>) -> Result<(), Errno> {
        let layers = &self.shared.layers;
        if !self.shared.below.is_indexed() {
            return layers.list(self.all()?, gather);
        }
        layers.list(std::slice::from_ref(&self.top), gather)?;
        self.below.list(gather)
    }
}

/// What is known by number is what the lowers below know.
impl Lowers for Above {
    fn layers(&self) -> &Arc<Layers> {
        &self.shared.layers
    }

    fn root(&self) -> LowerDirs {
        Arc::clone(&self.root).into()
    }

    fn is_indexed(&self) -> bool {
        self.shared.below.is_indexed()
    }

    fn take_file_of_names(&self) -> Option<HeldName> {
        self.shared.below.take_file_of_names()
    }

    fn when_wrong(&self, call: Box<dyn Fn() + Send + Sync>) {
        self.shared.below.when_wrong(call);
    }

    fn plain(&self, file: FileId) -> Plain {
        self.shared.below.plain(file)
    }

    fn file(&self, file: FileId) -> Result<LowerFile, Errno> {
        self.shared.below.file(file)
    }

    fn stat(&self, file: FileId) -> Result<Stat, Errno> {
        self.shared.below.stat(file)
    }

    fn target(&self, file: FileId) -> Option<Vec<u8>> {
        self.shared.below.target(file)
    }

    fn has_no_xattrs(&self, file: FileId) -> bool {
        self.shared.below.has_no_xattrs(file)
    }

    fn absent_xattr(
        &self,
        file: FileId,
        name: &[u8],
        ask: &mut dyn FnMut(&CStr) -> Result<(), Errno>,
    ) -> Option<Errno> {
        self.shared.below.absent_xattr(file, name, ask)
    }

    fn open(&self, file: &LowerFile) -> Result<OwnedFd, Errno> {
        self.shared.below.open(file)
    }

    fn check(&self, file: &LowerFile) -> Result<(), Errno> {
        self.shared.below.check(file)
    }
}
