//! From a number back to its file: what the kernel asks for (by looking up `.` and `..`) when
//! a file handle leads to a file that it has forgotten. Called by the transport for
//! open_by_handle_at(2) and NFS servers, never on the way of an ordinary request.
//!
//! Nothing is kept for it: a number that is not in the table is searched for in the whole
//! tree, by the numbers that directories list. That is as slow as `find -inum`, and costs
//! nobody anything who has no handles.

use std::sync::Arc;

use rustix::io::Errno;

use super::Union;
use super::error::Result;
use super::inode::Inode;
use super::lookup::EntryRef;
use super::types::{FileKind, Ino, ROOT_INO};

/// A directory on the way down, and its subdirectories that are still to be searched.
struct Level<'u> {
    dir: EntryRef<'u>,
    todo: Vec<Box<[u8]>>,
}

impl Union {
    /// The file with a number, counted; ESTALE when no name leads to it any more.
    pub fn lookup_by_number(&self, ino: Ino) -> Result<EntryRef<'_>> {
        if let Some(known) = self.counted(ino)? {
            // Removed, and nobody has it open: the kernel would know it. Only its FORGET has
            // not come yet.
            return match known.attr().nlink {
                0 => Err(Errno::STALE.into()),
                _ => Ok(known),
            };
        }
        // One search at a time: each may read the whole tree.
        let _one = self.searching.lock();
        let root = self.counted(ROOT_INO)?.ok_or(Errno::STALE)?;
        let mut stack = vec![];
        let mut next = Some(root);
        loop {
            if let Some(dir) = next.take() {
                let (found, todo) = self.search(dir.attr().ino, ino);
                if let Some(entry) = found {
                    return Ok(entry);
                }
                stack.push(Level { dir, todo });
            }
            let Some(level) = stack.last_mut() else {
                return Err(Errno::STALE.into());
            };
            match level.todo.pop() {
                // Whatever cannot be entered hides nothing that could be opened.
                Some(name) => next = self.lookup(level.dir.attr().ino, &name).unwrap_or(None),
                None => drop(stack.pop()),
            }
        }
    }

    /// The directory a file is in, counted: of several the one known first; the root's is the
    /// root. ESTALE for a number not in use and for a file without a name.
    pub fn lookup_parent(&self, ino: Ino) -> Result<EntryRef<'_>> {
        let inode = self.inode(ino)?;
        let link = inode.loc.read().links.first().cloned();
        let parent = match link {
            Some(link) => link.parent.ino,
            None if ino == ROOT_INO => ROOT_INO,
            None => return Err(Errno::STALE.into()),
        };
        self.counted(parent)?.ok_or_else(|| Errno::STALE.into())
    }

    /// Counts an inode that is in the table.
    fn counted(&self, ino: Ino) -> Result<Option<EntryRef<'_>>> {
        let Some(inode): Option<Arc<Inode>> = self.table.count(ino) else {
            return Ok(None);
        };
        match self.attr_of(&inode) {
            Ok(attr) => Ok(Some(EntryRef::new(self, attr))),
            Err(error) => {
                self.table.release(ino, 1);
                Err(error)
            }
        }
    }

    /// Looks for a number among the entries of a directory; else its subdirectories.
    fn search(&self, dir: Ino, ino: Ino) -> (Option<EntryRef<'_>>, Vec<Box<[u8]>>) {
        let (mut matches, mut dirs) = (Vec::new(), Vec::new());
        let listed = self.readdir(dir, 0, false, &mut |item| {
            let name: Box<[u8]> = item.name.into();
            if matches!(item.name, b"." | b"..") {
                return true;
            }
            match item.ino == ino {
                true => matches.push(name),
                false if item.kind == FileKind::Directory => dirs.push(name),
                false => {}
            }
            true
        });
        if let Err(error) = listed {
            tracing::debug!(dir, %error, "searching for a number");
        }
        let found = matches.iter().find_map(|name| {
            let entry = self.lookup(dir, name).ok().flatten()?;
            (entry.attr().ino == ino).then_some(entry)
        });
        (found, dirs)
    }
}
