//! Creates files: mknod, mkdir, symlink, O_TMPFILE.
//!
//! A new file is created in place when one system call gives it its final owner and mode and the
//! name has no whiteout. Otherwise it is staged in the work directory, completed, and moved to its
//! name.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;

use super::error::Result;
use super::inode::{Dir, Inode, Loc, UpperState};
use super::link::in_lower_after;
use super::lookup::EntryRef;
use super::names::NameIn;
use super::orphans::Keep;
use super::owners::Owners;
use super::protect::check_extensible;
use super::remove::clear_wh_name;
use super::resolve::{Resolved, UpperFound, WhiteoutKind};
use super::stack::Stack;
use super::types::{Caller, FileKind, Ino};
use super::upper::{Owner, StagedFile, Upper, make_mark};
use super::wh_files::allow_wh_name;
use super::{Union, acl, listings};
use crate::layer::Records;
use crate::layer::at::{At, Stat, is_valid_name};
use crate::layer::markers::{Marker, Protection};

/// The file to be created.
struct New<'a> {
    kind: FileKind,
    /// The permission bits, before the umask.
    mode: u32,
    umask: u32,
    rdev: (u32, u32),
    target: &'a [u8],
}

/// Owner and permissions of the new file.
struct Owned {
    owner: Owner,
    perm: u32,
    access: Option<Vec<u8>>,
    default: Option<Vec<u8>>,
}

