//! Containers' read-write layers, through `layerdb/mounts`.
//!
//! A container's own layer lies on an init layer (files that Docker puts over the image:
//! .dockerenv, etc/hosts …), which lies on the image's layers. layerdb has no names of containers:
//! they are read from `containers/<id>/config.v2.json` if that exists.

use std::path::Path;

use serde::Deserialize;

use super::drivers::Below;
use super::error::{Error, Result};
use super::image::{self, ImageLayer};
use super::image_store::{Cache, Store, layer_of};
use super::layerdb::CacheId;
use super::records::Records;
use super::{NamedLayer, SourceStore, discovery};
use crate::layer::{LayerSpec, OpenDir, StackSpec, UpperSpec};
use crate::oci::{Digest, json};
use crate::sys::process::is_root_of_machine;

/// The size limit of a config.v2.json, in bytes.
const LIMIT: u64 = 8 << 20;

/// A container's layers.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Container {
    /// The full ID.
    pub id: CacheId,
    /// The name, if Docker keeps one.
    pub name: Option<String>,
    /// The image from which the container was made, if that is recorded.
    pub image: Option<Digest>,
    /// The store of the image's layers, if it is not the container's own store.
    pub source: Option<SourceStore>,
    /// The chain ID of the image's top layer; `None` if the image has no layers.
    pub parent: Option<Digest>,
    /// The image's layers, base first.
    pub layers: Vec<ImageLayer>,
    /// Docker's layer between image and container; `None` also if the container's own layer
    /// contains a copy of it.
    pub init: Option<LayerSpec>,
    /// The container's own layer and its work directory; see `in_place`.
    pub upper: UpperSpec,
    /// Whether `upper` can be used as an upper; if not, `work` is the upper directory itself.
    pub in_place: bool,
    /// Whether the container's own layer is the whole tree: no layer of the image is visible.
    pub whole: bool,
    /// Whether Docker has the container mounted or records it as running.
    pub running: bool,
}

#[derive(Deserialize, Default)]
struct RawContainer {
    #[serde(rename = "ID")]
    id: Option<String>,
    #[serde(rename = "Name")]
    name: Option<String>,
    #[serde(rename = "Image")]
    image: Option<String>,
    #[serde(rename = "State")]
    state: Option<RawState>,
}

#[derive(Deserialize, Default)]
struct RawState {
    #[serde(rename = "Running")]
    running: Option<bool>,
}

impl Container {
    /// Returns the stack for a mount that does not write to the container's layer, which is the
    /// topmost lower.
    pub fn stack(&self) -> StackSpec {
        let mut stack = self.observed_stack();
        if let Some(upper) = stack.upper.take() {
            stack.lowers.insert(0, upper.layer);
        }
        stack
    }

    /// Returns the stack for a mount with the container's layer as the upper, which must not be in
    /// use.
    ///
    /// # Errors
    /// [`Error::ContainerRunning`] if the container runs, [`Error::NotAnUpper`] if the layers of
    /// its driver cannot be uppers.
    pub fn stack_in_place(&self) -> Result<StackSpec> {
        if self.running {
            let id = self.id.to_string();
            return Err(Error::ContainerRunning { id });
        }
        if !self.in_place {
            let path = self.upper.layer.path().to_owned();
            return Err(Error::NotAnUpper { path });
        }
        Ok(self.observed_stack())
    }

    /// As [`Container::observed_stack`], to find what the container has changed.
    ///
    /// # Errors
    /// [`Error::WholeTree`] if the driver keeps whole trees, which do not show what was changed.
    pub fn changed_stack(&self) -> Result<StackSpec> {
        if self.whole {
            let path = self.upper.layer.path().to_owned();
            return Err(Error::WholeTree { path });
        }
        Ok(self.observed_stack())
    }

    /// Returns the stack with the container's layer as the upper, to be read but not mounted: the
    /// container may be running. A `whole` layer has no lowers.
    pub fn observed_stack(&self) -> StackSpec {
        let below = if self.whole {
            Vec::new()
        } else {
            // `load` has checked that the layers are directories.
            image::stack(&self.layers).unwrap_or_default()
        };
        StackSpec {
            lowers: self.init.iter().cloned().chain(below).collect(),
            data_only: Vec::new(),
            upper: Some(self.upper.clone()),
        }
    }
}

