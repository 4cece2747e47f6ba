//! Lookup: from a name to a counted inode, through the lookup cache and the layers. Also access to
//! the upper side of an inode, which all other operations use.
//!
//! Invariant: an inode that is returned is counted, so it stays in the table until it is released.

use std::sync::Arc;

use rustix::io::Errno;

use super::Union;
use super::attr::{attr_of, lower_attr, upper_attr};
use super::error::Result;
use super::inode::{Inode, Link};
use super::names::{Cached, NameIn, Names};
use super::plain_lookup::PlainLookup;
use super::readdir::ASKED_ENOUGH;
use super::resolve::{Answer, Resolver, WhiteoutKind};
use super::stack::Stack;
use super::types::{Attr, Ino};
use crate::layer::at::{Stat, is_valid_name};
use crate::lowers::FileId;
use crate::sys::sync::atomic::{AtomicBool, Ordering};

/// An entry whose lookup is counted for the kernel. Dropping it releases the count;
/// [`EntryRef::surrender`] passes the count to the kernel, which gives it back through
/// [`Union::forget`].
#[derive(Debug)]
pub struct EntryRef<'u> {
    names: &'u Names,
    attr: Attr,
    counted: bool,
}

impl<'u> EntryRef<'u> {
    /// Takes over a count that the table already has.
    pub(crate) fn new(names: &'u Names, attr: Attr) -> Self {
        Self {
            names,
            attr,
            counted: true,
        }
    }

    /// Returns the attributes of the entry.
    pub fn attr(&self) -> &Attr {
        &self.attr
    }

    /// Returns the generation, which differs between successive files with the same inode number.
    pub fn generation(&self) -> u64 {
        self.attr.generation.into()
    }

    /// Passes the count to the kernel: the lookup stays counted until [`Union::forget`].
    pub fn surrender(mut self) -> Ino {
        self.counted = false;
        self.attr.ino
    }
}

impl Drop for EntryRef<'_> {
    fn drop(&mut self) {
        if self.counted {
            self.names.release(self.attr.ino);
        }
    }
}

/// An inode that stays counted, and so in the table, as long as this value exists.
pub(crate) struct CountedInode<'u> {
    names: &'u Names,
    pub inode: Arc<Inode>,
    /// Attributes that were read during the lookup.
    stat: Option<Seen>,
    handed_on: bool,
}

/// Attributes that were read during a lookup.
pub(crate) enum Seen {
    /// The attributes of the upper file.
    Upper(Stat),
    /// The attributes of the lower file.
    Lower(Stat),
}

/// The knowledge of the caller of a lookup about the name.
#[derive(Clone, Copy)]
pub(crate) enum Hint {
    /// Nothing.
    Nothing,
    /// The kernel has looked it up, so its inode is probably in the table.
    Linked,
    /// A listing's knowledge, valid as long as the names have the same `version`: the upper and the
    /// first `skip` lowers do not have the name.
    Listed {
        skip: usize,
        version: u64,
        /// The number that the lowers gave the file.
        id: Option<FileId>,
    },
}

/// Looks names up: in memory first, then in the layers.
#[derive(Clone, Copy)]
pub(crate) struct Lookup<'u> {
    pub(super) stack: &'u Stack,
    pub(super) names: &'u Names,
}

/// An inode, counted, and the attributes read during the lookup.
pub(super) type Found = (Arc<Inode>, Option<Seen>);

impl Drop for CountedInode<'_> {
    fn drop(&mut self) {
        if !self.handed_on {
            self.names.release(self.inode.ino);
        }
    }
}

impl Union {
    /// Looks up `name` in the directory `parent`. `Ok(None)`: there is no such name, which the
    /// kernel may cache.
    ///
    /// # Errors
    /// ENOTDIR when `parent` is not a directory, ENAMETOOLONG, EINVAL for a name with `/`, ESTALE for
    /// a number that is not in use; else those of the layers' file systems.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Option<EntryRef<'_>>> {
        if !is_valid_name(name) {
            return Err(Errno::INVAL.into());
        }
        let parent = self.names.directory(parent)?;
        let entry = self.lookups().lookup_in(&parent, name, Hint::Nothing)?;
        if let (Some(_), Some(dir)) = (&entry, &parent.dir)
            && dir.asked.load(Ordering::Relaxed) < ASKED_ENOUGH
        {
            dir.asked.fetch_add(1, Ordering::Relaxed);
        }
        Ok(entry)
    }

    /// Drops `count` lookups of `ino`.
    pub fn forget(&self, ino: Ino, count: u64) {
        self.names.forget(ino, count);
    }

    /// Whether `ino` is in the inode table.
    pub fn is_known(&self, ino: Ino) -> bool {
        self.names.get(ino).is_some()
    }
}

impl<'u> Lookup<'u> {
    pub fn new(stack: &'u Stack, names: &'u Names) -> Self {
        Self { stack, names }
    }

