//! Paths in a tree: lookup, directories and files, without a mount (`unionfs ls`, `cat`, `cp`).
//!
//! Invariant: a path never leaves the tree. A symlink is resolved with the root of the tree as `/`,
//! and `..` of the root is the root. The number of symlinks on a path is limited, as in the kernel.

use std::rc::Rc;

use rustix::io::Errno;

use super::compare::{Xattr, xattrs};
use super::{Error, Result, Tree, absolute, names, read_error};
use crate::union::{Attr, Caching, EntryRef, FileKind, Ino, ROOT_INO, Union};

/// The number of symlinks that are followed on one path (MAXSYMLINKS of the kernel).
const MAX_LINKS: usize = 40;

/// The treatment of a symlink that is the last name of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastLink {
    /// The path means what the symlink leads to.
    Follow,
    /// The path means the symlink.
    Keep,
}

/// A file of a tree.
///
/// ```
/// use unionfs::changes::{LastLink, Tree};
/// use unionfs::layer::{Dialect, LayerSpec, StackSpec};
///
/// let dir = tempfile::tempdir()?;
/// let lower = dir.path().join("lower");
/// std::fs::create_dir(&lower)?;
/// std::fs::write(lower.join("motd"), "hello")?;
/// std::os::unix::fs::symlink("/../motd", lower.join("link"))?;
/// let tree = Tree::open(&StackSpec {
///     lowers: vec![LayerSpec::open(lower, Dialect::ALL)?],
///     data_only: Vec::new(),
///     upper: None,
/// })?;
/// let file = tree.find(b"/link", LastLink::Follow)?;
/// let mut data = [0; 16];
/// assert_eq!(file.read(0, &mut data)?, 5);
/// assert!(tree.find(b"/etc/passwd", LastLink::Follow).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Node<'t> {
    union: &'t Union,
    /// Keeps the inode in memory; `None` for the root.
    entry: Option<EntryRef<'t>>,
    attr: Attr,
    /// The path for messages, without a leading slash.
    path: Vec<u8>,
}

impl std::fmt::Debug for Node<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("path", &String::from_utf8_lossy(&self.path))
            .field("attr", &self.attr)
            .finish_non_exhaustive()
    }
}

impl Tree {
    /// Returns the root directory.
    ///
    /// # Errors
    /// [`Error::Read`].
    pub fn root(&self) -> Result<Node<'_>> {
        let attr = self.after.getattr(ROOT_INO).map_err(read_error(b""))?;
        Ok(Node {
            union: &self.after,
            entry: None,
            attr,
            path: Vec::new(),
        })
    }

    /// Finds a path, absolute or relative to the root.
    ///
    /// # Errors
    /// [`Error::Path`]: ENOENT, ENOTDIR, ELOOP for too many symlinks; [`Error::Read`].
    pub fn find(&self, path: &[u8], last: LastLink) -> Result<Node<'_>> {
        let fail = |errno: Errno| Error::Path {
            path: absolute(trimmed(path)),
            errno,
        };
        let mut found = vec![self.root()?];
        let mut links = 0;
        let mut rest: Vec<Vec<u8>> = components(path);
        while let Some(name) = rest.pop() {
            let Some(dir) = found.last() else {
                return Err(fail(Errno::IO));
            };
            if dir.attr.kind != FileKind::Directory {
                return Err(fail(Errno::NOTDIR));
            }
            match &name[..] {
                b"" | b"." => continue,
                b".." => {
                    if found.len() > 1 {
                        found.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let child = dir.child(&name)?.ok_or_else(|| fail(Errno::NOENT))?;
            let follows = last == LastLink::Follow || !rest.is_empty();
            if child.attr.kind != FileKind::Symlink || !follows {
                found.push(child);
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(fail(Errno::LOOP));
            }
            let target = child.target()?;
            if target.starts_with(b"/") {
                found.truncate(1);
            }
            rest.extend(components(&target));
        }
        found.pop().ok_or_else(|| fail(Errno::IO))
    }
}

/// Returns the names of a path, last name first.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.split(|byte| *byte == b'/').rev();
    names.map(<[u8]>::to_vec).collect()
}

fn trimmed(path: &[u8]) -> &[u8] {
    let start = path.iter().take_while(|byte| **byte == b'/').count();
    &path[start..]
}

impl<'t> Node<'t> {
    /// Returns the attributes.
    pub fn attr(&self) -> &Attr {
        &self.attr
    }

