//! The requests that answer with entries: lookup, creation, rename and directory listing.
//! Called by `adapter`. An entry's lookup count goes to the kernel with the reply that
//! carries it, and back to the union (by drop) when the entry did not fit.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use fuser::{
    FileType, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    Request,
};

use super::Adapter;
use crate::fuse::convert::{self, FOREVER, caller};
use crate::fuse::counters::Op;
use crate::fuse::reply::{self, Reply};
use crate::union::DirItem;

impl Adapter {
    pub(super) fn lookup_name(&self, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.count(Op::Lookup);
        match self.union.lookup(parent.0, name.as_bytes()) {
            Ok(Some(entry)) => reply::entry(reply, Op::Lookup, parent.0, Ok(entry)),
            // Inode 0 and a validity: the kernel remembers that there is no such name.
            Ok(None) => {
                let none = convert::no_attr(FileType::RegularFile);
                reply.entry(&FOREVER, &none, Generation(0));
            }
            Err(error) => reply.fail(Op::Lookup, parent.0, &error),
        }
    }

    pub(super) fn make_node(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        (mode, umask, rdev): (u32, u32, u32),
        reply: ReplyEntry,
    ) {
        self.count(Op::MkNod);
        let rdev = convert::decode_dev(rdev);
        let name = name.as_bytes();
        let result = self
            .union
            .mknod(&caller(req), parent.0, name, mode, umask, rdev);
        reply::entry(reply, Op::MkNod, parent.0, result);
    }

    pub(super) fn make_dir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        (mode, umask): (u32, u32),
        reply: ReplyEntry,
    ) {
        self.count(Op::MkDir);
        let name = name.as_bytes();
        let result = self
            .union
            .mkdir(&caller(req), parent.0, name, mode & 0o7777, umask);
        reply::entry(reply, Op::MkDir, parent.0, result);
    }

    pub(super) fn make_symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        self.count(Op::SymLink);
        let (name, target) = (name.as_bytes(), target.as_os_str().as_bytes());
        let result = self.union.symlink(&caller(req), parent.0, name, target);
        reply::entry(reply, Op::SymLink, parent.0, result);
    }

    pub(super) fn rename_name(
        &self,
        (parent, name): (INodeNo, &OsStr),
        (new_parent, new_name): (INodeNo, &OsStr),
        flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.count(Op::Rename);
        let (name, new_name) = (name.as_bytes().to_vec(), new_name.as_bytes().to_vec());
        let flags = convert::rename_flags(flags);
        let slow = self.union.needs_copy_up_name(parent.0, &name)
            || flags.exchange && self.union.needs_copy_up_name(new_parent.0, &new_name);
        self.run(slow, move |union| {
            let result = union.rename(parent.0, &name, new_parent.0, &new_name, flags);
            reply::empty(reply, Op::Rename, parent.0, result);
        });
    }

    pub(super) fn link_name(
        &self,
        ino: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        self.count(Op::Link);
        let new_name = new_name.as_bytes().to_vec();
        self.modify(ino, move |union| {
            let result = union.link(ino.0, new_parent.0, &new_name);
            reply::entry(reply, Op::Link, new_parent.0, result);
        });
    }

    pub(super) fn list(&self, ino: INodeNo, offset: u64, mut reply: ReplyDirectory) {
        self.count(Op::ReadDir);
        let result = self.union.readdir(ino.0, offset, false, &mut |item| {
            let name = OsStr::from_bytes(item.name);
            !reply.add(
                INodeNo(item.ino),
                item.offset,
                convert::kind(item.kind),
                name,
            )
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.fail(Op::ReadDir, ino.0, &error),
        }
    }

    pub(super) fn list_plus(&self, ino: INodeNo, offset: u64, mut reply: ReplyDirectoryPlus) {
        self.count(Op::ReadDirPlus);
        let mut added = 0u32;
        let result = self.union.readdir(ino.0, offset, true, &mut |item| {
            let fits = add_plus(&mut reply, item);
            added += u32::from(fits);
            fits
        });
        match result {
            // Entries already counted must reach the kernel; it meets the error next time.
            Err(error) if added == 0 => reply.fail(Op::ReadDirPlus, ino.0, &error),
            _ => reply.ok(),
        }
    }
}

/// `false`: the entry did not fit, and its count was given back.
fn add_plus(reply: &mut ReplyDirectoryPlus, item: DirItem<'_, '_>) -> bool {
    let name = OsStr::from_bytes(item.name);
    let (attr, generation) = match &item.entry {
        Some(entry) => (convert::attr(entry.attr()), entry.generation()),
        // `.` and `..` with their inode number: the kernel neither links nor counts them.
        // Other names only without one: a number would count as a lookup.
        None => {
            let mut attr = convert::no_attr(convert::kind(item.kind));
            if matches!(item.name, b"." | b"..") {
                attr.ino = INodeNo(item.ino);
            }
            (attr, 0)
        }
    };
    let full = reply.add(
        attr.ino,
        item.offset,
        name,
        &FOREVER,
        &attr,
        Generation(generation),
    );
    if !full && let Some(entry) = item.entry {
        entry.surrender();
    }
    !full
}
