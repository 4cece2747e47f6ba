//! The sample store in the layouts of other drivers, and as podman's store. It is built here, so
//! that tests can damage any part of it.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use unionfs::store::Image;

use super::fixture::{Fixture, children};

/// The sample store, and the IDs of its layers.
pub struct Layout {
    pub store: Fixture,
    /// The cache IDs of `sample:1`, base first.
    pub ids: Vec<String>,
    /// The mount ID of its container.
    pub mount_id: String,
}

impl Layout {
    fn new() -> (Self, Vec<Image>) {
        let store = Fixture::new();
        let stores = store.stores().unwrap();
        let images = ["sample:1", "sample:2"].map(|name| stores.find(name).unwrap());
        let ids = images[0].layers.iter().map(|l| l.cache_id.to_string());
        let ids = ids.collect();
        let mount_id = fs::read_to_string(store.path("image/*/layerdb/mounts/*/mount-id"));
        let mount_id = mount_id.unwrap();
        let layout = Self {
            store,
            ids,
            mount_id,
        };
        (layout, images.into())
    }

    /// Creates Docker's store with the driver `overlay` (first generation) or `vfs`. The trees do
    /// not contain the files of the layers below, as those of a real store do. No test reads these
    /// files.
    pub fn docker(driver: &str) -> Self {
        let (layout, _) = Self::new();
        let root = &layout.store.root;
        fs::rename(root.join("image/overlay2"), root.join("image").join(driver)).unwrap();
        fs::remove_dir_all(root.join("overlay2/l")).unwrap();
        for from in children(&root.join("overlay2")) {
            let id = from.file_name().unwrap().to_str().unwrap();
            match driver {
                "vfs" => place(&from.join("diff"), &root.join("vfs/dir").join(id)),
                _ if id.starts_with(&layout.mount_id) => layout.first_overlay_container(id),
                _ => place(
                    &from.join("diff"),
                    &root.join("overlay").join(id).join("root"),
                ),
            }
        }
        fs::remove_dir_all(root.join("overlay2")).unwrap();
        layout
    }

    fn first_overlay_container(&self, id: &str) {
        let root = &self.store.root;
        let to = root.join("overlay").join(id);
        place(
            &root.join("overlay2").join(id).join("diff"),
            &to.join("upper"),
        );
        fs::create_dir(to.join("work")).unwrap();
        fs::create_dir(to.join("merged")).unwrap();
        fs::write(to.join("lower-id"), &self.ids[2]).unwrap();
    }

    /// Creates podman's store with the driver `overlay` or `vfs`.
    pub fn podman(driver: &str) -> Self {
        let (layout, images) = Self::new();
        let root = &layout.store.root;
        let (image_dir, layer_dir) = (format!("{driver}-images"), format!("{driver}-layers"));
        let (image_dir, layer_dir) = (root.join(image_dir), root.join(layer_dir));
        fs::create_dir(&image_dir).unwrap();
        fs::create_dir(&layer_dir).unwrap();
        let mut layers: Vec<Value> = Vec::new();
        for image in &images {
            let dir = image_dir.join(image.id.hex());
            fs::create_dir(&dir).unwrap();
            let config = root.join("image/overlay2/imagedb/content/sha256");
            let config = config.join(image.id.hex());
            let key = STANDARD.encode(image.id.to_string());
            fs::copy(config, dir.join(format!("={key}"))).unwrap();
            for layer in &image.layers {
                if layers.iter().all(|l| l["id"] != layer.cache_id.as_str()) {
                    let record = root.join("image/overlay2/layerdb/sha256");
                    let split = record.join(layer.chain_id.hex()).join("tar-split.json.gz");
                    let name = format!("{}.tar-split.gz", layer.cache_id);
                    fs::copy(split, layer_dir.join(name)).unwrap();
                    layers.push(layer_record(image, layer));
                }
            }
        }
        layers.push(json!({"id": layout.mount_id, "parent": layout.ids[2]}));
        fs::write(layer_dir.join("layers.json"), json!(layers).to_string()).unwrap();
        let containers = root.join(format!("{driver}-containers"));
        fs::create_dir(&containers).unwrap();
        let container = json!([{
            "id": layout.store.sample.container, "names": ["web"], "image": images[0].id.hex(),
            "layer": layout.mount_id, "metadata": "{}", "created": "2026-11-24T11:35:42.249742915Z",
        }]);
        fs::write(containers.join("containers.json"), container.to_string()).unwrap();
        let records = images.iter().map(image_record).collect();
        let records = Value::Array(records).to_string();
        fs::write(image_dir.join("images.json"), records).unwrap();
        layout.podman_dirs(driver);
        for docker in ["image", "containers"] {
            fs::remove_dir_all(root.join(docker)).unwrap();
        }
        layout
    }

    fn podman_dirs(&self, driver: &str) {
        let root = &self.store.root;
        let from = root.join("overlay2");
        fs::remove_dir_all(from.join(format!("{}-init", self.mount_id))).unwrap();
        if driver == "overlay" {
            let text = |file: &str| fs::read_to_string(from.join(&self.ids[2]).join(file)).unwrap();
            let lower = format!("l/{}:{}", text("link"), text("lower"));
            fs::write(from.join(&self.mount_id).join("lower"), lower).unwrap();
            fs::write(from.join(".has-mount-program"), "false").unwrap();
            return fs::rename(&from, root.join("overlay")).unwrap();
        }
        for dir in children(&from) {
            if !dir.ends_with("l") {
                let id = dir.file_name().unwrap();
                place(&dir.join("diff"), &root.join("vfs/dir").join(id));
            }
        }
        fs::remove_dir_all(from).unwrap();
    }

    /// Returns a path below the root.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.store.root.join(path)
    }
}

/// Moves a directory to a path that does not exist yet.
fn place(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::rename(from, to).unwrap();
}

/// Returns the record of a layer with the fields that podman 4.3 writes.
fn layer_record(image: &Image, layer: &unionfs::store::ImageLayer) -> Value {
    let below = image
        .layers
        .iter()
        .find(|l| Some(l.chain_id) == layer.parent);
    let mut record = json!({
        "id": layer.cache_id, "created": "2026-11-24T11:35:42.249742915Z",
        "compressed-diff-digest": layer.diff_id, "compressed-size": layer.size,
        "diff-digest": layer.diff_id, "diff-size": layer.size,
        "uidset": [0], "gidset": [0],
    });
    if let Some(below) = below {
        record["parent"] = json!(below.cache_id);
    }
    record
}

fn image_record(image: &Image) -> Value {
    let names = image.names.iter();
    let names: Vec<String> = names.map(|n| format!("localhost/{n}")).collect();
    json!({
        "id": image.id.hex(), "digest": image.id, "names": names,
        "layer": image.layers.last().unwrap().cache_id,
        "metadata": "{}", "big-data-names": [image.id],
        "created": "2026-11-24T11:35:42.249742915Z",
    })
}
