//! Implements the lowers by their directories. Directories are merged, and redirects and metacopies
//! are followed from layer to layer, as in fs/overlayfs/namei.c.
//!
//! ```text
//! top     usr/bin/   redirect=/opt/bin
//! middle  opt/bin/   opaque=y
//! bottom  opt/bin/
//! ```
//!
//! Here `usr/bin` merges the directories of top and middle; the bottom one is hidden.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;
use smallvec::SmallVec;

use super::gather::{FoundIn, Gather, LayerEntry};
use super::listed_name::Names;
use super::{DataPlace, LowerDirs, LowerFile, LowerLookup, Lowers, MergedDir};
use crate::layer::at::{At, Stat, is_valid_name};
use crate::layer::fds::FdCache;
use crate::layer::file_system::FileSystems;
use crate::layer::lower::{Layer, LowerDir, Single};
use crate::layer::markers::{Markers, Tie, WH_PREFIX};
use crate::layer::origin::Origin;
use crate::layer::types::FileKind;
use crate::layer::{LayerSpec, StackSpec, private};

type Result<T> = std::result::Result<T, Errno>;

/// A lower layer could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("{what} {path}: {errno}", path = path.display())]
pub struct OpenError {
    /// The operation that failed.
    pub what: &'static str,
    /// The path of the layer.
    pub path: PathBuf,
    /// The errno.
    pub errno: Errno,
}

/// The opened directories of a stack's lower layers.
pub struct Layers {
    roots: Vec<Arc<LowerDir>>,
    data_roots: Vec<Arc<LowerDir>>,
    fds: Arc<FdCache>,
}

impl std::fmt::Debug for Layers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let paths = self.all().map(|root| &root.layer.path);
        f.debug_list().entries(paths).finish()
    }
}

/// A file of a layer: its directory and its name.
type LayerPath = (Arc<LowerDir>, Arc<[u8]>);

/// The target to look up in the next layer.
#[derive(Clone)]
enum Target<'a> {
    /// A name in the parent's directory.
    Name(Cow<'a, [u8]>),
    /// A path from the layer's root, by components.
    Path(Vec<Vec<u8>>),
}

impl Target<'_> {
    fn redirect(&mut self, to: &[u8]) {
        match (to.strip_prefix(b"/"), &mut *self) {
            (Some(path), _) => {
                *self = Target::Path(path.split(|&b| b == b'/').map(<[u8]>::to_vec).collect());
            }
            (None, Target::Name(name)) => *name = Cow::Owned(to.to_vec()),
            (None, Target::Path(path)) => {
                path.pop();
                path.push(to.to_vec());
            }
        }
    }
}

impl Layers {
    /// Opens the lowers of a stack. `seal` accesses them through private read-only mounts, so that
    /// their files may be passed to the kernel. `fds` keeps the descriptors of directories.
    ///
    /// # Errors
    /// The error names the layer: ENOENT or ENOTDIR if it does not exist, EPERM if it cannot be
    /// sealed.
    pub fn open(
        stack: &StackSpec,
        seal: Seal,
        fds: Arc<FdCache>,
    ) -> std::result::Result<Arc<Self>, OpenError> {
        let mut systems = FileSystems::new();
        let roots = open_layers(&stack.lowers, 0, seal, &mut systems)?;
        let data_roots = open_layers(&stack.data_only, roots.len(), seal, &mut systems)?;
        Ok(Arc::new(Self {
            roots,
            data_roots,
            fds,
        }))
    }

    /// Returns all layers: the lowers from the top, then data-only layers.
    pub fn all_layers(&self) -> impl Iterator<Item = &Layer> {
        let roots = self.roots.iter().chain(&self.data_roots);
        roots.map(|root| &*root.layer)
    }

    /// Returns the roots of the layers whose names are merged, top first.
    pub fn roots(&self) -> &[Arc<LowerDir>] {
        &self.roots
    }

    /// Returns the roots of the data-only layers.
    pub fn data_roots(&self) -> &[Arc<LowerDir>] {
        &self.data_roots
    }

    /// Returns the roots of all layers, data-only layers last.
    pub fn all(&self) -> impl Iterator<Item = &Arc<LowerDir>> {
        self.roots.iter().chain(&self.data_roots)
    }

    /// Returns the layer at a position in the stack; data-only layers come last.
    pub fn get(&self, position: usize) -> Option<&Arc<LowerDir>> {
        let data = || self.data_roots.get(position - self.roots.len());
        self.roots.get(position).or_else(data)
    }

    /// Returns a descriptor (`O_PATH`) of a directory of a layer.
    ///
    /// # Errors
    /// ESTALE when another directory has its name by now; else those of openat2(2).
    pub fn fd(&self, dir: &LowerDir) -> Result<Arc<OwnedFd>> {
        dir.fd(&self.fds)
    }

