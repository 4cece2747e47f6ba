//! The store of containerd: images in a content store, layers unpacked by a snapshotter.
//!
//! ```text
//! io.containerd.metadata.v1.bolt/meta.db                 names, the snapshot of each layer
//! io.containerd.content.v1.content/blobs/sha256/<hex>    indexes, manifests, configurations, layers
//! io.containerd.snapshotter.v1.<name>/metadata.db        the directory of each snapshot
//! io.containerd.snapshotter.v1.<name>/snapshots/<n>/     its directory (`fs` and `work` of overlayfs)
//! ```
//! (containerd: metadata/buckets.go, snapshots/storage/bolt.go, content/local/store.go, and
//! docs/content-flow.md.) Docker keeps its images there since version 29.
//!
//! A name leads to an index or a manifest, and a manifest to a configuration. The digest of the
//! configuration is the image ID here, as in Docker's own store. The layers of its diff IDs are the
//! snapshots whose keys are their chain IDs. Names belong to namespaces (`moby` is Docker's,
//! `k8s.io` Kubernetes', `default` that of ctr and nerdctl): all of them are read, in a fixed
//! order.

mod bolt;
mod containers;
mod content;
mod metadata;
mod records;

pub(crate) use content::blob;
pub(crate) use metadata::committed;
pub(crate) use records::{Snapshotter, open};

use std::path::PathBuf;

/// The snapshotters whose directories can be read, by their names in containerd.
pub(crate) const SNAPSHOTTERS: [&str; 3] = ["overlayfs", "fuse-overlayfs", "native"];

/// The file that identifies a store of containerd.
pub(crate) const METADATA: &str = "io.containerd.metadata.v1.bolt/meta.db";

/// The file of a snapshotter, in its directory.
pub(crate) const SNAPSHOTS: &str = "metadata.db";

/// Returns the directory of a snapshotter, below the root.
pub(crate) fn snapshotter_dir(name: &str) -> PathBuf {
    PathBuf::from(format!("io.containerd.snapshotter.v1.{name}"))
}

/// Reads the two files from memory: how many images, containers and snapshots of all snapshotters meta.db has,
/// and how many snapshots the other file has; what was refused.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_all(meta: &[u8], snapshots: &[u8]) -> ([usize; 4], Vec<super::Error>) {
    use std::fs::File;
    use std::io::Write as _;
    use std::path::Path;

    use super::error::{Error, Result};

    let file = |name: &str, bytes: &[u8]| -> Result<File> {
        let made = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC);
        let failed = |errno| Error::io("make", Path::new(name), errno);
        let mut file = File::from(made.map_err(failed)?);
        let written = file.write_all(bytes);
        written.map_err(|_| failed(rustix::io::Errno::IO))?;
        Ok(file)
    };
    let mut counts = [0; 4];
    let mut refused = Vec::new();
    let found = file("meta.db", meta);
    match found.and_then(|file| metadata::read_metadata(&file, Path::new("/meta.db"), None)) {
        Ok(found) => {
            let snapshots = SNAPSHOTTERS.map(|name| found.all(name).count());
            counts[0] = found.images.len();
            counts[1] = found.containers.len();
            counts[2] = snapshots.iter().sum();
        }
        Err(error) => refused.push(error),
    }
    let found = file("metadata.db", snapshots);
    match found.and_then(|file| metadata::read_snapshots(&file, Path::new("/metadata.db"))) {
        Ok(found) => counts[3] = found.len(),
        Err(error) => refused.push(error),
    }
    (counts, refused)
}
