//! The files that a layer's tar describes, in memory. It is used only for tars that replace a file
//! to which another entry is a hard link: the file stays under the name of that link, which a
//! sorted list of headers does not show.
//!
//! Invariant: at most [`MAX_KEPT`] bytes are kept.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::BufRead;

use super::error::{Error, Result};
use super::expected::{Attributes, KEPT_VALUE, Node, Subject, attributes_of, target_of};
use super::expected_entries::removed_by;
use super::header::{Entry, EntryKind};
use super::split_headers;

/// The limit of bytes in memory for the content of a tar: about 200,000 files.
const MAX_KEPT: usize = 64 << 20;
/// The bytes that are counted for each file, besides its names and xattrs.
const NODE: usize = 200;
/// The limit of hard links whose file another entry has replaced. A link counts again each time.
const MAX_MOVED: usize = 10_000_000;

/// The expected state of a path. Without a node: a whiteout, or possibly one.
#[derive(Debug, Default)]
pub(super) struct TreeEntry {
    pub(super) node: Option<Node>,
    /// Whether the tar also has a whiteout of it.
    pub(super) whiteout: bool,
    /// Whether there may be a whiteout of it.
    pub(super) maybe_whiteout: bool,
}

/// All entries of a tar, by their cleaned paths.
#[derive(Debug, Default)]
pub(super) struct ExpectedTree {
    pub(super) paths: BTreeMap<Vec<u8>, TreeEntry>,
    /// Directories that are opaque.
    pub(super) opaque: BTreeSet<Vec<u8>>,
    /// The attributes of the last hard link to a file, by that file's path: Docker sets those, this
    /// program keeps the file's own.
    pub(super) relinked: HashMap<Vec<u8>, Attributes>,
    /// The own paths of whiteouts: engines remove what has such a name.
    pub(super) removed: BTreeSet<Vec<u8>>,
    /// The names of hard links, by their target path.
    links: HashMap<Vec<u8>, Vec<Vec<u8>>>,
    /// The number of hard links that a later entry has moved to another path.
    moved: usize,
}

impl ExpectedTree {
    /// Reads the headers and skips the content of files.
    ///
    /// # Errors
    /// Those of the headers; [`Error::Limit`] for more headers than fit into the memory limit.
    pub(super) fn read(split: impl BufRead) -> Result<Self> {
        let mut tree = Self::default();
        let mut kept = 0usize;
        split_headers::each(split, |entry| {
            let xattrs = entry.xattrs.iter();
            let xattrs = xattrs.map(|(name, value)| name.len() + value.len().min(KEPT_VALUE));
            // The names of hard links are kept twice.
            let names = 2 * (entry.name.len() + entry.link.len());
            kept = kept.saturating_add(NODE + names + xattrs.sum::<usize>());
            if kept > MAX_KEPT {
                return Err(Error::Limit {
                    what: "bytes of headers in a layer that replaces files with hard links to them",
                    limit: MAX_KEPT as u64,
                });
            }
            tree.add(entry)?;
            if tree.moved > MAX_MOVED {
                return Err(Error::Limit {
                    what: "hard links to files that were replaced",
                    limit: MAX_MOVED as u64,
                });
            }
            Ok(())
        })?;
        Ok(tree)
    }

    fn add(&mut self, entry: Entry) -> Result<()> {
        let subject = Subject::of(&entry)?;
        self.removed.extend(removed_by(&entry, &subject));
        let path = match subject {
            Subject::Nothing => return Ok(()),
            Subject::Opaque(path) => {
                self.opaque.insert(path);
                return Ok(());
            }
            Subject::Whiteout(path) => {
                self.paths.entry(path).or_default().whiteout = true;
                return Ok(());
            }
            Subject::Note(path) => {
                self.paths.entry(path).or_default().maybe_whiteout = true;
                return Ok(());
            }
            Subject::File(path) => path,
        };
        if entry.kind != EntryKind::Directory {
            self.forget_below(&path);
        }
        let node = self.node(&path, entry)?;
        if node.kind == EntryKind::HardLink && *node.link == *path {
            // The same link again.
            return Ok(());
        }
        if node.kind == EntryKind::HardLink {
            let links = self.links.entry(node.link.to_vec()).or_default();
            links.push(path.clone());
        }
        let want = self.paths.entry(path.clone()).or_default();
        if let Some(was) = want.node.replace(node) {
            want.whiteout |= was.is_whiteout();
            self.move_to_links(&path, was);
        }
        Ok(())
    }

    /// Keeps a file whose path another entry has taken under the names of hard links to it.
    fn move_to_links(&mut self, path: &[u8], file: Node) {
        if matches!(file.kind, EntryKind::HardLink | EntryKind::Directory) {
            return;
        }
        let mut file = Some(file);
        let mut first: Option<Vec<u8>> = None;
        let mut others = Vec::new();
        for link in self.links.remove(path).unwrap_or_default() {
            self.moved += 1;
            let node = self
                .paths
                .get_mut(&link)
                .and_then(|want| want.node.as_mut());
            let is_link =
                |node: &&mut Node| node.kind == EntryKind::HardLink && *node.link == *path;
            let Some(node) = node.filter(is_link) else {
                continue;
            };
            match (&first, file.take()) {
                (None, Some(file)) => {
                    *node = file;
                    first = Some(link);
                }
                (Some(first), _) => {
                    node.link = first.clone().into_boxed_slice();
                    others.push(link);
                }
                (None, None) => {}
            }
        }
        if let Some(first) = first {
            if let Some(attributes) = self.relinked.remove(path) {
                self.relinked.insert(first.clone(), attributes);
            }
            self.links.insert(first, others);
        }
    }

    /// Removes the paths below a directory that another entry replaces. Paths placed through a
    /// replaced symlink are kept: such layers are not unpacked.
    fn forget_below(&mut self, path: &[u8]) {
        let old = self.paths.get(path).and_then(|want| want.node.as_ref());
        if old.is_some_and(|node| node.kind == EntryKind::Symlink) {
            return;
        }
        self.opaque.remove(path);
        let start = [path, b"/"].concat();
        let is_below = |found: &&Vec<u8>| found.starts_with(&start);
        loop {
            let mut names = self.paths.range(start.clone()..).map(|(name, _)| name);
            let Some(name) = names.next().filter(is_below).cloned() else {
                break;
            };
            self.opaque.remove(&name);
            if let Some(node) = self.paths.remove(&name).and_then(|want| want.node) {
                self.move_to_links(&name, node);
            }
        }
    }

    fn node(&mut self, path: &[u8], entry: Entry) -> Result<Node> {
        if entry.kind != EntryKind::HardLink {
            return Node::of(entry, None);
        }
        let target = self.origin(target_of(&entry)?);
        if target != path {
            self.relinked.insert(target.clone(), attributes_of(&entry));
        }
        Node::of(entry, Some(target))
    }

    /// Returns the file to which a hard link to `path` leads.
    fn origin(&self, path: Vec<u8>) -> Vec<u8> {
        match self.paths.get(&path).and_then(|want| want.node.as_ref()) {
            Some(node) if node.kind == EntryKind::HardLink => node.link.to_vec(),
            _ => path,
        }
    }
}
