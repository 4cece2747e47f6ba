//! Lookup by inode number: what the kernel asks for (by looking up `.` and `..`) when a file handle
//! names a file that it has forgotten. Needed for open_by_handle_at(2) and NFS servers only.
//!
//! No index is kept for it. A number that is not in the inode table is searched for in the whole
//! tree, by the numbers that directories list, which is as slow as `find -inum`. So other
//! operations pay nothing for it. Users may ask for any number (open_by_handle_at(2) lets
//! root of a user namespace ask for directories). So one search runs at a time, and it looks for all
//! numbers that were asked for before it began: many requests together cost two searches at most.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::Union;
use super::error::Result;
use super::inode::Inode;
use super::lock_order::{self, rank};
use super::lookup::EntryRef;
use super::types::{FileKind, Ino, ROOT_INO};

/// A directory on the current path, and its subdirectories that remain to be searched.
struct Level<'u> {
    dir: EntryRef<'u>,
    todo: Vec<Box<[u8]>>,
}

/// A number that is to be searched for, by [`Union::find_sought`].
#[must_use]
pub struct Sought {
    ticket: u64,
}

/// The searches by number.
#[derive(Default)]
pub(crate) struct Searches {
    /// Held during a walk of the tree; the outermost lock.
    walking: lock_order::Mutex<(), { rank::SEARCH }>,
    asked: Mutex<Asked>,
}

#[derive(Default)]
struct Asked {
    tickets: u64,
    /// Numbers for which no walk has begun yet, by ticket.
    waiting: HashMap<u64, Ino>,
    /// Results that were not fetched yet, by ticket. A file that was found is counted.
    answers: HashMap<u64, Option<Ino>>,
}

impl Union {
    /// Returns the file with a number, counted, if it is in the inode table.
    ///
    /// # Errors
    /// ESTALE when no name leads to it any more.
    pub fn known_number(&self, ino: Ino) -> Result<Option<EntryRef<'_>>> {
        match self.counted(ino)? {
            // It was removed and is not open, or the kernel would know it; its FORGET is still to
            // come.
            Some(known) if known.attr().nlink == 0 => Err(Errno::STALE.into()),
            known => Ok(known),
        }
    }

    /// Registers a number that is not in the inode table for the next search. Does not block.
    pub fn seek_number(&self, ino: Ino) -> Sought {
        let mut asked = self.searches.asked.lock();
        asked.tickets += 1;
        let ticket = asked.tickets;
        asked.waiting.insert(ticket, ino);
        Sought { ticket }
    }

    /// Returns the file with a registered number, counted. Reads the whole tree, or waits for
    /// another search that does.
    ///
    /// # Errors
    /// ESTALE when no name leads to it.
    pub fn find_sought(&self, sought: Sought) -> Result<EntryRef<'_>> {
        let _one = self.searches.walking.lock();
        let answer = self.searches.asked.lock().answers.remove(&sought.ticket);
        let answer = match answer {
            Some(answer) => answer,
            None => {
                let waiting = mem::take(&mut self.searches.asked.lock().waiting);
                self.search_all(waiting)?;
                let mut asked = self.searches.asked.lock();
                asked.answers.remove(&sought.ticket).flatten()
            }
        };
        let found = answer.ok_or(Errno::STALE)?;
        let entry = self.counted(found);
        // The count that the result held.
        self.table.release(found, 1);
        entry?.ok_or_else(|| Errno::STALE.into())
    }

    /// Searches for numbers and stores the results.
    fn search_all(&self, waiting: HashMap<u64, Ino>) -> Result<()> {
        let mut wanted: HashMap<Ino, Option<EntryRef<'_>>> =
            waiting.values().map(|ino| (*ino, None)).collect();
        let root = self.counted(ROOT_INO)?.ok_or(Errno::STALE)?;
        self.walk(root, &mut wanted);
        let mut asked = self.searches.asked.lock();
        for (ticket, ino) in waiting {
            let found = wanted.get(&ino).is_some_and(Option::is_some);
            // Each result has a count of its own, beside that of the entry.
            let found = found.then(|| self.table.count(ino)).flatten();
            asked.answers.insert(ticket, found.map(|_| ino));
        }
        Ok(())
    }

    /// Searches the whole tree for numbers, until an entry was found for each.
    fn walk<'u>(&'u self, root: EntryRef<'u>, wanted: &mut HashMap<Ino, Option<EntryRef<'u>>>) {
        self.searched.fetch_add(1, Ordering::Relaxed);
        let mut missing = wanted.len();
        let mut stack = vec![];
        let mut next = Some(root);
        loop {
            if let Some(dir) = next.take() {
                let (found, todo) = self.search(dir.attr().ino, wanted);
                missing -= found;
                if missing == 0 {
                    return;
                }
                stack.push(Level { dir, todo });
            }
            let Some(level) = stack.last_mut() else {
                return;
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

    /// Searches a directory for numbers that have no entry yet. Returns how many were found, and
    /// the names of its subdirectories.
    fn search<'u>(
        &'u self,
        dir: Ino,
        wanted: &mut HashMap<Ino, Option<EntryRef<'u>>>,
    ) -> (usize, Vec<Box<[u8]>>) {
        let (mut matches, mut dirs) = (Vec::new(), Vec::new());
        let listed = self.readdir(dir, 0, false, &mut |item| {
            if matches!(item.name, b"." | b"..") {
                return true;
            }
            if matches!(wanted.get(&item.ino), Some(None)) {
                matches.push(Box::<[u8]>::from(item.name));
            }
            if item.kind == FileKind::Directory {
                dirs.push(Box::from(item.name));
            }
            true
        });
        if let Err(error) = listed {
            tracing::debug!(dir, %error, "searching for a number");
        }
        let mut found = 0;
        for name in matches {
            if let Ok(Some(entry)) = self.lookup(dir, &name)
                && let Some(place @ None) = wanted.get_mut(&entry.attr().ino)
            {
                *place = Some(entry);
                found += 1;
            }
        }
        (found, dirs)
    }
}
