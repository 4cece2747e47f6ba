//! Walks through an upper, beside the tree without it and the tree with it.
//!
//! An upper directory that is merged with the lower one of the same path affects only the names in
//! it. Any other upper directory (opaque, renamed, or new) is visited completely.

use std::sync::Arc;

use super::{Error, Result, Tree, absolute, names, read_error};
use crate::layer::lower::{LowerDir, Single};
use crate::layer::markers::{WH_OPAQUE, WH_PREFIX};
use crate::union::{Attr, EntryRef, FileKind, Ino, ROOT_INO, Union};

/// The names that are visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Those that the upper may have changed. In a directory that hides a lower one, every name is
    /// visited, with what it was before.
    Changes,
    /// The same, but in a directory that hides a lower one nothing existed before: the step says
    /// that the directory is opaque.
    Layer,
    /// All names that exist now.
    All,
}

/// One name, before and after.
pub(super) struct Step<'a> {
    /// The path from the root, without a leading slash; empty for the root.
    pub path: &'a [u8],
    /// The attributes before.
    pub before: Option<&'a Attr>,
    /// The attributes after.
    pub after: Option<&'a Attr>,
    /// The directory hides everything that was in it; only with [`Scope::Layer`].
    pub opaque: bool,
    /// The upper has the name.
    pub in_upper: bool,
}

/// A directory of a union, counted so that it is not forgotten.
struct Held<'u> {
    union: &'u Union,
    entry: Option<EntryRef<'u>>,
}

impl<'u> Held<'u> {
    fn root(union: &'u Union) -> Self {
        Self { union, entry: None }
    }

    fn ino(&self) -> Ino {
        self.entry.as_ref().map_or(ROOT_INO, |e| e.attr().ino)
    }

    fn lookup(&self, name: &[u8], path: &[u8]) -> Result<Option<EntryRef<'u>>> {
        let found = self.union.lookup(self.ino(), name);
        found.map_err(read_error(path))
    }

    fn child(&self, entry: EntryRef<'u>) -> Self {
        Self {
            union: self.union,
            entry: Some(entry),
        }
    }
}

/// What the upper says about a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Says {
    /// Nothing: the file is unchanged, unless it was changed under another name.
    Nothing,
    /// A directory that is merged with the lower one.
    Merged,
    /// A file or directory that replaces the lower one.
    Replaced,
}

/// A directory on the current path.
struct Frame<'u> {
    upper: Option<Arc<LowerDir>>,
    before: Option<Held<'u>>,
    after: Held<'u>,
    /// The remaining names in descending order.
    names: Vec<Vec<u8>>,
    /// The length of the directory's path.
    path: usize,
    /// Every name is compared, not only those of the upper.
    full: bool,
}

