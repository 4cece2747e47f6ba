//! The differences of two trees (`unionfs diff A B`), and a layer that makes one of the other
//! (`unionfs squash`).
//!
//! Both trees are walked side by side, name by name. A directory that both trees merge from the
//! same directories of the same layers is the same in both, and is not entered: the cost depends on
//! the layers that only one of them has. Files that are not the same file of a layer are compared
//! completely, with their data.

use std::collections::HashSet;
use std::io::Write;

use super::compare::{same_data_of, same_file};
use super::list::ChangeKind;
use super::paths::{Node, Visit};
use super::tar::Sink;
use super::{Result, Tree, read_error};
use crate::union::{Attr, FileKind, LowerPart};

/// A property in which two files with the same path differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    /// The type.
    Type,
    /// The permissions.
    Mode,
    /// The owner or group.
    Owner,
    /// The number of a device.
    Device,
    /// The size.
    Size,
    /// The data of a file or the target of a symlink.
    Content,
    /// Extended attributes.
    Xattrs,
    /// The modification time.
    Time,
}

impl How {
    /// Returns the word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Type => "type",
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::Device => "device",
            Self::Size => "size",
            Self::Content => "content",
            Self::Xattrs => "xattrs",
            Self::Time => "time",
        }
    }
}

/// A path at which two trees differ.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Difference {
    /// The path from the root, without a leading slash; empty for the root.
    pub path: Vec<u8>,
    /// The kind of the difference.
    pub kind: ChangeKind,
    /// What differs, in the order of [`How`]; only for [`ChangeKind::Changed`].
    pub how: Vec<How>,
    /// The attributes in the first tree.
    pub before: Option<Attr>,
    /// The attributes in the second tree.
    pub after: Option<Attr>,
    /// The data that is gone with a deleted directory.
    pub below: Content,
}

/// The content of a directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// The number of files and directories in it.
    pub files: u64,
    /// The bytes of its files. A file with several names counts once.
    pub bytes: u64,
}

/// Compares two trees. `None` is a tree without files. A deleted directory is one difference, an
/// added one is a difference for each file in it. Times of directories do not count, and a directory
/// does not differ because a file in it does. Paths come in the order of their names.
///
/// # Errors
/// [`super::Error::Read`].
pub fn compare_trees(
    before: Option<&Tree>,
    after: Option<&Tree>,
    visit: &mut dyn FnMut(Difference) -> Result<()>,
) -> Result<()> {
    walk(before, after, &mut |step| {
        let differs = match step.kind {
            ChangeKind::Changed => !step.how.is_empty() && !is_time_of_directory(&step),
            // Every tree has a root.
            ChangeKind::Added | ChangeKind::Deleted => !step.path.is_empty(),
        };
        if differs { visit(step) } else { Ok(()) }
    })
}

fn is_time_of_directory(step: &Difference) -> bool {
    let is_dir = step
        .after
        .is_some_and(|after| after.kind == FileKind::Directory);
    is_dir && step.how == [How::Time]
}

impl Tree {
    /// Writes the tar of a layer that makes this tree of `below`; `None` is a tree without files.
    /// Hard links between files that are the same in both trees and others become copies.
    ///
    /// # Errors
    /// As [`Tree::pack_layer`].
    pub fn pack_on(&self, below: Option<&Tree>, out: impl Write) -> Result<()> {
        let mut sink = Sink::of_layer(self, out);
        walk(below, Some(self), &mut |step| {
            let Some(after) = &step.after else {
                return sink.deleted(&step.path);
            };
            // The other names of the file may be new, and they must be names of one file.
            let linked = after.nlink > 1 && after.kind != FileKind::Directory;
            let is_root = step.path.is_empty();
            if is_root || step.before.is_none() || !step.how.is_empty() || linked {
                sink.file(&step.path, after)
            } else if after.kind == FileKind::Directory {
                sink.unchanged_directory(&step.path, after);
                Ok(())
            } else {
                Ok(())
            }
        })?;
        sink.finish()
    }
}

/// A directory in both trees, or in one.
struct Frame<'t> {
    before: Option<Node<'t>>,
    after: Option<Node<'t>>,
    path: Vec<u8>,
    /// The remaining names in descending order.
    names: Vec<Vec<u8>>,
}

