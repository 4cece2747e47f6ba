//! Resolution of a name: merges what upper and lowers have under the name, by the rules of
//! overlayfs (fs/overlayfs/namei.c). [`crate::lowers`] resolves it in the lowers. This only reads
//! the layers, and creates no inode.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use super::error::Result;
use super::hardlink_index::IndexedCopy;
use super::inode::{Dir, Inode, Nlink};
use super::names::InodeNumbers;
use super::stack::Stack;
use super::types::{FileKind, Ino};
use super::upper::Upper;
use crate::layer::at::{At, Stat};
use crate::layer::lower::{has_opaque_file, read_dir};
use crate::layer::markers::{Markers, Protection, Tie, WH_PREFIX};
use crate::layer::origin::{Origin, OriginFile};
use crate::lowers::{LowerDirs, LowerFile, LowerLookup};
use crate::sys::sync::atomic::Ordering;

/// The form of whiteout by which the upper hides a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhiteoutKind {
    /// A file of that name: char 0:0, or the xattr form.
    Node,
    /// A `.wh.NAME` file.
    WhName,
}

/// The result of resolving a name.
#[derive(Clone, Debug)]
pub(crate) struct Resolved {
    pub kind: FileKind,
    /// The upper side; boxed, because most lower files have none.
    pub upper: Option<Box<UpperFound>>,
    /// The lower file, if the upper has none or has only its metadata.
    pub file: Option<Arc<LowerFile>>,
    /// The lower directories, top first, of a directory.
    pub dirs: LowerDirs,
    /// The inode number that the inode should get.
    pub ino: Ino,
}

/// The upper side of a resolved name.
#[derive(Clone, Debug)]
pub(crate) struct UpperFound {
    pub stat: Stat,
    pub metacopy: bool,
    /// The file was copied up and has an origin marker.
    pub origin: bool,
    /// The directory may hold copied-up files.
    pub impure: bool,
    /// The directory may hold whiteouts in the xattr form.
    pub xwhiteouts: bool,
    /// See [`super::inode::Dir::wh_files`].
    pub wh_files: bool,
    /// The protection; `None` if markers were not read.
    pub protection: Option<Protection>,
    /// The name in the index, of a hard link that came from a lower.
    pub index: Option<Box<[u8]>>,
    /// The link counts of such a hard link.
    pub nlink: Option<Nlink>,
    /// The upper has the name itself, not only the index entry.
    pub named: bool,
    /// See [`super::inode::Link::in_lower`].
    pub in_lower: Option<bool>,
}

impl UpperFound {
    /// Describes a file that has its own data and no markers, under its own name.
    pub fn new(stat: Stat) -> Self {
        Self {
            stat,
            metacopy: false,
            origin: false,
            impure: false,
            xwhiteouts: false,
            wh_files: false,
            protection: None,
            index: None,
            nlink: None,
            named: true,
            in_lower: None,
        }
    }
}

impl Resolved {
    /// Returns what a name resolves to that only the upper has.
    pub fn in_upper(kind: FileKind, upper: UpperFound, ino: Ino) -> Self {
        Self {
            kind,
            upper: Some(Box::new(upper)),
            file: None,
            dirs: LowerDirs::default(),
            ino,
        }
    }

    /// Whether the answer stays true after the inode is forgotten: only operations on this very
    /// name can change it.
    pub fn is_cacheable(&self) -> bool {
        match (&self.upper, &self.file) {
            _ if self.kind == FileKind::Directory => true,
            (Some(upper), _) => upper.stat.nlink == 1 && upper.index.is_none(),
            (None, Some(file)) => file.stat.nlink == 1,
            (None, None) => false,
        }
    }

    /// Returns the lower file's copy of `name`, to share it.
    pub fn shared_name(&self, name: &[u8]) -> Option<Arc<[u8]>> {
        let file = self.file.as_ref().filter(|file| *file.name == *name)?;
        Some(Arc::clone(&file.name))
    }
}

/// The answer for a name: present or absent.
pub(crate) enum Answer {
    Found(Arc<Resolved>),
    Absent(Option<WhiteoutKind>),
}

/// Reads from the layers what a name resolves to.
#[derive(Clone, Copy)]
pub(crate) struct Resolver<'u> {
    stack: &'u Stack,
    numbers: &'u InodeNumbers,
}

