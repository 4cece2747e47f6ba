//! A real dockerd's store: all that unionfs reads from it equals the output of `docker inspect` and
//! `docker history`. Its stacks, mounted by the kernel, equal the output of `docker export`.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use testkit::need;
use testkit::need::Needed;
use testkit::store::listing;
use unionfs::changes::Tree;
use unionfs::layer::{Dialect, LayerSpec};
use unionfs::oci::Digest;
use unionfs::store::{Image, Stores};

use super::docker_store::{DockerStore, KernelOverlay, text};
use super::{discover, export};

fn stores() -> Needed<(DockerStore, Stores)> {
    let store = DockerStore::get()?;
    let stores = discover(&store.root()).unwrap();
    Ok((store, stores))
}

/// Returns the layers as Docker names them, top first.
fn lowers_of(data: &Value, with_upper: bool) -> Vec<LayerSpec> {
    let upper = text(data, "/GraphDriver/Data/UpperDir");
    let lower = data
        .pointer("/GraphDriver/Data/LowerDir")
        .and_then(Value::as_str);
    let lowers = lower.into_iter().flat_map(|l| l.split(':'));
    let upper = with_upper.then_some(upper);
    upper
        .into_iter()
        .chain(lowers)
        .map(|path| LayerSpec::open(path, Dialect::KERNEL).unwrap())
        .collect()
}

fn check_image(stores: &Stores, fact: &Value) -> Image {
    let id = text(fact, "/Id");
    let image = stores.find(id).unwrap();
    assert_eq!(image.id.to_string(), id);
    let diffs: Vec<String> = image
        .config
        .diff_ids
        .iter()
        .map(Digest::to_string)
        .collect();
    let layers = fact.pointer("/RootFS/Layers").cloned().unwrap_or_default();
    assert_eq!(serde_json::to_value(diffs).unwrap(), layers, "{id}");
    assert_eq!(image.size, fact["Size"].as_u64().unwrap(), "{id}");
    assert_eq!(
        image.config.created.as_deref(),
        Some(text(fact, "/Created"))
    );
    assert_eq!(
        image.config.architecture.as_deref(),
        Some(text(fact, "/Architecture"))
    );
    let parent = image
        .parent
        .map_or(String::new(), |parent| parent.to_string());
    assert_eq!(parent, text(fact, "/Parent"), "{id}");
    assert_eq!(image.stack().unwrap(), lowers_of(fact, true), "{id}");
    image
}

#[test]
fn images_are_what_docker_inspect_says() {
    let (store, stores) = need!(stores());
    let facts = store.facts("images.json");
    for fact in &facts {
        let image = check_image(&stores, fact);
        assert_eq!(stores.find(&image.id.hex()[..12]).unwrap().id, image.id);
        let mut tags = BTreeSet::new();
        for tag in fact["RepoTags"].as_array().into_iter().flatten() {
            let tag = tag.as_str().unwrap();
            assert_eq!(stores.find(tag).unwrap().id, image.id, "{tag}");
            tags.insert(tag.to_owned());
        }
        let names: BTreeSet<String> = image.names.iter().map(ToString::to_string).collect();
        assert_eq!(names, tags);
    }
    let listing = stores.images();
    assert!(listing.problems.is_empty(), "{:?}", listing.problems);
    let listed: BTreeSet<String> = listing.images.iter().map(|i| i.id.to_string()).collect();
    let known: BTreeSet<String> = facts.iter().map(|f| text(f, "/Id").to_owned()).collect();
    assert_eq!(listed, known);
}

#[test]
fn steps_of_builds_are_hidden_and_shared_layers_counted() {
    let (store, stores) = need!(stores());
    let listing = stores.images();
    let mut shown: Vec<_> = listing
        .images
        .iter()
        .filter(|i| !listing.is_intermediate(i))
        .collect();
    let labels: Vec<String> = shown.iter().map(|image| image.label()).collect();
    let dangling = shown.pop().unwrap();
    assert!(dangling.names.is_empty());
    assert_eq!(
        labels[..6],
        [
            "app:1",
            "app:2",
            "base:1",
            "committed:1",
            "deep:1",
            "scratch:1"
        ]
    );
    assert_eq!(labels.len(), 7);
    // The base layer is in all images but the two made from scratch.
    let base = stores.find("base").unwrap().layers[0].chain_id;
    let deep = shown.iter().find(|i| i.label() == "deep:1").unwrap();
    assert_eq!(deep.layers.len(), 41);
    assert_eq!(
        (deep.layers[0].chain_id, deep.layers[0].shared_by),
        (base, Some(5))
    );
    assert_eq!(deep.layers[40].shared_by, Some(1));
    let tree = stores.layers(None);
    let layers = std::fs::read_dir(store.root().join("image/overlay2/layerdb/sha256")).unwrap();
    assert_eq!(tree.nodes.len(), layers.count());
}