    /// Looks a name up and counts its inode.
    ///
    /// # Errors
    /// As [`Union::lookup`].
    pub fn count_in(
        self,
        parent: &Arc<Inode>,
        name: &[u8],
        hint: Hint,
    ) -> Result<Option<CountedInode<'u>>> {
        let dir = parent.dir.as_ref().ok_or(Errno::NOTDIR)?;
        let names = dir.ns.read();
        if names.dead {
            return Ok(None);
        }
        let hint = match hint {
            Hint::Listed { version, .. } if version != names.version => Hint::Nothing,
            hint => hint,
        };
        let found = match self.find_plain(parent, name, hint)? {
            PlainLookup::Found(found) => Some(found),
            PlainLookup::Absent => None,
            PlainLookup::Unknown => self.find(parent, name, hint)?,
        };
        Ok(found.map(|(inode, stat)| CountedInode {
            names: self.names,
            inode,
            stat,
            handed_on: false,
        }))
    }

    /// As [`Self::count_in`], with attributes.
    ///
    /// # Errors
    /// As [`Self::count_in`].
    pub fn lookup_in(
        self,
        parent: &Arc<Inode>,
        name: &[u8],
        hint: Hint,
    ) -> Result<Option<EntryRef<'u>>> {
        let Some(mut counted) = self.count_in(parent, name, hint)? else {
            return Ok(None);
        };
        let known = match &counted.stat {
            Some(Seen::Upper(stat)) => upper_attr(self.stack.owners(), &counted.inode, stat),
            Some(Seen::Lower(stat)) => lower_attr(self.stack.owners(), &counted.inode, stat),
            None => None,
        };
        let attr = match known {
            Some(attr) => attr,
            None => attr_of(self.stack, &counted.inode)?,
        };
        counted.handed_on = true;
        Ok(Some(EntryRef::new(self.names, attr)))
    }

    /// Finds a name and counts its inode; the caller holds the parent's name lock. Includes the
    /// attributes of the upper side when they were read from the layer.
    fn find(self, parent: &Arc<Inode>, name: &[u8], hint: Hint) -> Result<Option<Found>> {
        let at = NameIn { parent, name };
        let cached = self.names.answer(parent, name);
        if let (None, Hint::Linked) = (&cached, hint)
            && let Some(inode) = self.find_linked(parent, name)
        {
            return Ok(Some((inode, None)));
        }
        let skip = match hint {
            Hint::Listed { skip, .. } => Some(skip),
            Hint::Nothing | Hint::Linked => None,
        };
        let resolved = match cached {
            Some(Cached::Negative(_)) => return Ok(None),
            Some(Cached::Positive(resolved)) => {
                let inode = self.names.intern(at, &resolved);
                return Ok(Some((inode, None)));
            }
            None => match self.resolver().resolve(parent, name, skip)? {
                Answer::Absent(whiteout) => {
                    self.names.remember_absent(parent, name, whiteout);
                    return Ok(None);
                }
                Answer::Found(resolved) => {
                    self.names.remember(parent, name, &resolved);
                    resolved
                }
            },
        };
        let inode = self.names.intern(at, &resolved);
        let upper = resolved.upper.as_ref();
        // The directory may have got a marker since its markers were read: see `forget_answers`.
        let newly = |now: &AtomicBool, then: bool| now.load(Ordering::Acquire) && !then;
        if let (Some(dir), Some(upper)) = (&inode.dir, upper)
            && (newly(&dir.impure, upper.impure) || newly(&dir.wh_files, upper.wh_files))
        {
            self.names.forget_answer(parent, name);
        }
        Ok(Some((inode, upper.map(|upper| Seen::Upper(upper.stat)))))
    }

    /// Returns the whiteout that hides `name`, which must be absent; the caller holds the name
    /// lock.
    ///
    /// # Errors
    /// EEXIST when the name exists.
    pub fn whiteout_at(self, parent: &Inode, name: &[u8]) -> Result<Option<WhiteoutKind>> {
        if let Some(Cached::Negative(whiteout)) = self.names.peek(parent, name) {
            return Ok(whiteout);
        }
        match self.resolver().resolve(parent, name, None)? {
            Answer::Absent(whiteout) => Ok(whiteout),
            Answer::Found(_) => Err(Errno::EXIST.into()),
        }
    }

    /// Whether the lowers have this name of the inode, so that its removal needs a whiteout.
    pub fn has_lower_name(self, inode: &Inode, parent: &Inode, name: &[u8]) -> Result<bool> {
        match inode.loc.read().link(parent, name) {
            // A name that is not in the upper is in a lower.
            Some(link) if !link.in_upper => return Ok(true),
            Some(Link {
                in_lower: Some(known),
                ..
            }) => return Ok(*known),
            _ => {}
        }
        self.resolver().exists_in_lower(parent, name)
    }

    /// Counts an inode that is in the table.
    pub fn counted(self, ino: Ino) -> Result<Option<EntryRef<'u>>> {
        let Some(inode) = self.names.count(ino) else {
            return Ok(None);
        };
        match attr_of(self.stack, &inode) {
            Ok(attr) => Ok(Some(EntryRef::new(self.names, attr))),
            Err(error) => {
                self.names.release(ino);
                Err(error)
            }
        }
    }

    fn resolver(self) -> Resolver<'u> {
        Resolver::new(self.stack, self.names.numbers())
    }
}
