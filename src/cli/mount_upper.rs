//! An upper that is made for one mount, and its end: it is removed if the mount fails, and after
//! the unmount if it is ephemeral; otherwise it is kept.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::confined_queries::ask;
use super::environment;
use super::error;
use unionfs::layer::{Dialect, OpenDir, UpperSpec};
use unionfs::sandbox::Mode;
use unionfs::sandbox::command::Command;
use unionfs::store::temporary_upper::{self, make_temporary_upper};
use unionfs::store::{UnnamedOrigin, Writable};

/// Dropping it removes the upper with all changes.
#[derive(Debug)]
pub(super) struct Fresh {
    made: Made,
    lasts: Lasts,
}

/// What happens to an upper after the unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lasts {
    Kept,
    /// It is removed (`--ephemeral`).
    UntilUnmount,
}

impl Lasts {
    pub(super) fn of_flag(ephemeral: bool) -> Self {
        if ephemeral {
            Self::UntilUnmount
        } else {
            Self::Kept
        }
    }
}

#[derive(Debug)]
enum Made {
    /// A directory without a name in the store. `diff` contains the changes, for the user.
    Directory {
        place: temporary_upper::UpperLocation,
        diff: PathBuf,
        /// Keeps other commands from removing it until the mount is live.
        _held: File,
    },
    /// A named layer of the store in `root`. A process in a sandbox of this mode removes it.
    Named {
        root: PathBuf,
        name: String,
        mode: Mode,
    },
    /// Another process removes it.
    Nothing,
}

impl Fresh {
    /// Makes an upper in the own store, whose root has the attributes of `top`. `origin`: what the
    /// changes are made to, so that they can be found again.
    pub(super) fn make(
        top: &OpenDir,
        dialect: Dialect,
        lasts: Lasts,
        origin: Option<&UnnamedOrigin>,
    ) -> anyhow::Result<(Self, UpperSpec)> {
        let base = environment().own_root()?;
        let upper = make_temporary_upper(&base, top)?;
        let spec = upper.spec(dialect);
        let recorded = origin.map_or(Ok(()), |origin| upper.record(origin));
        let made = Made::Directory {
            place: upper.place().clone(),
            diff: spec.layer.path().to_owned(),
            _held: upper.into_held(),
        };
        // Dropping it removes the upper.
        let fresh = Self { made, lasts };
        recorded?;
        Ok((fresh, spec))
    }

    /// Takes a named layer that was made for this mount, in the store in `root`.
    pub(super) fn named(root: &Path, name: &str, mode: Mode) -> Self {
        Self {
            made: Made::Named {
                root: root.to_owned(),
                name: name.to_owned(),
                mode,
            },
            lasts: Lasts::Kept,
        }
    }

    /// Returns the message for the user when the mount is live.
    pub(super) fn announcement(&self) -> Option<String> {
        match &self.made {
            Made::Directory { diff, .. } if self.lasts == Lasts::Kept => {
                Some(format!("changes are kept in {}\n", diff.display()))
            }
            _ => None,
        }
    }

    /// In the daemon: leaves a named layer to the waiting process, which has the locks of the
    /// store.
    pub(super) fn leave_named(&mut self) {
        if let Made::Named { .. } = self.made {
            self.made = Made::Nothing;
        }
    }

    /// The mount is live. Its daemon decides from now on.
    pub(super) fn release(mut self) {
        self.made = Made::Nothing;
    }

    /// The mount has ended.
    pub(super) fn after_unmount(self) {
        if self.lasts == Lasts::Kept {
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

/// The maximum length of the message about a failed removal, in bytes.
const MAX_MESSAGE: u64 = 16 << 10;

/// The record of the layer names its directories. A confined process reads the record and has
/// written it.
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