    /// As [`Lowers::origin`].
    pub(crate) fn origin_of(&self, file: &LowerFile) -> Result<Option<Origin>> {
        let fd = self.fd(&file.dir)?;
        match Origin::of(At::new(fd.as_fd(), &file.name), file.dir.layer.uuid) {
            Ok(origin) => Ok(Some(origin)),
            Err(Errno::OPNOTSUPP | Errno::OVERFLOW | Errno::NOSYS | Errno::PERM) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// As [`Lowers::hold`].
    pub(crate) fn hold_file(&self, file: &LowerFile) -> Result<OwnedFd> {
        let dir = self.fd(&file.dir)?;
        let held = At::new(dir.as_fd(), &file.name).open(OFlags::PATH, 0)?;
        if file.stat.is_or_resembles(&file.dir.at(&held).stat()?) {
            Ok(held)
        } else {
            Err(Errno::STALE)
        }
    }

    /// As [`Lowers::open`].
    pub(crate) fn open_data(&self, file: &LowerFile) -> Result<OwnedFd> {
        let (data_dir, name) = file.data_place();
        let dir = self.fd(data_dir)?;
        let held = At::new(dir.as_fd(), name).open(OFlags::PATH, 0)?;
        // The layer's owner may have put another file there.
        if !file.has_data_of(&data_dir.at(&held).stat()?) {
            return Err(Errno::STALE);
        }
        At::fd(held.as_fd()).open_quietly()
    }

    /// Returns these directories of layers as one.
    pub fn merged(self: &Arc<Self>, dirs: impl IntoIterator<Item = Arc<LowerDir>>) -> LowerDirs {
        let dirs: SmallVec<_> = dirs.into_iter().collect();
        if dirs.is_empty() {
            return LowerDirs::default();
        }
        let layers = Arc::clone(self);
        Arc::new(MergedLayers { layers, dirs }).into()
    }

    /// Looks up `name`, or what `redirect` replaces it by, in these directories.
    ///
    /// # Errors
    /// As [`MergedDir::lookup`].
    pub fn lookup(
        self: &Arc<Self>,
        lowers: &[Arc<LowerDir>],
        name: &[u8],
        redirect: Option<&[u8]>,
    ) -> Result<LowerLookup> {
        let mut target = Target::Name(Cow::Borrowed(name));
        if let Some(to) = redirect {
            target.redirect(to);
        }
        let mut stack = lowers;
        let mut next = 0;
        // The number of layers that have been searched.
        let mut floor = 0;
        let mut dirs: Vec<Arc<LowerDir>> = Vec::new();
        let mut meta: Option<LowerFile> = None;
        // The origin that the next file must have.
        let mut claimed: Option<Vec<u8>> = None;
        loop {
            if matches!(target, Target::Path(_)) && !std::ptr::eq(stack, &*self.roots) {
                stack = &self.roots;
                next = 0;
            }
            let Some(dir) = stack.get(next) else { break };
            next += 1;
            if dir.index < floor {
                continue;
            }
            let (place, single) = self.look(dir, &mut target)?;
            let redirect = match single {
                Single::Absent => continue,
                Single::Whiteout => break,
                Single::File { .. } if !dirs.is_empty() => break,
                Single::File { stat, .. } if meta.is_some() && stat.kind != FileKind::Regular => {
                    break;
                }
                Single::Dir { .. } if meta.is_some() => break,
                Single::Dir {
                    dir,
                    opaque,
                    redirect,
                } => {
                    dirs.push(dir);
                    if opaque {
                        break;
                    }
                    redirect
                }
                Single::File { stat, markers } => {
                    let (at, at_name) = place;
                    if let Some(claimed) = claimed.take() {
                        Self::check_claim(self, &claimed, &at, &at_name)?;
                    }
                    let data = self.only_data(&stat, &markers);
                    if data.is_none() && (!markers.metacopy || stat.kind != FileKind::Regular) {
                        let is_bare = markers.is_bare;
                        return Ok(LowerLookup::File(finish(meta, at, at_name, stat, is_bare)));
                    }
                    if data.is_none() && dir.layer.is_foreign {
                        match markers.tie() {
                            Tie::Origin(origin) => claimed = Some(origin.to_vec()),
                            Tie::Path => {}
                            Tie::None => return Err(Errno::IO),
                        }
                    }
                    meta.get_or_insert(LowerFile {
                        dir: at,
                        name: at_name,
                        stat,
                        data: None,
                        id: None,
                        is_bare: false,
                    });
                    if let Some(path) = data {
                        target.redirect(path);
                        break;
                    }
                    markers.redirect
                }
            };
            floor = dir.index + 1;
            if let Some(to) = redirect {
                target.redirect(&to);
            }
        }
        match (meta, dirs.is_empty()) {
            (Some(meta), _) => self.data_only(meta, &target).map(LowerLookup::File),
            (None, true) => Ok(LowerLookup::Absent),
            (None, false) => Ok(LowerLookup::Dirs(self.merged(dirs))),
        }
    }

    /// Looks the target up in one layer. Markers of directories on an absolute path change the
    /// target for the layers below.
    fn look(&self, dir: &Arc<LowerDir>, target: &mut Target<'_>) -> Result<(LayerPath, Single)> {
        let path = match target {
            Target::Name(name) => {
                let single = dir.lookup(&self.fds, name)?;
                return Ok(((Arc::clone(dir), name.as_ref().into()), single));
            }
            Target::Path(path) => path.clone(),
        };
        let mut at = Arc::clone(dir);
        let Some((last, ancestors)) = path.split_last() else {
            return Ok(((at, Arc::default()), Single::Absent));
        };
        let mut opaque_above = false;
        for (depth, component) in ancestors.iter().enumerate() {
            match at.lookup(&self.fds, component)? {
                Single::Absent => return Ok(((at, Arc::default()), Single::Absent)),
                Single::Whiteout | Single::File { .. } => {
                    return Ok(((at, Arc::default()), Single::Whiteout));
                }
                Single::Dir {
                    dir,
                    opaque,
                    redirect,
                } => {
                    opaque_above |= opaque;
                    if let Some(to) = redirect {
                        let mut prefix = Target::Path(path[..=depth].to_vec());
                        prefix.redirect(&to);
                        if let Target::Path(mut new) = prefix {
                            new.extend_from_slice(&path[depth + 1..]);
                            *target = Target::Path(new);
                        }
                    }
                    at = dir;
                }
            }
        }
        let single = match at.lookup(&self.fds, last)? {
            Single::Dir { dir, redirect, .. } if opaque_above => Single::Dir {
                dir,
                opaque: true,
                redirect,
            },
            Single::Absent if opaque_above => Single::Whiteout,
            other => other,
        };
        Ok(((at, last.as_slice().into()), single))
    }

    /// Returns the path of a file's data in the data-only layers, from a metacopy whose `user.*`
    /// markers are trusted for no other purpose.
    fn only_data<'m>(&self, stat: &Stat, markers: &'m Markers) -> Option<&'m [u8]> {
        let data = markers.from_user.data.as_deref()?;
        (stat.kind == FileKind::Regular && !self.data_roots.is_empty()).then_some(data)
    }