/// An upper file, and the name in an upper directory under which it was found.
struct UpperFile<'a> {
    dir: &'a Dir,
    name: &'a [u8],
    stat: &'a Stat,
    markers: &'a Markers,
}

impl<'u> Resolver<'u> {
    pub fn new(stack: &'u Stack, numbers: &'u InodeNumbers) -> Self {
        Self { stack, numbers }
    }

    /// Resolves `name` in `parent`; the caller holds the name lock of `parent`. With `skip`, the
    /// upper and that many lower directories are known not to have the name.
    pub fn resolve(self, parent: &Inode, name: &[u8], skip: Option<usize>) -> Result<Answer> {
        let dir = parent.dir.as_ref().ok_or(Errno::NOTDIR)?;
        if name.len() > self.stack.name_max() {
            return Err(Errno::NAMETOOLONG.into());
        }
        if skip.is_none()
            && parent.in_upper()
            && let Some(upper) = self.stack.upper()
            && let Some(answer) = self.resolve_upper(upper, parent, dir, name)?
        {
            return Ok(answer);
        }
        match dir.lowers.lookup(name, None, skip.unwrap_or(0))? {
            LowerLookup::Absent => Ok(Answer::Absent(None)),
            LowerLookup::File(file) => Ok(Answer::Found(Arc::new(self.lower_file(file)?))),
            LowerLookup::Dirs(dirs) => {
                let ino = self.numbers.number(&dirs.top().ok_or(Errno::IO)?.stat);
                let kind = FileKind::Directory;
                Ok(Answer::Found(Arc::new(Resolved {
                    kind,
                    upper: None,
                    file: None,
                    dirs,
                    ino,
                })))
            }
        }
    }

    /// Resolves a name in the upper. `None` if the lowers decide about the name.
    fn resolve_upper(
        self,
        upper: &Upper,
        parent: &Inode,
        dir: &Dir,
        name: &[u8],
    ) -> Result<Option<Answer>> {
        let fd = self.stack.upper_dir(parent)?;
        let mut hidden = false;
        if upper.reads_wh_names(dir) {
            if name.starts_with(WH_PREFIX) {
                // A lower may have a file of that name.
                return Ok(None);
            }
            hidden = has_wh(dir, &fd)?
                && At::new(fd.as_fd(), &[WH_PREFIX, name].concat())
                    .stat_opt()?
                    .is_some();
        }
        let at = At::new(fd.as_fd(), name).recorded_as(upper.records());
        let Some(stat) = at.stat_opt()? else {
            return Ok(hidden.then_some(Answer::Absent(Some(WhiteoutKind::WhName))));
        };
        if stat.is_chardev_whiteout() {
            return Ok(Some(Answer::Absent(Some(WhiteoutKind::Node))));
        }
        // In a directory without lowers and copied-up files no marker matters, except that a
        // subdirectory may be impure.
        let plain = dir.lowers.is_empty() && !dir.impure.load(Ordering::Acquire);
        let unread = plain && stat.kind != FileKind::Directory;
        let (stat, markers) = if unread {
            (stat, Markers::default())
        } else {
            upper.layer.described(at, stat)?
        };
        let empty_file = stat.kind == FileKind::Regular && stat.size == 0;
        if markers.whiteout && empty_file && upper.may_have_xwhiteouts(dir) {
            return Ok(Some(Answer::Absent(Some(WhiteoutKind::Node))));
        }
        let found = UpperFile {
            dir,
            name,
            stat: &stat,
            markers: &markers,
        };
        let mut resolved = match stat.kind {
            FileKind::Directory => {
                let apart = dir.lowers.is_empty() && markers.redirect.is_none();
                let opaque = hidden
                    || markers.opaque
                    || apart
                    || !markers.wh_files && is_wh_opaque(upper, &fd, name)?;
                let below = if opaque {
                    LowerLookup::Absent
                } else {
                    self.lookup_below(&found)?
                };
                self.merged_dir(&found, below)
            }
            _ => self.upper_file(upper, &found)?,
        };
        if unread && let Some(found) = &mut resolved.upper {
            found.protection = None;
        }
        Ok(Some(Answer::Found(Arc::new(resolved))))
    }

