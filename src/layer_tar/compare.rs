//! Compares a layer's files with the headers of its tar, and finds files that the tar does not
//! have.
//!
//! Some differences are not damage and are allowed: the store of a plain user has that user as the
//! owner and adds permissions for that user; file systems cannot hold all times; Docker and this
//! program unpack hard links with contradictory headers in two different ways.
//!
//! Invariant: memory is bounded for any number of files. The tar and the directory are read in the
//! order of paths, which are sorted in files.

mod linked;
mod unexpected;

use std::ffi::CString;
use std::fs::File;
use std::io::BufRead;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::ResolveFlags;
use rustix::io::Errno;

use super::device_stand_in;
use super::error::Error;
use super::expected::{Attributes, Node, Want, value_of};
use super::expected_entries::ExpectedEntries;
use super::extractor::{DIR, open_beneath, open_in, split};
use super::header::EntryKind;
use super::rebuild::{Cause, Damage};
use super::whiteout::{is_below_note, is_whited_out};
use crate::layer::Dialect;
use crate::layer::at::{At, Stat};
use crate::layer::markers::{Markers, WH_OPAQUE, WH_PREFIX, is_marker_xattr};
use crate::layer::recorded::is_reserved;
use crate::layer::types::{FileKind, Time};
use crate::oci::text::excerpt;
use linked::Linked;

/// A layer directory and the properties that the comparison needs.
#[derive(Clone, Copy, Debug)]
pub struct Compare<'d> {
    /// The directory.
    pub diff: BorrowedFd<'d>,
    /// The dialect of its markers.
    pub dialect: Dialect,
    /// Whether files have the owners of the tar: in root's stores.
    pub owners: bool,
    /// The program that made the layer's own directory.
    pub root: RootDirectory,
    /// Scratch files for data that does not fit into memory. They are overwritten.
    pub scratch: [&'d File; 4],
}

/// The program that made a layer's own directory, `/` of the tar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootDirectory {
    /// This program: the directory has the attributes of the tar's entry `./`.
    OfTar,
    /// An engine, which ignores that entry: Docker and containerd make the directory 0755 0:0,
    /// podman 0555 0:0.
    OfEngine,
}

impl Compare<'_> {
    /// Compares every file with the headers in the tar-split (lines, not compressed), which is
    /// given twice, because some tars need two passes. Returns the layer's size as Docker counts
    /// it: bytes of everything but directories, each inode once.
    ///
    /// # Errors
    /// Fails for headers that cannot be read, or are too many to be compared; for directories that
    /// cannot be listed; for scratch files that cannot be used.
    pub fn run(
        &self,
        splits: [impl BufRead; 2],
        damaged: &mut dyn FnMut(Damage),
    ) -> Result<u64, Error> {
        let [headers, names, inodes, directories] = self.scratch;
        let mut expected = ExpectedEntries::read(splits, headers, names)?;
        let mut run = Run {
            compare: *self,
            parent: None,
            elsewhere: Vec::new(),
            opaque_elsewhere: Vec::new(),
            linked: Linked::new(inodes),
            damaged,
        };
        if expected.has_opaque() {
            run.find_opaque(&mut expected)?;
        }
        while let Some(want) = expected.current() {
            if want.maybe_gone && run.stat(&want.path).is_err() {
                run.not_kept(want);
                expected.advance()?;
                continue;
            }
            if want.is_named()
                && let Err(what) = run.path(want, expected.has_below(&want.path))
            {
                run.damage(&want.path, what);
            }
            run.is_within_bounds()?;
            if want.opaque {
                run.opaque(&want.path);
            }
            expected.advance()?;
        }
        run.linked_twice(&mut expected)?;
        run.elsewhere.sort_unstable();
        expected.again()?;
        unexpected::find(&mut run, &mut expected, [names, inodes, directories])
    }
}

/// The limit of inodes that the tar reaches through symlinks.
const MAX_ELSEWHERE: usize = 1 << 20;

type Found<T> = Result<T, String>;

