//! The data of `unionfs images` and `unionfs layers`: all images of all stores and the tree of
//! their layers. One damaged image does not hide the others.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZero;
use std::path::PathBuf;
use std::thread;

use serde::Serialize;

use super::error::{Error, Result};
use super::image::{Image, ImageLayer, lossy};
use super::image_store::{Cache, Store};
use super::{Name, Stores};
use crate::oci::Digest;

/// The largest number of threads that read images.
const MOST_READERS: usize = 8;

/// The number of images from which a further thread is worth its start.
const LEAST_SHARE: usize = 32;

/// All images, and the errors of those that could not be read.
#[derive(Debug, Default)]
pub struct Listing {
    /// The images, sorted by first name, then ID, per store; `shared_by` of their layers is set.
    pub images: Vec<Image>,
    /// The errors, one for each image or name that could not be read.
    pub problems: Vec<Error>,
    intermediate: HashSet<(PathBuf, &'static str, Digest)>,
}

impl Listing {
    /// Whether the image is an intermediate step of another image's build and has no name:
    /// `docker images` hides such images, and they do not count as sharing a layer.
    pub fn is_intermediate(&self, image: &Image) -> bool {
        self.intermediate
            .contains(&(image.root.clone(), image.driver, image.id))
    }
}

/// A layer in the tree of all layers.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct LayerNode {
    /// The layer; its `shared_by` is set.
    #[serde(flatten)]
    pub layer: ImageLayer,
    /// The store's root.
    #[serde(serialize_with = "lossy")]
    pub root: PathBuf,
    /// The number of layers below it.
    pub depth: usize,
    /// The images whose top layer this is, by name or short ID.
    pub top_of: Vec<String>,
    /// All images that have the layer, by name or short ID.
    pub images: Vec<String>,
}

/// The layers as a tree: each layer before the layers on top of it, base layers first.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct LayerTree {
    /// The layers in the order of printing.
    pub nodes: Vec<LayerNode>,
    /// The errors, one for each image or name that could not be read.
    pub problems: Vec<Error>,
}

impl Stores {
    /// Returns every image of every store.
    pub fn images(&self) -> Listing {
        let mut listing = Listing::default();
        for store in self.all() {
            if let Err(error) = list_store(store, &mut listing) {
                listing.problems.push(error);
            }
        }
        listing
    }

    /// Returns the layers of one image, or of all, with the images that share them.
    pub fn layers(&self, only: Option<&Image>) -> LayerTree {
        let listing = self.images();
        let mut nodes = Vec::new();
        for store in self.all() {
            let here =
                |image: &&Image| image.root == store.root() && image.driver == store.driver();
            if only.is_some_and(|image| !here(&image)) {
                continue;
            }
            let images: Vec<&Image> = listing
                .images
                .iter()
                .filter(here)
                .filter(|image| !listing.is_intermediate(image))
                .collect();
            nodes.extend(tree(&images, only));
        }
        LayerTree {
            nodes,
            problems: listing.problems,
        }
    }
}

fn list_store(store: &Store, listing: &mut Listing) -> Result<()> {
    let mut names: BTreeMap<Digest, Vec<Name>> = BTreeMap::new();
    if let Some(repositories) = store.repositories()? {
        for entry in repositories.all() {
            match entry {
                Ok((name, id)) => names.entry(id).or_default().push(name),
                Err(error) => listing.problems.push(error),
            }
        }
    }
    let mut ids = store.ids()?;
    // Names of images that do not exist are reported as problems.
    ids.extend(names.keys());
    ids.sort();
    ids.dedup();
    let mut images = Vec::new();
    for image in read_images(store, &ids, &names) {
        match image {
            Ok(image) => images.push(image),
            Err(error) => listing.problems.push(error),
        }
    }
    let parents: HashSet<Digest> = images.iter().filter_map(|image| image.parent).collect();
    let is_step = |image: &Image| image.names.is_empty() && parents.contains(&image.id);
    let mut shared: HashMap<Digest, usize> = HashMap::new();
    for layer in images
        .iter()
        .filter(|i| !is_step(i))
        .flat_map(|i| &i.layers)
    {
        *shared.entry(layer.chain_id).or_default() += 1;
    }
    for image in &mut images {
        for layer in &mut image.layers {
            layer.shared_by = Some(shared.get(&layer.chain_id).copied().unwrap_or(0));
        }
    }
    let steps = images.iter().filter(|image| is_step(image));
    listing
        .intermediate
        .extend(steps.map(|image| (image.root.clone(), image.driver, image.id)));
    images.sort_by_cached_key(|image| (image.names.is_empty(), image.label(), image.id));
    listing.images.extend(images);
    Ok(())
}

