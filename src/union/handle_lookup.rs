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

use rustix::io::Errno;

use super::Union;
use super::error::Result;
use super::lock_order::{self, rank};
use super::lookup::EntryRef;
use super::types::{FileKind, Ino, ROOT_INO};
use crate::sys::sync::atomic::{AtomicU64, Ordering};
use crate::sys::sync::parking_lot::Mutex;

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
    /// Walks of the whole tree.
    walks: AtomicU64,
}

#[derive(Default)]
struct Asked {
    tickets: u64,
    /// Numbers for which no walk has begun yet, by ticket.
    waiting: HashMap<u64, Ino>,
    /// Results that were not fetched yet, by ticket. A file that was found is counted.
    answers: HashMap<u64, Option<Ino>>,
}

impl Searches {
    /// Registers a number for the next search.
    fn ask(&self, ino: Ino) -> Sought {
        let mut asked = self.asked.lock();
        asked.tickets += 1;
        let ticket = asked.tickets;
        asked.waiting.insert(ticket, ino);
        Sought { ticket }
    }

    /// Returns the result for a registered number. The inode that was found has one more count,
    /// which passes to the caller. Calls `walk` with all waiting numbers, unless another thread has
    /// searched for this one.
    fn answer(
        &self,
        sought: &Sought,
        walk: impl FnOnce(HashMap<u64, Ino>) -> Result<Vec<(u64, Option<Ino>)>>,
    ) -> Result<Option<Ino>> {
        let _one = self.walking.lock();
        let answer = self.asked.lock().answers.remove(&sought.ticket);
        if let Some(answer) = answer {
            return Ok(answer);
        }
        let waiting = mem::take(&mut self.asked.lock().waiting);
        self.walks.fetch_add(1, Ordering::Relaxed);
        let answers = walk(waiting)?;
        let mut asked = self.asked.lock();
        asked.answers.extend(answers);
        Ok(asked.answers.remove(&sought.ticket).flatten())
    }

    /// Returns the number of walks of the whole tree.
    pub fn walks(&self) -> u64 {
        self.walks.load(Ordering::Relaxed)
    }
}

impl Union {
    /// Returns the file with a number, counted, if it is in the inode table.
    ///
    /// # Errors
    /// ESTALE when no name leads to it any more.
    pub fn known_number(&self, ino: Ino) -> Result<Option<EntryRef<'_>>> {
        match self.lookups().counted(ino)? {
            // The file was removed and is not open, or the kernel would know it. Its FORGET has not
            // arrived yet.
            Some(known) if known.attr().nlink == 0 => Err(Errno::STALE.into()),
            known => Ok(known),
        }
    }

    /// Returns at most `most` regular files that have been looked up and not forgotten.
    pub fn known_files(&self, most: usize) -> Vec<Ino> {
        self.names.some_files(most)
    }

    /// Registers a number that is not in the inode table for the next search. Does not block.
    pub fn seek_number(&self, ino: Ino) -> Sought {
        self.searches.ask(ino)
    }

    /// Returns the file with a registered number, counted. Reads the whole tree, or waits for
    /// another search that does.
    ///
    /// # Errors
    /// ESTALE when no name leads to it.
    pub fn find_sought(&self, sought: Sought) -> Result<EntryRef<'_>> {
        let walk = |waiting| search_all(self, waiting);
        let found = self.searches.answer(&sought, walk)?.ok_or(Errno::STALE)?;
        let entry = self.lookups().counted(found);
        // The result held this count.
        self.names.release(found);
        entry?.ok_or_else(|| Errno::STALE.into())
    }

    /// Returns the directory that contains a file, counted: for several, the first that is known;
    /// for the root, itself.
    ///
    /// # Errors
    /// ESTALE for a number that is not in use, and for a file without a name.
    pub fn lookup_parent(&self, ino: Ino) -> Result<EntryRef<'_>> {
        let inode = self.names.inode(ino)?;
        let link = inode.loc.read().links.first().cloned();
        let parent = match link {
            Some(link) => link.parent.ino,
            None if ino == ROOT_INO => ROOT_INO,
            None => return Err(Errno::STALE.into()),
        };
        let counted = self.lookups().counted(parent)?;
        counted.ok_or_else(|| Errno::STALE.into())
    }
}

/// Searches for numbers, by ticket. Each inode that was found is counted once more, for its result.
fn search_all(union: &Union, waiting: HashMap<u64, Ino>) -> Result<Vec<(u64, Option<Ino>)>> {
    let mut wanted: HashMap<Ino, Option<EntryRef<'_>>> =
        waiting.values().map(|ino| (*ino, None)).collect();
    let root = union.lookups().counted(ROOT_INO)?.ok_or(Errno::STALE)?;
    walk(union, root, &mut wanted);
    let result = |(ticket, ino): (u64, Ino)| {
        let found = wanted.get(&ino).is_some_and(Option::is_some);
        // Each result has a count of its own, beside that of the entry.
        let found = found.then(|| union.names.count(ino)).flatten();
        (ticket, found.map(|_| ino))
    };
    Ok(waiting.into_iter().map(result).collect())
}

/// Searches the whole tree for numbers, until an entry was found for each.
fn walk<'u>(union: &'u Union, root: EntryRef<'u>, wanted: &mut HashMap<Ino, Option<EntryRef<'u>>>) {
    let mut missing = wanted.len();
    let mut stack = vec![];
    let mut next = Some(root);
    loop {
        if let Some(dir) = next.take() {
            let (found, todo) = search(union, dir.attr().ino, wanted);
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
            Some(name) => next = union.lookup(level.dir.attr().ino, &name).unwrap_or(None),
            None => drop(stack.pop()),
        }
    }
}

/// Searches a directory for numbers that have no entry yet. Returns how many were found, and
/// the names of its subdirectories.
fn search<'u>(
    union: &'u Union,
    dir: Ino,
    wanted: &mut HashMap<Ino, Option<EntryRef<'u>>>,
) -> (usize, Vec<Box<[u8]>>) {
    let (mut matches, mut dirs) = (Vec::new(), Vec::new());
    let listed = union.readdir(dir, 0, &mut |item| {
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
        if let Ok(Some(entry)) = union.lookup(dir, &name)
            && let Some(place @ None) = wanted.get_mut(&entry.attr().ino)
        {
            *place = Some(entry);
            found += 1;
        }
    }
    (found, dirs)
}