impl<'t> Frame<'t> {
    fn open(before: Option<Node<'t>>, after: Option<Node<'t>>, path: Vec<u8>) -> Result<Self> {
        let mut names = Vec::new();
        for dir in before.iter().chain(&after) {
            names.extend(dir.names()?);
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        names.dedup();
        Ok(Self {
            before,
            after,
            path,
            names,
        })
    }
}

/// Calls `visit` with each path that is not known to be the same; `how` may be empty.
fn walk(
    before: Option<&Tree>,
    after: Option<&Tree>,
    visit: &mut dyn FnMut(Difference) -> Result<()>,
) -> Result<()> {
    let shared = match (before, after) {
        (Some(before), Some(after)) => shared_layers(before, after)?,
        _ => 0,
    };
    let before = before.map(Tree::root).transpose()?;
    let after = after.map(Tree::root).transpose()?;
    match (&before, &after) {
        (Some(before), Some(after)) => visit(compared(Vec::new(), before, after)?)?,
        (None, Some(after)) => visit(added(Vec::new(), after))?,
        _ => {}
    }
    if is_same_tree(before.as_ref(), after.as_ref(), shared)? {
        return Ok(());
    }
    // A loop instead of recursion: a hostile layer may nest deeper than the stack of a thread
    // allows.
    let mut open = vec![Frame::open(before, after, Vec::new())?];
    while let Some(frame) = open.last_mut() {
        let Some(name) = frame.names.pop() else {
            open.pop();
            continue;
        };
        let before = match &frame.before {
            Some(dir) => dir.child(&name)?,
            None => None,
        };
        let after = match &frame.after {
            Some(dir) => dir.child(&name)?,
            None => None,
        };
        let mut path = frame.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend(&name);
        if let Some(below) = step(path, before, after, shared, visit)? {
            open.push(below);
        }
    }
    Ok(())
}

/// Visits one path. For a directory, returns the frame to visit next.
fn step<'t>(
    path: Vec<u8>,
    before: Option<Node<'t>>,
    after: Option<Node<'t>>,
    shared: usize,
    visit: &mut dyn FnMut(Difference) -> Result<()>,
) -> Result<Option<Frame<'t>>> {
    let is_dir = |node: &Node<'_>| node.attr().kind == FileKind::Directory;
    match (before, after) {
        (None, None) => Ok(None),
        (None, Some(after)) => {
            visit(added(path.clone(), &after))?;
            if is_dir(&after) {
                Frame::open(None, Some(after), path).map(Some)
            } else {
                Ok(None)
            }
        }
        (Some(before), None) => {
            let attr = *before.attr();
            let below = content(before)?;
            visit(Difference {
                kind: ChangeKind::Deleted,
                how: Vec::new(),
                before: Some(attr),
                after: None,
                below,
                path,
            })?;
            Ok(None)
        }
        (Some(before), Some(after)) => {
            let same = same_file(before.attr(), after.attr());
            let both = is_dir(&before) && is_dir(&after);
            if !same || both {
                let mut found = compared(path.clone(), &before, &after)?;
                if is_dir(&before) && !both {
                    visit(Difference {
                        below: content(before)?,
                        ..found
                    })?;
                    return Ok(None);
                }
                found.below = Content::default();
                visit(found)?;
            }
            if !is_dir(&after) || both && is_same_tree(Some(&before), Some(&after), shared)? {
                return Ok(None);
            }
            let before = both.then_some(before);
            Frame::open(before, Some(after), path).map(Some)
        }
    }
}

/// Returns the content of a directory that is gone; nothing for another file.
fn content(node: Node<'_>) -> Result<Content> {
    let mut found = Content::default();
    if node.attr().kind != FileKind::Directory {
        return Ok(found);
    }
    let mut counted = HashSet::new();
    for visit in node.walk() {
        let Visit::Entry(path, node) = visit? else {
            continue;
        };
        if path.is_empty() {
            continue;
        }
        let attr = node.attr();
        found.files += 1;
        if attr.kind == FileKind::Regular && (attr.nlink == 1 || counted.insert(attr.ino)) {
            found.bytes = found.bytes.saturating_add(attr.size);
        }
    }
    Ok(found)
}

fn added(path: Vec<u8>, after: &Node<'_>) -> Difference {
    Difference {
        path,
        kind: ChangeKind::Added,
        how: Vec::new(),
        before: None,
        after: Some(*after.attr()),
        below: Content::default(),
    }
}

fn compared(path: Vec<u8>, before: &Node<'_>, after: &Node<'_>) -> Result<Difference> {
    Ok(Difference {
        path,
        kind: ChangeKind::Changed,
        how: how(before, after)?,
        before: Some(*before.attr()),
        after: Some(*after.attr()),
        below: Content::default(),
    })
}

fn how(before: &Node<'_>, after: &Node<'_>) -> Result<Vec<How>> {
    let (old, new) = (before.attr(), after.attr());
    let mut how = Vec::new();
    if same_file(old, new) {
        return Ok(how);
    }
    let mut note = |differs: bool, what| {
        if differs {
            how.push(what);
        }
    };
    note(old.kind != new.kind, How::Type);
    note(old.perm != new.perm, How::Mode);
    note((old.uid, old.gid) != (new.uid, new.gid), How::Owner);
    if old.kind == new.kind {
        note(old.rdev != new.rdev, How::Device);
        let content = match new.kind {
            FileKind::Regular => {
                note(old.size != new.size, How::Size);
                old.size != new.size || !same_data_of(before, after)?
            }
            FileKind::Symlink => before.target()? != after.target()?,
            _ => false,
        };
        note(content, How::Content);
        note(before.xattrs()? != after.xattrs()?, How::Xattrs);
    }
    note(old.mtime != new.mtime, How::Time);
    Ok(how)
}

/// Returns the number of layers at the bottom that two trees share, as far as directories show it.
fn shared_layers(before: &Tree, after: &Tree) -> Result<usize> {
    // A file of a lower that was changed under one name shows that under all its names.
    if [before, after]
        .iter()
        .any(|tree| tree.upper.is_some() && tree.everything)
    {
        return Ok(0);
    }
    let roots = |tree: &Tree| tree.after.lower_roots().map_err(read_error(b""));
    let (before, after) = (roots(before)?, roots(after)?);
    let pairs = before.iter().rev().zip(after.iter().rev());
    Ok(pairs.take_while(|(one, other)| one == other).count())
}

/// Whether two directories merge the same directories of layers that both trees share, so that
/// everything in them is the same. Redirects lead to lower layers only, which are shared too.
fn is_same_tree(
    before: Option<&Node<'_>>,
    after: Option<&Node<'_>>,
    shared: usize,
) -> Result<bool> {
    let (Some(before), Some(after)) = (before, after) else {
        return Ok(false);
    };
    let parts = |dir: &Node<'_>| -> Result<Option<Vec<LowerPart>>> {
        let parts = dir.union().lower_parts(dir.ino());
        parts.map_err(read_error(dir.path()))
    };
    let (Some(old), Some(new)) = (parts(before)?, parts(after)?) else {
        return Ok(false);
    };
    let is_shared = old.first().is_some_and(|top| top.height <= shared);
    Ok(is_shared && old == new)
}
