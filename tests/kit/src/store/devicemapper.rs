//! Converts a store of the driver overlay2 to the driver devicemapper: the images and records stay
//! the same, and the files of each layer, together with those of all layers below, are in an ext4
//! on a thin device.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::fixture::children;
use super::thin_pool::{BLOCK, ThinPool};

/// The size of a device in bytes.
pub const SIZE: u64 = 24 << 20;
/// The number of blocks of the pool, a prime.
const BLOCKS: u64 = 4099;
/// The device from which all others descend.
const BASE: u32 = 1;

/// The options of the driver with which the store was made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// `dm.fs=xfs`, for the base layers only. No file of the layers above them is read then.
    pub xfs: bool,
    /// `dm.blocksize`, in bytes.
    pub block: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            xfs: false,
            block: BLOCK,
        }
    }
}

/// The devices that were made.
pub struct Devices {
    /// Device IDs by cache ID.
    pub ids: BTreeMap<String, u32>,
    /// The transaction number of the pool.
    pub transaction: u64,
}

/// A layer of the store.
struct Layer {
    cache_id: String,
    /// The cache ID of the layer below.
    below: Option<String>,
}

/// Converts the store in `root` from the driver overlay2 to the driver devicemapper.
pub fn convert(root: &Path, options: Options) -> Devices {
    fs::rename(root.join("image/overlay2"), root.join("image/devicemapper")).unwrap();
    let temp = tempfile::tempdir_in(root).unwrap();
    let driver = root.join("devicemapper");
    let records = driver.join("metadata");
    fs::create_dir_all(&records).unwrap();
    let mut pool = ThinPool::new(&driver.join("devicemapper"), BLOCKS, options.block);
    let base = temp.path().join("base");
    fs::create_dir(&base).unwrap();
    pool.device(BASE, &ext4(&base), None);
    let record = |name: &str, id: u32| {
        let text = json!({
            "device_id": id, "size": SIZE, "transaction_id": id,
            "initialized": true, "deleted": false,
        });
        fs::write(records.join(name), text.to_string()).unwrap();
    };
    record("base", BASE);
    let mut ids: BTreeMap<String, u32> = BTreeMap::new();
    let mut next = BASE;
    for layer in in_order(layers(root)) {
        next += 1;
        let tree = temp.path().join(&layer.cache_id);
        fs::create_dir_all(tree.join("rootfs")).unwrap();
        if let Some(below) = &layer.below {
            copy(
                &temp.path().join(below).join("rootfs"),
                &tree.join("rootfs"),
            );
        }
        fs::write(tree.join("id"), &layer.cache_id).unwrap();
        apply(
            &root.join("overlay2").join(&layer.cache_id).join("diff"),
            &tree.join("rootfs"),
        );
        let below = layer.below.as_ref().map_or(BASE, |below| ids[below]);
        let bytes = if options.xfs && layer.below.is_none() {
            xfs(&tree)
        } else {
            ext4(&tree)
        };
        pool.device(next, &bytes, Some(below));
        record(&layer.cache_id, next);
        ids.insert(layer.cache_id, next);
    }
    // Containers have devices too.
    for mount in children(&root.join("image/devicemapper/layerdb/mounts")) {
        for name in ["init-id", "mount-id"] {
            next += 1;
            record(&fs::read_to_string(mount.join(name)).unwrap(), next);
        }
    }
    let transaction = u64::from(next);
    pool.finish(transaction);
    let noted = json!({
        "open_transaction_id": transaction, "device_hash": "", "device_id": next,
    });
    fs::write(records.join("transaction-metadata"), noted.to_string()).unwrap();
    let noted = json!({
        "next_device_id": next + 1, "BaseDeviceUUID": "", "BaseDeviceFilesystem": "ext4",
    });
    fs::write(records.join("deviceset-metadata"), noted.to_string()).unwrap();
    fs::remove_dir_all(root.join("overlay2")).unwrap();
    Devices { ids, transaction }
}

