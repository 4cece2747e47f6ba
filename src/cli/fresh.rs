//! An upper made for one mount, and its end: removed when the mount fails, and after the
//! unmount of an ephemeral one; else kept. Called by `mount` (makes it) and `launch`.

use std::path::{Path, PathBuf};

use crate::layer::{Dialect, UpperSpec};
use crate::store::ephemeral::{ephemeral_upper, remove_upper};
use crate::store::roots::Environment;

/// Dropping it removes the directory with all that was written.
#[derive(Debug)]
pub(super) struct Fresh {
    dir: PathBuf,
    /// Where the changes are, for the user.
    diff: PathBuf,
    ephemeral: bool,
}

impl Fresh {
    /// Makes an upper in our own store, whose root looks like that of `top`.
    pub(super) fn make(
        top: &Path,
        dialect: Dialect,
        ephemeral: bool,
    ) -> anyhow::Result<(Self, UpperSpec)> {
        let base = Environment::current().own_root()?;
        let made = ephemeral_upper(&base, top)?;
        let spec = made.spec(dialect);
        let fresh = Self {
            dir: made.dir().to_owned(),
            diff: spec.layer.path.clone(),
            ephemeral,
        };
        Ok((fresh, spec))
    }

    /// What the user has to know once the mount is live.
    pub(super) fn announcement(&self) -> Option<String> {
        (!self.ephemeral).then(|| format!("changes are kept in {}\n", self.diff.display()))
    }

    /// The mount lives: its daemon decides from now on.
    pub(super) fn release(self) {
        std::mem::forget(self);
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
        if let Err(error) = remove_upper(&self.dir) {
            tracing::warn!(%error, "upper directory left behind");
        }
    }
}