struct Run<'r, 'd> {
    compare: Compare<'d>,
    /// The directory used last, and whether it was found without symlinks.
    parent: Option<(Vec<u8>, OwnedFd, bool)>,
    /// Inodes of files that are in the tar under a path that leads through a symlink.
    elsewhere: Vec<u64>,
    /// Inodes of directories that the tar makes opaque under such a path, sorted.
    opaque_elsewhere: Vec<u64>,
    /// Files with several names that are in the tar as files of their own.
    linked: Linked<'d>,
    damaged: &'r mut dyn FnMut(Damage),
}

impl Run<'_, '_> {
    fn is_within_bounds(&mut self) -> Result<(), Error> {
        self.linked.check()?;
        match self.elsewhere.len().max(self.opaque_elsewhere.len()) {
            0..=MAX_ELSEWHERE => Ok(()),
            _ => Err(Error::Limit {
                what: "files that are reached through symlinks",
                limit: MAX_ELSEWHERE as u64,
            }),
        }
    }

    fn damage(&mut self, path: &[u8], what: String) {
        (self.damaged)(Damage {
            path: path.to_vec(),
            what,
            cause: Cause::Damaged,
        });
    }

    /// Reports what a later whiteout of the tar has removed, if its content is needed.
    fn not_kept(&mut self, want: &Want) {
        let has_content = |node: &Node| node.kind == EntryKind::Regular && node.size > 0;
        if want.node.as_ref().is_some_and(has_content) {
            (self.damaged)(Damage {
                path: want.path.clone(),
                what: "is removed by a later whiteout of the tar".to_owned(),
                cause: Cause::NotKept,
            });
        }
    }

    /// Returns the attributes of a path, and whether it was found without symlinks.
    fn stat(&mut self, path: &[u8]) -> Found<(Stat, bool)> {
        let missing = |errno| match errno {
            Errno::NOENT | Errno::NOTDIR => "is missing".to_owned(),
            errno => format!("cannot be read: {errno}"),
        };
        if path.is_empty() {
            let stat = At::fd(self.compare.diff).stat().map_err(missing)?;
            return Ok((stat, true));
        }
        let (parent, last) = split(path);
        let known = self
            .parent
            .as_ref()
            .is_some_and(|(known, ..)| known == parent);
        if !known {
            let diff = self.compare.diff;
            let (dir, plain) = match open_beneath(diff, parent, DIR, ResolveFlags::NO_SYMLINKS) {
                Err(Errno::LOOP) => (open_in(diff, parent, DIR), false),
                other => (other, true),
            };
            self.parent = Some((parent.to_vec(), dir.map_err(missing)?, plain));
        }
        let Some((_, dir, plain)) = &self.parent else {
            return Err("is missing".to_owned());
        };
        let stat = At::new(dir.as_fd(), last).stat().map_err(missing)?;
        Ok((stat, *plain))
    }

    /// Returns the file whose attributes were read last.
    fn at<'p>(&'p self, path: &'p [u8]) -> At<'p> {
        match &self.parent {
            Some((_, dir, _)) if !path.is_empty() => At::new(dir.as_fd(), split(path).1),
            _ => At::fd(self.compare.diff),
        }
    }