    /// Resolves an upper directory, merged with what it does not hide in the lowers.
    fn merged_dir(self, found: &UpperFile<'_>, below: LowerLookup) -> Resolved {
        let (stat, markers) = (*found.stat, found.markers);
        let dirs = match below {
            LowerLookup::Dirs(dirs) => dirs,
            LowerLookup::Absent | LowerLookup::File(_) => LowerDirs::default(),
        };
        let ino = self
            .numbers
            .number(dirs.top().map_or(&stat, |top| &top.stat));
        let upper = UpperFound {
            origin: markers.origin.is_some(),
            impure: markers.impure,
            xwhiteouts: markers.xwhiteouts,
            wh_files: markers.wh_files,
            protection: Some(markers.protection | stat.protection),
            ..UpperFound::new(stat)
        };
        Resolved {
            dirs,
            ..Resolved::in_upper(FileKind::Directory, upper, ino)
        }
    }

    /// Whether the lowers show a file under `name`; nothing is counted or cached.
    pub fn exists_in_lower(self, inode: &Inode, name: &[u8]) -> Result<bool> {
        let dir = inode.dir.as_ref().ok_or(Errno::NOTDIR)?;
        if dir.lowers.is_empty() {
            return Ok(false);
        }
        match self.resolve(inode, name, Some(0)) {
            Ok(Answer::Found(_)) => Ok(true),
            Ok(Answer::Absent(_)) => Ok(false),
            // A broken metacopy must be hidden too.
            Err(e) if e.errno() == Errno::IO.raw_os_error() => Ok(true),
            Err(e) => Err(e),
        }
    }

    /// Looks up what the lowers have for a name of the upper with these markers.
    fn lookup_below(self, found: &UpperFile<'_>) -> Result<LowerLookup> {
        let redirect = found.markers.redirect.as_deref();
        // An absolute redirect is resolved from the roots of the layers, even if no layer has the
        // parent directory.
        if redirect.is_some_and(|to| to.starts_with(b"/")) {
            let root = self.stack.lowers().root();
            return Ok(root.lookup(found.name, redirect, 0)?);
        }
        Ok(found.dir.lowers.lookup(found.name, redirect, 0)?)
    }

    /// Resolves an upper file.
    fn upper_file(self, upper: &Upper, at: &UpperFile<'_>) -> Result<Resolved> {
        let (stat, markers) = (*at.stat, at.markers);
        let metacopy = markers.metacopy && stat.kind == FileKind::Regular;
        let mut file = None;
        if metacopy {
            match self.lookup_below(at)? {
                LowerLookup::File(found) if found.stat.kind == FileKind::Regular => {
                    let tie = upper.layer.is_foreign.then(|| markers.tie());
                    match tie {
                        Some(Tie::Origin(origin)) => {
                            self.stack.lowers().check_claim(origin, &found)?;
                        }
                        Some(Tie::None) => return Err(Errno::IO.into()),
                        Some(Tie::Path) | None => {}
                    }
                    file = Some(Arc::new(found));
                }
                // A metacopy without its data: reading it would return zeros.
                _ => return Err(Errno::IO.into()),
            }
        }
        let origin = markers.origin.as_deref().and_then(Origin::parse);
        let lower = match &origin {
            Some(origin) => self.origin_stat(upper, at, origin)?,
            None => None,
        };
        // A file of another type is not the origin.
        let lower = lower.filter(|lower| lower.kind == stat.kind);
        let mut index = None;
        let mut nlink = None;
        if let (Some(origin), Some(lower)) = (&origin, &lower)
            && lower.nlink > 1
            && upper.has_index_entry(origin, &stat)?
        {
            index = Some(origin.index_name().into_boxed_slice());
            nlink = Some(union_nlink(markers.nlink.as_deref(), lower.nlink, &stat));
        }
        let (dev, ino) = lower.map_or_else(|| stat.id(), |lower| lower.id);
        let ino = self.numbers.number_of(dev, ino);
        let upper = UpperFound {
            metacopy,
            origin: origin.is_some(),
            protection: Some(markers.protection | stat.protection),
            index,
            nlink,
            ..UpperFound::new(stat)
        };
        Ok(Resolved {
            file,
            ..Resolved::in_upper(stat.kind, upper, ino)
        })
    }

