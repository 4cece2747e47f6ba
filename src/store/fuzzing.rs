//! Entry points of parsers that have no public one, for fuzzing (feature `fuzzing`): they take
//! bytes and return the errors. `debug_assert` checks the invariants: a panic is a finding.

use std::path::Path;

use super::discovery::Environment;
use super::repositories::Repositories;
use super::storage_conf::{self, RunRoot};
use super::{Error, ImageName, NamedLayer, imagedb};
use crate::oci::derived_config::Derivation;
use crate::oci::image_config;
use crate::oci::{Digest, Reference};

/// A path for messages.
fn path() -> &'static Path {
    Path::new("/fuzzing")
}

/// Reads a `repositories.json`, looks up every name, writes and reads it again. Returns the errors.
pub fn repositories(bytes: &[u8]) -> Vec<Error> {
    let names = match Repositories::parse(path(), bytes) {
        Ok(names) => names,
        Err(error) => return vec![error],
    };
    let mut refused = Vec::new();
    for row in names.all() {
        match row {
            Err(error) => refused.push(error),
            Ok((name, id)) => {
                let found = Reference::parse(&name.to_string()).map(|name| names.get(&name));
                debug_assert!(
                    matches!(found, Ok(Ok(Some(found))) if found == id),
                    "{name}"
                );
            }
        }
    }
    let again = Repositories::parse(path(), &names.to_json());
    debug_assert!(again.is_ok_and(|again| again.all().count() == names.all().count()));
    refused
}

/// Reads an image's configuration, and derives another one from it.
pub fn config(bytes: &[u8]) -> Vec<Error> {
    let config = match image_config::parse(path(), bytes) {
        Ok(config) => config,
        Err(error) => return vec![error.into()],
    };
    match Derivation::default().draft(Some((path(), bytes))) {
        Err(error) => vec![error.into()],
        Ok(draft) => {
            let derived = draft.with_layer(&config.diff_ids, &Digest::of(b""));
            let derived = image_config::parse(path(), &derived);
            let more = derived.is_ok_and(|d| d.diff_ids.len() == config.diff_ids.len() + 1);
            debug_assert!(more || config.diff_ids.len() >= crate::oci::chain_id::MAX_LAYERS);
            Vec::new()
        }
    }
}

/// The files of containerd's metadata. Gives how many images, containers and snapshots meta.db has and how many
/// snapshots the snapshotter's file has, and messages of what was refused.
pub fn containerd(meta: &[u8], snapshots: &[u8]) -> ([usize; 4], Vec<Error>) {
    super::containerd::read_all(meta, snapshots)
}

/// A thin pool in memory with one device, of `size` bytes, from which files of these names are read.
pub fn thin_pool(metadata: &[u8], data: &[u8], size: u64, names: &[&[u8]]) -> Vec<Error> {
    match super::drivers::devicemapper::read_all(metadata, data, size, names) {
        Ok(refused) => refused,
        Err(error) => vec![error],
    }
}

/// Reads a `storage.conf`: all places are absolute.
pub fn storage_conf(bytes: &[u8]) -> Vec<Error> {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Vec::new();
    };
    let environment = Environment {
        home: Some("/home/user".into()),
        ..Environment::default()
    };
    let (found, error) = storage_conf::read_text(text, &environment);
    let run_roots = found.roots.iter().map(|place| match &place.run_root {
        RunRoot::At(path) => Some(path),
        _ => None,
    });
    let paths = run_roots.flatten().chain(&found.default_run_root);
    let mut paths = paths.chain(found.roots.iter().map(|place| &place.root));
    debug_assert!(paths.all(|path| path.is_absolute()), "{found:?}");
    error.into_iter().collect()
}

/// Parses the name of an image with a store: directories are absolute, and the name is what is after
/// them.
pub fn image_name(bytes: &[u8]) -> Vec<Error> {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Vec::new();
    };
    match ImageName::parse(text) {
        Err(error) => vec![error],
        Ok(name) => {
            let paths = name.store().into_iter().flat_map(|store| {
                let paths = std::iter::once(&store.root).chain(&store.run_root);
                paths.chain(&store.image_stores)
            });
            debug_assert!(paths.into_iter().all(|path| path.is_absolute()), "{name:?}");
            debug_assert!(text.contains(name.name()), "{name:?}");
            Vec::new()
        }
    }
}

/// Reads a file that holds a digest.
pub fn digest(bytes: &[u8]) -> Vec<Error> {
    imagedb::digest(path(), bytes).err().into_iter().collect()
}

/// Reads the record of a named read-write layer.
pub fn named(bytes: &[u8]) -> Vec<Error> {
    NamedLayer::parse(path(), "name", bytes)
        .err()
        .into_iter()
        .collect()
}
