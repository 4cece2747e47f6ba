//! The changes of an upper, trees as tars, and paths in trees (`unionfs diff`, `commit`, `export`,
//! `ls`, `cat`, `cp`).
//!
//! Two read-only unions answer everything, without a mount: `before` has the lowers alone, `after`
//! has the upper on top. `walk` visits the names that the upper has and asks both, so the cost
//! depends on what was changed, not on the size of the image.
//!
//! ```text
//!  upper's names ──walk──► (before, after) ──list──► A, C, D per path
//!                                          └─tar───► layer tar (commit), flat tar (export)
//! ```
//!
//! The upper may be mounted meanwhile: it is only read, and no lock is taken.
//!
//! ```
//! use unionfs::changes::Tree;
//! use unionfs::layer::{Dialect, LayerSpec, OpenDir, StackSpec, UpperSpec};
//!
//! let dir = tempfile::tempdir()?;
//! let path = |name: &str| dir.path().join(name);
//! for name in ["lower", "upper", "work"] {
//!     std::fs::create_dir(path(name))?;
//! }
//! std::fs::write(path("lower/hosts"), "old")?;
//! std::fs::write(path("upper/hosts"), "new")?;
//! std::fs::write(path("upper/motd"), "hello")?;
//! let tree = Tree::open(&StackSpec {
//!     lowers: vec![LayerSpec::open(path("lower"), Dialect::ALL)?],
//!     data_only: Vec::new(),
//!     upper: Some(UpperSpec {
//!         layer: LayerSpec::open(path("upper"), Dialect::ALL)?,
//!         work: OpenDir::open(path("work"))?,
//!     }),
//! })?;
//! let changes = tree.changes()?;
//! let shown = changes.iter().map(|change| {
//!     format!("{} {}", change.kind.letter(), String::from_utf8_lossy(&change.path))
//! });
//! assert_eq!(shown.collect::<Vec<_>>(), ["C /hosts", "A /motd"]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod compare;
mod links;
mod list;
mod paths;
mod tar;
mod tree_diff;
mod walk;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::{getegid, geteuid};

pub use self::compare::Xattr;
pub use self::list::{Change, ChangeKind};
pub use self::paths::{LastLink, Node, Visit, Walk};
pub use self::tar::pack_nothing;
pub use self::tree_diff::{Content, Difference, How, compare_trees};

use crate::layer::StackSpec;
use crate::layer::fds::FdCache;
use crate::layer::lower::{Layer, LowerDir};
use crate::layer::origin::{Origin, OriginFile};
use crate::sys::process::{in_initial_user_namespace, is_root_of_machine};
use crate::sys::remedy::io_remedy;
use crate::union::{self, Ino, Union};

/// The result of an operation on changes.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure to list or pack changes; the message is one line that names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A layer cannot be opened.
    #[error("{0}; check that the layer is complete")]
    Open(union::Error),
    /// A file of the tree cannot be read.
    #[error("cannot read {path:?} of the tree: {source}; check the layers' disk and permissions")]
    Read {
        /// The absolute path in the union.
        path: PathBuf,
        /// The error of the union.
        source: union::Error,
    },
    /// A path leads to no file.
    #[error("{path:?}: {}", path_text(*errno))]
    Path {
        /// The absolute path in the union.
        path: PathBuf,
        /// The errno.
        errno: Errno,
    },
    /// A layer cannot be read.
    #[error("cannot read {path:?}: {source}")]
    Layer {
        /// The path of the layer, or of a file in it.
        path: PathBuf,
        /// The errno.
        source: Errno,
    },
    /// The name would be a whiteout in a layer tar.
    #[error(
        "{path:?} cannot be in an image layer, where names that begin with .wh. mean deletions: rename it"
    )]
    WhName {
        /// The absolute path in the union.
        path: PathBuf,
    },
    /// The tar cannot be written.
    #[error("cannot write the tar at {path:?}: {source}{}", io_remedy(source))]
    Write {
        /// The absolute path in the union of the entry being written.
        path: PathBuf,
        /// The error of the writer.
        source: std::io::Error,
    },
}

