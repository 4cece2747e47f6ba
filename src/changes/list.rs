//! The list of changes: A, C or D per path (`unionfs diff`).

use std::collections::BTreeMap;

use super::walk::Scope;
use super::{Result, Tree};

/// The kind of a change, as in `docker diff`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// The path did not exist.
    Added,
    /// The file has changed, or the directory contains changes.
    Changed,
    /// The path was removed, with everything in it.
    Deleted,
}

impl ChangeKind {
    /// Returns `A`, `C` or `D`.
    pub fn letter(self) -> char {
        match self {
            Self::Added => 'A',
            Self::Changed => 'C',
            Self::Deleted => 'D',
        }
    }
}

/// A changed path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The absolute path, as raw bytes.
    pub path: Vec<u8>,
    /// The kind of the change.
    pub kind: ChangeKind,
}

impl Tree {
    /// Returns the changes of the upper, sorted by path.
    ///
    /// As in `docker diff`: a deleted directory is listed without its content, an added one with
    /// it; a directory that contains changes is listed as changed, except for the root; a copied-up
    /// file that is otherwise unchanged is not listed.
    ///
    /// # Errors
    /// [`Error::Read`](super::Error::Read) and [`Error::Layer`](super::Error::Layer).
    pub fn changes(&self) -> Result<Vec<Change>> {
        let mut found: BTreeMap<Vec<u8>, ChangeKind> = BTreeMap::new();
        self.walk(Scope::Changes, &mut |step| {
            let kind = match (step.before, step.after) {
                _ if step.path.is_empty() => return Ok(()),
                (None, None) => return Ok(()),
                (None, Some(_)) => ChangeKind::Added,
                (Some(_), None) => ChangeKind::Deleted,
                (Some(before), Some(after)) => {
                    if self.differs(step.path, before, after)? {
                        ChangeKind::Changed
                    } else {
                        return Ok(());
                    }
                }
            };
            found.insert([b"/", step.path].concat(), kind);
            Ok(())
        })?;
        add_parents(&mut found);
        let change = |(path, kind)| Change { path, kind };
        Ok(found.into_iter().map(change).collect())
    }
}

/// Marks the ancestors of all paths as changed.
fn add_parents(found: &mut BTreeMap<Vec<u8>, ChangeKind>) {
    let mut missing = Vec::new();
    for path in found.keys() {
        let mut path = &path[..];
        while let Some(slash) = path.iter().rposition(|b| *b == b'/') {
            path = &path[..slash];
            // The ancestors of an added path have been added with it.
            if path.is_empty() || found.contains_key(path) || missing.last() == Some(&path.to_vec())
            {
                break;
            }
            missing.push(path.to_vec());
        }
    }
    for path in missing {
        found.entry(path).or_insert(ChangeKind::Changed);
    }
}