impl Union {
    /// Creates a file of any kind but a directory or a symlink. `mode` has S_IFMT and the
    /// permission bits, before the umask.
    ///
    /// # Errors
    /// EEXIST, EROFS without an upper, EPERM for a character device 0:0 (a whiteout; overlayfs
    /// answers the same), EINVAL for other types, EOVERFLOW for a caller outside of the mapping of
    /// owners; else those of the upper's file system.
    pub fn mknod(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        umask: u32,
        rdev: (u32, u32),
    ) -> Result<EntryRef<'_>> {
        let kind = match FileKind::from_mode(mode) {
            None if mode & 0o170000 == 0 => FileKind::Regular,
            None | Some(FileKind::Directory | FileKind::Symlink) => return Err(Errno::INVAL.into()),
            Some(kind) => kind,
        };
        if kind == FileKind::CharDevice && rdev == (0, 0) {
            return Err(Errno::PERM.into());
        }
        let new = New {
            kind,
            mode: mode & 0o7777,
            umask,
            rdev,
            target: b"",
        };
        self.create_name(caller, parent, name, &new)
    }

    /// Creates a directory. `mode` has the permission bits, before the umask.
    ///
    /// # Errors
    /// EEXIST, EROFS without an upper, EOVERFLOW for a caller outside of the mapping of owners; else
    /// those of the upper's file system.
    pub fn mkdir(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        umask: u32,
    ) -> Result<EntryRef<'_>> {
        let kind = FileKind::Directory;
        let new = New {
            kind,
            mode: mode & 0o1777,
            umask,
            rdev: (0, 0),
            target: b"",
        };
        self.create_name(caller, parent, name, &new)
    }

    /// Creates a symlink to `target`, which may contain any bytes but NUL.
    ///
    /// # Errors
    /// EEXIST, EROFS without an upper, EOVERFLOW for a caller outside of the mapping of owners; else
    /// those of the upper's file system.
    pub fn symlink(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        target: &[u8],
    ) -> Result<EntryRef<'_>> {
        let kind = FileKind::Symlink;
        let new = New {
            kind,
            mode: 0o777,
            umask: 0,
            rdev: (0, 0),
            target,
        };
        self.create_name(caller, parent, name, &new)
    }

    /// Creates an unnamed file in `parent` (O_TMPFILE), which `link` can name later.
    ///
    /// # Errors
    /// EROFS without an upper, EOPNOTSUPP if its file system has no O_TMPFILE.
    pub fn tmpfile(
        &self,
        caller: &Caller,
        parent: Ino,
        mode: u32,
        umask: u32,
    ) -> Result<EntryRef<'_>> {
        let upper = self.stack.writable()?;
        let caller = &self.stack.owners().creator(caller, upper.own_ids)?;
        let parent = self.names.directory(parent)?;
        check_extensible(&self.stack, &parent)?;
        self.copying().copy_up(&parent)?;
        let new = New {
            kind: FileKind::Regular,
            mode,
            umask,
            rdev: (0, 0),
            target: b"",
        };
        let owned = owner_and_mode(&self.stack, caller, &parent, &new)?;
        let (staged, fd) = upper.stage_file(0o600)?;
        // A staged file with a name could not be linked once that name is removed.
        if let StagedFile::Named(_) = staged {
            return Err(Errno::OPNOTSUPP.into());
        }
        let at = At::opened(fd.as_fd()).recorded_as(upper.records());
        settle(self.stack.owners(), at, &new, &owned)?;
        let stat = at.stat()?;
        let state = UpperState {
            id: (stat.dev, stat.ino),
            origin: false,
            metacopy: None,
        };
        let mut loc = Loc {
            upper: Some(Box::new(state)),
            ..Loc::default()
        };
        let mut keep = self.orphans.keep_unnamed(upper, fd)?;
        if let Keep::Parked(parked) = &mut keep {
            parked.linkable = true;
        }
        loc.set_kept(keep);
        let inode = self.names.add_unnamed(&stat, loc).ok_or(Errno::STALE)?;
        let attr = super::attr::attr(self.stack.owners(), &inode, &inode.loc.read(), &stat);
        Ok(EntryRef::new(&self.names, attr))
    }

    fn create_name(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        new: &New<'_>,
    ) -> Result<EntryRef<'_>> {
        let parent = self.names.directory(parent)?;
        let upper = self.stack.writable()?;
        let caller = &self.stack.owners().creator(caller, upper.own_ids)?;
        check_new_name(&self.stack, upper, name)?;
        check_extensible(&self.stack, &parent)?;
        self.copying().copy_up(&parent)?;
        let dir = parent.dir.as_ref().ok_or(Errno::NOTDIR)?;
        let names = dir.change_names();
        if names.dead {
            return Err(Errno::NOENT.into());
        }
        let whiteout = self.lookups().whiteout_at(&parent, name)?;
        allow_wh_name(&self.stack, &self.names, &parent, name)?;
        let fd = self.stack.upper_dir(&parent)?;
        let at = At::new(fd.as_fd(), name).recorded_as(upper.records());
        let mut open = None;
        match whiteout {
            None if can_be_in_place(&self.stack, upper, caller, &parent)? => {
                let mode = match default_acl(&self.stack, &parent)? {
                    Some(_) => new.mode,
                    None => new.mode & !new.umask,
                };
                open = make_open(at, new, mode)?;
                if new.kind == FileKind::Directory && !dir.lowers.is_empty() {
                    // The marker only avoids reading the lowers, which have no such directory. The
                    // new directory is correct without it.
                    if let Err(error) = upper.mark_opaque(at) {
                        tracing::debug!(%error, "a new directory is not marked opaque");
                    }
                }
            }
            _ => {
                let owned = owner_and_mode(&self.stack, caller, &parent, new)?;
                create_staged(&self.stack, dir, at, whiteout, new, &owned)?;
            }
        }
        let stat = match &open {
            Some(file) => At::fd(file.as_fd()).recorded_like(at).stat()?,
            None => at.stat()?,
        };
        let at = NameIn {
            parent: &parent,
            name,
        };
        self.created(at, stat, open, in_lower_after(whiteout))
    }

    /// Registers a name that has been created in the upper, and the descriptor of a file. The
    /// caller holds the name lock. `in_lower` is [`super::inode::Link::in_lower`].
    fn created(
        &self,
        at: NameIn<'_>,
        stat: Stat,
        open: Option<OwnedFd>,
        in_lower: Option<bool>,
    ) -> Result<EntryRef<'_>> {
        let upper = UpperFound {
            protection: Some(Protection::NONE),
            in_lower,
            ..UpperFound::new(stat)
        };
        let ino = self.names.numbers().number(&stat);
        let resolved = Arc::new(Resolved::in_upper(stat.kind, upper, ino));
        self.names.remember(at.parent, at.name, &resolved);
        self.names.created(ino, stat.btime);
        let inode = self.names.intern(at, &resolved);
        listings::add(at.parent, at.name, stat.kind, inode.ino);
        inode.capability.set(false);
        if let Some(fd) = open {
            // A new file is usually written next.
            self.stack.put_data(&inode, fd);
        }
        let attr = super::attr::attr(self.stack.owners(), &inode, &inode.loc.read(), &stat);
        Ok(EntryRef::new(&self.names, attr))
    }
}

/// Checks a name that is to be created in the upper.
///
/// # Errors
/// EINVAL for a name with `/`, and for `.wh.` names that cannot be told from whiteouts
/// (fuse-overlayfs returns the same); ENAMETOOLONG.
pub(crate) fn check_new_name(stack: &Stack, upper: &Upper, name: &[u8]) -> Result<()> {
    if !is_valid_name(name) {
        return Err(Errno::INVAL.into());
    }
    if name.len() > stack.name_max() {
        return Err(Errno::NAMETOOLONG.into());
    }
    if upper.needs_mark(name) && !upper.has_node_whiteouts() {
        return Err(Errno::INVAL.into());
    }
    Ok(())
}