/// A tree, and the same tree without its upper.
pub struct Tree {
    /// The union of the lowers alone; `None` if there are no lowers.
    before: Option<Union>,
    after: Union,
    /// The root of the upper; `None` if the tree has no upper.
    upper: Option<Arc<LowerDir>>,
    /// Whether every name may have changed, not only those that the upper has.
    everything: bool,
    fds: FdCache,
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tree")
            .field("everything", &self.everything)
            .finish_non_exhaustive()
    }
}

impl Tree {
    /// Opens a stack for reading, mounted or not.
    ///
    /// # Errors
    /// [`Error::Open`] and [`Error::Layer`].
    pub fn open(stack: &StackSpec) -> Result<Self> {
        Self::open_with(stack, &union::Options::default())
    }

    /// As [`Tree::open`], with options, such as a catalog of the lowers.
    ///
    /// # Errors
    /// As [`Tree::open`].
    pub fn open_with(stack: &StackSpec, options: &union::Options) -> Result<Self> {
        let mut options = options.clone();
        if in_initial_user_namespace() && !is_root_of_machine() {
            let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
            options.owners.unrecorded = Some((uid, gid));
        }
        let open =
            |stack: &StackSpec| Union::observe_with(stack, options.clone()).map_err(Error::Open);
        let fds = FdCache::new(FDS);
        let Some(upper) = &stack.upper else {
            return Ok(Self {
                before: None,
                after: open(stack)?,
                upper: None,
                everything: true,
                fds,
            });
        };
        let mut layer = upper.layer.clone();
        layer.dialect.records = layer.dialect.records.or_learnt();
        let root = Layer::open(&layer).and_then(|l| LowerDir::root(Arc::new(l), 0));
        let root = root.map_err(|source| Error::Layer {
            path: upper.layer.path().to_owned(),
            source,
        })?;
        if stack.lowers.is_empty() {
            // An image without layers: the upper is the whole tree.
            let after = open(&StackSpec {
                lowers: vec![upper.layer.clone()],
                data_only: Vec::new(),
                upper: None,
            })?;
            return Ok(Self {
                before: None,
                after,
                upper: Some(root),
                everything: true,
                fds,
            });
        }
        let before = StackSpec {
            upper: None,
            ..stack.clone()
        };
        Ok(Self {
            before: Some(open(&before)?),
            after: open(stack)?,
            upper: Some(root),
            everything: links::reach_below(upper)?,
            fds,
        })
    }
}

impl Tree {
    /// Makes `finder` find origins from now on: for a process that may not open file handles.
    pub fn find_origins_by<F>(&self, finder: &Arc<F>)
    where
        F: Fn(u64, &Origin) -> rustix::io::Result<OriginFile> + Send + Sync + 'static,
    {
        for union in self.before.iter().chain([&self.after]) {
            let finder = Arc::clone(finder);
            union.find_origins_by(Box::new(move |dev, origin| finder(dev, origin)));
        }
    }
}

/// The number of descriptors of upper directories that are kept.
const FDS: usize = 256;

/// Returns the names in a directory of a union, unsorted.
fn names(union: &Union, ino: Ino) -> union::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    union.readdir(ino, 0, &mut |item| {
        if item.name != b"." && item.name != b".." {
            names.push(item.name.to_vec());
        }
        true
    })?;
    Ok(names)
}

/// Says why a path leads to no file.
fn path_text(errno: Errno) -> String {
    match errno {
        Errno::NOENT => "there is no such file in the tree".into(),
        Errno::NOTDIR => "a name on the way is not a directory".into(),
        Errno::LOOP => "more than 40 symbolic links are on the way".into(),
        other => other.to_string(),
    }
}

/// Returns the absolute form of a path in the union.
fn absolute(path: &[u8]) -> PathBuf {
    OsString::from_vec([b"/", path].concat()).into()
}

fn read_error(path: &[u8]) -> impl Fn(union::Error) -> Error {
    let path = absolute(path);
    move |source| Error::Read {
        path: path.clone(),
        source,
    }
}
