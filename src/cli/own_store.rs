//! Our own store, for the commands that change it.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::error::Usage;
use super::output::{print, print_json};
use super::{command_sandbox, warn};
use unionfs::fuse::runtime;
use unionfs::oci::{Digest, Platform, Reference};
use unionfs::store::discovery::Environment;
use unionfs::store::writable::{Exclusive, Writable};
use unionfs::store::{Error, Image, Places};

/// Opens the store that is written to, making it if there is none.
pub(super) fn open(root: Option<&Path>) -> anyhow::Result<Writable> {
    Ok(Writable::open(&place(root)?)?)
}

/// As [`open`], for what must be there already.
pub(super) fn must_exist(root: Option<&Path>) -> anyhow::Result<Writable> {
    match existing(root)? {
        Some(store) => Ok(store),
        None => anyhow::bail!(
            "no unionfs store exists in {:?} yet: load, pull, import, commit or mount --name creates it \
             (stores of Docker and podman are only read)",
            place(root)?
        ),
    }
}

/// As [`open`], but makes nothing.
pub(super) fn existing(root: Option<&Path>) -> anyhow::Result<Option<Writable>> {
    Ok(Writable::existing(&place(root)?)?)
}

fn place(root: Option<&Path>) -> anyhow::Result<PathBuf> {
    Ok(match root {
        Some(root) => root.to_owned(),
        None => Environment::current().own_root()?,
    })
}

/// A name that an image is to get.
pub(super) fn new_name(text: &str) -> anyhow::Result<Reference> {
    let name = Reference::parse(text)?;
    if name.digest().is_some() {
        let what = format!("{text:?} has a digest, which a registry gives: write name[:tag]");
        return Err(Usage(what).into());
    }
    Ok(name)
}

/// A platform, for `--platform`.
pub(super) fn platform(text: &str) -> Result<Platform, String> {
    let what = "write os/architecture[/variant], such as linux/arm/v7";
    Platform::parse(text).ok_or_else(|| what.to_owned())
}

/// Prints the image that a command has made: its ID, or with its name as JSON.
pub(super) fn print_made(id: &Digest, name: &Reference, json: bool) -> anyhow::Result<()> {
    if json {
        print_json(&serde_json::json!({"id": id, "name": name.key()}))
    } else {
        print(&format!("{id}\n"))
    }
}

/// Locks it; says so when that takes a while. Before any `Stores` is opened: who removes
/// something waits for those with the lock in hand.
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

/// What killed commands have left half made, to be swept away from inside of the sandbox, where
/// mounts are not seen.
pub(super) struct Sweep {
    lock: File,
    mounted: Mounted,
}

impl Sweep {
    /// Locks the store and looks which mounts there are. `None` while somebody else changes it: the
    /// next command will do.
    pub(super) fn begin(store: &Writable) -> anyhow::Result<Option<Self>> {
        let locked = store.try_lock()?;
        Ok(locked.map(|locked| Self {
            lock: locked.into_lock(),
            mounted: Mounted::now(),
        }))
    }

    /// Does it, and lets go of the lock.
    pub(super) fn run(self, store: &Writable) -> anyhow::Result<()> {
        sweep(&store.locked_by(self.lock)?, &self.mounted);
        Ok(())
    }
}

fn sweep(locked: &Exclusive<'_>, mounted: &Mounted) {
    if let Err(error) = locked.sweep(&|diff| mounted.find(diff)) {
        // An image so damaged that its layers cannot be told; prune says so.
        tracing::debug!(%error, "leftovers are not looked for");
    }
}

/// The layers of live mounts, with where they are mounted.
pub(super) struct Mounted {
    layers: HashMap<PathBuf, PathBuf>,
    /// The topmost lower of each mount, which stands for the whole chain, where it is mounted,
    /// and the image's ID if that is known.
    chains: Vec<(PathBuf, PathBuf, Option<String>)>,
}

impl Mounted {
    pub(super) fn now() -> Self {
        let (mut layers, mut chains) = (HashMap::new(), Vec::new());
        for record in runtime::list() {
            let description = record.description;
            if let Some(top) = description.lowers.first() {
                let image = description.image_id.clone();
                chains.push((top.clone(), record.mountpoint.clone(), image));
            }
            for layer in description.lowers.into_iter().chain(description.upper) {
                layers.insert(layer, record.mountpoint.clone());
            }
        }
        Self { layers, chains }
    }

    /// None.
    pub(super) fn none() -> Self {
        Self {
            layers: HashMap::new(),
            chains: Vec::new(),
        }
    }

    /// Where the layer in this directory is mounted.
    pub(super) fn find(&self, diff: &Path) -> Option<PathBuf> {
        self.layers.get(diff).cloned()
    }

    /// Where an image is mounted: its layers, all of them and none above, and not as another
    /// image that has the same.
    pub(super) fn image(&self, image: &Image) -> Option<PathBuf> {
        let top = &image.layers.last()?.place.path();
        let id = image.id.to_string();
        let this = |other: &Option<String>| other.as_ref().is_none_or(|other| *other == id);
        let mut chains = self.chains.iter();
        let found = chains.find(|(lower, _, image)| lower == top && this(image));
        found.map(|(_, mountpoint, _)| mountpoint.clone())
    }
}

/// An image of the store that is to be changed; whether it was asked for by that name.
pub(super) fn find(
    store: &Exclusive<'_>,
    text: &str,
    places: &Places,
) -> anyhow::Result<(Digest, Option<Reference>)> {
    let error = match store.find(text) {
        Err(error @ Error::UnknownImage { .. }) => error,
        other => return Ok(other?),
    };
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
