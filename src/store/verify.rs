//! Verifies stores: configurations against their IDs, chains of layers, the driver's links, every
//! layer's files against its diff ID and the headers of its tar, sizes. It only reads, and works on
//! Docker's and podman's stores and on ours.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use serde::Serialize;

use super::error::{Error, Result};
use super::image_store::{Cache, Store, layer_of};
use super::writable::Staging;
use super::{ImageLayer, Stores, containers};
use crate::layer_tar::{self, Cause, Compare, Damage, RootDirectory};
use crate::oci::text::excerpt;
use crate::oci::{Digest, chain_id};
use crate::progress::Progress;

/// A problem that a verification found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Problem {
    /// The store's root.
    pub root: String,
    /// The damaged object: an image, a layer or a container with its ID; "store".
    pub of: String,
    /// The damage, with the damaged file.
    pub what: String,
}

/// The result of a verification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The number of images that were checked.
    pub images: usize,
    /// The number of layers whose files were checked.
    pub layers: usize,
    /// The number of layers that were not checked, because a layer below has damaged records.
    pub unchecked: usize,
    /// The number of indexes and manifests that are kept whole and were checked with all their blobs.
    pub kept: usize,
    /// The number of bytes of tars that were rebuilt and hashed, and of blobs that were hashed.
    pub bytes: u64,
    /// All problems; empty if there are none.
    pub problems: Vec<Problem>,
    /// What could not be checked and is no damage: content of tars that the engine has not kept.
    pub notes: Vec<Problem>,
    /// The number of problems in our own stores, which `load` and `pull` can repair.
    #[serde(skip)]
    pub in_own_stores: usize,
}

impl Problem {
    fn of(store: &Store, of: impl ToString, what: impl ToString) -> Self {
        Self {
            root: store.root().to_string_lossy().into_owned(),
            of: of.to_string(),
            what: what.to_string(),
        }
    }
}