    fn path(&mut self, want: &Want, has_below: bool) -> Found<()> {
        let path = want.path.as_slice();
        let Some(node) = &want.node else {
            // A directory that exists only because of its opaque marker counts too.
            return self.whiteout(path, has_below || want.opaque);
        };
        let (stat, plain) = match self.stat(path) {
            // Earlier versions did not unpack such a file. If it was unpacked, its content is
            // checked when the tar is rebuilt.
            Err(_) if is_below_note(path) => return Ok(()),
            other => other?,
        };
        if !plain {
            self.elsewhere.push(stat.ino);
        }
        if node.kind == EntryKind::HardLink {
            let target = self.stat(&node.link);
            let same = target.is_ok_and(|(t, _)| (t.ino, t.dev) == (stat.ino, stat.dev));
            let link = excerpt(&node.link);
            return if same {
                Ok(())
            } else {
                Err(format!("is not a hard link to {link} any more"))
            };
        }
        let mut wrong = Vec::new();
        let kind = kind_of(node.kind);
        if device_stand_in::is_for(self.at(path), &stat, node) {
            self.attributes(want, node, &stat, &mut wrong);
            return if wrong.is_empty() {
                Ok(())
            } else {
                Err(wrong.join(", "))
            };
        }
        if stat.kind != kind {
            return Err(format!("is a {}, not a {kind}", stat.kind));
        }
        if stat.nlink > 1 && kind != FileKind::Directory {
            self.linked.add(stat.ino);
        }
        self.content(path, node, &stat, &mut wrong);
        if !path.is_empty() || self.compare.root == RootDirectory::OfTar {
            self.attributes(want, node, &stat, &mut wrong);
            self.xattrs(path, node, &mut wrong);
        }
        let opaque = want.opaque
            || want.whiteout
            || node.may_be_opaque
            || self.opaque_elsewhere.binary_search(&stat.ino).is_ok();
        if kind == FileKind::Directory && !opaque {
            let markers = Markers::read(self.at(path), self.compare.dialect);
            if markers.is_ok_and(|markers| markers.opaque) {
                wrong.push("is opaque".to_owned());
            }
        }
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(wrong.join(", "))
        }
    }

    /// Compares length, symlink target and device number.
    fn content(&self, path: &[u8], node: &Node, stat: &Stat, wrong: &mut Vec<String>) {
        match node.kind {
            EntryKind::Regular if stat.size != node.size => {
                wrong.push(format!("has {} bytes, not {}", stat.size, node.size));
            }
            EntryKind::Symlink => match self.at(path).readlink() {
                Ok(target) if *target == *node.link => {}
                Ok(target) => wrong.push(format!(
                    "leads to {}, not to {}",
                    excerpt(&target),
                    excerpt(&node.link)
                )),
                Err(errno) => wrong.push(format!("cannot be read: {errno}")),
            },
            EntryKind::CharDevice | EntryKind::BlockDevice if stat.rdev != node.device => {
                let (is, not) = (stat.rdev, node.device);
                wrong.push(format!(
                    "is device {}:{}, not {}:{}",
                    is.0, is.1, not.0, not.1
                ));
            }
            _ => {}
        }
    }

    fn attributes(&self, want: &Want, node: &Node, stat: &Stat, wrong: &mut Vec<String>) {
        let (path, relinked) = (&want.path, &want.relinked);
        let want = &node.attributes;
        let or = relinked.as_ref().unwrap_or(want);
        let extra = match (self.compare.owners, node.kind) {
            (true, _) => 0,
            // Added permissions, so that the user can read and remove their own files.
            (false, EntryKind::Directory) => 0o700,
            (false, _) => 0o400,
        };
        let fits = |want: &Attributes| stat.perm == want.perm || stat.perm == want.perm | extra;
        if node.kind != EntryKind::Symlink && !fits(want) && !fits(or) {
            wrong.push(format!("has mode {:04o}, not {:04o}", stat.perm, want.perm));
        }
        let owned = |want: &Attributes| (stat.uid, stat.gid) == (want.uid, want.gid);
        if self.compare.owners && !owned(want) && !owned(or) {
            wrong.push(format!(
                "belongs to {}:{}, not {}:{}",
                stat.uid, stat.gid, want.uid, want.gid
            ));
        }
        let recorded = |want: &Attributes| At::is_recorded_as(want.uid, want.gid, want.perm);
        let is_plain = matches!(node.kind, EntryKind::Regular | EntryKind::Directory);
        // The root directory of a layer without an entry for it has a record too.
        if !self.compare.owners
            && is_plain
            && let Ok(Some(record)) = self.at(path).containers_record()
            && !recorded(want)(&record)
            && !recorded(or)(&record)
        {
            let record = excerpt(&record);
            wrong.push(format!("has another recorded owner or mode: {record}"));
        }
        // Docker makes the layer's root again after unpacking.
        let timed = path.is_empty() || same_time(stat.mtime, want.mtime);
        if !timed && !same_time(stat.mtime, or.mtime) {
            let text = |t: Time| format!("{}.{:09}", { t.sec }, t.nsec);
            wrong.push(format!(
                "was changed at {}, not {}",
                text(stat.mtime),
                text(want.mtime)
            ));
        }
    }

    fn xattrs(&self, path: &[u8], node: &Node, wrong: &mut Vec<String>) {
        let at = self.at(path);
        for (name, value) in &node.xattrs {
            // A plain user cannot set these; security labels of this host do not belong to the
            // image.
            let free = name.starts_with(b"user.") || self.compare.owners;
            let label = [&b"security.selinux"[..], b"security.evm", b"security.ima"];
            let reserved = !self.compare.owners && is_reserved(name);
            if is_marker_xattr(name) || !free || reserved || label.contains(&name.as_slice()) {
                continue;
            }
            let Ok(c_name) = CString::new(name.as_slice()) else {
                continue;
            };
            // The kernel returns ACLs in its own form, or as a mode.
            let acl = name.starts_with(b"system.");
            match at.xattr_raw(&c_name) {
                Ok(found) if acl || value_of(&found) == *value => {}
                Err(_) if acl => {}
                // The file system, or this type of file, does not support the xattr either.
                Err(Errno::OPNOTSUPP | Errno::PERM) => {}
                Err(Errno::NODATA) if name.starts_with(b"user.") && !user_xattrs(node.kind) => {}
                // Docker and podman drop an xattr with an empty value; containerd and this program
                // set it.
                Err(Errno::NODATA) if value.is_empty() => {}
                Ok(_) => wrong.push(format!("has another xattr {}", excerpt(name))),
                Err(Errno::NODATA) => wrong.push(format!("has no xattr {}", excerpt(name))),
                Err(errno) => wrong.push(format!("has an unreadable xattr: {errno}")),
            }
        }
        let Ok(list) = at.list_xattrs() else { return };
        for name in list.split(|&b| b == 0).filter(|name| !name.is_empty()) {
            if !self.compare.owners && is_reserved(name) {
                continue;
            }
            let kept = name.starts_with(b"user.") || name == b"security.capability";
            if kept && !is_marker_xattr(name) && !node.xattrs.iter().any(|(known, _)| known == name)
            {
                wrong.push(format!("has an xattr {}", excerpt(name)));
            }
        }
    }

    fn whiteout(&mut self, path: &[u8], has_below: bool) -> Found<()> {
        let gone = || "was a whiteout, which is missing".to_owned();
        match self.stat(path) {
            Ok((stat, plain)) if stat.is_chardev_whiteout() => {
                if !plain {
                    self.elsewhere.push(stat.ino);
                }
                Ok(())
            }
            // The whiteout only hides the lower content of a directory that other entries have
            // made.
            Ok((stat, _)) if stat.kind == FileKind::Directory && has_below => Ok(()),
            // A whiteout further up hides the path, and nothing is made below a whiteout.
            Err(_) if is_whited_out(self.compare.diff, self.compare.dialect, split(path).0) => {
                Ok(())
            }
            Ok((stat, _)) => Err(format!("is a {}, not a whiteout", stat.kind)),
            Err(_) if self.compare.dialect.wh_names => {
                let (parent, last) = split(path);
                let name = [WH_PREFIX, last].concat();
                let file = if parent.is_empty() {
                    name
                } else {
                    [parent, &name].join(&b'/')
                };
                self.stat(&file).map(drop).map_err(|_| gone())
            }
            Err(_) => Err(gone()),
        }
    }

    /// Finds the opaque directories that the tar reaches through symlinks.
    fn find_opaque(&mut self, expected: &mut ExpectedEntries<'_>) -> Result<(), Error> {
        let diff = self.compare.diff;
        while let Some(want) = expected.current() {
            if want.opaque
                && open_beneath(diff, &want.path, DIR, ResolveFlags::NO_SYMLINKS)
                    .is_err_and(|errno| errno == Errno::LOOP)
                && let Ok(dir) = open_in(diff, &want.path, DIR)
                && let Ok(stat) = At::fd(dir.as_fd()).stat()
            {
                self.opaque_elsewhere.push(stat.ino);
                self.is_within_bounds()?;
            }
            expected.advance()?;
        }
        self.opaque_elsewhere.sort_unstable();
        expected.again()
    }

    fn opaque(&mut self, path: &[u8]) {
        if let Ok((stat, _)) = self.stat(path)
            && stat.kind == FileKind::Symlink
            && let Ok(dir) = open_in(self.compare.diff, path, DIR)
        {
            let markers = Markers::read(At::fd(dir.as_fd()), self.compare.dialect);
            if !markers.is_ok_and(|markers| markers.opaque) {
                self.damage(path, "is not opaque any more".to_owned());
            }
            return;
        }
        // A missing directory may have been reported already; it may also exist only because of
        // other entries.
        if !matches!(self.stat(path), Ok((stat, _)) if stat.kind == FileKind::Directory) {
            return self.damage(path, "was an opaque directory, which is missing".to_owned());
        }
        let marked = Markers::read(self.at(path), self.compare.dialect);
        let file = [path, b"/", WH_OPAQUE].concat();
        let by_file = self.compare.dialect.wh_names && self.stat(&file).is_ok();
        if !marked.is_ok_and(|markers| markers.opaque) && !by_file {
            self.damage(path, "is not opaque any more".to_owned());
        }
    }

    /// Finds separate files of the tar that are one file in the directory.
    fn linked_twice(&mut self, expected: &mut ExpectedEntries<'_>) -> Result<(), Error> {
        let mut first = self.linked.twice()?;
        if first.is_empty() {
            return Ok(());
        }
        expected.again()?;
        while let Some(want) = expected.current() {
            let is_file =
                |node: &Node| !matches!(node.kind, EntryKind::HardLink | EntryKind::Directory);
            if want.node.as_ref().is_some_and(is_file)
                && let Ok((stat, _)) = self.stat(&want.path)
                && let Some(path) = first.get_mut(&stat.ino)
            {
                match path {
                    None => *path = Some(want.path.clone()),
                    Some(path) => {
                        let what = format!("is a hard link to {}", excerpt(path));
                        self.damage(&want.path, what);
                    }
                }
            }
            expected.advance()?;
        }
        Ok(())
    }
}

