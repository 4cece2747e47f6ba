//! Finds an image or container for `mount` in the stores. A confined copy of this process parses
//! the metadata of the stores and answers with a [`Found`]. This process opens the layers, beneath
//! the stores.
//!
//! Without a sandbox (`sandbox=off`), this process searches itself.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use super::command_sandbox::find_places;
use super::confined_queries::{ask, sources};
use super::environment;
use super::error::{is_not_unpacked, is_unknown_image};
use super::lookup_answer::{self, Found};
use super::mount_upper::Fresh;
use super::options::MountOptions;
use super::pool::PoolArgs;
use super::progress::{Items, verb};
use super::{catalog, command_sandbox, named_layers, output, own_store, path_hints, short_names};
use unionfs::catalog::{Label, directory};
use unionfs::image_mounts::label_of_image;
use unionfs::layer::StackSpec;
use unionfs::oci::Digest;
use unionfs::sandbox::Mode;
use unionfs::sandbox::command::Command;
use unionfs::store::{Chain, Places, Roots, Stores, Writable, unpack_image};

/// A request.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) image: Option<&'a str>,
    /// The request for a named read-write layer, with the lock of the own store.
    pub(super) name: Option<(&'a str, &'a File)>,
    pub(super) container: Option<&'a str>,
    pub(super) in_place: bool,
    pub(super) options: &'a MountOptions,
    /// The pool, for an image on devices.
    pub(super) pool: &'a PoolArgs,
}

/// The image or container to mount.
pub(super) struct ToMount {
    pub(super) stack: StackSpec,
    pub(super) label: String,
    /// The ID of the image, if it is known.
    pub(super) image: Option<Digest>,
    /// The label of the layers, if it determines their content.
    pub(super) chain: Option<Label>,
    /// The named layer, if one was made.
    pub(super) fresh: Option<Fresh>,
}

/// Finds it, and returns it with the locks that keep its layers. An image whose layers are not
/// directories is unpacked into the own store before.
pub(super) fn look_up(
    asked: &Asked<'_>,
    root: Option<&Path>,
) -> anyhow::Result<(ToMount, Vec<File>)> {
    let mut found = look_up_once(asked, root);
    // The configuration of registries is read only if the name itself does not exist.
    if let (Err(error), Some(image)) = (&found, asked.image)
        && is_unknown_image(error)
        && short_names::learn(image)
    {
        found = look_up_once(asked, root);
    }
    if found.is_err() {
        asked.image.map(path_hints::learn);
    }
    let error = match found {
        Err(error) if is_not_unpacked(&error) => error,
        result => return result,
    };
    let Some(image) = asked.image else {
        return Err(error);
    };
    let (id, own_root) = unpack(asked, image, root)?;
    output::print(&format!(
        "{image} is unpacked into {}\n",
        own_root.display()
    ))?;
    let id = id.to_string();
    let unpacked = Asked {
        image: Some(&id),
        ..*asked
    };
    let (mut found, held) = look_up_once(&unpacked, Some(&own_root))?;
    image.clone_into(&mut found.label);
    Ok((found, held))
}

/// Unpacks an image from its blobs into the own store, in a confined copy of this process.
fn unpack(
    asked: &Asked<'_>,
    image: &str,
    root: Option<&Path>,
) -> anyhow::Result<(Digest, PathBuf)> {
    let mode = asked.options.sandbox;
    let own = own_store::open()?;
    let lock = match asked.name {
        Some((_, lock)) => lock.try_clone().context("cannot keep the store locked")?,
        None => own_store::lock(&own)?.into_lock(),
    };
    let own_root = own.root().to_owned();
    // The opened store holds directories.
    drop(own);
    let mut places = find_places(root, &[image])?;
    asked.pool.open(&mut places)?;
    let mut sandbox = Command::new(mode);
    if mode != Mode::Off {
        grant(&mut sandbox, places.roots())?;
        let failed = || format!("cannot open {own_root:?}");
        sandbox.write(&own_root).with_context(failed)?;
    }
    let answer = ask(sandbox, 1024, || {
        let own = Writable::open(&own_root)?;
        let locked = own.locked_by(lock.try_clone().context("cannot keep the store locked")?)?;
        let shown = Items::beside(verb("extracting", "unpacked"));
        let stores = Stores::open(places)?;
        let id = unpack_image(&stores, image, &locked, &mut |step| shown.show(step))?;
        Ok(id.to_string().into_bytes())
    })?;
    let id = std::str::from_utf8(&answer).ok().and_then(Digest::parse);
    let id = id.context("the process that unpacks the image gave no answer that can be read")?;
    Ok((id, own_root))
}

fn look_up_once(asked: &Asked<'_>, root: Option<&Path>) -> anyhow::Result<(ToMount, Vec<File>)> {
    let Some((name, lock)) = asked.name else {
        let (found, held) = find(asked, root)?;
        return Ok((of(found, None), held));
    };
    // The own store is used also if images are searched elsewhere.
    let own_root = own_store::open()?.root().to_owned();
    let (found, held) = find_or_make(asked, name, root, &own_root, lock)?;
    let upper = found.stack.upper.as_ref();
    let ours = upper.is_some_and(|upper| upper.layer.path().starts_with(&own_root));
    ensure!(ours, "read-write layer {name:?} is not in {own_root:?}");
    let fresh = found
        .made
        .then(|| Fresh::named(&own_root, name, asked.options.sandbox));
    Ok((of(found, fresh), held))
}

fn of(found: Found, fresh: Option<Fresh>) -> ToMount {
    ToMount {
        stack: found.stack,
        label: found.label,
        image: found.image,
        chain: found.chain,
        fresh,
    }
}