impl Stores {
    /// Checks one image, or with `None` everything in every store. Damage is in the report, not an
    /// error. The items of `progress` are chain IDs.
    ///
    /// # Errors
    /// Those of [`Stores::find`].
    pub fn verify(
        &self,
        image: Option<&str>,
        progress: &mut dyn FnMut(Progress<'_, &Digest>),
    ) -> Result<Report> {
        self.verify_with(image, &Staging::temporary(), progress)
    }

    /// As [`Stores::verify`]. Data that does not fit into memory goes to [`SCRATCH_FILES`] of
    /// `scratch`.
    ///
    /// # Errors
    /// As [`Stores::verify`], and those of making the files.
    pub fn verify_with(
        &self,
        image: Option<&str>,
        scratch: &Staging,
        progress: &mut dyn FnMut(Progress<'_, &Digest>),
    ) -> Result<Report> {
        let mut verify = Verify::default();
        let file = || scratch.file();
        let scratch = [file()?, file()?, file()?, file()?, file()?, file()?];
        if let Some(text) = image {
            let (store, id) = self.locate(text)?;
            verify.image(store, &id);
            verify.kept(store, |store| store.kept_objects_of(&id));
        } else {
            self.all().iter().for_each(|store| verify.store(store));
        }
        verify.contents(scratch.each_ref(), progress);
        verify.kept_contents(progress);
        let mut report = verify.report;
        // Damage of a layer that several images and containers share is found with each of them.
        let mut seen = HashSet::new();
        let new = |p: &Problem| seen.insert((p.what.clone(), p.root.clone()));
        report.problems.retain(new);
        let mut seen = HashSet::new();
        let new = |p: &Problem| seen.insert((p.what.clone(), p.root.clone()));
        report.notes.retain(new);
        let ours = self.all().iter().filter(|store| store.is_ours());
        let ours: HashSet<_> = ours.map(|store| store.root().to_string_lossy()).collect();
        let problems = report.problems.iter();
        report.in_own_stores = problems
            .filter(|problem| ours.contains(problem.root.as_str()))
            .count();
        Ok(report)
    }
}

/// The number of files that a verification uses for data that does not fit into memory.
pub const SCRATCH_FILES: usize = 6;
/// The limit of the bytes of paths and descriptions of the damaged files of one layer. Further
/// damaged files are only counted.
const MAX_DAMAGES: usize = 8 << 20;
/// The bytes that are counted for each file, besides the texts.
const DAMAGED: usize = 200;

#[derive(Default)]
struct Verify<'s> {
    report: Report,
    layers: Vec<(&'s Store, ImageLayer)>,
    /// Indexes and manifests that are kept whole.
    kept: Vec<(&'s Store, Digest)>,
    known: HashSet<(PathBuf, &'static str, Digest)>,
    /// The directories of podman's layers: podman may have a layer twice.
    podmans: HashSet<PathBuf>,
    caches: Vec<((PathBuf, &'static str), Cache)>,
}

impl<'s> Verify<'s> {
    fn problem(&mut self, store: &Store, of: impl ToString, what: impl ToString) {
        self.report.problems.push(Problem::of(store, of, what));
    }

    fn store(&mut self, store: &'s Store) {
        let mut ids = HashSet::new();
        match store.ids() {
            Ok(found) => ids.extend(found),
            Err(error) => self.problem(store, "store", error),
        }
        match store.repositories() {
            Ok(Some(names)) => {
                for entry in names.all() {
                    match entry {
                        // A name of an image that does not exist is reported with the image.
                        Ok((_, id)) => drop(ids.insert(id)),
                        Err(error) => self.problem(store, "store", error),
                    }
                }
            }
            Ok(None) => {}
            Err(error) => self.problem(store, "store", error),
        }
        let mut ids: Vec<Digest> = ids.into_iter().collect();
        ids.sort();
        ids.iter().for_each(|id| self.image(store, id));
        if store.records.is_none() {
            self.other_layers(store);
            self.containers(store);
            self.kept(store, |store| {
                let mut objects = store.kept_objects(&[])?;
                objects.extend(store.kept_dirs()?);
                Ok(objects)
            });
        }
    }

    fn image(&mut self, store: &'s Store, id: &Digest) {
        self.report.images += 1;
        let of = format!("image {id}");
        if store.records.is_some() {
            return self.podmans_image(store, id, &of);
        }
        let imagedb = store.imagedb();
        if let Err(error) = imagedb.metadata(id) {
            self.problem(store, &of, error);
        }
        match imagedb.config(id) {
            Ok(config) => self.stack(store, &config.diff_ids),
            Err(error) => self.problem(store, &of, error),
        }
    }

    fn podmans_image(&mut self, store: &'s Store, id: &Digest, of: &str) {
        match store.image(id) {
            Ok(image) => {
                let mut new = image.layers;
                new.retain(|layer| self.podmans.insert(layer.place.path().to_owned()));
                self.layers
                    .extend(new.into_iter().map(|layer| (store, layer)));
            }
            // The blobs are checked when they are unpacked.
            Err(Error::NotUnpacked { .. }) => {}
            Err(error) => self.problem(store, of, error),
        }
    }

    /// Checks layers that belong to no image. A crash or a removal may leave such layers.
    fn other_layers(&mut self, store: &'s Store) {
        let ids = match store.layerdb().ids() {
            Ok(ids) => ids,
            Err(error) => return self.problem(store, "store", error),
        };
        for id in ids {
            let key = (store.root().to_owned(), store.driver(), id);
            if self.known.contains(&key) {
                continue;
            }
            let of = format!("layer {id}");
            match store.layerdb().diffs_below(&id) {
                Ok(diffs) if chain_id::chain_ids(&diffs).last() == Some(&id) => {
                    self.stack(store, &diffs);
                }
                Ok(_) => {
                    let what = format!("{id} is not the chain ID of its diff and parent");
                    self.problem(store, of, what);
                }
                Err(error) => self.problem(store, of, error),
            }
        }
    }

    fn containers(&mut self, store: &Store) {
        let ids = match store.layerdb().containers() {
            Ok(ids) => ids,
            Err(error) => return self.problem(store, "store", error),
        };
        for id in ids {
            let mount = store.layerdb().mount(&id);
            let loaded = match mount {
                Ok(None) => continue,
                Ok(Some(_)) => containers::load(store, &id).map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = loaded {
                self.problem(store, format!("container {id}"), error);
            }
        }
    }

    /// Checks the records of the layers, base first, and collects those that were not checked
    /// before.
    fn stack(&mut self, store: &'s Store, diffs: &[Digest]) {
        let place = (store.root().to_owned(), store.driver());
        let at = match self.caches.iter().position(|(p, _)| *p == place) {
            Some(at) => at,
            None => {
                self.caches.push((place.clone(), Cache::new()));
                self.caches.len() - 1
            }
        };
        let chains = chain_id::chain_ids(diffs);
        for (count, id) in (1..).zip(&chains) {
            let cache = &mut self.caches[at].1;
            let found = match store.layers(&diffs[..count], cache) {
                Ok(found) => found,
                Err(error) => {
                    // The same damage is found with every image that has the layer.
                    self.problem(store, format!("layer {id}"), error);
                    for above in &chains[count..] {
                        let new = self.known.insert((place.0.clone(), place.1, *above));
                        self.report.unchecked += usize::from(new);
                    }
                    self.known.insert((place.0, place.1, *id));
                    return;
                }
            };
            if let Some(layer) = found.last()
                && self.known.insert((place.0.clone(), place.1, *id))
            {
                self.layers.push((store, layer_of(layer)));
            }
        }
    }

    /// Collects what one of our own stores keeps whole.
    fn kept(&mut self, store: &'s Store, objects: impl FnOnce(&Store) -> Result<HashSet<Digest>>) {
        if !store.is_ours() {
            return;
        }
        match objects(store) {
            Ok(objects) => {
                let mut objects: Vec<Digest> = objects.into_iter().collect();
                objects.sort();
                self.kept
                    .extend(objects.into_iter().map(|object| (store, object)));
            }
            Err(error) => self.problem(store, "store", error),
        }
    }

    /// Hashes everything that is kept whole.
    fn kept_contents(&mut self, progress: &mut dyn FnMut(Progress<'_, &Digest>)) {
        for (store, object) in std::mem::take(&mut self.kept) {
            let item = &object;
            progress(Progress::Begin {
                item,
                size: store.kept_size(item),
                have: 0,
            });
            let mut bytes = 0u64;
            let checked = store.check_kept(item, &mut |count| {
                bytes = bytes.saturating_add(count);
                progress(Progress::Advance { item, count });
            });
            self.report.kept += 1;
            self.report.bytes = self.report.bytes.saturating_add(bytes);
            let faults = checked.unwrap_or_else(|error| vec![error.to_string()]);
            if faults.is_empty() {
                progress(Progress::Done { item });
            }
            for what in faults {
                self.problem(store, format!("index {object}"), what);
            }
        }
    }

    /// Rebuilds the tar of every layer.
    fn contents(
        &mut self,
        scratch: [&File; SCRATCH_FILES],
        progress: &mut dyn FnMut(Progress<'_, &Digest>),
    ) {
        let layers = std::mem::take(&mut self.layers);
        let kept = self.kept.iter();
        let kept = kept.map(|(store, object)| store.kept_size(object));
        let sizes = layers.iter().map(|(_, layer)| layer.size).chain(kept);
        progress(Progress::Total {
            items: layers.len() + self.kept.len(),
            size: sizes.fold(0, u64::saturating_add),
        });
        for (store, layer) in layers {
            let chain = layer.chain_id;
            progress(Progress::Begin {
                item: &chain,
                size: layer.size,
                have: 0,
            });
            self.report.layers += 1;
            let of = format!("layer {chain}");
            let mut found = Found::default();
            let mut bytes = 0u64;
            let hashed = &mut |count| {
                bytes = bytes.saturating_add(count);
                progress(Progress::Advance {
                    item: &chain,
                    count,
                });
            };
            if let Err(error) = content(store, &layer, scratch, &mut found, hashed) {
                found.damage.push(error.to_string());
            }
            self.report.bytes = self.report.bytes.saturating_add(bytes);
            if found.damage.is_empty() {
                progress(Progress::Done { item: &chain });
            }
            for what in found.damage {
                self.problem(store, &of, what);
            }
            let notes = found.notes.into_iter();
            let notes = notes.map(|what| Problem::of(store, &of, what));
            self.report.notes.extend(notes);
        }
    }
}

/// What the check of a layer has found.
#[derive(Default)]
struct Found {
    damage: Vec<String>,
    /// What could not be checked.
    notes: Vec<String>,
}

/// The damaged files of a layer, each with all its faults.
#[derive(Default)]
struct Damages {
    order: Vec<Vec<u8>>,
    what: HashMap<Vec<u8>, Vec<String>>,
    /// The files that the engine has not kept.
    not_kept: HashSet<Vec<u8>>,
    /// The bytes of the texts and files.
    kept: usize,
    /// The number of faults of files that are not kept.
    more: u64,
}

impl Damages {
    fn add(&mut self, damage: Damage) {
        let path = layer_tar::clean(&damage.path).unwrap_or(damage.path);
        if damage.cause == Cause::NotKept {
            // That its content is missing is no damage then.
            self.not_kept.insert(path.clone());
            if let Some(known) = self.what.get_mut(&path) {
                *known = vec![damage.what];
                return;
            }
        } else if self.not_kept.contains(&path) {
            return;
        }
        let known = self.what.get(&path);
        if known.is_some_and(|known| known.contains(&damage.what)) {
            return;
        }
        let names = known.map_or(2 * path.len() + DAMAGED, |_| 0);
        let kept = self.kept + damage.what.len() + names;
        if kept > MAX_DAMAGES {
            self.more += 1;
            return;
        }
        self.kept = kept;
        let what = self.what.entry(path.clone()).or_insert_with(|| {
            self.order.push(path);
            Vec::new()
        });
        what.push(damage.what);
    }
}

/// Returns the faults of one layer's files.
pub(super) fn damage_of(
    store: &Store,
    layer: &ImageLayer,
    scratch: [&File; SCRATCH_FILES],
) -> Vec<String> {
    let mut found = Found::default();
    if let Err(error) = content(store, layer, scratch, &mut found, &mut |_| ()) {
        found.damage.push(error.to_string());
    }
    found.damage
}

/// Checks one layer's files and adds the faults to `found`.
fn content(
    store: &Store,
    layer: &ImageLayer,
    scratch: [&File; SCRATCH_FILES],
    found: &mut Found,
    hashed: &mut dyn FnMut(u64),
) -> Result<()> {
    let path = layer.place.path();
    let mut files = store.files_of(layer)?;
    let root = store.root_of(&layer.cache_id);
    let shown = root.full(store.tar_source_path(layer)?);
    let [compared @ .., split, paths] = scratch;
    let splits = store.tar_splits(layer, split, paths)?;
    let mut damages = Damages::default();
    let actual =
        match layer_tar::check_from(splits.open()?, &mut *files, |d| damages.add(d), hashed) {
            Err(error @ layer_tar::Error::Split { .. }) => {
                found.damage.push(format!("{shown:?}: {error}"));
                return Ok(());
            }
            other => other?,
        };
    if actual != layer.diff_id && damages.order.is_empty() {
        let (tar, diff) = (actual, layer.diff_id);
        found.damage.push(format!(
            "{shown:?} is damaged: it gives a tar of {tar}, not {diff}"
        ));
        return Ok(());
    }
    // Other drivers have other files and count differently.
    let mut size = None;
    if matches!(store.driver(), "overlay2" | "fuse-overlayfs" | "overlayfs")
        && let Some(spec) = layer.place.dir()
    {
        let diff = spec.dir.readable();
        let diff = diff.map_err(|errno| Error::io("open", path, errno))?;
        let splits = [splits.open()?, splits.open()?];
        let compare = Compare {
            diff: diff.as_fd(),
            dialect: spec.dialect,
            owners: store.root.owner()? == 0,
            root: if store.is_ours() {
                RootDirectory::OfTar
            } else {
                RootDirectory::OfEngine
            },
            scratch: compared,
        };
        let compared = compare.run(splits, &mut |d| damages.add(d));
        for file in scratch {
            // Frees space that the next layer may not need.
            if let Err(error) = file.set_len(0) {
                tracing::warn!(%error, "a scratch file keeps its size");
            }
        }
        match compared {
            // A snapshotter counts blocks on the disk.
            Ok(counted) => size = store.records.is_none().then_some(counted),
            // Either the digest is right or its mismatch has been reported. Headers that Docker
            // accepts and we reject are no damage.
            Err(error @ (layer_tar::Error::Entry { .. } | layer_tar::Error::Stream { .. })) => {
                tracing::warn!(%error, ?path, "the files' metadata is not compared");
            }
            Err(error) => return Err(error.into()),
        }
    }
    for name in &damages.order {
        let what = damages.what.get(name).map(|all| all.join(", "));
        let what = what.unwrap_or_default();
        let name_shown = excerpt(name);
        // This program keeps all content in its own stores.
        if damages.not_kept.contains(name) && !store.is_ours() {
            found.notes.push(format!(
                "{path:?}: entry {name_shown} {what}; the digest of the layer cannot be checked"
            ));
        } else {
            found
                .damage
                .push(format!("{path:?}: file {name_shown} {what}"));
        }
    }
    if damages.more > 0 {
        found
            .damage
            .push(format!("{path:?}: {} more files are damaged", damages.more));
    }
    if let Some(actual) = size.filter(|&size| size != layer.size) {
        let noted = layer.size;
        found.damage.push(format!(
            "{path:?} has {actual} bytes of files, its size is noted as {noted}"
        ));
    }
    Ok(())
}
