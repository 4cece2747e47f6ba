//! Are a layer's files what the headers of its tar say, and are there no others? Called by
//! `verify`, after `check` has looked at their content.
//!
//! What differs without damage is allowed for: a plain user's store has no owners and adds
//! permissions for him, times that a file system cannot hold, the two ways in which Docker
//! and we unpack hard links whose headers contradict each other.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::io::BufRead;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Dir, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::error::TarError;
use super::expected::{Attributes, Expected, Node, Want};
use super::header::Kind;
use super::place::{DIR, open_beneath, open_in, split};
use super::rebuild::Damage;
use crate::layer::Dialect;
use crate::layer::at::{At, Stat, is_valid_name};
use crate::layer::markers::{Markers, WH_OPAQUE, WH_PREFIX, is_marker_xattr};
use crate::layer::types::{FileKind, Time};
use crate::store::error::excerpt;

/// What is known of a layer directory.
#[derive(Clone, Copy, Debug)]
pub struct Compare<'d> {
    /// The directory.
    pub diff: BorrowedFd<'d>,
    /// Its markers.
    pub dialect: Dialect,
    /// Whether files have the owners of the tar: in root's stores.
    pub owners: bool,
}

impl Compare<'_> {
    /// Compares every file with the headers that `split` (lines, not compressed) has. Gives
    /// the layer's size as Docker counts it: bytes of everything but directories, each inode
    /// once.
    ///
    /// # Errors
    /// For headers that cannot be read, and directories that cannot be listed.
    pub fn run(
        &self,
        split: impl BufRead,
        damaged: &mut dyn FnMut(Damage),
    ) -> crate::store::Result<u64> {
        let expected = Expected::read(split)?;
        let mut run = Run {
            compare: *self,
            expected: &expected,
            parent: None,
            elsewhere: HashSet::new(),
            linked: HashMap::new(),
            damaged,
        };
        for (path, want) in &expected.paths {
            if let Err(what) = run.path(path, want) {
                run.damage(path, what);
            }
        }
        for path in &expected.opaque {
            run.opaque(path);
        }
        Ok(run.others()?)
    }
}

type Found<T> = Result<T, String>;

struct Run<'r, 'd> {
    compare: Compare<'d>,
    expected: &'r Expected,
    /// The directory used last; whether it was found without symlinks.
    parent: Option<(Vec<u8>, OwnedFd, bool)>,
    /// Inodes of files that are in the tar under a path that leads through a symlink.
    elsewhere: HashSet<u64>,
    /// Files with several names: under which one each is in the tar.
    linked: HashMap<u64, &'r [u8]>,
    damaged: &'r mut dyn FnMut(Damage),
}

