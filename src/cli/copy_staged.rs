//! Copies of `unionfs copy` that lead through a layout in a file without a name: nothing of the
//! destination is touched before that is complete.

use std::fs::File;
use std::io::{Seek as _, Write};
use std::path::Path;

use anyhow::Context as _;

use super::copy::Args;
use super::progress::{Json, verb};
use super::{command_sandbox, own_store, short_names};
use unionfs::archive::{self, Format, Incoming, Outgoing, Repacked, Source, Wanted};
use unionfs::layer_tar::Limits;
use unionfs::oci::{Digest, Reference};
use unionfs::progress::Progress;
use unionfs::store::writable::Staging;

/// Opens a layout that was written to a file without a name. `of`: where it comes from, for messages.
pub(super) fn layout(mut file: File, of: &str, staging: &Staging) -> anyhow::Result<Source> {
    file.rewind().context("cannot read a staged layout")?;
    let limit = Limits::default().bytes;
    Ok(Source::of_file(file, Path::new(of), staging, limit)?)
}

/// An image for an archive of Docker.
pub(super) struct ForDocker<'s> {
    pub(super) source: &'s Source,
    pub(super) image: Incoming,
    pub(super) names: Vec<Reference>,
}

impl ForDocker<'_> {
    pub(super) fn write(
        &self,
        staging: &Staging,
        out: impl Write,
        show: &dyn Fn(Progress<'_, &Digest>),
    ) -> archive::Result<()> {
        let repacked = Repacked::new(self.source, &self.image, self.names.clone());
        archive::repack(&repacked, Format::Docker, staging, out, show)
    }
}

/// Copies an image of any store into the own store, under a new name.
pub(super) fn between_stores(
    args: &Args,
    image: &str,
    new: &str,
    root: Option<&Path>,
) -> anyhow::Result<()> {
    let name = own_store::new_name(new)?;
    short_names::learn(image);
    let mut cage = args.sandbox.cage("copy")?;
    // This happens before stores are searched: the own store may be the first.
    let own = own_store::open()?;
    let mut places = cage.stores(root, &[image])?;
    places.open_pools(None)?;
    let own = cage.enter_to_take_in(own)?;
    let items = args
        .progress
        .items_beside(Json::of(args.json), verb("reading", "read"));
    let show = |step: Progress<'_, &Digest>| items.show(step);
    let staging = own.staging();
    let stores = command_sandbox::open(places)?;
    let (store, id) = stores.locate(image)?;
    let file = if store.root() == own.root() {
        None
    } else {
        let file = staging.file()?;
        let outgoing = Outgoing::new(store, store.image(&id)?, Vec::new());
        archive::save(&[outgoing], Format::Oci, &file, &show)?;
        Some(file)
    };
    // While this process waits for the lock, it must not keep others from removing layers.
    drop(stores);
    items.next(verb("extracting", "unpacked"), []);
    match file {
        None => {
            own_store::lock(&own)?.tag(&name, &id)?;
        }
        Some(file) => {
            let source = layout(file, image, &staging)?;
            let locked = own_store::lock(&own)?;
            let names = std::slice::from_ref(&name);
            let loaded = archive::load(&locked, &source, names, &Wanted::default(), &show)?;
            let devices = loaded.iter().map(|image| image.kept_devices);
            super::load::warn_of_devices(devices.sum());
        }
    }
    own_store::print_made(&id, &name, args.json)
}
