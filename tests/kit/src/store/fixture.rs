//! The sample store in a directory of its own.

use std::path::{Path, PathBuf};

use unionfs::store::discovery::Environment;
use unionfs::store::{Result, Stores};

use super::sample;

/// A sample store in a directory that is removed on drop.
pub struct Fixture {
    _temp: tempfile::TempDir,
    pub root: PathBuf,
    pub sample: sample::Sample,
}

impl Fixture {
    pub fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap().join("docker");
        let sample = sample::make(&root).unwrap();
        Self {
            _temp: temp,
            root,
            sample,
        }
    }

    pub fn stores(&self) -> Result<Stores> {
        discover(&self.root)
    }

    /// Returns the image ID of `sample:1` (0) or `sample:2` (1), without `sha256:`.
    pub fn id(&self, image: usize) -> &str {
        self.sample.images[image].1.strip_prefix("sha256:").unwrap()
    }

    /// Returns the only file or directory whose path below the root matches; `*` is one component.
    pub fn path(&self, pattern: &str) -> PathBuf {
        let mut found = vec![self.root.clone()];
        for part in pattern.split('/') {
            found = match part {
                "*" => found.iter().flat_map(|dir| children(dir)).collect(),
                part => found.iter().map(|dir| dir.join(part)).collect(),
            };
        }
        found.retain(|path| path.symlink_metadata().is_ok());
        assert!(!found.is_empty(), "{pattern}");
        found.swap_remove(0)
    }

    /// Returns `layerdb/sha256/<chain>` of a layer of `sample:1`, base first.
    pub fn layer(&self, number: usize) -> PathBuf {
        let image = self.stores().unwrap().find("sample:1").unwrap();
        let chain = image.layers[number].chain_id.hex();
        self.root.join("image/overlay2/layerdb/sha256").join(chain)
    }

    /// Returns `overlay2/<cache id>` of a layer of `sample:1`, base first.
    pub fn layer_dir(&self, number: usize) -> PathBuf {
        let cache_id = std::fs::read_to_string(self.layer(number).join("cache-id")).unwrap();
        self.root.join("overlay2").join(cache_id)
    }
}

pub fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

pub fn discover(root: &Path) -> Result<Stores> {
    Stores::discover(Some(root), &Environment::default())
}