    /// Resolves a lower file. A hard link that was copied up under another name is found in the
    /// index.
    fn lower_file(self, file: LowerFile) -> Result<Resolved> {
        if file.stat.nlink > 1
            && let Some(upper) = self.stack.upper()
            && let Some(copy) = upper.indexed(self.stack.lowers(), &file)?
        {
            let IndexedCopy {
                stat,
                markers,
                origin,
            } = copy;
            let nlink = Some(union_nlink(
                markers.nlink.as_deref(),
                file.stat.nlink,
                &stat,
            ));
            let index = Some(origin.index_name().into_boxed_slice());
            let ino = self.numbers.number(&file.stat);
            let upper = UpperFound {
                metacopy: markers.metacopy,
                origin: true,
                protection: Some(markers.protection | stat.protection),
                index,
                nlink,
                named: false,
                ..UpperFound::new(stat)
            };
            return Ok(Resolved {
                file: markers.metacopy.then(|| Arc::new(file)),
                ..Resolved::in_upper(stat.kind, upper, ino)
            });
        }
        let (kind, ino) = (file.stat.kind, self.numbers.number(&file.stat));
        Ok(Resolved {
            kind,
            upper: None,
            file: Some(Arc::new(file)),
            dirs: LowerDirs::default(),
            ino,
        })
    }

    /// Returns the lower file that an upper file was copied up from.
    ///
    /// The origin is a file handle, which opens any file of its file system, also outside of the
    /// layers. An origin that an untrusted user may have written is therefore opened only where the
    /// index, which belongs to the server, has the file under it. Otherwise it must be the origin
    /// of the lower file with the same name.
    fn origin_stat(
        self,
        upper: &Upper,
        at: &UpperFile<'_>,
        origin: &Origin,
    ) -> Result<Option<OriginFile>> {
        if at.markers.from_user.origin && !upper.believes_origin(origin, at.stat)? {
            return Ok(self.same_name_origin(at, origin));
        }
        let finder = self.stack.origin_finder();
        if finder.is_some()
            && let Some(found) = self.same_name_origin(at, origin)
        {
            return Ok(Some(found));
        }
        match self.stack.lowers().find_origin(origin, finder) {
            // File handles need a privilege that the server lacks. The lower file of the same name
            // is probably the origin.
            Err(Errno::PERM) => Ok(self.same_name_origin(at, origin)),
            found => Ok(found?),
        }
    }

    fn same_name_origin(self, file: &UpperFile<'_>, origin: &Origin) -> Option<OriginFile> {
        let lowers = self.stack.lowers();
        lowers.same_name_origin(&file.dir.lowers, file.name, origin)
    }
}

/// Whether an upper directory has `.wh.` entries. Called only if these are markers.
pub(crate) fn has_wh(dir: &Dir, fd: &OwnedFd) -> Result<bool> {
    if let Some(known) = dir.upper_wh.get() {
        return Ok(known);
    }
    let mut any = false;
    match read_dir(fd, |raw| any |= raw.name.starts_with(WH_PREFIX)) {
        // The directory was marked meanwhile, so the names that were read are files.
        Ok(()) if dir.wh_files.load(Ordering::Acquire) => any = false,
        Ok(()) => dir.upper_wh.set(any),
        // The directory can be searched but not listed. Whiteouts are looked up name by name.
        Err(Errno::ACCESS) => any = true,
        Err(e) => return Err(e.into()),
    }
    Ok(any)
}

/// Whether an upper subdirectory contains the file that makes it opaque.
fn is_wh_opaque(upper: &Upper, fd: &OwnedFd, name: &[u8]) -> Result<bool> {
    if !upper.layer.dialect.wh_names {
        return Ok(false);
    }
    let sub = At::new(fd.as_fd(), name).open_dir_path()?;
    Ok(has_opaque_file(sub)?)
}

/// Parses the link count of an indexed file: `[UL][+-]N`, relative to the upper or lower file's.
fn union_nlink(marker: Option<&[u8]>, lower: u32, upper: &Stat) -> Nlink {
    let parse = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<i64>().ok();
    let (base, diff) = match marker.and_then(<[u8]>::split_first) {
        Some((b'U', diff)) => (upper.nlink, parse(diff)),
        Some((b'L', diff)) => (lower, parse(diff)),
        _ => (0, None),
    };
    // A hostile marker may contain any number.
    let count = diff.and_then(|diff| i64::from(base).checked_add(diff));
    let union = count
        .and_then(|n| u32::try_from(n).ok())
        .filter(|n| *n > 0)
        .unwrap_or(upper.nlink);
    Nlink { union, lower }
}
