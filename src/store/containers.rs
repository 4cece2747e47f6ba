//! Containers' read-write layers, through `layerdb/mounts`. Called by `stores`.
//!
//! A container's own layer lies on an init layer (files Docker puts over the image:
//! .dockerenv, etc/hosts …), which lies on the image's layers. Names are not in
//! layerdb: they are read from `containers/<id>/config.v2.json` where that exists.

use std::path::Path;

use serde::Deserialize;

use super::drivers::Below;
use super::error::{Error, Result};
use super::image::{self, Layer};
use super::layerdb::CacheId;
use super::single::{Cache, Store, layer_of};
use super::{Digest, Named, Source, json, roots};
use crate::layer::{LayerSpec, OpenDir, StackSpec, UpperSpec};

/// The most that is read of a config.v2.json, in bytes.
const LIMIT: u64 = 8 << 20;

/// A container's layers.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its full ID.
    pub id: CacheId,
    /// Its name, where Docker keeps one.
    pub name: Option<String>,
    /// The image it was made from, where that is recorded.
    pub image: Option<Digest>,
    /// The store its image's layers are in, where that is another one than its own.
    pub source: Option<Source>,
    /// The chain ID of the image's top layer; `None` if the image has no layers.
    pub parent: Option<Digest>,
    /// The image's layers, base first.
    pub layers: Vec<Layer>,
    /// Docker's layer between image and container; `None` also where the container's own
    /// layer holds a copy of it.
    pub init: Option<LayerSpec>,
    /// The container's own layer and its work directory; see `in_place`.
    pub upper: UpperSpec,
    /// Whether `upper` can be an upper; else `work` is that directory itself.
    pub in_place: bool,
    /// Whether the container's own layer is its whole tree: nothing of the image shows.
    pub whole: bool,
    /// Whether Docker has it mounted or calls it running.
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
    /// The stack to mount. Writable: changes go to the container's layer, which must
    /// not be in use. Otherwise that layer is the topmost lower.
    pub fn stack(&self, writable: bool) -> Result<StackSpec> {
        if writable && self.running {
            let id = self.id.to_string();
            return Err(Error::ContainerRunning { id });
        }
        if writable && !self.in_place {
            let path = self.upper.layer.path().to_owned();
            return Err(Error::NotAnUpper { path });
        }
        let mut stack = self.observed_stack();
        if !writable && let Some(upper) = stack.upper.take() {
            stack.lowers.insert(0, upper.layer);
        }
        Ok(stack)
    }

    /// As [`Container::observed_stack`], to tell what the container has changed.
    pub fn changed_stack(&self) -> Result<StackSpec> {
        if self.whole {
            let path = self.upper.layer.path().to_owned();
            return Err(Error::WholeTree { path });
        }
        Ok(self.observed_stack())
    }

    /// The stack with the container's layer as the upper, to be looked at but not mounted:
    /// the container may be running. Of a `whole` layer nothing is below it.
    pub fn observed_stack(&self) -> StackSpec {
        let below = match self.whole {
            true => Vec::new(),
            false => image::stack(&self.layers),
        };
        StackSpec {
            lowers: self.init.iter().cloned().chain(below).collect(),
            data_only: Vec::new(),
            upper: Some(self.upper.clone()),
        }
    }
}

/// Docker's description of a container; `None` where there is none that fits.
fn describe(store: &Store, id: &CacheId) -> Option<RawContainer> {
    let file = Path::new("containers")
        .join(id.as_str())
        .join("config.v2.json");
    // It only gives names: whatever is wrong with it, the ID still works.
    let bytes = store.root.read(&file, LIMIT).ok()??;
    let raw: RawContainer = json::parse(&file, &bytes).ok()?;
    (raw.id.as_deref() == Some(id.as_str())).then_some(raw)
}

/// Whether the container is called that, with or without Docker's leading slash.
pub(crate) fn has_name(store: &Store, id: &CacheId, name: &str) -> bool {
    let bare = |name: &str| name.strip_prefix('/').unwrap_or(name).to_owned();
    let theirs = describe(store, id).and_then(|raw| raw.name);
    theirs.is_some_and(|theirs| !theirs.is_empty() && bare(&theirs) == bare(name))
}

/// Reads and verifies a container's layers.
pub(crate) fn load(store: &Store, id: &CacheId) -> Result<Container> {
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
        init: init
            .filter(|_| own.below == Below::Layers)
            .map(|init| init.spec),
        in_place: work.is_some(),
        whole: own.below == Below::Nothing,
        running: called_running || is_mounted(store, &own.spec.dir),
        upper: UpperSpec {
            work: work.unwrap_or_else(|| own.spec.dir.clone()),
            layer: own.spec,
        },
    })
}

/// Reads and verifies the layers of a named layer of ours.
pub(crate) fn load_named(store: &Store, named: &Named) -> Result<Container> {
    let mut container = match &named.source {
        None => load(store, &named.id)?,
        Some(source) => load_elsewhere(store, named, source)?,
    };
    container.name = Some(named.name.clone());
    container.image = Some(named.image);
    Ok(container)
}

/// A layer of ours on an image of another store.
fn load_elsewhere(store: &Store, named: &Named, source: &Source) -> Result<Container> {
    let stores = roots::open(&source.root)?;
    // Docker's store and podman's may have the same root and driver.
    let here =
        |s: &&Store| s.driver() == source.driver && s.contains(&named.image).unwrap_or(false);
    let other = stores.iter().find(here);
    let image = other
        .ok_or_else(|| Error::UnknownImage {
            name: named.image.to_string(),
            searched: vec![source.root.clone()],
        })?
        .image(&named.image)?;
    let own = store.driver.layer(&store.root, &named.mount_id, None)?;
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
            work: work.unwrap_or_else(|| own.spec.dir.clone()),
            layer: own.spec,
        },
    })
}

/// Whether the engine has the container mounted, beside its own layer, in this mount namespace.
fn is_mounted(store: &Store, own: &OpenDir) -> bool {
    let merged = own.path().with_file_name("merged");
    let merged = merged.strip_prefix(store.root());
    merged.is_ok_and(|merged| store.root.is_mount_root(merged))
}