#[test]
fn history_is_what_docker_history_says() {
    let (store, stores) = need!(stores());
    for name in [
        "base:1",
        "app:1",
        "app:2",
        "deep:1",
        "committed:1",
        "scratch:1",
    ] {
        let rows = stores.find(name).unwrap().history();
        let file = store.file("facts/history").join(name);
        let facts: Vec<Value> = std::fs::read_to_string(file)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(rows.len(), facts.len(), "{name}");
        for (row, fact) in rows.iter().zip(&facts) {
            let step = &row.step;
            assert_eq!(
                step.created_by.as_deref().unwrap_or(""),
                text(fact, "/CreatedBy")
            );
            assert_eq!(
                step.comment.as_deref().unwrap_or(""),
                text(fact, "/Comment")
            );
            assert_eq!(row.size.to_string(), text(fact, "/Size"), "{name}: {fact}");
        }
    }
}

#[test]
fn containers_are_what_docker_inspect_says() {
    let (store, stores) = need!(stores());
    for fact in store.facts("containers.json") {
        let id = text(&fact, "/Id");
        let container = stores.container(id).unwrap();
        assert_eq!(stores.container(&id[..12]).unwrap().id, container.id);
        let name = text(&fact, "/Name");
        assert_eq!(stores.container(name).unwrap().id, container.id);
        assert_eq!(container.name.as_deref(), name.strip_prefix('/'));
        assert_eq!(container.id.as_str(), id);
        let stack = container.stack_in_place().unwrap();
        assert_eq!(stack.lowers, lowers_of(&fact, false), "{name}");
        let upper = stack.upper.unwrap();
        assert_eq!(
            upper.layer.path(),
            Path::new(text(&fact, "/GraphDriver/Data/UpperDir"))
        );
        assert_eq!(
            upper.work.path(),
            Path::new(text(&fact, "/GraphDriver/Data/WorkDir"))
        );
        let image = stores.find(text(&fact, "/Image")).unwrap();
        assert_eq!(stack.lowers[1..], image.stack().unwrap()[..], "{name}");
    }
}

#[test]
fn stacks_mounted_by_the_kernel_are_what_docker_exported() {
    let (store, stores) = need!(stores());
    for fact in store.facts("containers.json") {
        let name = text(&fact, "/Name").trim_start_matches('/');
        let stack = stores.container(name).unwrap().stack();
        let mount = KernelOverlay::new(&stack.lowers);
        let found = export::as_exported(listing::of_dir(mount.path()));
        let expected = export::of_export(&store.file(&format!("truth/{name}.tar")));
        listing::assert_same(name, &found, &expected);
    }
}

#[test]
fn changes_are_what_docker_diff_says() {
    let (store, stores) = need!(stores());
    let mut all = 0;
    for fact in store.facts("containers.json") {
        let name = text(&fact, "/Name").trim_start_matches('/');
        let stack = stores.container(name).unwrap().observed_stack();
        let changes = Tree::open(&stack).unwrap().changes().unwrap();
        let found: BTreeSet<Vec<u8>> = changes
            .into_iter()
            .map(|change| [&[change.kind.letter() as u8, b' '], &change.path[..]].concat())
            .collect();
        let said = std::fs::read(store.file("facts/diff").join(name)).unwrap();
        let lines = said.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        let said: BTreeSet<Vec<u8>> = lines.map(<[u8]>::to_vec).collect();
        let shown = |rows: &BTreeSet<Vec<u8>>| {
            let rows = rows.iter().map(|row| row.escape_ascii().to_string());
            rows.collect::<Vec<_>>().join("\n")
        };
        assert_eq!(shown(&found), shown(&said), "{name}");
        all += found.len();
    }
    assert!(all > 20, "only {all} changes were compared");
}
