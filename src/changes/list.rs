//! The list of changes: A, C or D per path. Called by the cli's `diff`.

use std::collections::BTreeMap;

use super::walk::Scope;
use super::{Result, Tree};

/// What happened to a path, with the letters of `docker diff`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It was not there.
    Added,
    /// It was there and is another, or holds what was changed.
    Changed,
    /// It is no more, with all that was in it.
    Deleted,
}

impl Kind {
    /// `A`, `C` or `D`.
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
    /// Absolute, as raw bytes.
    pub path: Vec<u8>,
    /// What happened.
    pub kind: Kind,
}

impl Tree {
    /// What the upper changed, sorted by path.
    ///
    /// As `docker diff` has it: of a deleted directory only itself is listed, of an added one
    /// all that is in it; a directory with changes in it is changed, the root is never listed;
    /// what was copied up and is as it was is no change.
    pub fn changes(&self) -> Result<Vec<Change>> {
        let mut found: BTreeMap<Vec<u8>, Kind> = BTreeMap::new();
        self.walk(Scope::Changes, &mut |step| {
            let kind = match (step.before, step.after) {
                _ if step.path.is_empty() => return Ok(()),
                (None, None) => return Ok(()),
                (None, Some(_)) => Kind::Added,
                (Some(_), None) => Kind::Deleted,
                (Some(before), Some(after)) => match self.differs(step.path, before, after)? {
                    true => Kind::Changed,
                    false => return Ok(()),
                },
            };
            found.insert([b"/", step.path].concat(), kind);
            Ok(())
        })?;
        add_parents(&mut found);
        let change = |(path, kind)| Change { path, kind };
        Ok(found.into_iter().map(change).collect())
    }
}

/// A directory with changes in it is itself changed.
fn add_parents(found: &mut BTreeMap<Vec<u8>, Kind>) {
    let mut missing = Vec::new();
    for path in found.keys() {
        let mut path = &path[..];
        while let Some(slash) = path.iter().rposition(|b| *b == b'/') {
            path = &path[..slash];
            // Whoever added it has added its parents too.
            if path.is_empty() || found.contains_key(path) || missing.last() == Some(&path.to_vec())
            {
                break;
            }
            missing.push(path.to_vec());
        }
    }
    for path in missing {
        found.entry(path).or_insert(Kind::Changed);
    }
}
