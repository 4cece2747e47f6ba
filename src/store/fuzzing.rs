//! Entry points of parsers that have no public one, for fuzzing (feature `fuzzing`): they take
//! bytes and return the errors. `debug_assert` checks the invariants: a panic is a finding.

use std::path::Path;

use super::repositories::Repositories;
use super::{Error, NamedLayer, imagedb};
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
