//! Lookup by inode number: what the kernel asks for (by looking up `.` and `..`) when a file handle
//! names a file that it has forgotten. Needed for open_by_handle_at(2) and NFS servers only.
//!
//! No index is kept for it. A number that is not in the inode table is searched for in the whole
//! tree, by the numbers that directories list, which is as slow as `find -inum`. So other
//! operations pay nothing for it.

use std::sync::Arc;

use rustix::io::Errno;

use super::Union;
use super::error::Result;
use super::inode::Inode;
use super::lookup::EntryRef;
use super::types::{FileKind, Ino, ROOT_INO};

/// A directory on the current path, and its subdirectories that remain to be searched.
struct Level<'u> {
    dir: EntryRef<'u>,
    todo: Vec<Box<[u8]>>,
}

impl Union {
    /// Returns the file with a number, counted.
    ///
    /// # Errors
    /// ESTALE when no name leads to it any more.
    pub fn lookup_by_number(&self, ino: Ino) -> Result<EntryRef<'_>> {
        if let Some(known) = self.counted(ino)? {
            // It was removed and is not open, or the kernel would know it; its FORGET is still to
            // come.
            return match known.attr().nlink {
                0 => Err(Errno::STALE.into()),
                _ => Ok(known),
            };
        }
        // One search at a time, because each may read the whole tree.
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
                // A directory that cannot be entered contains no file that could be opened.
                Some(name) => next = self.lookup(level.dir.attr().ino, &name).unwrap_or(None),
                None => drop(stack.pop()),
            }
        }
    }

    /// Returns the directory that contains a file, counted: for several, the first that is known;
    /// for the root, itself.
    ///
    /// # Errors
    /// ESTALE for a number that is not in use, and for a file without a name.
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

    /// Searches the entries of a directory for a number. Returns the entry, and the subdirectories.
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