impl Tree {
    /// Calls `visit` for the root and then for every name that the upper may have changed, in the
    /// order of the components of their paths; without an upper, for every name.
    pub(super) fn walk(
        &self,
        scope: Scope,
        visit: &mut dyn FnMut(&Step<'_>) -> Result<()>,
    ) -> Result<()> {
        let attr = |union: &Union| union.getattr(ROOT_INO).map_err(read_error(b""));
        visit(&Step {
            path: b"",
            before: self.before.as_ref().map(attr).transpose()?.as_ref(),
            after: Some(&attr(&self.after)?),
            opaque: false,
            in_upper: self.upper.is_some(),
        })?;
        let mut path = Vec::new();
        let compared = scope != Scope::All;
        let before = self.before.as_ref().filter(|_| compared);
        let mut root = Frame {
            upper: self.upper.clone().filter(|_| compared),
            before: before.map(Held::root),
            after: Held::root(&self.after),
            names: Vec::new(),
            path: 0,
            full: false,
        };
        root.names = self.names(&root, &path)?;
        // A loop instead of recursion: a hostile layer may nest deeper than the stack of a thread
        // allows.
        let mut stack = vec![root];
        while let Some(frame) = stack.last_mut() {
            path.truncate(frame.path);
            let Some(name) = frame.names.pop() else {
                stack.pop();
                continue;
            };
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend(&name);
            if let Some(below) = self.step(frame, &name, &path, scope, visit)? {
                stack.push(below);
            }
        }
        Ok(())
    }

    /// Visits one name. For a directory, returns the frame to visit next.
    fn step<'t>(
        &'t self,
        frame: &Frame<'t>,
        name: &[u8],
        path: &[u8],
        scope: Scope,
        visit: &mut dyn FnMut(&Step<'_>) -> Result<()>,
    ) -> Result<Option<Frame<'t>>> {
        let before = match &frame.before {
            Some(dir) => dir.lookup(name, path)?,
            None => None,
        };
        let after = frame.after.lookup(name, path)?;
        if before.is_none() && after.is_none() {
            return Ok(None);
        }
        let is_dir = |e: &EntryRef<'_>| e.attr().kind == FileKind::Directory;
        let (upper, says) = self.in_upper(frame, name)?;
        let both_dirs = after.as_ref().is_some_and(is_dir) && before.as_ref().is_some_and(is_dir);
        let full = both_dirs && (frame.full || says == Says::Replaced);
        let opaque = full && scope == Scope::Layer;
        visit(&Step {
            path,
            before: before.as_ref().map(EntryRef::attr),
            after: after.as_ref().map(EntryRef::attr),
            opaque,
            in_upper: says != Says::Nothing,
        })?;
        let Some(after) = after.filter(is_dir) else {
            return Ok(None);
        };
        let before = before.filter(|e| is_dir(e) && !opaque);
        let mut below = Frame {
            upper,
            before: before.and_then(|e| Some(frame.before.as_ref()?.child(e))),
            after: frame.after.child(after),
            names: Vec::new(),
            path: path.len(),
            full: full && !opaque,
        };
        below.names = self.names(&below, path)?;
        Ok(Some(below))
    }

    /// Returns the upper's directory of a name, if it is one, and how it relates to the lower one.
    fn in_upper(&self, frame: &Frame<'_>, name: &[u8]) -> Result<(Option<Arc<LowerDir>>, Says)> {
        let Some(upper) = &frame.upper else {
            return Ok((None, Says::Nothing));
        };
        let single = upper.lookup(&self.fds, name);
        let single = single.map_err(|source| Error::Layer {
            path: upper.layer.path.clone(),
            source,
        })?;
        Ok(match single {
            Single::Dir {
                dir,
                opaque,
                redirect,
            } => {
                if opaque || redirect.is_some() {
                    (Some(dir), Says::Replaced)
                } else {
                    (Some(dir), Says::Merged)
                }
            }
            Single::Absent => (None, Says::Nothing),
            _ => (None, Says::Replaced),
        })
    }

    /// Returns the names to visit in a directory, in descending order.
    fn names(&self, frame: &Frame<'_>, path: &[u8]) -> Result<Vec<Vec<u8>>> {
        let all = |dir: &Held<'_>| names(dir.union, dir.ino()).map_err(read_error(path));
        let mut found = match (&frame.before, &frame.upper) {
            (Some(_), Some(upper)) if !frame.full && !self.everything => {
                self.upper_names(upper, path)?
            }
            (Some(before), _) => [all(before)?, all(&frame.after)?].concat(),
            (None, _) => all(&frame.after)?,
        };
        found.sort_unstable_by(|a, b| b.cmp(a));
        found.dedup();
        Ok(found)
    }

    fn upper_names(&self, upper: &LowerDir, path: &[u8]) -> Result<Vec<Vec<u8>>> {
        let wh_names = upper.takes_wh_names();
        let mut names = Vec::new();
        let read = upper.read(&self.fds, |entry| {
            let name = entry.name;
            match name.strip_prefix(WH_PREFIX) {
                Some(_) if wh_names && name == WH_OPAQUE => {}
                Some(hidden) if wh_names => names.push(hidden.to_vec()),
                _ => names.push(name.to_vec()),
            }
        });
        // `.wh.` alone, `.wh..` and the like hide nothing.
        names.retain(|name| crate::layer::at::is_valid_name(name));
        read.map_err(|source| Error::Layer {
            path: absolute(path),
            source,
        })?;
        Ok(names)
    }
}