    /// Completes a metacopy from the data-only layers.
    ///
    /// # Errors
    /// EIO when no layer has the data.
    fn data_only(&self, meta: LowerFile, target: &Target<'_>) -> Result<LowerFile> {
        if let Target::Path(_) = target {
            for root in &self.data_roots {
                let mut target = target.clone();
                if let ((dir, name), Single::File { stat, markers }) =
                    self.look(root, &mut target)?
                    && stat.kind == FileKind::Regular
                    && !markers.metacopy
                {
                    return Ok(with_data(meta, dir, name, &stat));
                }
            }
        }
        Err(Errno::IO)
    }

    /// Returns the meaning of a name in one directory of a layer.
    ///
    /// # Errors
    /// Those of [`LowerDir::lookup`].
    pub(super) fn single(&self, dir: &Arc<LowerDir>, name: &[u8]) -> Result<Single> {
        dir.lookup(&self.fds, name)
    }

    /// Returns the names that one directory of a layer has or hides, and takes their number off
    /// `left`; `None` if there are more. Then the rest of the directory is not read.
    ///
    /// # Errors
    /// Those of the layer's file system.
    pub(super) fn names_of(
        &self,
        dir: &LowerDir,
        left: &mut usize,
    ) -> Result<Option<BTreeSet<Box<[u8]>>>> {
        let wh_names = dir.takes_wh_names();
        let mut names = BTreeSet::new();
        dir.read_while(&self.fds, |raw| {
            let hidden = wh_names.then(|| raw.name.strip_prefix(WH_PREFIX)).flatten();
            let name = hidden.unwrap_or(raw.name);
            // `.wh..` hides nothing: no file is named `.`.
            if is_valid_name(name) {
                names.insert(name.into());
            }
            names.len() <= *left
        })?;
        Ok(left.checked_sub(names.len()).map(|rest| {
            *left = rest;
            names
        }))
    }

    /// Collects the names in these directories.
    ///
    /// # Errors
    /// Those of the layers' file systems.
    pub fn list(&self, dirs: &[Arc<LowerDir>], gather: &mut Gather<'_>) -> Result<()> {
        for (position, dir) in dirs.iter().enumerate() {
            self.list_one(dir, position, gather)?;
        }
        Ok(())
    }

