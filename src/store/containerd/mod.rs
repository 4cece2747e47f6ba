//! The store of containerd: images in a content store, layers unpacked by a snapshotter.
//!
//! ```text
//! io.containerd.metadata.v1.bolt/meta.db                 names, which snapshot a layer is
//! io.containerd.content.v1.content/blobs/sha256/<hex>    indexes, manifests, configurations, layers
//! io.containerd.snapshotter.v1.<name>/metadata.db        which directory a snapshot is
//! io.containerd.snapshotter.v1.<name>/snapshots/<n>/     its directory (`fs` and `work` of overlayfs)
//! ```
//! (containerd: metadata/buckets.go, snapshots/storage/bolt.go, content/local/store.go, and
//! docs/content-flow.md.) Docker keeps its images there since version 29.
//!
//! A name leads to an index or a manifest, a manifest to a configuration, which is what an image ID
//! names here, as in Docker's own store. The layers of its diff IDs are the snapshots whose keys are
//! their chain IDs. Names belong to namespaces (`moby` is Docker's, `k8s.io` Kubernetes', `default`
//! that of ctr and nerdctl): all of them are read, those of one namespace first.

mod bolt;
mod containers;
mod content;
mod metadata;
mod records;

pub(crate) use content::blob;
pub(crate) use records::{Snapshotter, open};

use std::path::PathBuf;

/// The snapshotters whose directories can be read, as containerd calls them.
pub(crate) const SNAPSHOTTERS: [&str; 3] = ["overlayfs", "fuse-overlayfs", "native"];

/// The file that makes a directory a store of containerd.
pub(crate) const METADATA: &str = "io.containerd.metadata.v1.bolt/meta.db";

/// The directory of a snapshotter, below the root.
pub(crate) fn snapshotter_dir(name: &str) -> PathBuf {
    PathBuf::from(format!("io.containerd.snapshotter.v1.{name}"))
}