fn user_xattrs(kind: EntryKind) -> bool {
    matches!(kind, EntryKind::Regular | EntryKind::Directory)
}

fn kind_of(kind: EntryKind) -> FileKind {
    match kind {
        EntryKind::Regular | EntryKind::HardLink | EntryKind::Global => FileKind::Regular,
        EntryKind::Symlink => FileKind::Symlink,
        EntryKind::CharDevice => FileKind::CharDevice,
        EntryKind::BlockDevice => FileKind::BlockDevice,
        EntryKind::Directory => FileKind::Directory,
        EntryKind::Fifo => FileKind::Fifo,
    }
}

/// Whether a file's time is that of the tar, as far as a file system can hold it. Times before 1970
/// and far in the future become the epoch with Docker, and the nearest possible time elsewhere.
fn same_time(found: Time, want: Time) -> bool {
    // The limit of ext4 is the year 2446; that of Docker is the range of nanoseconds in 63 bits.
    const LAST: i64 = (1 << 34) - (1 << 31);
    found == want
        || (want.sec < 0 && (found == Time::default() || found.sec >= -(1 << 31) && found.sec <= 0))
        || (want.sec >= i64::MAX / 1_000_000_000 || want.sec >= LAST)
        // ext4 with small inodes does not store fractions.
        || (found.sec == want.sec && found.nsec == 0)
}
