//! Builds a catalog: walks the merged layers, directory by directory, with the code that answers a
//! mount's lookups, and writes the answers to a file. A name that a record cannot describe is
//! marked, and a mount looks it up in the layers.

use std::collections::HashMap;
use std::fs::File;
use std::hash::RandomState;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;
use zerocopy::FromZeros as _;

use super::compare::XATTR_FLAGS;
use super::format::{self, Class, Data, NONE, Record};
use super::view::nanoseconds;
use super::write::{Text, Writer};
use super::{Error, directory, file};
use crate::layer::StackSpec;
use crate::layer::at::{At, Stat};
use crate::layer::fds::FdCache;
use crate::layer::lower::LowerDir;
use crate::layer::markers::Protection;
use crate::layer::types::FileKind;
use crate::lowers::{
    FoundIn, Gather, Layers, LowerDirs, LowerFile, LowerLookup, Lowers as _, OpenError, Seal,
    Visible, merge,
};
use crate::progress::Progress;

/// The layers that a catalog describes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Label {
    /// Chain ID of the topmost layer: the bytes of the digest.
    pub chain: [u8; 32],
    /// The root of the store.
    pub store: Vec<u8>,
    /// The name of the store's driver.
    pub driver: Vec<u8>,
    /// The store's own notes about how it found the layers; may be empty.
    pub notes: Vec<u8>,
}

/// Result of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Built {
    /// The number of names in the catalog.
    pub names: u64,
    /// The number of directories in the catalog.
    pub directories: u64,
    /// The number of names that must be looked up in the layers.
    pub live: u64,
    /// The size of the file in bytes.
    pub bytes: u64,
}

