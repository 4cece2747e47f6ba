//! A valid store: names, IDs, stacks, history, the layer tree, containers.

use std::collections::HashMap;
use std::io::Read as _;

use base64::Engine as _;
use testkit::store::builder;
use unionfs::layer::Dialect;
use unionfs::oci::Digest;
use unionfs::store::discovery::Environment;
use unionfs::store::{Error, Stores};

use super::{Fixture, children, discover};

#[test]
fn every_way_to_write_an_image_finds_it() {
    let store = Fixture::new();
    let stores = store.stores().unwrap();
    let one = store.id(0);
    for text in [
        "sample",
        "sample:1",
        "sample:latest",
        "docker.io/library/sample:1",
        "index.docker.io/sample:1",
        one,
        &format!("sha256:{one}"),
        &one[..12],
        &format!("sha256:{}", &one[..12]),
    ] {
        let image = stores.find(text).unwrap();
        assert_eq!(image.id.hex(), one, "{text}");
        let names: Vec<String> = image.names.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["sample:1", "sample:latest"]);
    }
    assert_eq!(stores.find("sample:2").unwrap().id.hex(), store.id(1));
}

#[test]
fn a_name_wins_over_an_id_prefix() {
    let temp = tempfile::tempdir().unwrap();
    let mut made = builder::StoreBuilder::new(temp.path()).unwrap();
    let config = |n: u32| format!(r#"{{"os":"{n}","rootfs":{{"type":"layers"}}}}"#);
    let one = made.image_from(&["one:1"], config(1).as_bytes()).unwrap();
    let prefix = one.strip_prefix("sha256:").unwrap()[..8].to_owned();
    made.finish().unwrap();
    let find = |text: &str| discover(temp.path()).unwrap().find(text).unwrap().id;
    assert_eq!(find(&prefix).to_string(), one);
    // Now another image has a name that equals the start of the first one's ID.
    let name = format!("{prefix}:latest");
    let two = made.image_from(&[&name], config(2).as_bytes()).unwrap();
    made.finish().unwrap();
    assert_eq!(find(&prefix).to_string(), two);
    assert_eq!(find(&one).to_string(), one);
}

#[test]
fn the_stack_is_top_first_and_the_sizes_add_up() {
    let store = Fixture::new();
    let image = store.stores().unwrap().find("sample:1").unwrap();
    let stack = image.stack().unwrap();
    assert_eq!(stack.len(), 3);
    for (number, layer) in stack.iter().rev().enumerate() {
        assert_eq!(layer.path(), store.layer_dir(number).join("diff"));
        let kernel = [Dialect::KERNEL, Dialect::KERNEL_USERXATTR];
        assert!(kernel.contains(&layer.dialect));
    }
    let top = stack[0].path();
    assert!(top.join("data/links/one").exists(), "{top:?}");
    assert_eq!(image.size, image.layers.iter().map(|l| l.size).sum::<u64>());
    assert!(image.layers.iter().all(|layer| layer.size > 0));
}

#[test]
fn history_is_newest_first_with_sizes_of_the_layers() {
    let store = Fixture::new();
    let image = store.stores().unwrap().find("sample:1").unwrap();
    let rows = image.history();
    let by: Vec<_> = rows
        .iter()
        .map(|r| r.step.created_by.as_deref().unwrap())
        .collect();
    assert_eq!(
        by,
        [
            "CMD [\"/bin/sh\"]",
            "sample-store layer 3",
            "sample-store layer 2",
            "sample-store layer 1"
        ]
    );
    assert!(rows[0].step.empty_layer && rows[0].chain_id.is_none() && rows[0].size == 0);
    assert_eq!(rows[3].chain_id, Some(image.layers[0].chain_id));
    assert_eq!(rows[1].size, image.layers[2].size);
}

/// So many images are read by several threads, each of which finds the shared layer.
#[test]
fn many_images_are_listed_whole_in_order_and_beside_damaged_ones() {
    const IMAGES: usize = 200;
    let temp = tempfile::tempdir().unwrap();
    let mut made = builder::StoreBuilder::new(temp.path()).unwrap();
    let base = made.layer(None, |dir| std::fs::write(dir.join("base"), "b"));
    let base = base.unwrap();
    let ids: Vec<String> = (0..IMAGES)
        .map(|number| {
            let config = format!(
                r#"{{"os":"{number}","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
                base.diff_id
            );
            let name = format!("image-{number:03}:1");
            made.image_from(&[&name], config.as_bytes()).unwrap()
        })
        .collect();
    made.finish().unwrap();
    let damaged = [3, 70, 130, 199];
    for number in damaged {
        let hex = ids[number].strip_prefix("sha256:").unwrap();
        let content = temp.path().join("image/overlay2/imagedb/content/sha256");
        std::fs::write(content.join(hex), "{}").unwrap();
    }
    let listing = discover(temp.path()).unwrap().images();
    let found: Vec<(String, String)> = listing
        .images
        .iter()
        .map(|image| (image.label(), image.id.to_string()))
        .collect();
    let whole: Vec<(String, String)> = (0..IMAGES)
        .filter(|number| !damaged.contains(number))
        .map(|number| (format!("image-{number:03}:1"), ids[number].clone()))
        .collect();
    assert_eq!(found, whole);
    assert_eq!(listing.problems.len(), damaged.len());
    for problem in &listing.problems {
        assert!(matches!(problem, Error::ConfigHash { .. }), "{problem}");
    }
    for image in &listing.images {
        assert_eq!(image.layers[0].shared_by, Some(whole.len()));
        assert_eq!(image.engine, "docker");
    }
}

#[test]
fn listing_and_tree_show_what_is_shared() {
    let store = Fixture::new();
    let stores = store.stores().unwrap();
    let listing = stores.images();
    assert!(listing.problems.is_empty(), "{:?}", listing.problems);
    let shared: HashMap<String, Vec<usize>> = listing
        .images
        .iter()
        .map(|i| {
            (
                i.label(),
                i.layers.iter().filter_map(|l| l.shared_by).collect(),
            )
        })
        .collect();
    assert_eq!(shared["sample:1"], [2, 2, 1]);
    assert_eq!(shared["sample:2"], [2, 2, 1]);

    let tree = stores.layers(None);
    let depths: Vec<usize> = tree.nodes.iter().map(|node| node.depth).collect();
    assert_eq!(depths, [0, 1, 2, 2]);
    assert_eq!(tree.nodes[0].images, ["sample:1", "sample:2"]);
    let two = stores.find("sample:2").unwrap();
    let tree = stores.layers(Some(&two));
    assert_eq!(tree.nodes.len(), 3);
    assert_eq!(tree.nodes[1].images, ["sample:1", "sample:2"]);
    assert_eq!(tree.nodes[2].top_of, ["sample:2"]);
    let json = serde_json::to_value(&two).unwrap();
    assert_eq!(json["names"][0], "sample:2");
    assert_eq!(json["layers"][0]["shared_by"], serde_json::Value::Null);
    assert_eq!(json["architecture"], "amd64");
}

#[test]
fn steps_of_a_build_are_marked_and_do_not_count_as_sharing() {
    let store = Fixture::new();
    let [one, two] = [store.id(0), store.id(1)];
    let metadata = store.root.join("image/overlay2/imagedb/metadata/sha256");
    std::fs::create_dir_all(metadata.join(two)).unwrap();
    std::fs::write(metadata.join(two).join("parent"), format!("sha256:{one}")).unwrap();
    let names = format!(r#"{{"Repositories":{{"sample":{{"sample:2":"sha256:{two}"}}}}}}"#);
    std::fs::write(store.root.join("image/overlay2/repositories.json"), names).unwrap();
    let listing = store.stores().unwrap().images();
    let image = |id: &str| listing.images.iter().find(|i| i.id.hex() == id).unwrap();
    assert!(listing.is_intermediate(image(one)) && !listing.is_intermediate(image(two)));
    assert_eq!(image(two).layers[0].shared_by, Some(1));
    assert_eq!(image(two).parent, Digest::from_hex(one));
}

#[test]
fn containers_are_found_by_id_prefix_and_name() {
    let store = Fixture::new();
    let stores = store.stores().unwrap();
    let id = &store.sample.container;
    for text in [id.as_str(), &id[..5], "sample", "/sample"] {
        let container = stores.container(text).unwrap();
        assert_eq!(container.id.as_str(), id, "{text}");
        assert_eq!(container.name.as_ref(), Some(&store.sample.container_name));
    }
    let container = stores.container("sample").unwrap();
    let image = stores.find("sample:1").unwrap().stack().unwrap();

    let writable = container.stack_in_place().unwrap();
    let upper = writable.upper.unwrap();
    assert!(upper.layer.path().join("srv/from-the-container").exists());
    assert_eq!(upper.work.path(), upper.layer.path().with_file_name("work"));
    assert!(writable.lowers[0].path().join(".dockerenv").exists());
    assert_eq!(writable.lowers[1..], image[..]);

    let read_only = container.stack();
    assert_eq!(read_only.upper, None);
    assert_eq!(read_only.lowers[0], upper.layer);
    assert_eq!(read_only.lowers[1..], writable.lowers[..]);
}

#[test]
fn a_running_container_is_not_mounted_writable() {
    let store = Fixture::new();
    let id = &store.sample.container;
    let config = format!(r#"{{"ID":"{id}","Name":"/sample","State":{{"Running":true}}}}"#);
    std::fs::write(store.path("containers/*/config.v2.json"), config).unwrap();
    let container = store.stores().unwrap().container("sample").unwrap();
    assert!(matches!(
        container.stack_in_place(),
        Err(Error::ContainerRunning { .. })
    ));
    assert!(container.stack().upper.is_none());
}

#[test]
fn both_drivers_of_one_root_are_searched() {
    let store = Fixture::new();
    for dir in ["image/", ""] {
        let from = store.root.join(dir).join("overlay2");
        let to = store.root.join(dir).join("fuse-overlayfs");
        std::fs::rename(from, to).unwrap();
    }
    // A directory with an image database but no names is a store too.
    let empty = store.root.join("image/overlay2/imagedb");
    std::fs::create_dir_all(empty).unwrap();
    let stores = store.stores().unwrap();
    let drivers: Vec<_> = stores.all().iter().map(|s| s.driver()).collect();
    assert_eq!(drivers, ["overlay2", "fuse-overlayfs"]);
    let image = stores.find("sample:1").unwrap();
    assert_eq!(image.driver, "fuse-overlayfs");
    assert_eq!(image.stack().unwrap()[0].dialect, Dialect::ALL);
}

#[test]
fn our_own_root_comes_first_and_is_found_by_the_environment() {
    let store = Fixture::new();
    let mut environment = Environment::default();
    environment.unionfs_root = Some(store.root.clone().into());
    let stores = Stores::discover(None, &environment).unwrap();
    assert_eq!(stores.all()[0].root(), store.root);
    assert_eq!(stores.find("sample:1").unwrap().root, store.root);
}

/// Checks that the sample store has what exported layers need.
#[test]
fn tar_split_and_files_give_back_the_tar_of_the_diff_id() {
    let store = Fixture::new();
    let layers = children(&store.root.join("image/overlay2/layerdb/sha256"));
    assert_eq!(layers.len(), 4);
    for layer in layers {
        let read = |name: &str| std::fs::read_to_string(layer.join(name)).unwrap();
        let diff = store
            .root
            .join("overlay2")
            .join(read("cache-id"))
            .join("diff");
        let file = std::fs::File::open(layer.join("tar-split.json.gz")).unwrap();
        let mut lines = String::new();
        flate2::read::GzDecoder::new(file)
            .read_to_string(&mut lines)
            .unwrap();
        let mut tar = Vec::new();
        for line in lines.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            if line["type"] == 2 {
                let raw = line["payload"].as_str().unwrap();
                let engine = base64::engine::general_purpose::STANDARD;
                tar.extend(engine.decode(raw).unwrap());
            } else if line["size"].as_u64().is_some() {
                tar.extend(std::fs::read(diff.join(line["name"].as_str().unwrap())).unwrap());
            }
        }
        assert_eq!(Digest::of(&tar).to_string(), read("diff"), "{layer:?}");
    }
}
