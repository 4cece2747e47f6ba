//! Loads images of an archive into our own store.

use serde::Serialize;

use super::contents::{Contents, Incoming, LayerBlob, Wanted, contents};
use super::error::{Error, Result};
use super::keep;
use super::layer_stream::LayerEntry;
use super::source::Source;
use crate::layer_tar::{self, Limits, Unpacked};
use crate::oci::text::excerpt;
use crate::oci::{Digest, Reference, chain_id};
use crate::progress::Progress;
use crate::store::writable::{Exclusive, ImportTransaction, Kept, StagedKept, StagedLayer};
use crate::store::{self};
use crate::sys::free_space::FreeSpace;

/// An image that was loaded.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Loaded {
    /// The ID.
    pub id: Digest,
    /// The names that the image got.
    pub names: Vec<String>,
    /// The chain IDs of layers that the store did not have.
    pub new_layers: Vec<Digest>,
    /// The chain IDs of damaged layers that got new files ([`Exclusive::distrust`]).
    pub repaired_layers: Vec<Digest>,
    /// The number of xattrs that could not be set, for example without root.
    pub lost_xattrs: u64,
    /// The number of device nodes that are kept as empty files, for example without root.
    pub kept_devices: u64,
    /// The object that is kept whole, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
}

/// Loads every image of an archive in one transaction: the images get their names, all by one
/// rename, when all of them are complete. After an error the store is as before, and every name has
/// the image that it had. `names` are given to the only image, in place of those that the archive
/// has.
///
/// # Errors
/// [`Error`] with the entry and the digest, and the errors of the store.
pub fn load(
    store: &Exclusive<'_>,
    source: &Source,
    names: &[Reference],
    wanted: &Wanted<'_>,
    progress: &(dyn Fn(Progress<'_, &Digest>) + Sync),
) -> Result<Vec<Loaded>> {
    let contents = contents(source, wanted)?;
    load_contents(store, source, contents, names, &wanted.limits, progress)
}

/// As [`load`], with contents that were read before.
///
/// # Errors
/// As [`load`].
pub fn load_contents(
    store: &Exclusive<'_>,
    source: &Source,
    contents: Contents,
    names: &[Reference],
    limits: &Limits,
    progress: &(dyn Fn(Progress<'_, &Digest>) + Sync),
) -> Result<Vec<Loaded>> {
    let mut incoming = contents.images;
    if !names.is_empty() {
        let [only] = incoming.as_mut_slice() else {
            let what = format!(
                "has {} images: a name can be given to one only; choose it with --ref",
                incoming.len()
            );
            return Err(Error::entry(source.name(), "the archive", what));
        };
        only.names = names.to_vec();
    }
    let mut loading = Loading::begin(store, source, limits, progress);
    let mut loaded = Vec::with_capacity(incoming.len());
    for image in &incoming {
        let mut done = loading.image(image, &image.names)?;
        // Without a name nothing would lead to the object.
        if let Some(object) = image
            .object
            .filter(|_| contents.whole && !image.names.is_empty())
        {
            let (staged, kept) = keep::stage(store, source, &object)?;
            loading.intake.keep(&staged, &image.names, &done.id)?;
            done.kept = Some(kept);
        }
        loaded.push(done);
    }
    loading.finish(incoming.iter().zip(&loaded))?;
    Ok(loaded)
}

/// Loads one image whose layers are blobs of `source`, completely or not at all, with the names that it
/// has. `whole`: the object of these names, which is kept whole.
///
/// # Errors
/// As [`load`].
pub fn take(
    store: &Exclusive<'_>,
    source: &Source,
    image: &Incoming,
    whole: Option<(StagedKept<'_>, Kept)>,
    limits: &Limits,
    progress: &(dyn Fn(Progress<'_, &Digest>) + Sync),
) -> Result<Loaded> {
    let mut loading = Loading::begin(store, source, limits, progress);
    let mut loaded = loading.image(image, &image.names)?;
    if let Some((staged, kept)) = whole {
        loading.intake.keep(&staged, &image.names, &loaded.id)?;
        loaded.kept = Some(kept);
    }
    loading.finish([(image, &loaded)])?;
    Ok(loaded)
}

/// The metadata that the files on the disk lack.
#[derive(Default)]
struct Lost {
    xattrs: u64,
    devices: u64,
}

/// The images of an archive on their way into a store: all of them, or none.
struct Loading<'a> {
    store: &'a Exclusive<'a>,
    source: &'a Source,
    limits: &'a Limits,
    progress: &'a (dyn Fn(Progress<'_, &Digest>) + Sync),
    intake: ImportTransaction<'a>,
}

impl<'a> Loading<'a> {
    fn begin(
        store: &'a Exclusive<'a>,
        source: &'a Source,
        limits: &'a Limits,
        progress: &'a (dyn Fn(Progress<'_, &Digest>) + Sync),
    ) -> Self {
        Self {
            store,
            source,
            limits,
            progress,
            intake: store.begin_import(),
        }
    }

    /// Gives the images their names, all by one rename.
    fn finish<'n>(
        mut self,
        images: impl IntoIterator<Item = (&'n Incoming, &'n Loaded)>,
    ) -> Result<()> {
        let mut named = Vec::new();
        for (image, loaded) in images {
            if let Some(object) = &image.object {
                self.intake.names_object(&image.names, &loaded.id, object)?;
            }
            named.extend(image.names.iter().map(|name| (name, loaded.id)));
        }
        Ok(self.intake.finish(named)?)
    }

    /// Loads the layers and the configuration. The names are those that the image will get.
    fn image(&mut self, image: &Incoming, names: &[Reference]) -> Result<Loaded> {
        let known = self.intake.new_layers().len();
        let repaired = self.store.repaired().len();
        let lost = self.layers(image)?;
        Ok(Loaded {
            id: self.intake.image(&image.config)?,
            names: names.iter().map(Reference::key).collect(),
            new_layers: self.intake.new_layers()[known..].to_vec(),
            repaired_layers: self.store.repaired().split_off(repaired),
            lost_xattrs: lost.xattrs,
            kept_devices: lost.devices,
            kept: None,
        })
    }

    /// Loads the layers that the store does not have.
    fn layers(&mut self, image: &Incoming) -> Result<Lost> {
        let store = self.store;
        let mut lost = Lost::default();
        let chain = chain_id::chain_ids(&image.diff_ids);
        let mut parent = None;
        for ((diff_id, blob), chain) in image.diff_ids.iter().zip(&image.layers).zip(&chain) {
            if store.has_layer(chain)? {
                (self.progress)(Progress::Exists { item: diff_id });
            } else {
                let mut staged = store.stage_layer(parent)?;
                let unpacked = self.layer(blob, diff_id, &mut staged)?;
                lost.xattrs += unpacked.lost_xattrs;
                lost.devices += unpacked.kept_devices;
                self.intake.layer(staged, &unpacked)?;
                (self.progress)(Progress::Done { item: diff_id });
            }
            parent = Some(chain);
        }
        Ok(lost)
    }

    fn layer(
        &self,
        blob: &LayerBlob,
        diff_id: &Digest,
        staged: &mut StagedLayer<'_>,
    ) -> Result<Unpacked> {
        let shown = || excerpt(blob.path.as_bytes());
        let entry = LayerEntry::open(self.source, blob)?;
        // The unpacked layer is not smaller; its files are counted while they are unpacked.
        let room = FreeSpace::of(staged.diff());
        let room =
            room.map_err(|e| store::Error::io("ask for the space of", &staged.diff_path(), e))?;
        if entry.size() > room.bytes {
            return Err(layer_tar::Error::NoRoom {
                entry: shown(),
                needed: entry.size(),
                free: room.bytes,
            }
            .into());
        }
        let mut stream = entry.start(diff_id, self.progress)?;
        let unpacked = staged.unpack(&mut stream, self.limits);
        let unpacked = unpacked.map_err(|error| Error::Layer {
            archive: self.source.name().to_owned(),
            entry: shown(),
            diff_id: *diff_id,
            source: Box::new(error),
        })?;
        stream.finish(unpacked.diff_id)?;
        Ok(unpacked)
    }
}