impl<'r> Run<'r, '_> {
    fn damage(&mut self, path: &[u8], what: String) {
        (self.damaged)(Damage {
            path: path.to_vec(),
            what,
        });
    }

    /// Looks at what is at a path.
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

    /// The file that was looked at last.
    fn at(&self, path: &'r [u8]) -> At<'_> {
        match &self.parent {
            Some((_, dir, _)) if !path.is_empty() => At::new(dir.as_fd(), split(path).1),
            _ => At::fd(self.compare.diff),
        }
    }

    fn path(&mut self, path: &'r [u8], want: &'r Want) -> Found<()> {
        let Some(node) = &want.node else {
            return self.whiteout(path);
        };
        let (stat, plain) = self.stat(path)?;
        if !plain {
            self.elsewhere.insert(stat.ino);
        }
        if node.kind == Kind::HardLink {
            let target = self.stat(&node.link);
            let same = target.is_ok_and(|(t, _)| (t.ino, t.dev) == (stat.ino, stat.dev));
            let link = excerpt(&node.link);
            return match same {
                true => Ok(()),
                false => Err(format!("is no hard link to {link} any more")),
            };
        }
        let mut wrong = Vec::new();
        let kind = kind_of(node.kind);
        if stat.kind != kind {
            return Err(format!("is a {}, not a {kind}", stat.kind));
        }
        if stat.nlink > 1 && kind != FileKind::Directory {
            let other = *self.linked.entry(stat.ino).or_insert(path);
            if other != path {
                wrong.push(format!("is a hard link to {}", excerpt(other)));
            }
        }
        self.content(path, node, &stat, &mut wrong);
        self.attributes(path, node, &stat, &mut wrong);
        self.xattrs(path, node, &mut wrong);
        if kind == FileKind::Directory && !self.expected.opaque.contains(path) && !want.whiteout {
            let markers = Markers::read(self.at(path), self.compare.dialect);
            if markers.is_ok_and(|markers| markers.opaque) {
                wrong.push("is opaque".to_owned());
            }
        }
        match wrong.is_empty() {
            true => Ok(()),
            false => Err(wrong.join(", ")),
        }
    }

    /// Length, target, device number.
    fn content(&self, path: &'r [u8], node: &Node, stat: &Stat, wrong: &mut Vec<String>) {
        match node.kind {
            Kind::Regular if stat.size != node.size => {
                wrong.push(format!("has {} bytes, not {}", stat.size, node.size));
            }
            Kind::Symlink => match self.at(path).readlink() {
                Ok(target) if *target == *node.link => {}
                Ok(target) => wrong.push(format!(
                    "leads to {}, not to {}",
                    excerpt(&target),
                    excerpt(&node.link)
                )),
                Err(errno) => wrong.push(format!("cannot be read: {errno}")),
            },
            Kind::CharDevice | Kind::BlockDevice if stat.rdev != node.device => {
                let (is, not) = (stat.rdev, node.device);
                wrong.push(format!(
                    "is device {}:{}, not {}:{}",
                    is.0, is.1, not.0, not.1
                ));
            }
            _ => {}
        }
    }

    fn attributes(&self, path: &[u8], node: &Node, stat: &Stat, wrong: &mut Vec<String>) {
        let want = &node.attributes;
        let or = self.expected.relinked.get(path).unwrap_or(want);
        let extra = match (self.compare.owners, node.kind) {
            (true, _) => 0,
            // So that he can read and remove what is his.
            (false, Kind::Directory) => 0o700,
            (false, _) => 0o400,
        };
        let fits = |want: &Attributes| stat.perm == want.perm || stat.perm == want.perm | extra;
        if node.kind != Kind::Symlink && !fits(want) && !fits(or) {
            wrong.push(format!("has mode {:04o}, not {:04o}", stat.perm, want.perm));
        }
        let owned = |want: &Attributes| (stat.uid, stat.gid) == (want.uid, want.gid);
        if self.compare.owners && !owned(want) && !owned(or) {
            wrong.push(format!(
                "belongs to {}:{}, not {}:{}",
                stat.uid, stat.gid, want.uid, want.gid
            ));
        }
        // Docker makes the layer's root anew when it has unpacked it.
        let timed = path.is_empty() || same_time(stat.mtime, want.mtime);
        if !timed && !same_time(stat.mtime, or.mtime) {
            let text = |t: Time| format!("{}.{:09}", t.sec, t.nsec);
            wrong.push(format!(
                "was changed at {}, not {}",
                text(stat.mtime),
                text(want.mtime)
            ));
        }
    }

    fn xattrs(&self, path: &'r [u8], node: &Node, wrong: &mut Vec<String>) {
        let at = self.at(path);
        for (name, value) in &node.xattrs {
            // A plain user has none of these; labels of this host are none of the image's.
            let free = name.starts_with(b"user.") || self.compare.owners;
            let label = [&b"security.selinux"[..], b"security.evm", b"security.ima"];
            if is_marker_xattr(name) || !free || label.contains(&name.as_slice()) {
                continue;
            }
            let Ok(c_name) = CString::new(name.as_slice()) else {
                continue;
            };
            // ACLs come back in the kernel's own form, or as a mode.
            let acl = name.starts_with(b"system.");
            match at.xattr_raw(&c_name) {
                Ok(found) if acl || found == *value => {}
                Err(_) if acl => {}
                // Nor can the file system, or this kind of file, have it.
                Err(Errno::OPNOTSUPP | Errno::PERM) => {}
                Err(Errno::NODATA) if name.starts_with(b"user.") && !user_xattrs(node.kind) => {}
                Ok(_) => wrong.push(format!("has another xattr {}", excerpt(name))),
                Err(Errno::NODATA) => wrong.push(format!("has no xattr {}", excerpt(name))),
                Err(errno) => wrong.push(format!("has an unreadable xattr: {errno}")),
            }
        }
        let Ok(list) = at.list_xattrs() else { return };
        for name in list.split(|&b| b == 0).filter(|name| !name.is_empty()) {
            let kept = name.starts_with(b"user.") || name == b"security.capability";
            if kept && !is_marker_xattr(name) && !node.xattrs.iter().any(|(known, _)| known == name)
            {
                wrong.push(format!("has an xattr {}", excerpt(name)));
            }
        }
    }

    fn whiteout(&mut self, path: &'r [u8]) -> Found<()> {
        let gone = || "was a whiteout, which is missing".to_owned();
        match self.stat(path) {
            Ok((stat, _)) if stat.is_chardev_whiteout() => Ok(()),
            // It hides what is below a directory that others' paths made.
            Ok((stat, _)) if stat.kind == FileKind::Directory && self.expected.has_below(path) => {
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

    fn opaque(&mut self, path: &'r [u8]) {
        // One that is missing was told already, or is made for others' sake.
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

    /// Finds what the tar has not; the size of everything.
    fn others(&mut self) -> Result<u64, TarError> {
        let mut linked = HashSet::new();
        let mut todo = vec![Vec::new()];
        let mut sum = 0u64;
        while let Some(dir_path) = todo.pop() {
            let failed = |errno| TarError::place(&dir_path, "list the directory", errno);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            let dir = open_in(self.compare.diff, &dir_path, flags).map_err(failed)?;
            for name in names(dir.as_fd()).map_err(failed)? {
                let stat = At::new(dir.as_fd(), &name).stat().map_err(failed)?;
                let path = match dir_path.as_slice() {
                    b"" => name.clone(),
                    above => [above, &name].join(&b'/'),
                };
                if !self.is_expected(&path, &name, &stat) {
                    self.damage(&path, "is not in the layer's tar".to_owned());
                }
                if stat.kind == FileKind::Directory {
                    todo.push(path);
                } else if stat.nlink == 1 || linked.insert(stat.ino) {
                    sum = sum.saturating_add(stat.size);
                }
            }
        }
        Ok(sum)
    }

    fn is_expected(&self, path: &[u8], name: &[u8], stat: &Stat) -> bool {
        if self.expected.paths.contains_key(path) || self.elsewhere.contains(&stat.ino) {
            return true;
        }
        let (parent, _) = split(path);
        if stat.kind == FileKind::Directory {
            let opaque = || self.expected.opaque.contains(path);
            // Also made on the way to a path through a symlink.
            return self.expected.has_below(path) || opaque() || !self.elsewhere.is_empty();
        }
        if !self.compare.dialect.wh_names {
            return false;
        }
        if name == WH_OPAQUE {
            return self.expected.opaque.contains(parent);
        }
        name.strip_prefix(WH_PREFIX).is_some_and(|hidden| {
            let hidden = match parent {
                b"" => hidden.to_vec(),
                parent => [parent, hidden].join(&b'/'),
            };
            self.expected
                .paths
                .get(&hidden)
                .is_some_and(|want| want.whiteout)
        })
    }
}

fn user_xattrs(kind: Kind) -> bool {
    matches!(kind, Kind::Regular | Kind::Directory)
}

fn kind_of(kind: Kind) -> FileKind {
    match kind {
        Kind::Regular | Kind::HardLink | Kind::Global => FileKind::Regular,
        Kind::Symlink => FileKind::Symlink,
        Kind::CharDevice => FileKind::CharDevice,
        Kind::BlockDevice => FileKind::BlockDevice,
        Kind::Directory => FileKind::Directory,
        Kind::Fifo => FileKind::Fifo,
    }
}

/// Whether a file's time is the one of the tar, as far as a file system can have that:
/// those before 1970 and far ahead are the epoch with Docker and what fits elsewhere.
fn same_time(found: Time, want: Time) -> bool {
    // Of ext4, the year 2446; Docker takes nanoseconds that fit 63 bits.
    const LAST: i64 = (1 << 34) - (1 << 31);
    found == want
        || (want.sec < 0 && (found == Time::default() || found.sec >= -(1 << 31) && found.sec <= 0))
        || (want.sec >= i64::MAX / 1_000_000_000 || want.sec >= LAST)
        // ext4 with small inodes has no fractions.
        || (found.sec == want.sec && found.nsec == 0)
}

fn names(dir: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if is_valid_name(&name) {
            names.push(name);
        }
    }
    Ok(names)
}
