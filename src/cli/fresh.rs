//! An upper made for one mount, and its end: removed when the mount fails, and after the
//! unmount of an ephemeral one; else kept. Called by `mount` (makes it) and `launch`.

use std::path::{Path, PathBuf};

use crate::layer::{Dialect, OpenDir, UpperSpec};
use crate::store::Writable;
use crate::store::ephemeral::{self, ephemeral_upper};
use crate::store::roots::Environment;

/// Dropping it removes the upper with all that was written.
#[derive(Debug)]
pub(super) struct Fresh {
    made: Made,
    ephemeral: bool,
}

#[derive(Debug)]
enum Made {
    /// A directory without a name; `diff` is where the changes are, for the user.
    Directory {
        place: ephemeral::Place,
        diff: PathBuf,
    },
    /// A named layer of the store in `root`.
    Named { root: PathBuf, name: String },
    /// Somebody else's to remove.
    Nothing,
}

impl Fresh {
    /// Makes an upper in our own store, whose root looks like that of `top`.
    pub(super) fn make(
        top: &OpenDir,
        dialect: Dialect,
        ephemeral: bool,
    ) -> anyhow::Result<(Self, UpperSpec)> {
        let base = Environment::current().own_root()?;
        let upper = ephemeral_upper(&base, top)?;
        let spec = upper.spec(dialect);
        let made = Made::Directory {
            place: upper.place().clone(),
            diff: spec.layer.path().to_owned(),
        };
        Ok((Self { made, ephemeral }, spec))
    }

    /// A named layer that was made for this mount, in the store in `root`.
    pub(super) fn named(root: &Path, name: &str) -> Self {
        Self {
            made: Made::Named {
                root: root.to_owned(),
                name: name.to_owned(),
            },
            ephemeral: false,
        }
    }

    /// What the user has to know once the mount is live.
    pub(super) fn announcement(&self) -> Option<String> {
        match &self.made {
            Made::Directory { diff, .. } if !self.ephemeral => {
                Some(format!("changes are kept in {}\n", diff.display()))
            }
            _ => None,
        }
    }

    /// In the daemon: a named layer is left to the process that waits, since the store's
    /// locks are with that one.
    pub(super) fn leave_named(&mut self) {
        if let Made::Named { .. } = self.made {
            self.made = Made::Nothing;
        }
    }

    /// The mount lives: its daemon decides from now on.
    pub(super) fn release(mut self) {
        self.made = Made::Nothing;
    }

    /// The mount has ended.
    pub(super) fn after_unmount(self) {
        if !self.ephemeral {
            self.release();
        }
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let removed = match &self.made {
            Made::Directory { place, .. } => place.remove(),
            Made::Named { root, name } => remove_named(root, name),
            Made::Nothing => Ok(()),
        };
        if let Err(error) = removed {
            tracing::warn!(%error, "upper directory left behind");
        }
    }
}

fn remove_named(root: &Path, name: &str) -> crate::store::Result<()> {
    let store = Writable::open(root)?;
    store.lock()?.remove_container(name).map(drop)
}