fn layers(root: &Path) -> Vec<Layer> {
    let db = root.join("image/devicemapper/layerdb/sha256");
    let cache_id = |record: &Path| fs::read_to_string(record.join("cache-id")).unwrap();
    let layer = |record: PathBuf| Layer {
        cache_id: cache_id(&record),
        below: fs::read_to_string(record.join("parent"))
            .ok()
            .map(|parent| {
                let hex = parent.strip_prefix("sha256:").unwrap();
                cache_id(&db.join(hex))
            }),
    };
    children(&db).into_iter().map(layer).collect()
}

/// Sorts layers so that each follows the one below it.
fn in_order(mut layers: Vec<Layer>) -> Vec<Layer> {
    let mut ordered: Vec<Layer> = Vec::new();
    while !layers.is_empty() {
        let ready = layers.iter().position(|layer| {
            let is_there = |below: &String| ordered.iter().any(|known| known.cache_id == *below);
            layer.below.as_ref().is_none_or(is_there)
        });
        ordered.push(layers.swap_remove(ready.unwrap()));
    }
    ordered
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

fn copy(from: &Path, to: &Path) {
    let mut cp = Command::new("cp");
    cp.args(["-a", "--remove-destination"]);
    run(cp.arg(from.join(".")).arg(to));
}

/// Applies the changes of an overlayfs layer to a tree. The tree has no whiteouts afterwards.
fn apply(diff: &Path, tree: &Path) {
    clear(diff, tree);
    copy(diff, tree);
    remove_whiteouts(tree);
}

/// Removes from the tree what the layer removes or replaces.
fn clear(diff: &Path, tree: &Path) {
    for entry in children(diff) {
        let target = tree.join(entry.file_name().unwrap());
        let here = entry.symlink_metadata().unwrap();
        let Ok(there) = target.symlink_metadata() else {
            continue;
        };
        if here.is_dir() && there.is_dir() && !is_opaque(&entry) {
            clear(&entry, &target);
        } else if there.is_dir() {
            fs::remove_dir_all(&target).unwrap();
        } else {
            fs::remove_file(&target).unwrap();
        }
    }
}

fn is_opaque(dir: &Path) -> bool {
    ["trusted.overlay.opaque", "user.overlay.opaque"]
        .into_iter()
        .any(|name| rustix::fs::getxattr(dir, name, &mut [0; 8]).is_ok())
}

fn remove_whiteouts(tree: &Path) {
    for entry in children(tree) {
        let metadata = entry.symlink_metadata().unwrap();
        if metadata.file_type().is_char_device() && metadata.rdev() == 0 {
            fs::remove_file(&entry).unwrap();
        } else if metadata.is_dir() {
            remove_whiteouts(&entry);
        }
    }
}

/// Returns an ext4 with the files of a tree.
fn ext4(tree: &Path) -> Vec<u8> {
    let mut mkfs = Command::new("mkfs.ext4");
    let id = "6b1b6b1b-0000-4000-8000-000000000001";
    // The options are Docker's. The UUID is the same in each, so that snapshots share blocks.
    mkfs.args(["-q", "-F", "-U", id]);
    let options = format!("nodiscard,lazy_itable_init=0,lazy_journal_init=0,hash_seed={id}");
    mkfs.args(["-E", &options]).arg("-d").arg(tree);
    file_system(&mut mkfs, &tree.with_extension("image"), SIZE)
}

/// Returns an empty xfs of the smallest size.
fn xfs(tree: &Path) -> Vec<u8> {
    let mut mkfs = Command::new("mkfs.xfs");
    file_system(mkfs.arg("-q"), &tree.with_extension("image"), 300 << 20)
}

fn file_system(mkfs: &mut Command, image: &Path, size: u64) -> Vec<u8> {
    fs::File::create(image).unwrap().set_len(size).unwrap();
    run(mkfs.arg(image));
    let bytes = fs::read(image).unwrap();
    fs::remove_file(image).unwrap();
    bytes
}
