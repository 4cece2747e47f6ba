//! The requests that answer with entries: lookup, creation, rename and directory listing.
//! Called by `adapter`. An entry's lookup count goes to the kernel with the reply that
//! carries it, and back to the union (by drop) when the entry did not fit.

use super::{Adapter, lifetime, with_buffer};
use crate::fuse::convert::{self, caller};
use crate::fuse::counters::Op;
use crate::fuse::reply;
use crate::fuse::wire::abi::EntryOut;
use crate::fuse::wire::{DirBuffer, Header, Reply};
use crate::union::{DirItem, EntryRef, Result};

impl Adapter {
    fn entry(&self, reply: Reply, result: Result<EntryRef<'_>>) {
        reply::entry(reply, result, |ino| self.lifetime(ino));
    }

    pub(super) fn lookup_name(&self, parent: u64, name: &[u8], reply: Reply) {
        self.count(Op::Lookup);
        // Not names but file handles: what the kernel wants to know of a node.
        if matches!(name, b"." | b"..") {
            return self.find(parent, name == b"..", reply);
        }
        match self.union.lookup(parent, name) {
            Ok(Some(entry)) => self.entry(reply, Ok(entry)),
            // Inode 0 and a validity: the kernel remembers that there is no such name.
            Ok(None) => {
                reply.message(&convert::no_entry());
            }
            Err(error) => reply::fail(reply, &error),
        }
    }

    /// The node itself, which the kernel may have forgotten, or its parent.
    fn find(&self, ino: u64, parent: bool, reply: Reply) {
        let opens = self.opens.clone();
        self.run(true, move |union| {
            let found = match parent {
                true => union.lookup_parent(ino),
                false => union.lookup_by_number(ino),
            };
            match found {
                // An old handle is nobody's fault, so nothing is logged.
                Err(error) if error.errno() == libc::ESTALE => reply.error(libc::ESTALE),
                found => reply::entry(reply, found, |ino| lifetime(opens.as_deref(), ino)),
            }
        });
    }

    pub(super) fn make_node(
        &self,
        header: &Header,
        name: &[u8],
        (mode, umask, rdev): (u32, u32, u32),
        reply: Reply,
    ) {
        self.count(Op::MkNod);
        let rdev = convert::decode_dev(rdev);
        let result = self
            .union
            .mknod(&caller(header), header.ino, name, mode, umask, rdev);
        self.entry(reply, result);
    }

    pub(super) fn make_dir(
        &self,
        header: &Header,
        name: &[u8],
        (mode, umask): (u32, u32),
        reply: Reply,
    ) {
        self.count(Op::MkDir);
        let result = self
            .union
            .mkdir(&caller(header), header.ino, name, mode & 0o7777, umask);
        self.entry(reply, result);
    }

    pub(super) fn make_symlink(&self, header: &Header, name: &[u8], target: &[u8], reply: Reply) {
        self.count(Op::SymLink);
        let result = self
            .union
            .symlink(&caller(header), header.ino, name, target);
        self.entry(reply, result);
    }

    pub(super) fn rename_name(
        &self,
        (parent, name): (u64, &[u8]),
        (new_parent, new_name): (u64, &[u8]),
        flags: u32,
        reply: Reply,
    ) {
        self.count(Op::Rename);
        let Some(flags) = convert::rename_flags(flags) else {
            return reply.error(libc::EINVAL);
        };
        let slow = self.union.needs_copy_up_name(parent, name)
            || flags.exchange && self.union.needs_copy_up_name(new_parent, new_name);
        let (name, new_name) = (name.to_vec(), new_name.to_vec());
        self.run(slow, move |union| {
            let result = union.rename(parent, &name, new_parent, &new_name, flags);
            reply::empty(reply, result);
        });
    }

    pub(super) fn link_name(&self, ino: u64, new_parent: u64, new_name: &[u8], reply: Reply) {
        self.count(Op::Link);
        let (new_name, opens) = (new_name.to_vec(), self.opens.clone());
        self.modify(ino, move |union| {
            let result = union.link(ino, new_parent, &new_name);
            let lifetime = |ino| lifetime(opens.as_deref(), ino);
            reply::entry(reply, result, lifetime);
        });
    }

    pub(super) fn list(&self, ino: u64, offset: u64, size: u32, reply: Reply) {
        self.count(Op::ReadDir);
        with_buffer(size, reply, |buffer, reply| {
            let mut list = DirBuffer::new(buffer);
            let result = self.union.readdir(ino, offset, false, &mut |item| {
                list.add(None, (item.ino, item.offset, item.kind as u32), item.name)
            });
            match result {
                Ok(()) => {
                    reply.bytes(list.bytes());
                }
                Err(error) => reply::fail(reply, &error),
            }
        });
    }

    pub(super) fn list_plus(&self, ino: u64, offset: u64, size: u32, reply: Reply) {
        self.count(Op::ReadDirPlus);
        with_buffer(size, reply, |buffer, reply| {
            let mut list = DirBuffer::new(buffer);
            let result = self.union.readdir(ino, offset, true, &mut |item| {
                add_plus(&mut list, item, |ino| self.lifetime(ino))
            });
            match result {
                // Entries already counted must reach the kernel; it meets the error next time.
                Err(error) if list.bytes().is_empty() => {
                    reply::fail(reply, &error);
                }
                _ => {
                    reply.bytes(list.bytes());
                }
            }
        });
    }
}

/// `false`: the entry did not fit, and its count was given back.
fn add_plus(
    list: &mut DirBuffer<'_>,
    item: DirItem<'_, '_>,
    lifetime: impl Fn(u64) -> u64,
) -> bool {
    let out = match &item.entry {
        Some(entry) => convert::entry(entry, lifetime(item.ino)),
        // Without a node, which would count as a lookup: the kernel takes the name only.
        None => EntryOut::default(),
    };
    let place = (item.ino, item.offset, item.kind as u32);
    let fits = list.add(Some(&out), place, item.name);
    if fits && let Some(entry) = item.entry {
        entry.surrender();
    }
    fits
}