/// Reads Docker's description of a container; `None` if there is none with this ID.
fn describe(store: &Store, id: &CacheId) -> Option<RawContainer> {
    let file = Path::new("containers")
        .join(id.as_str())
        .join("config.v2.json");
    // The file provides only the names. If it is damaged, the ID still works.
    let bytes = store.root.read(&file, LIMIT).ok()??;
    let raw: RawContainer = json::parse(&file, &bytes).ok()?;
    (raw.id.as_deref() == Some(id.as_str())).then_some(raw)
}

/// Whether the container has that name, with or without Docker's leading slash.
pub(crate) fn has_name(store: &Store, id: &CacheId, name: &str) -> bool {
    if let Some(records) = &store.records {
        let names = records.container_names(id);
        return names.is_ok_and(|names| names.contains(&name));
    }
    let bare = |name: &str| name.strip_prefix('/').unwrap_or(name).to_owned();
    let theirs = describe(store, id).and_then(|raw| raw.name);
    theirs.is_some_and(|theirs| !theirs.is_empty() && bare(&theirs) == bare(name))
}

/// Returns the name of a container that is shown, without Docker's leading slash.
pub(super) fn name_of(store: &Store, id: &CacheId) -> Option<String> {
    let name = match &store.records {
        Some(records) => records
            .container_names(id)
            .ok()?
            .first()
            .map(|&name| name.into()),
        None => describe(store, id)?.name,
    };
    let name = name?.trim_start_matches('/').to_owned();
    (!name.is_empty()).then_some(name)
}

/// Reads and verifies a container's layers.
pub(crate) fn load(store: &Store, id: &CacheId) -> Result<Container> {
    match &store.records {
        Some(records) => load_of_records(store, records, id),
        None => load_of_docker(store, id),
    }
}

/// Loads a container of podman or containerd.
fn load_of_records(store: &Store, records: &Records, id: &CacheId) -> Result<Container> {
    let found = records.container(id)?;
    let layers = store.directories(found.layers, &mut Cache::new())?;
    let top = layers.last().map(|layer| &layer.dir);
    let init = found.init.as_ref();
    let init = init.map(|init| store.driver.layer(&store.root, init, top));
    let init = init.transpose()?;
    let own = store
        .driver
        .layer(&store.root, &found.own, init.as_ref().or(top))?;
    let is_whole = own.below == Below::Nothing;
    let work = if tells_use(store, records) {
        store.driver.work(&store.root, &found.own)?
    } else {
        None
    };
    let name = records
        .container_names(id)?
        .first()
        .map(|&name| name.into());
    let init = init.filter(|_| !is_whole);
    let own = own.place.into_dir()?;
    Ok(Container {
        id: id.clone(),
        name,
        image: found.image,
        source: None,
        parent: layers.last().map(|layer| layer.record.chain_id),
        layers: layers.iter().map(|layer| layer_of(layer)).collect(),
        init: init.map(|init| init.place.into_dir()).transpose()?,
        in_place: work.is_some(),
        whole: is_whole,
        running: is_mounted(store, &own.dir),
        upper: UpperSpec {
            work: work.unwrap_or_else(|| own.dir.clone()),
            layer: own,
        },
    })
}

/// Whether this process can tell that a container's layer is in use. The records do not say so,
/// thus the container's mount must be visible. containerd's mounts are in other places, and those
/// of a rootless podman are in a mount namespace of its own.
fn tells_use(store: &Store, records: &Records) -> bool {
    let is_roots = store.root.owner().is_ok_and(|owner| owner == 0);
    matches!(records, Records::Podman(_)) && is_roots && is_root_of_machine()
}