/// Reads images, in the order of their IDs. Many images are read by several threads, because most of
/// the time goes into system calls.
fn read_images(
    store: &Store,
    ids: &[Digest],
    names: &BTreeMap<Digest, Vec<Name>>,
) -> Vec<Result<Image>> {
    let read = |ids: &[Digest]| {
        let mut cache = Cache::new();
        let image = |id: &Digest| {
            let names = names.get(id).cloned().unwrap_or_default();
            match store.image_with(id, names.clone(), &mut cache) {
                Err(Error::NotUnpacked { .. }) => store.packed_image(id, names),
                found => found,
            }
        };
        ids.iter().map(image).collect::<Vec<_>>()
    };
    let cpus = thread::available_parallelism().map_or(1, NonZero::get);
    let share = ids.len().div_ceil(cpus.min(MOST_READERS)).max(LEAST_SHARE);
    let (first, others) = ids.split_at(share.min(ids.len()));
    thread::scope(|scope| {
        let begun: Vec<_> = others
            .chunks(share)
            .map(|ids| {
                // Without a thread, the images are read below.
                let begun = thread::Builder::new().spawn_scoped(scope, || read(ids));
                (ids, begun)
            })
            .collect();
        let mut images = read(first);
        for (ids, begun) in begun {
            let read_there = begun.ok().and_then(|thread| thread.join().ok());
            images.extend(read_there.unwrap_or_else(|| read(ids)));
        }
        images
    })
}

/// Returns the layers of some images of one store; with `only`, just those of that image.
fn tree(images: &[&Image], only: Option<&Image>) -> Vec<LayerNode> {
    let mut nodes: BTreeMap<Digest, LayerNode> = BTreeMap::new();
    let known = |image: &Image| images.iter().any(|other| other.id == image.id);
    // An intermediate image that the user names by ID is not in the list, but has layers.
    let extra = only.filter(|image| !known(image));
    for image in images.iter().copied().chain(extra) {
        for (depth, layer) in image.layers.iter().enumerate() {
            let node = nodes.entry(layer.chain_id).or_insert_with(|| LayerNode {
                layer: layer.clone(),
                root: image.root.clone(),
                depth,
                top_of: Vec::new(),
                images: Vec::new(),
            });
            node.images.push(image.label());
            node.layer.shared_by = Some(node.images.len());
            if depth + 1 == image.layers.len() {
                node.top_of.push(image.label());
            }
        }
    }
    if let Some(image) = only {
        let chain: HashSet<Digest> = image.layers.iter().map(|l| l.chain_id).collect();
        nodes.retain(|id, _| chain.contains(id));
    }
    in_tree_order(nodes)
}

fn in_tree_order(mut nodes: BTreeMap<Digest, LayerNode>) -> Vec<LayerNode> {
    let mut children: HashMap<Option<Digest>, Vec<Digest>> = HashMap::new();
    for (id, node) in &nodes {
        children.entry(node.layer.parent).or_default().push(*id);
    }
    let mut out = Vec::with_capacity(nodes.len());
    let mut todo = children.remove(&None).unwrap_or_default();
    todo.reverse();
    while let Some(id) = todo.pop() {
        out.extend(nodes.remove(&id));
        let above = children.remove(&Some(id)).unwrap_or_default();
        todo.extend(above.into_iter().rev());
    }
    out
}
