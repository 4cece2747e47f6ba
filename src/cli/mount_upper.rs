//! An upper made for one mount, and its end: removed when the mount fails, and after the
//! unmount of an ephemeral one; else kept.

use std::path::{Path, PathBuf};

use super::confined_queries::ask;
use super::error;
use unionfs::layer::{Dialect, OpenDir, UpperSpec};
use unionfs::sandbox::Mode;
use unionfs::sandbox::command::Command;
use unionfs::store::Writable;
use unionfs::store::discovery::Environment;
use unionfs::store::temporary_upper::{self, make_temporary_upper};

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
        place: temporary_upper::UpperLocation,
        diff: PathBuf,
    },
    /// A named layer of the store in `root`. A process in a sandbox of this mode removes it.
    Named {
        root: PathBuf,
        name: String,
        mode: Mode,
    },
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
        let upper = make_temporary_upper(&base, top)?;
        let spec = upper.spec(dialect);
        let made = Made::Directory {
            place: upper.place().clone(),
            diff: spec.layer.path().to_owned(),
        };
        Ok((Self { made, ephemeral }, spec))
    }

    /// A named layer that was made for this mount, in the store in `root`.
    pub(super) fn named(root: &Path, name: &str, mode: Mode) -> Self {
        Self {
            made: Made::Named {
                root: root.to_owned(),
                name: name.to_owned(),
                mode,
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
            Made::Directory { place, .. } => place.remove().map_err(anyhow::Error::from),
            Made::Named { root, name, mode } => remove_named(root, name, *mode),
            Made::Nothing => Ok(()),
        };
        if let Err(error) = removed {
            tracing::warn!(error = error::line(&error), "upper directory left behind");
        }
    }
}

/// The longest message of a failed removal, in bytes.
const MAX_MESSAGE: u64 = 16 << 10;

/// Which directories belong to it is in its record, which a confined process reads, and has written.
fn remove_named(root: &Path, name: &str, mode: Mode) -> anyhow::Result<()> {
    let mut sandbox = Command::new(mode);
    sandbox.write(root)?;
    ask(sandbox, MAX_MESSAGE, || {
        let store = Writable::open(root)?;
        store.lock()?.remove_container(name)?;
        Ok(Vec::new())
    })
    .map(drop)
}