    /// Returns the path from the root of the tree, without symlinks and without a leading slash.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    pub(super) fn union(&self) -> &'t Union {
        self.union
    }

    pub(super) fn ino(&self) -> Ino {
        self.entry
            .as_ref()
            .map_or(ROOT_INO, |entry| entry.attr().ino)
    }

    /// Returns the names in a directory, sorted by their bytes, without dots.
    ///
    /// # Errors
    /// [`Error::Read`]; ENOTDIR.
    pub fn names(&self) -> Result<Vec<Vec<u8>>> {
        let mut names = names(self.union, self.ino()).map_err(read_error(&self.path))?;
        names.sort_unstable();
        Ok(names)
    }

    /// Returns the file with a name in the directory.
    ///
    /// # Errors
    /// [`Error::Read`].
    pub fn child(&self, name: &[u8]) -> Result<Option<Node<'t>>> {
        let mut path = self.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend(name);
        let found = self.union.lookup(self.ino(), name);
        let found = found.map_err(read_error(&path))?;
        Ok(found.map(|entry| Node {
            union: self.union,
            attr: *entry.attr(),
            entry: Some(entry),
            path,
        }))
    }

    /// Returns the target of a symlink.
    ///
    /// # Errors
    /// [`Error::Read`]; EINVAL for another file.
    pub fn target(&self) -> Result<Vec<u8>> {
        let target = self.union.readlink(self.ino());
        target.map_err(read_error(&self.path))
    }

    /// Reads data of a regular file. Returns 0 at its end.
    ///
    /// # Errors
    /// [`Error::Read`].
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let read = (self.union).read(self.ino(), offset, buffer, Caching::Cached);
        read.map_err(read_error(&self.path))
    }

    /// Returns all extended attributes that users see, sorted by name.
    ///
    /// # Errors
    /// [`Error::Read`].
    pub fn xattrs(&self) -> Result<Vec<Xattr>> {
        xattrs(self.union, self.ino()).map_err(read_error(&self.path))
    }

    /// Returns a walk through the file and everything below it.
    pub fn walk(self) -> Walk<'t> {
        Walk {
            start: Some(self),
            open: Vec::new(),
        }
    }
}

/// One step of a [`Walk`].
#[derive(Debug)]
pub enum Visit<'t> {
    /// A file. Its path begins below the start of the walk; it is empty for the start.
    Entry(Vec<u8>, Rc<Node<'t>>),
    /// A directory whose content was visited.
    Left(Rc<Node<'t>>),
}

/// A walk through a part of a tree: a directory before its content, names in the order of their
/// bytes. The depth of the tree takes memory, and no stack of a thread.
#[derive(Debug)]
pub struct Walk<'t> {
    start: Option<Node<'t>>,
    open: Vec<Frame<'t>>,
}

#[derive(Debug)]
struct Frame<'t> {
    dir: Rc<Node<'t>>,
    path: Vec<u8>,
    /// The remaining names in descending order; `None`: they are not read yet.
    names: Option<Vec<Vec<u8>>>,
}

impl<'t> Walk<'t> {
    /// Leaves out the content of the directory that was returned last.
    pub fn skip_content(&mut self) {
        if let Some(frame) = self.open.last_mut()
            && frame.names.is_none()
        {
            frame.names = Some(Vec::new());
        }
    }

    fn found(&mut self, path: Vec<u8>, node: Node<'t>) -> Visit<'t> {
        let node = Rc::new(node);
        if node.attr.kind == FileKind::Directory {
            self.open.push(Frame {
                dir: Rc::clone(&node),
                path: path.clone(),
                names: None,
            });
        }
        Visit::Entry(path, node)
    }

    fn step(&mut self) -> Result<Option<Visit<'t>>> {
        if let Some(start) = self.start.take() {
            return Ok(Some(self.found(Vec::new(), start)));
        }
        while let Some(frame) = self.open.last_mut() {
            if frame.names.is_none() {
                let mut names = frame.dir.names()?;
                names.reverse();
                frame.names = Some(names);
            }
            let Some(name) = frame.names.as_mut().and_then(Vec::pop) else {
                let left = self.open.pop().map(|frame| Visit::Left(frame.dir));
                return Ok(left);
            };
            // A file of a live mount may have been removed after it was listed.
            let Some(child) = frame.dir.child(&name)? else {
                continue;
            };
            let mut path = frame.path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend(&name);
            return Ok(Some(self.found(path, child)));
        }
        Ok(None)
    }
}

impl<'t> Iterator for Walk<'t> {
    type Item = Result<Visit<'t>>;

    /// After an error the walk ends.
    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            self.open.clear();
        }
        step.transpose()
    }
}
