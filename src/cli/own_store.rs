//! The own store, for the commands that change it.

use std::fs::File;
use std::path::Path;

use super::environment;
use super::error::Usage;
use super::live_mounts::Mounted;
use super::output::{print, print_json};
use super::{STORE, command_sandbox, short_names, warn};
use unionfs::oci::{Digest, Platform, Reference};
use unionfs::store::writable::{Exclusive, Writable};
use unionfs::store::{Error, Places, UnnamedLayer};

/// Fails if `--root` was given to a command that only writes: it says where to look, never where to
/// write.
pub(super) fn refuse_root(command: &str, root: Option<&Path>) -> Result<(), Usage> {
    match root {
        Some(root) if STORE.get().is_none() => Err(Usage(format!(
            "--root only says where images are looked for, and {command} changes a store: write \
             --store {} for that one",
            root.display()
        ))),
        _ => Ok(()),
    }
}

/// Opens the own store for writing, and makes it if it does not exist.
pub(super) fn open() -> anyhow::Result<Writable> {
    Ok(Writable::open(&environment().own_root()?)?)
}

/// As [`open`], for a store that must exist.
pub(super) fn must_exist() -> anyhow::Result<Writable> {
    match existing()? {
        Some(store) => Ok(store),
        None => anyhow::bail!(
            "no unionfs store exists in {:?} yet: load, pull, import, commit or mount --name creates it \
             (stores of Docker and podman are only read)",
            environment().own_root()?
        ),
    }
}

/// As [`must_exist`], but a directory with changes of mounts without a name is enough.
pub(super) fn of_changes() -> anyhow::Result<Writable> {
    match existing_or_changes()? {
        Some(store) => Ok(store),
        None => must_exist(),
    }
}

/// As [`existing`], but a directory with changes of mounts without a name is enough.
pub(super) fn existing_or_changes() -> anyhow::Result<Option<Writable>> {
    match existing()? {
        None if !UnnamedLayer::all(&environment().own_root()?)?.is_empty() => open().map(Some),
        found => Ok(found),
    }
}

/// As [`open`], but makes nothing.
pub(super) fn existing() -> anyhow::Result<Option<Writable>> {
    Ok(Writable::existing(&environment().own_root()?)?)
}

/// Returns the store of unionfs in which is looked: that of `--root`, else the own store, if it exists.
pub(super) fn looked_at(root: Option<&Path>) -> anyhow::Result<Option<Writable>> {
    match root {
        Some(root) => Ok(Writable::existing(root)?),
        None => existing(),
    }
}

/// Parses a new name for an image.
pub(super) fn new_name(text: &str) -> anyhow::Result<Reference> {
    let name = Reference::parse(text)?;
    if name.digest().is_some() {
        let what = format!("{text:?} has a digest, which a registry gives: write name[:tag]");
        return Err(Usage(what).into());
    }
    Ok(name)
}

/// Parses a platform, for `--platform`.
pub(super) fn platform(text: &str) -> Result<Platform, String> {
    let what = "write os/architecture[/variant], such as linux/arm/v7";
    Platform::parse(text).ok_or_else(|| what.to_owned())
}

/// Prints the image that a command has made: its ID, or JSON with its name.
pub(super) fn print_made(id: &Digest, name: &Reference, json: bool) -> anyhow::Result<()> {
    if json {
        print_json(&serde_json::json!({"id": id, "name": name.key()}))
    } else {
        print(&format!("{id}\n"))
    }
}

/// Locks the store, with a message if that takes a while. No `Stores` may be open: a process that
/// removes layers waits for readers while it holds the lock.
pub(super) fn lock(store: &Writable) -> anyhow::Result<Exclusive<'_>> {
    if let Some(locked) = store.try_lock()? {
        return Ok(locked);
    }
    let root = store.root().display();
    warn(format_args!(
        "waiting for another command that changes {root}"
    ));
    Ok(store.lock()?)
}

/// Leftovers of killed commands, which are removed inside of the sandbox, where mounts are not
/// visible.
pub(super) struct Sweep {
    lock: File,
    mounted: Mounted,
}

impl Sweep {
    /// Locks the store and lists the mounts. `None`: another command changes the store; the next
    /// command removes the leftovers.
    pub(super) fn begin(store: &Writable) -> anyhow::Result<Option<Self>> {
        let locked = store.try_lock()?;
        Ok(locked.map(|locked| Self {
            lock: locked.into_lock(),
            mounted: Mounted::now(),
        }))
    }

    /// Removes the leftovers and unlocks the store.
    pub(super) fn run(self, store: &Writable) -> anyhow::Result<()> {
        sweep(&store.locked_by(self.lock)?, &self.mounted);
        Ok(())
    }
}

fn sweep(locked: &Exclusive<'_>, mounted: &Mounted) {
    if let Err(error) = locked.sweep(mounted) {
        // The image is so damaged that its layers are not known; prune reports it.
        tracing::debug!(%error, "leftovers are not looked for");
    }
}

/// Finds the image of the store that is to be changed; whether the text is one of its names.
pub(super) fn find(
    store: &Exclusive<'_>,
    text: &str,
    places: &Places,
) -> anyhow::Result<(Digest, Option<Reference>)> {
    let error = match store.find(text) {
        Err(error @ Error::UnknownImage { .. }) => error,
        other => return Ok(other?),
    };
    for name in short_names::of(text) {
        match store.find(&name.to_string()) {
            Err(Error::UnknownImage { .. }) => {}
            other => return Ok(other?),
        }
    }
    // It may be in a store that is only read.
    match command_sandbox::open(places.again()).map(|stores| stores.find(text)) {
        Ok(Ok(image)) if image.root != store.writable().root() => anyhow::bail!(
            "image {text:?} is in {:?}, which unionfs only reads: load it into {:?} first, or use \
             the engine it belongs to",
            image.root,
            store.writable().root()
        ),
        _ => Err(error.into()),
    }
}
