//! Copies of `unionfs copy` that lead through a layout in a file without a name: nothing of the
//! destination is touched before that is complete.

use std::fs::File;
use std::io::{Seek as _, Write};
use std::path::Path;

use anyhow::Context as _;

use super::copy::{Args, no_index};
use super::progress::{Json, verb};
use super::{command_sandbox, own_store, short_names};
use unionfs::archive::{self, Format, Incoming, Outgoing, Repacked, Source, Wanted};
use unionfs::layer_tar::Limits;
use unionfs::oci::{Digest, Platform, Reference};
use unionfs::progress::Progress;
use unionfs::store::writable::Staging;
use unionfs::store::{Image, ImageName};

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

/// Copies an image of any store into the own store, under a new name: with --all also the index of the name
/// with all its images, and with --platform the image for that platform of an index.
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
    let is_own = store.root() == own.root();
    let content = if args.all || args.platform.is_some() {
        stores.pulled_content(image)?
    } else {
        None
    };
    if content.is_none() && args.all {
        return Err(no_index(image).into());
    }
    if let (None, Some(platform)) = (&content, &args.platform) {
        require(&store.image(&id)?, image, platform)?;
    }
    let source = match content {
        Some(content) if !is_own || args.platform.is_some() => Some(Source::of_pulled(content)),
        _ if is_own => None,
        _ => {
            let file = staging.file()?;
            let outgoing = Outgoing::new(store, store.image(&id)?, Vec::new());
            archive::save(&[outgoing], Format::Oci, &file, &show)?;
            Some(layout(file, image, &staging)?)
        }
    };
    // While this process waits for the lock, it must not keep others from removing layers.
    drop(stores);
    items.next(verb("extracting", "unpacked"), []);
    let locked = own_store::lock(&own)?;
    let id = match source {
        None => {
            let found = Reference::parse(ImageName::parse(image)?.name()).ok();
            if args.all {
                locked.tag_as(&name, found.as_ref(), &id)?;
            } else {
                locked.tag(&name, &id)?;
            }
            id
        }
        Some(source) => {
            let mut wanted = Wanted::default();
            wanted.whole = args.all;
            wanted.platform = args.platform.as_ref();
            let names = std::slice::from_ref(&name);
            let loaded = archive::load(&locked, &source, names, &wanted, &show)?;
            let devices = loaded.iter().map(|image| image.kept_devices);
            super::load::warn_of_devices(devices.sum());
            loaded.first().map_or(id, |image| image.id)
        }
    };
    own_store::print_made(&id, &name, args.json)
}

/// Fails if an image is not for a platform.
pub(super) fn require(image: &Image, name: &str, wanted: &Platform) -> anyhow::Result<()> {
    let config = &image.config;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let theirs = format!("{}/{}", text(&config.os), text(&config.architecture));
    let declared = Platform::parse(&theirs);
    if declared.is_some_and(|declared| wanted.suits(&declared).is_some()) {
        return Ok(());
    }
    anyhow::bail!(
        "{name} is an image for {theirs}, and the store has no other: unionfs pull --platform {wanted} gets \
         the one for {wanted}"
    )
}