/// Whether a file created directly in the parent gets the right owner and permissions.
fn can_be_in_place(stack: &Stack, upper: &Upper, caller: &Caller, parent: &Inode) -> Result<bool> {
    let own = upper.own_ids;
    // A new file gets its name together with its record.
    if upper.records() != Records::Ignored {
        return Ok(false);
    }
    if caller.uid != own.uid {
        return Ok(false);
    }
    if caller.gid != own.gid {
        let perm = stack.upper_stat(parent)?.perm;
        if perm & 0o2000 == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Creates a file in the work directory and moves it to `at` when it is complete.
fn create_staged(
    stack: &Stack,
    dir: &Dir,
    at: At<'_>,
    whiteout: Option<WhiteoutKind>,
    new: &New<'_>,
    owned: &Owned,
) -> Result<()> {
    let upper = stack.writable()?;
    let is_dir = new.kind == FileKind::Directory;
    // A file with another owner stays inaccessible to other users until the owner is set.
    let perm = if owned.owner == upper.own_ids {
        owned.perm
    } else {
        owned.perm & 0o700
    };
    let staged = upper.stage(|at| make(at, new, perm))?;
    settle(stack.owners(), staged.at(), new, owned)?;
    if is_dir && !dir.lowers.is_empty() {
        upper.mark_opaque(staged.at())?;
    }
    match whiteout {
        Some(WhiteoutKind::Node) if is_dir => staged.replace(at, None)?,
        Some(WhiteoutKind::Node) => staged.publish(at, RenameFlags::empty())?,
        None => staged.publish(at, RenameFlags::NOREPLACE)?,
        Some(WhiteoutKind::WhName) => {
            staged.publish(at, RenameFlags::NOREPLACE)?;
            clear_wh_name(at.dir, at.name)?;
        }
    }
    Ok(())
}

/// Returns the default ACL of a directory in the upper.
fn default_acl(stack: &Stack, parent: &Inode) -> Result<Option<Vec<u8>>> {
    let dir = parent.dir.as_ref().ok_or(Errno::NOTDIR)?;
    if dir.default_acl.get() == Some(false) {
        return Ok(None);
    }
    let acl = stack.with_upper(parent, |at| Ok(at.xattr(acl::DEFAULT)?))?;
    dir.default_acl.set(acl.is_some());
    Ok(acl)
}

/// Returns owner and permissions of a new file in a directory.
fn owner_and_mode(stack: &Stack, caller: &Caller, parent: &Inode, new: &New<'_>) -> Result<Owned> {
    let stat = stack.upper_stat(parent)?;
    let is_dir = new.kind == FileKind::Directory;
    let setgid = stat.perm & 0o2000 != 0;
    let default = match new.kind {
        FileKind::Symlink => None,
        _ => default_acl(stack, parent)?,
    };
    let inherited = default
        .as_deref()
        .and_then(|acl| acl::inherit(acl, new.mode));
    let (mut perm, access) = match inherited {
        Some(inherited) => (inherited.perm, inherited.access),
        None => (new.mode & !new.umask, None),
    };
    if is_dir && setgid {
        perm |= 0o2000;
    }
    let gid = if setgid { stat.gid } else { caller.gid };
    Ok(Owned {
        owner: Owner {
            uid: caller.uid,
            gid,
        },
        perm,
        access,
        default: default.filter(|_| is_dir),
    })
}

/// Creates the file system object.
fn make(at: At<'_>, new: &New<'_>, perm: u32) -> Result<(), Errno> {
    match new.kind {
        FileKind::Directory => at.mkdir(perm),
        FileKind::Symlink => at.symlink(new.target),
        kind => at.mknod(kind, perm, new.rdev),
    }
}

/// As [`make`]; a regular file is returned open for reading and writing.
fn make_open(at: At<'_>, new: &New<'_>, perm: u32) -> Result<Option<OwnedFd>, Errno> {
    if new.kind != FileKind::Regular {
        return make(at, new, perm).map(|()| None);
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
    match at.open(flags, perm) {
        // No descriptor is free. Creating the file needs none.
        Err(Errno::MFILE | Errno::NFILE) => make(at, new, perm).map(|()| None),
        other => other.map(Some),
    }
}

/// Sets owner, ACLs and permissions of a staged file.
fn settle(owners: &Owners, at: At<'_>, new: &New<'_>, owned: &Owned) -> Result<(), Errno> {
    let stat = at.stat()?;
    let is_owned = Owner::of(&stat) == owned.owner && !at.has_records();
    if !is_owned {
        owners.tolerate(at.chown(Some(owned.owner.uid), Some(owned.owner.gid)))?;
    }
    if new.kind == FileKind::Symlink {
        return Ok(());
    }
    if at.has_records() {
        return at.chmod(owned.perm);
    }
    if is_owned && stat.perm == owned.perm && owned.access.is_none() && owned.default.is_none() {
        return Ok(());
    }
    for (name, value) in [(acl::ACCESS, &owned.access), (acl::DEFAULT, &owned.default)] {
        if let Some(value) = value {
            at.set_xattr(name, value, XattrFlags::empty())?;
        }
    }
    at.chmod(owned.perm)
}

impl Upper {
    /// Marks a directory opaque: it hides the lower directories of its name.
    pub(crate) fn mark_opaque(&self, at: At<'_>) -> Result<(), Errno> {
        match self.markers.set(at, Marker::Opaque, b"y") {
            // The file system has no xattrs: use the AUFS form.
            Err(Errno::OPNOTSUPP | Errno::PERM) => {
                let dir = at.open_dir_path()?;
                make_mark(At::new(dir.as_fd(), crate::layer::markers::WH_OPAQUE))
            }
            other => other,
        }
    }
}