    fn list_one(&self, dir: &LowerDir, position: usize, gather: &mut Gather<'_>) -> Result<()> {
        let wh_names = dir.takes_wh_names();
        let mut names = Names::default();
        dir.read(&self.fds, |raw| {
            if wh_names && let Some(name) = raw.name.strip_prefix(WH_PREFIX) {
                names.hide(gather, name);
            } else {
                names.add(gather, raw.name, (raw.kind, raw.ino));
            }
        })?;
        let number = gather.numbers();
        let listing = names.finish(FoundIn::Lower(position), |name, (kind, ino)| {
            let whiteout = dir.is_whiteout(&self.fds, &name, kind)?;
            Ok(LayerEntry {
                name,
                kind,
                ino: Some(number(dir.stat.dev, ino)),
                id: None,
                whiteout,
            })
        })?;
        gather.layer(listing);
        Ok(())
    }
}

/// Returns the file that was found: as the data of the metacopy above it, or as the file itself.
fn finish(
    meta: Option<LowerFile>,
    dir: Arc<LowerDir>,
    name: Arc<[u8]>,
    stat: Stat,
    is_bare: bool,
) -> LowerFile {
    match meta {
        None => LowerFile {
            dir,
            name,
            stat,
            data: None,
            id: None,
            is_bare,
        },
        Some(meta) => with_data(meta, dir, name, &stat),
    }
}

/// Returns a metacopy with the place of its data. It shows the blocks of the data, as in overlayfs.
fn with_data(mut meta: LowerFile, dir: Arc<LowerDir>, name: Arc<[u8]>, data: &Stat) -> LowerFile {
    let ino = data.ino;
    meta.stat.blocks = data.blocks;
    meta.data = Some(Box::new(DataPlace { dir, name, ino }));
    meta
}

impl Lowers for Arc<Layers> {
    fn layers(&self) -> &Arc<Layers> {
        self
    }

    fn root(&self) -> LowerDirs {
        self.merged(self.roots.iter().cloned())
    }
}

/// Merged directories of layers.
struct MergedLayers {
    layers: Arc<Layers>,
    /// Top first; at least one.
    dirs: SmallVec<[Arc<LowerDir>; 2]>,
}

impl std::fmt::Debug for MergedLayers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.dirs).finish()
    }
}

impl MergedDir for MergedLayers {
    fn parts(&self) -> usize {
        self.dirs.len()
    }

    fn top(&self) -> &Arc<LowerDir> {
        &self.dirs[0]
    }

    fn all(&self) -> Result<&[Arc<LowerDir>]> {
        Ok(&self.dirs)
    }

    fn lookup(&self, name: &[u8], redirect: Option<&[u8]>, skip: usize) -> Result<LowerLookup> {
        let dirs = self.dirs.get(skip..).unwrap_or_default();
        self.layers.lookup(dirs, name, redirect)
    }

    fn list(&self, gather: &mut Gather<'_>) -> Result<()> {
        self.layers.list(&self.dirs, gather)
    }
}

/// Whether lowers are accessed through private mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seal {
    /// They are accessed at their own paths.
    Never,
    /// Each is accessed through a read-only mount of its own (needs CAP_SYS_ADMIN).
    Always,
}

/// Opens layers; `first` is the position of the first one in the stack.
fn open_layers(
    specs: &[LayerSpec],
    first: usize,
    seal: Seal,
    systems: &mut FileSystems,
) -> std::result::Result<Vec<Arc<LowerDir>>, OpenError> {
    let open = |(position, spec): (usize, &LayerSpec)| {
        let private = match seal {
            Seal::Always if !spec.dir.is_sealed() => Some(sealed(spec)?),
            _ => None,
        };
        let layer = Layer::open_among(private.as_ref().unwrap_or(spec), systems);
        let root = layer.and_then(|layer| LowerDir::root(Arc::new(layer), first + position));
        root.map_err(|errno| OpenError {
            what: "cannot open the lower layer",
            path: spec.path().to_owned(),
            errno,
        })
    };
    specs.iter().enumerate().map(open).collect()
}

/// Opens a lower whose files may be handed to the kernel, which reads them without our code.
fn sealed(spec: &LayerSpec) -> std::result::Result<LayerSpec, OpenError> {
    let private = private::lower(spec).and_then(|private| {
        if private.dir.is_sealed() {
            Ok(private)
        } else {
            Err(Errno::PERM)
        }
    });
    private.map_err(|errno| OpenError {
        what: "io=passthrough and io=shared need a private mount of the lower layer",
        path: spec.path().to_owned(),
        errno,
    })
}