/// Searches for an image or a container.
fn find(asked: &Asked<'_>, root: Option<&Path>) -> anyhow::Result<(Found, Vec<File>)> {
    let mode = asked.options.sandbox;
    let images: Vec<&str> = asked.image.into_iter().collect();
    let mut places = find_places(root, &images)?;
    if asked.container.is_some() {
        places.open_run_lists(&environment());
    }
    if mode == Mode::Off {
        let stores = command_sandbox::open(places)?;
        let found = find_in(&stores, asked)?;
        return Ok((found, stores.into_held()));
    }
    command_sandbox::warn_of(&mut places);
    let mut roots = places.roots().to_vec();
    if asked.container.is_some() {
        roots.extend(sources(&places, mode)?);
    }
    let opened = Roots::open(&roots)?;
    // The lock is taken before the search, so that the result stays valid.
    let held = opened.hold()?;
    let mut sandbox = Command::quick(mode);
    grant(&mut sandbox, &roots)?;
    let own = environment().own_root().ok();
    if let Some(own) = own.and_then(|own| directory::existing(&own)) {
        let dir = directory::dir(&own);
        sandbox
            .read(&dir)
            .with_context(|| format!("cannot open {dir:?}"))?;
    }
    let answer = ask(sandbox, lookup_answer::MAX, || {
        answer_in(&command_sandbox::open(places)?, asked, &roots)
    })?;
    let found = Found::from_bytes(&answer, &opened)?;
    let may_write = asked.in_place || found.stack.upper.is_none();
    ensure!(
        may_write && !found.made,
        "nobody asked for a layer to write to"
    );
    Ok((found, held))
}

fn grant(sandbox: &mut Command, roots: &[PathBuf]) -> anyhow::Result<()> {
    roots.iter().try_for_each(|root| {
        let failed = || format!("cannot open {root:?}");
        sandbox.read(root).with_context(failed)
    })
}

/// Searches in a confined process, which opens as little as it can.
fn answer_in(stores: &Stores, asked: &Asked<'_>, roots: &[PathBuf]) -> anyhow::Result<Vec<u8>> {
    if asked.container.is_some() {
        return find_in(stores, asked)?.to_bytes(roots);
    }
    let noted = |chain: &Chain| catalog::note(asked.options, chain);
    let image = stores.mountable_elsewhere(asked.image.unwrap_or_default(), noted)?;
    lookup_answer::of_image(&image, roots)
}

fn find_in(stores: &Stores, asked: &Asked<'_>) -> anyhow::Result<Found> {
    if let Some(id) = asked.container {
        let container = stores.container(id)?;
        let name = container.name.clone();
        let stack = if asked.in_place {
            container.stack_in_place()?
        } else {
            container.stack()
        };
        return Ok(Found {
            stack,
            label: name.unwrap_or_else(|| container.id.as_str().chars().take(12).collect()),
            image: container.image,
            chain: None,
            made: false,
        });
    }
    let noted = |chain: &Chain| catalog::note(asked.options, chain);
    let image = stores.mountable(asked.image.unwrap_or_default(), noted)?;
    let chain = label_of_image(&image);
    Ok(Found {
        stack: StackSpec {
            lowers: image.lowers,
            data_only: Vec::new(),
            upper: None,
        },
        label: image.label,
        image: Some(image.id),
        chain,
        made: false,
    })
}

/// Searches for a named read-write layer of the own store, which is locked.
fn find_or_make(
    asked: &Asked<'_>,
    name: &str,
    root: Option<&Path>,
    own_root: &Path,
    lock: &File,
) -> anyhow::Result<(Found, Vec<File>)> {
    let mode = asked.options.sandbox;
    let images: Vec<&str> = asked.image.into_iter().collect();
    let mut places = find_places(root, &images)?;
    let within = |places: Places| {
        let own = Writable::open(own_root)?;
        let locked = own.locked_by(lock.try_clone().context("cannot keep the store locked")?)?;
        let stores = command_sandbox::open(places)?;
        let found = named_layers::find_or_make(&locked, &stores, name, asked.image)?;
        anyhow::Ok((found, stores.into_held()))
    };
    if mode == Mode::Off {
        return within(places);
    }
    command_sandbox::warn_of(&mut places);
    let ours = Places::find(Some(own_root), &environment())?;
    let mut roots = places.roots().to_vec();
    roots.push(own_root.to_owned());
    roots.extend(sources(&ours, mode)?);
    let opened = Roots::open(&roots)?;
    let held = opened.hold()?;
    // An existing layer is found without the right to write.
    let mut sandbox = Command::quick(mode);
    grant(&mut sandbox, &roots)?;
    let again = places.again();
    let answer = ask(sandbox, lookup_answer::MAX, || {
        let Ok(own) = Stores::open(ours) else {
            // A fault of the store is reported when the store is to be changed.
            return Ok(Vec::new());
        };
        let stores = command_sandbox::open(again)?;
        match named_layers::find(&own, &stores, name, asked.image)? {
            Some(found) => found.to_bytes(&roots),
            None => Ok(Vec::new()),
        }
    })?;
    if !answer.is_empty() {
        return Ok((Found::from_bytes(&answer, &opened)?, held));
    }
    let mut sandbox = Command::new(mode);
    grant(&mut sandbox, &roots)?;
    sandbox
        .write(own_root)
        .with_context(|| format!("cannot open {own_root:?}"))?;
    let answer = ask(sandbox, lookup_answer::MAX, || {
        within(places)?.0.to_bytes(&roots)
    })?;
    Ok((Found::from_bytes(&answer, &opened)?, held))
}
