//! Writes stores in Docker's layout (driver overlay2): layer directories, their records, images and
//! containers. All IDs are correct.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};
use rustix::io::Errno;
use serde_json::{Value, json};
use unionfs::oci::{Digest, chain_id};

use super::layer_tar;

/// The time of every entry, so that the same content gives the same IDs.
const WHEN: i64 = 1_600_000_000;
const WHEN_TEXT: &str = "2020-09-13T12:26:40Z";

/// A layer that was written.
#[derive(Clone)]
pub struct MadeLayer {
    pub chain_id: Digest,
    pub diff_id: Digest,
    pub cache_id: String,
    /// The content of the file `lower` for a layer on top.
    below: String,
}

/// A store being written.
pub struct StoreBuilder {
    root: PathBuf,
    names: BTreeMap<String, BTreeMap<String, String>>,
}

impl StoreBuilder {
    /// Makes the empty store; `root` must be empty or not exist.
    pub fn new(root: &Path) -> io::Result<Self> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o710)
            .create(root)?;
        if std::fs::read_dir(root)?.next().is_some() {
            return Err(io::Error::other("exists and is not empty"));
        }
        let store = Self {
            root: root.to_owned(),
            names: BTreeMap::new(),
        };
        for dir in [
            "imagedb/content/sha256",
            "imagedb/metadata/sha256",
            "layerdb/sha256",
            "layerdb/mounts",
            "layerdb/tmp",
            "distribution",
        ] {
            std::fs::create_dir_all(store.image_dir().join(dir))?;
        }
        std::fs::create_dir_all(root.join("overlay2/l"))?;
        std::fs::create_dir_all(root.join("containers"))?;
        Ok(store)
    }

    fn image_dir(&self) -> PathBuf {
        self.root.join("image/overlay2")
    }

    /// Writes a layer. `fill` puts the files into a directory, with whiteouts in the form of
    /// overlayfs.
    pub fn layer(
        &mut self,
        parent: Option<&MadeLayer>,
        fill: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<MadeLayer> {
        // The directory's name is needed before the content is known, so it is a number.
        let count = std::fs::read_dir(self.root.join("overlay2"))?.count();
        let cache_id = Digest::of(format!("layer {count}").as_bytes()).hex();
        let diff = self.driver_dir(&cache_id)?;
        fill(&diff)?;
        set_times(&diff)?;
        let tar = layer_tar::tar_of(&diff)?;
        let diff_id = Digest::of(&tar);
        let chain_id = chain_id::next(parent.map(|p| &p.chain_id), &diff_id);
        let below = self.driver_records(&cache_id, parent.map(|p| p.below.as_str()))?;

        let record = self.image_dir().join("layerdb/sha256").join(chain_id.hex());
        std::fs::create_dir(&record)?;
        std::fs::write(record.join("diff"), diff_id.to_string())?;
        std::fs::write(record.join("cache-id"), &cache_id)?;
        std::fs::write(record.join("size"), layer_tar::size_of(&diff)?.to_string())?;
        if let Some(parent) = parent {
            std::fs::write(record.join("parent"), parent.chain_id.to_string())?;
            let committed = self.root.join("overlay2").join(&parent.cache_id);
            std::fs::write(committed.join("committed"), "")?;
        }
        let split = std::fs::File::create(record.join("tar-split.json.gz"))?;
        let mut split = flate2::write::GzEncoder::new(split, flate2::Compression::default());
        split.write_all(&layer_tar::split_of(&tar)?)?;
        split.finish()?;
        Ok(MadeLayer {
            chain_id,
            diff_id,
            cache_id,
            below,
        })
    }

    fn driver_dir(&self, cache_id: &str) -> io::Result<PathBuf> {
        let dir = self.root.join("overlay2").join(cache_id);
        std::fs::DirBuilder::new().mode(0o710).create(&dir)?;
        std::fs::DirBuilder::new()
            .mode(0o755)
            .create(dir.join("diff"))?;
        Ok(dir.join("diff"))
    }

    /// Writes `link`, `lower`, `work` and `l/`. Returns the content of `lower` for a layer on top.
    fn driver_records(&self, cache_id: &str, lower: Option<&str>) -> io::Result<String> {
        let driver = self.root.join("overlay2");
        let dir = driver.join(cache_id);
        let short = Digest::of(cache_id.as_bytes()).hex()[..26].to_uppercase();
        symlink(format!("../{cache_id}/diff"), driver.join("l").join(&short))?;
        std::fs::write(dir.join("link"), &short)?;
        let Some(lower) = lower else {
            return Ok(format!("l/{short}"));
        };
        std::fs::write(dir.join("lower"), lower)?;
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(dir.join("work"))?;
        Ok(format!("l/{short}:{lower}"))
    }

    /// Writes an image of these layers, base first, and returns its ID.
    pub fn image(&mut self, names: &[&str], layers: &[&MadeLayer]) -> io::Result<String> {
        let diff_ids: Vec<String> = layers.iter().map(|l| l.diff_id.to_string()).collect();
        let mut history: Vec<Value> = (1..=layers.len())
            .map(|n| json!({"created": WHEN_TEXT, "created_by": format!("sample-store layer {n}")}))
            .collect();
        history.push(json!({
            "created": WHEN_TEXT, "created_by": "CMD [\"/bin/sh\"]", "empty_layer": true,
            "comment": format!("for {}", names.join(" ")),
        }));
        let config = json!({
            "architecture": "amd64", "os": "linux", "created": WHEN_TEXT,
            "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
            "history": history,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        self.image_from(names, config.to_string().as_bytes())
    }

    /// Writes an image with this configuration and returns its ID.
    pub fn image_from(&mut self, names: &[&str], config: &[u8]) -> io::Result<String> {
        let id = Digest::of(config);
        let content = self.image_dir().join("imagedb/content/sha256");
        std::fs::write(content.join(id.hex()), config)?;
        for name in names {
            let repository = name.rsplit_once(':').map_or(*name, |(name, _)| name);
            let keys = self.names.entry(repository.to_owned()).or_default();
            keys.insert((*name).to_owned(), id.to_string());
        }
        Ok(id.to_string())
    }

    /// Writes a stopped container on top of `parent` and returns its ID.
    pub fn container(
        &mut self,
        name: &str,
        parent: &MadeLayer,
        fill: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<String> {
        let id = Digest::of(format!("container {name}").as_bytes()).hex();
        let mount_id = Digest::of(format!("mount {name}").as_bytes()).hex();
        let init_id = format!("{mount_id}-init");
        let init = self.driver_dir(&init_id)?;
        std::fs::write(init.join(".dockerenv"), "")?;
        let below = self.driver_records(&init_id, Some(&parent.below))?;
        let diff = self.driver_dir(&mount_id)?;
        fill(&diff)?;
        self.driver_records(&mount_id, Some(&below))?;
        let mount = self.image_dir().join("layerdb/mounts").join(&id);
        std::fs::create_dir(&mount)?;
        std::fs::write(mount.join("mount-id"), &mount_id)?;
        std::fs::write(mount.join("init-id"), &init_id)?;
        std::fs::write(mount.join("parent"), parent.chain_id.to_string())?;
        let config = self.root.join("containers").join(&id);
        std::fs::create_dir(&config)?;
        let text = json!({"ID": id, "Name": format!("/{name}"), "State": {"Running": false}});
        std::fs::write(config.join("config.v2.json"), text.to_string())?;
        Ok(id)
    }

    /// Writes repositories.json, which completes the store.
    pub fn finish(&self) -> io::Result<()> {
        let text = json!({ "Repositories": self.names }).to_string();
        std::fs::write(self.image_dir().join("repositories.json"), text)
    }
}

/// Creates a whiteout. If mknod is refused there is none, and the file below stays visible.
pub fn whiteout(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let kind = FileType::CharacterDevice;
    match rustix::fs::mknodat(CWD, path, kind, Mode::empty(), 0) {
        Ok(()) | Err(Errno::PERM) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn set_times(path: &Path) -> io::Result<()> {
    if path.symlink_metadata()?.is_dir() {
        for entry in std::fs::read_dir(path)? {
            set_times(&entry?.path())?;
        }
    }
    let time = Timespec {
        tv_sec: WHEN,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(rustix::fs::utimensat(
        CWD,
        path,
        &times,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}