/// Writes the catalog of the lowers of `stack` to `path`, replacing an older one. `step` is called
/// for each directory with the number of names since the last call. It stops the build by returning
/// false.
///
/// # Errors
/// [`Error`]; an older catalog stays.
pub fn build(
    stack: &StackSpec,
    label: &Label,
    path: &Path,
    step: &mut dyn FnMut(Progress<'_, ()>) -> bool,
) -> Result<Built, Error> {
    build_confined(stack, label, path, |_| Ok(()), step)
}

/// As [`build`]. Calls `confine` with the directory that is written to, after everything is open
/// and before anything of the layers is read. No path is opened after that.
///
/// # Errors
/// As [`build`], and those of `confine`.
pub fn build_confined(
    stack: &StackSpec,
    label: &Label,
    path: &Path,
    confine: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
    step: &mut dyn FnMut(Progress<'_, ()>) -> bool,
) -> Result<Built, Error> {
    let staged = directory::Staged::new(path)?;
    let write = |source| Error::Write {
        path: path.to_owned(),
        source,
    };
    confine(staged.dir()).map_err(write)?;
    let layers = open_layers(stack)?;
    let before = file::describe(&layers, file::now);
    let counts = walk(&layers, staged.file(), label, step, &write)?;
    let after = file::describe(&layers, file::now);
    if let Some(changed) = before.iter().zip(&after).position(|(a, b)| a != b) {
        let path = layers.get(changed).map(|root| root.layer.path.clone());
        return Err(Error::Changed(path.unwrap_or_default()));
    }
    let bytes = staged.publish().map_err(write)?;
    Ok(Built {
        names: counts.names,
        directories: counts.directories,
        live: counts.live,
        bytes,
    })
}

/// The maximum number of directories whose descriptors stay open.
const OPEN_DIRS: usize = 256;

/// Opens the lowers of a stack.
pub(super) fn open_layers(stack: &StackSpec) -> Result<Arc<Layers>, OpenError> {
    Layers::open(stack, Seal::Never, FdCache::shared(OPEN_DIRS))
}

/// Returns the names in a merged directory.
pub(super) fn names(dirs: &LowerDirs) -> Result<Vec<Visible>, Errno> {
    let hasher = RandomState::new();
    // The catalog records the inode numbers of the layers.
    let mut gather = Gather::new(&hasher, &|_, ino| ino, usize::MAX, 0);
    dirs.list(&mut gather)?;
    Ok(merge(gather.into_layers()))
}

/// Returns the number of parts of a merged directory that are known not to have a name.
pub(super) fn parts_without(visible: &Visible) -> usize {
    match visible.found_in {
        FoundIn::Lower(position) => position,
        FoundIn::Upper | FoundIn::Known(_) => 0,
    }
}

/// Writes everything to `file`.
fn walk(
    layers: &Arc<Layers>,
    file: &File,
    label: &Label,
    step: &mut dyn FnMut(Progress<'_, ()>) -> bool,
    write: &dyn Fn(io::Error) -> Error,
) -> Result<Counts, Error> {
    let described = file::describe(layers, file::now);
    let mut builder = Builder {
        layers,
        writer: Writer::new(file, described, &label.notes).map_err(write)?,
        known: HashMap::new(),
        todo: Vec::new(),
        counts: Counts::default(),
        reported: 0,
    };
    builder.roots().map_err(write)?;
    while let Some(dir) = builder.todo.pop() {
        if !builder.report(step) {
            return Err(Error::Stopped);
        }
        if !builder.directory(&dir, step).map_err(write)? {
            return Err(Error::Stopped);
        }
    }
    if !builder.report(step) {
        return Err(Error::Stopped);
    }
    let counts = builder.counts;
    let finished = builder
        .writer
        .finish(label.chain, &label.store, &label.driver);
    finished.map_err(write)?;
    Ok(counts)
}

/// Number of names looked up between two calls of `step`.
const STEP: usize = 1024;

/// A merged directory whose entries remain to be written.
struct Todo {
    index: u32,
    lowers: LowerDirs,
}

/// An entry of a directory, before it is written.
struct Pending {
    name: Box<[u8]>,
    record: Record,
    /// The lower directories, of a directory.
    dirs: Option<LowerDirs>,
}

struct Builder<'l> {
    layers: &'l Arc<Layers>,
    writer: Writer<'l>,
    /// Records of directories of the layers, by layer and inode number.
    known: HashMap<(usize, u64), u32>,
    todo: Vec<Todo>,
    counts: Counts,
    /// The number of names that were reported.
    reported: u64,
}

/// The counts of what has been written. See [`Built`].
#[derive(Clone, Copy, Default)]
struct Counts {
    names: u64,
    directories: u64,
    live: u64,
}

impl Builder<'_> {
    /// Writes the roots of the layers, and the directory that they merge to.
    fn roots(&mut self) -> io::Result<()> {
        let layers = self.layers;
        for root in layers.all() {
            let mut record = self.record(root.index, &root.stat)?;
            record.parent = NONE.into();
            record.flags = (record.flags.get() | self.dir_flags(root)).into();
            let index = self.writer.record(&record)?;
            self.known.insert((root.index, root.stat.ino), index);
        }
        let parts = (0..layers.roots().len() as u32).collect();
        self.enqueue(layers.root(), parts)?;
        Ok(())
    }

    /// Adds a directory with these parts and returns its number.
    fn enqueue(&mut self, lowers: LowerDirs, parts: Vec<u32>) -> io::Result<u32> {
        let index = self.writer.reserve_dir()?;
        let first = self.writer.parts(&parts)?;
        let dir = self.writer.dir(index);
        dir.part = first.into();
        dir.part_count = (parts.len() as u32).into();
        self.todo.push(Todo { index, lowers });
        Ok(index)
    }

    /// Reports the names since the last report. Returns false if the build is to stop.
    fn report(&mut self, step: &mut dyn FnMut(Progress<'_, ()>) -> bool) -> bool {
        let count = self.counts.names - self.reported;
        self.reported = self.counts.names;
        step(Progress::Advance { item: (), count })
    }

    /// Writes the entries of a directory. Returns false if `step` stops the build.
    fn directory(
        &mut self,
        todo: &Todo,
        step: &mut dyn FnMut(Progress<'_, ()>) -> bool,
    ) -> io::Result<bool> {
        self.counts.directories += 1;
        let mut names = match names(&todo.lowers) {
            Ok(names) => names,
            Err(e) => {
                tracing::debug!("a directory is left out of the catalog: {e}");
                self.counts.live += 1;
                self.writer.dir(todo.index).flags = format::UNLISTED.into();
                return Ok(true);
            }
        };
        names.sort_by(|a, b| a.name.cmp(&b.name));
        names.dedup_by(|a, b| a.name == b.name);
        let mut pending = Vec::with_capacity(names.len());
        for (position, name) in names.iter().enumerate() {
            if position % STEP == STEP - 1 && !self.report(step) {
                return Ok(false);
            }
            pending.push(self.pending(&todo.lowers, name)?);
        }
        let first = self.writer.next_record();
        // The numbers of subdirectories are known only after they have been added.
        let mut found = Vec::new();
        for (position, mut entry) in pending.into_iter().enumerate() {
            let text = self.writer.text(&entry.name)?;
            set_name(&mut entry.record, text);
            if let Some(lowers) = entry.dirs {
                let index = self.writer.reserve_dir()?;
                entry.record.aux = index.into();
                found.push((index, first + position as u32, lowers));
            }
            self.writer.record(&entry.record)?;
            self.counts.names += 1;
        }
        let count = self.writer.next_record() - first;
        let dir = self.writer.dir(todo.index);
        (dir.first, dir.count) = (first.into(), count.into());
        for (index, record, lowers) in found {
            self.found_dir(index, record, lowers)?;
        }
        Ok(true)
    }

    /// Adds a directory whose topmost part has been written as an entry.
    fn found_dir(&mut self, index: u32, record: u32, lowers: LowerDirs) -> io::Result<()> {
        let mut parts = vec![record];
        for (position, dir) in lowers.all()?.iter().enumerate() {
            if position == 0 {
                self.known.insert((dir.index, dir.stat.ino), record);
                continue;
            }
            parts.push(self.part(dir)?);
        }
        let first = self.writer.parts(&parts)?;
        let dir = self.writer.dir(index);
        dir.part = first.into();
        dir.part_count = (parts.len() as u32).into();
        self.todo.push(Todo { index, lowers });
        Ok(())
    }

    /// Looks a name up in the lowers.
    fn pending(&mut self, lowers: &LowerDirs, visible: &Visible) -> io::Result<Pending> {
        let skip = parts_without(visible);
        let name: Box<[u8]> = (*visible.name).into();
        let below = lowers.lookup(&name, None, skip);
        let (record, dirs) = match below {
            Ok(LowerLookup::File(file)) => (self.file(&file)?, None),
            Ok(LowerLookup::Dirs(dirs)) => self.dirs(dirs)?,
            Ok(LowerLookup::Absent) | Err(_) => (None, None),
        };
        let record = match record {
            Some(record) => record,
            None => self.live(lowers, skip, visible)?,
        };
        Ok(Pending { name, record, dirs })
    }

    /// Returns the record of a name that must be looked up in the layers. It contains only what a
    /// directory listing shows.
    fn live(&mut self, lowers: &LowerDirs, skip: usize, visible: &Visible) -> io::Result<Record> {
        self.counts.live += 1;
        let top = lowers.all()?.get(skip).ok_or(Errno::IO)?;
        let mut class = Class::new_zeroed();
        class.layer = (top.index as u32).into();
        class.mode = visible.kind.map_or(0, FileKind::mode_bits).into();
        let mut record = Record::new_zeroed();
        record.class = self.writer.class(class)?;
        record.ino = visible.ino.unwrap_or_default().into();
        record.parent = self.part(top)?.into();
        record.flags = format::LIVE.into();
        Ok(record)
    }

    fn file(&mut self, file: &LowerFile) -> io::Result<Option<Record>> {
        if !is_plain(&file.dir, &file.stat) {
            return Ok(None);
        }
        let mut record = self.record(file.dir.index, &file.stat)?;
        record.parent = self.part(&file.dir)?.into();
        let fd = self.layers.fd(&file.dir)?;
        let at = At::new(fd.as_fd(), &file.name);
        let mut flags = record.flags.get() | xattr_flags(at);
        if file.data.is_some() {
            let (dir, name) = file.data_place();
            let stat = At::new(self.layers.fd(dir)?.as_fd(), name).stat();
            let Some(data) = stat.ok().filter(|stat| is_plain(dir, stat)) else {
                return Ok(None);
            };
            let text = self.writer.text(name)?;
            let dir = self.part(dir)?;
            let times = (nanoseconds(data.mtime), nanoseconds(data.ctime));
            let data = Data {
                ino: data.ino.into(),
                size: data.size.into(),
                mtime: times.0.unwrap_or_default().into(),
                ctime: times.1.unwrap_or_default().into(),
                dir: dir.into(),
                name: text.offset.into(),
                name_len: text.len.into(),
            };
            record.aux = self.writer.data(data)?.into();
            flags |= format::METACOPY;
        } else if file.stat.kind == FileKind::Symlink {
            let Ok(target) = at.readlink() else {
                return Ok(None);
            };
            let Ok(len) = u16::try_from(target.len()) else {
                return Ok(None);
            };
            record.aux = self.writer.text(&target)?.offset.into();
            record.target_len = len.into();
        }
        record.flags = flags.into();
        Ok(Some(record))
    }

    fn dirs(&mut self, dirs: LowerDirs) -> io::Result<(Option<Record>, Option<LowerDirs>)> {
        if !dirs.all()?.iter().all(|dir| is_plain(dir, &dir.stat)) {
            return Ok((None, None));
        }
        let top = dirs.top().ok_or(Errno::IO)?;
        let mut record = self.record(top.index, &top.stat)?;
        if let Some((parent, _)) = top.place() {
            record.parent = self.part(parent)?.into();
        }
        let flags = record.flags.get() | self.dir_flags(top) | format::MERGED;
        record.flags = flags.into();
        Ok((Some(record), Some(dirs)))
    }

    /// Returns the record of a directory of a layer. If it has none yet, its record and those of
    /// its ancestors are written.
    fn part(&mut self, dir: &Arc<LowerDir>) -> io::Result<u32> {
        let mut missing = Vec::new();
        let mut at = dir;
        let mut parent = loop {
            if let Some(known) = self.known.get(&(at.index, at.stat.ino)) {
                break *known;
            }
            let Some((parent, name)) = at.place() else {
                return Err(Errno::IO.into());
            };
            missing.push((at, name));
            at = parent;
        };
        for (dir, name) in missing.into_iter().rev() {
            let mut record = self.record(dir.index, &dir.stat)?;
            record.parent = parent.into();
            record.flags = (record.flags.get() | self.dir_flags(dir)).into();
            set_name(&mut record, self.writer.text(name)?);
            parent = self.writer.record(&record)?;
            self.known.insert((dir.index, dir.stat.ino), parent);
        }
        Ok(parent)
    }

    fn dir_flags(&self, dir: &Arc<LowerDir>) -> u16 {
        let xwhiteouts = if dir.has_xwhiteouts() {
            format::XWHITEOUTS
        } else {
            0
        };
        let wh_files = if dir.has_wh_files() {
            format::WH_FILES
        } else {
            0
        };
        let xattrs = match self.layers.fd(dir) {
            Ok(fd) => xattr_flags(At::fd(fd.as_fd())),
            Err(_) => XATTR_FLAGS,
        };
        xwhiteouts | wh_files | xattrs
    }

    /// Returns a record with the attributes of a file of a layer.
    fn record(&mut self, layer: usize, stat: &Stat) -> io::Result<Record> {
        let class = Class {
            mode: (stat.kind.mode_bits() | stat.perm).into(),
            uid: stat.uid.into(),
            gid: stat.gid.into(),
            blksize: stat.blksize.into(),
            major: stat.rdev.0.into(),
            minor: stat.rdev.1.into(),
            layer: (layer as u32).into(),
        };
        let time = |time| nanoseconds(time).unwrap_or_default().into();
        let mut record = Record::new_zeroed();
        record.ino = stat.ino.into();
        record.size = stat.size.into();
        record.atime = time(stat.atime);
        record.mtime = time(stat.mtime);
        record.ctime = time(stat.ctime);
        if let Some(born) = stat.btime {
            record.btime = time(born);
            record.flags = format::BORN.into();
        }
        record.blocks = u32::try_from(stat.blocks).unwrap_or_default().into();
        record.nlink = stat.nlink.into();
        record.class = self.writer.class(class)?;
        Ok(record)
    }
}

fn set_name(record: &mut Record, text: Text) {
    record.name = text.offset.into();
    // No Linux file system has names of more than 255 bytes.
    record.name_len = u16::try_from(text.len).unwrap_or(u16::MAX).into();
}

/// Whether a record can describe the file completely.
fn is_plain(dir: &LowerDir, stat: &Stat) -> bool {
    let times = [
        Some(stat.atime),
        Some(stat.mtime),
        Some(stat.ctime),
        stat.btime,
    ];
    stat.dev == dir.layer.stat.dev
        && stat.protection == Protection::NONE
        && u32::try_from(stat.blocks).is_ok()
        && times
            .into_iter()
            .flatten()
            .all(|t| nanoseconds(t).is_some())
}

/// Returns flags for the xattrs that a file has; all flags when that cannot be determined.
pub(super) fn xattr_flags(at: At<'_>) -> u16 {
    let Ok(list) = at.list_xattrs() else {
        return XATTR_FLAGS;
    };
    let mut flags = 0;
    for name in list.split(|&b| b == 0).filter(|n| !n.is_empty()) {
        flags |= format::XATTRS | format::xattr_flag(name);
    }
    flags
}