fn load_of_docker(store: &Store, id: &CacheId) -> Result<Container> {
    let layerdb = store.layerdb();
    let mount = layerdb.mount(id)?.ok_or_else(|| Error::UnknownContainer {
        name: id.to_string(),
        searched: vec![store.root().to_owned()],
    })?;
    let diffs = match &mount.parent {
        Some(parent) => layerdb.diffs_below(parent)?,
        None => Vec::new(),
    };
    let layers = store.layers(&diffs, &mut Cache::new())?;
    let top = layers.last();
    if let (Some(parent), Some(top)) = (mount.parent, top)
        && top.record.chain_id != parent
    {
        return Err(Error::ChainMismatch {
            path: store
                .root
                .full(layerdb.dir.join("sha256").join(parent.hex())),
            found: format!("the layers of {}", top.record.chain_id),
            expected: parent.to_string(),
        });
    }
    let driver = &store.driver;
    let top = top.map(|layer| &layer.dir);
    let init = mount.init_id.as_ref();
    let init = init
        .map(|init| driver.layer(&store.root, init, top))
        .transpose()?;
    let own = driver.layer(&store.root, &mount.mount_id, init.as_ref().or(top))?;
    let work = driver.work(&store.root, &mount.mount_id)?;
    let raw = describe(store, id).unwrap_or_default();
    let called_running = raw.state.and_then(|s| s.running).unwrap_or(false);
    let below = own.below;
    let init = init.filter(|_| below == Below::Layers);
    let own = own.place.into_dir()?;
    Ok(Container {
        id: id.clone(),
        image: raw.image.as_deref().and_then(Digest::parse),
        source: None,
        name: raw
            .name
            .map(|name| name.trim_start_matches('/').to_owned())
            .filter(|name| !name.is_empty()),
        parent: mount.parent,
        layers: layers.iter().map(|layer| layer_of(layer)).collect(),
        init: init.map(|init| init.place.into_dir()).transpose()?,
        in_place: work.is_some(),
        whole: below == Below::Nothing,
        running: called_running || is_mounted(store, &own.dir),
        upper: UpperSpec {
            work: work.unwrap_or_else(|| own.dir.clone()),
            layer: own,
        },
    })
}

/// Reads and verifies the layers of a named layer of ours.
pub(crate) fn load_named(store: &Store, named: &NamedLayer) -> Result<Container> {
    let mut container = match &named.source {
        None => load(store, &named.id)?,
        Some(source) => load_elsewhere(store, named, source)?,
    };
    container.name = Some(named.name.clone());
    container.image = Some(named.image);
    Ok(container)
}

/// Returns an image of another store, whose layers are directories.
pub(super) fn image_elsewhere(id: &Digest, source: &SourceStore) -> Result<image::Image> {
    let stores = discovery::open(&source.root)?;
    // Docker's store and podman's may have the same root and driver.
    let here = |s: &&Store| s.driver() == source.driver && s.contains(id).unwrap_or(false);
    let other = stores.iter().find(here);
    let unknown = || Error::UnknownImage {
        name: id.to_string(),
        searched: vec![source.root.clone()],
        near: Vec::new(),
    };
    let image = other.ok_or_else(unknown)?.image(id)?;
    image.stack()?;
    Ok(image)
}

/// Loads a named layer of ours on an image of another store.
fn load_elsewhere(store: &Store, named: &NamedLayer, source: &SourceStore) -> Result<Container> {
    let image = image_elsewhere(&named.image, source)?;
    let own = store.driver.layer(&store.root, &named.mount_id, None)?;
    let own = own.place.into_dir()?;
    let work = store.driver.work(&store.root, &named.mount_id)?;
    Ok(Container {
        id: named.id.clone(),
        name: None,
        image: None,
        source: Some(source.clone()),
        parent: image.layers.last().map(|layer| layer.chain_id),
        layers: image.layers,
        init: None,
        running: false,
        in_place: work.is_some(),
        whole: false,
        upper: UpperSpec {
            work: work.unwrap_or_else(|| own.dir.clone()),
            layer: own,
        },
    })
}

/// Whether the engine has mounted the container, beside its own layer, in this mount namespace.
fn is_mounted(store: &Store, own: &OpenDir) -> bool {
    let merged = own.path().with_file_name("merged");
    let merged = merged.strip_prefix(store.root());
    merged.is_ok_and(|merged| store.root.is_mount_root(merged))
}
