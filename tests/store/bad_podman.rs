//! Bad input: a generated store of podman, damaged in one place at a time. `podman` has the stores
//! that podman itself writes.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};
use testkit::store::layouts::Layout;
use unionfs::oci::{self, Digest};
use unionfs::store::Error;

use super::bad_input::{fails, replace, shown};

/// The records are the same for both drivers, so only the first gets damaged records.
const DRIVERS: [&str; 2] = ["overlay", "vfs"];

/// Edits `images.json` or `layers.json`, a list of objects.
fn edit(layout: &Layout, driver: &str, kind: &str, change: impl FnOnce(&mut Vec<Value>)) {
    let path = layout.at(format!("{driver}-{kind}/{kind}.json"));
    let mut list: Vec<Value> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let before = list.clone();
    change(&mut list);
    assert_ne!(list, before);
    fs::write(path, json!(list).to_string()).unwrap();
}

/// Returns the record of a layer of `sample:1`.
fn layer<'l>(layout: &Layout, list: &'l mut [Value], number: usize) -> &'l mut Value {
    let mut found = list.iter_mut();
    let id = layout.ids[number].as_str();
    found.find(|layer| layer["id"] == id).unwrap()
}

#[test]
fn whole_stores() {
    for driver in DRIVERS {
        let layout = Layout::podman(driver);
        let stores = layout.store.stores().unwrap();
        for text in [
            "localhost/sample:1",
            "sample:1",
            "sample",
            layout.store.id(0),
        ] {
            let image = stores.find(text).unwrap();
            assert_eq!((image.driver, image.layers.len()), (driver, 3), "{text}");
            let shown = if driver == "vfs" { 1 } else { 3 };
            assert_eq!(image.stack().unwrap().len(), shown);
        }
        // A name of Docker's library does not match podman's local names, nor the reverse.
        assert!(stores.find("docker.io/other/sample:1").is_err());
        let listing = stores.images();
        assert_eq!((listing.images.len(), listing.problems.len()), (2, 0));
        let report = stores.verify(None, &mut |_| {}).unwrap();
        assert_eq!((report.images, report.layers), (2, 4));
        // With vfs the trees are not whole here, but each has its layer's files.
        assert_eq!(report.problems, []);
    }
}

#[test]
fn containers_whose_records_are_damaged() {
    for driver in DRIVERS {
        let layout = Layout::podman(driver);
        let found = |name: &str| layout.store.stores().unwrap().container(name);
        let container = found("web").unwrap();
        assert_eq!(container.id.as_str(), layout.store.sample.container);
        assert_eq!(
            (container.layers.len(), container.whole),
            (3, driver == "vfs")
        );
        let own = container.upper.layer.path();
        assert!(own.display().to_string().contains(&layout.mount_id));
        let cases: [(&str, Value, &str); 8] = [
            ("layer", json!("../../etc"), "no such layer"),
            ("layer", json!(""), "no layer"),
            ("layer", json!(layout.ids[0]), "0 layers for image"),
            ("layer", json!(3), "line 1"),
            ("image", json!(layout.store.id(1)), "layer"),
            ("names", json!(["other"]), "web"),
            ("names", json!(null), "web"),
            ("id", json!("../../etc"), "web"),
        ];
        for (field, value, words) in cases {
            let layout = Layout::podman(driver);
            edit(&layout, driver, "containers", |list| {
                list[0][field] = value.clone();
            });
            let error = layout.store.stores().unwrap().container("web").unwrap_err();
            assert!(
                error.to_string().contains(words),
                "{field} {value}: {error}"
            );
        }
        // A record that the store has twice, and an image that is in no record.
        let layout = Layout::podman(driver);
        edit(&layout, driver, "containers", |list| {
            list.push(list[0].clone());
            list[0]["layer"] = json!("none");
            list[1]["image"] = json!("f".repeat(64));
        });
        let container = layout.store.stores().unwrap().container("web").unwrap();
        assert_eq!(container.layers.len(), 3);
    }
}

#[test]
fn a_layer_that_is_an_image_of_composefs_is_refused() {
    let layout = Layout::podman("overlay");
    let dir = format!("overlay/{}/composefs-data", layout.ids[1]);
    fs::create_dir(layout.at(&dir)).unwrap();
    let error = fails(&layout.store, "sample:1", &[&dir, "skopeo"]);
    assert!(matches!(error, Error::Composefs { .. }));
}

#[test]
fn records_that_are_no_json_or_too_large() {
    let driver = DRIVERS[0];
    for kind in ["images", "layers"] {
        for text in [
            "",
            "{}",
            "[{}]",
            "[[]]",
            "[{\"id\":3}]",
            "\u{0}",
            "[",
            "nul",
        ] {
            let layout = Layout::podman(driver);
            let name = format!("{driver}-{kind}/{kind}.json");
            replace(&layout.at(&name), text);
            let error = fails(&layout.store, "sample:1", &[&name, "line 1"]);
            assert!(
                matches!(error, Error::Oci(oci::Error::Json { .. })),
                "{text:?}: {error}"
            );
        }
        let layout = Layout::podman(driver);
        let name = format!("{driver}-{kind}/{kind}.json");
        let file = fs::File::options().write(true).open(layout.at(&name));
        file.unwrap().set_len((64 << 20) + 1).unwrap();
        let error = fails(&layout.store, "sample:1", &[&name, "larger than"]);
        assert!(matches!(error, Error::TooLarge { .. }));
    }
}

#[test]
fn records_missing_empty_or_null() {
    for driver in DRIVERS {
        let layout = Layout::podman(driver);
        fs::remove_file(layout.at(format!("{driver}-images/images.json"))).unwrap();
        let error = shown(layout.store.stores().map(drop), &["images.json"]);
        assert!(matches!(error, Error::NotAStore { .. }));
        for empty in ["[]", "null"] {
            let layout = Layout::podman(driver);
            replace(&layout.at(format!("{driver}-images/images.json")), empty);
            let error = fails(&layout.store, "sample:1", &["sample:1"]);
            assert!(matches!(error, Error::UnknownImage { .. }));
            let layout = Layout::podman(driver);
            replace(&layout.at(format!("{driver}-layers/layers.json")), empty);
            let error = fails(&layout.store, "sample:1", &["layers.json", &layout.ids[2]]);
            assert!(matches!(error, Error::ChainMismatch { .. }));
        }
    }
}

#[test]
fn a_volatile_layer_counts_too() {
    let layout = Layout::podman("overlay");
    let dir = layout.at("overlay-layers");
    fs::rename(dir.join("layers.json"), dir.join("volatile-layers.json")).unwrap();
    layout.store.stores().unwrap().find("sample:1").unwrap();
}

#[test]
fn parents_that_are_missing_in_a_circle_or_too_many() {
    let driver = DRIVERS[0];
    for (number, parent) in [(0, 2), (1, 1), (2, 0)] {
        let layout = Layout::podman(driver);
        edit(&layout, driver, "layers", |list| {
            layer(&layout, list, number)["parent"] = json!(layout.ids[parent]);
        });
        let error = fails(&layout.store, "sample:1", &["layers.json"]);
        assert!(matches!(error, Error::ChainMismatch { .. }), "{error}");
    }
    for parent in ["../../etc", "a\nb", "\u{1b}[2J", &"f".repeat(64)] {
        let layout = Layout::podman(driver);
        edit(&layout, driver, "layers", |list| {
            layer(&layout, list, 0)["parent"] = json!(parent);
        });
        let error = fails(&layout.store, "sample:1", &["layers.json", "no such layer"]);
        assert!(matches!(error, Error::ChainMismatch { .. }), "{error}");
    }
}

#[test]
fn layers_that_are_not_the_configurations() {
    let driver = DRIVERS[0];
    let other = Digest::of(b"other").to_string();
    for stated in [json!(other), json!("sha256:../.."), json!(""), Value::Null] {
        let layout = Layout::podman(driver);
        edit(&layout, driver, "layers", |list| {
            layer(&layout, list, 1)["diff-digest"] = stated.clone();
        });
        let words = ["layers.json", "diff-digest", layout.ids[1].as_str()];
        let error = fails(&layout.store, "sample:1", &words);
        assert!(matches!(error, Error::ChainMismatch { .. }), "{stated}");
    }
    // The top layer of an image with fewer layers, of another image, of none.
    for top in [Some(1), None] {
        let layout = Layout::podman(driver);
        let id = top.map_or("", |number: usize| &layout.ids[number]);
        edit(&layout, driver, "images", |list| {
            list[0]["layer"] = json!(id);
        });
        let error = fails(
            &layout.store,
            "sample:1",
            &["layers.json", "layers for image"],
        );
        assert!(matches!(error, Error::ChainMismatch { .. }), "{error}");
    }
}

#[test]
fn ids_that_are_no_plain_component() {
    let driver = DRIVERS[0];
    for bad in [
        "../../../etc",
        ".",
        "a/b",
        "/etc",
        "a\0b",
        "a\nb",
        "\u{1b}[2J",
    ] {
        let layout = Layout::podman(driver);
        edit(&layout, driver, "layers", |list| {
            layer(&layout, list, 2)["id"] = json!(bad);
        });
        edit(&layout, driver, "images", |list| {
            list[0]["layer"] = json!(bad);
        });
        let error = fails(&layout.store, "sample:1", &["layers.json", "plain path"]);
        assert!(
            matches!(error, Error::BadCacheId { .. }),
            "{bad:?}: {error}"
        );
        // An image's ID must be a digest; otherwise the image is not listed.
        let layout = Layout::podman(driver);
        edit(&layout, driver, "images", |list| list[0]["id"] = json!(bad));
        let error = fails(&layout.store, "sample:1", &["sample:1"]);
        assert!(
            matches!(error, Error::UnknownImage { .. }),
            "{bad:?}: {error}"
        );
        layout.store.stores().unwrap().find("sample:2").unwrap();
    }
}

#[test]
fn names_that_are_none_spoil_only_themselves() {
    let driver = DRIVERS[0];
    let layout = Layout::podman(driver);
    edit(&layout, driver, "images", |list| {
        list[0]["names"] = json!(["", "A\nB", "../x", "localhost/fine:1"]);
    });
    let stores = layout.store.stores().unwrap();
    stores.find("fine:1").unwrap();
    let listing = stores.images();
    assert_eq!(listing.images.len(), 2);
    assert_eq!(listing.problems.len(), 3, "{:?}", listing.problems);
    for problem in &listing.problems {
        let text = problem.to_string();
        assert!(
            text.contains("images.json") && !text.contains('\n'),
            "{text:?}"
        );
    }
    let report = stores.verify(None, &mut |_| {}).unwrap();
    assert_eq!(report.problems.len(), 3, "{:?}", report.problems);
}

#[test]
fn a_name_of_two_images_is_the_later_ones() {
    let driver = DRIVERS[0];
    let layout = Layout::podman(driver);
    edit(&layout, driver, "images", |list| {
        list[0]["names"] = json!(["localhost/both:1"]);
        list[1]["names"] = json!(["localhost/both:1"]);
    });
    for _ in 0..4 {
        let found = layout.store.stores().unwrap().find("both:1").unwrap();
        assert_eq!(found.id.hex(), layout.store.id(1));
    }
}

#[test]
fn configurations_missing_or_changed() {
    let driver = DRIVERS[0];
    let layout = Layout::podman(driver);
    let id = layout.store.id(0);
    let config = layout.store.path(&format!("{driver}-images/{id}/*"));
    let good = fs::read_to_string(&config).unwrap();
    replace(&config, good.replace("amd64", "amd65"));
    let error = fails(&layout.store, "sample:1", &["is damaged"]);
    assert!(matches!(error, Error::ConfigHash { .. }));
    fs::remove_file(&config).unwrap();
    let error = fails(&layout.store, "sample:1", &[id, "is missing"]);
    assert!(matches!(error, Error::ConfigMissing { .. }));
    symlink("/etc/passwd", &config).unwrap();
    let error = fails(&layout.store, "sample:1", &["symlink"]);
    assert!(matches!(error, Error::Symlink { .. }));
}

#[test]
fn the_drivers_directories() {
    for driver in DRIVERS {
        let layout = Layout::podman(driver);
        let id = &layout.ids[1];
        let dir = layout.at(match driver {
            "vfs" => format!("vfs/dir/{id}"),
            _ => format!("overlay/{id}/diff"),
        });
        let path = dir.to_str().unwrap();
        fs::remove_dir_all(&dir).unwrap();
        let error = fails(&layout.store, "sample:1", &[path, "is missing"]);
        assert!(matches!(error, Error::LayerDirMissing { .. }));
        symlink("/etc", &dir).unwrap();
        let error = fails(&layout.store, "sample:1", &[path]);
        let refused = matches!(
            error,
            Error::LayerNotDirectory { .. } | Error::Symlink { .. }
        );
        assert!(refused, "{error:?}");
        for name in [
            driver.to_owned(),
            format!("{driver}-layers"),
            format!("{driver}-images"),
        ] {
            let layout = Layout::podman(driver);
            let (path, moved) = (layout.at(&name), layout.at("moved"));
            fs::rename(&path, &moved).unwrap();
            symlink(&moved, &path).unwrap();
            let error = fails(&layout.store, "sample:1", &["symlink"]);
            assert!(matches!(error, Error::Symlink { .. }), "{name}: {error:?}");
        }
    }
    for (file, bad) in [
        ("lower", "l/../../etc"),
        ("link", "../../../etc"),
        ("link", ""),
    ] {
        let layout = Layout::podman("overlay");
        let path = layout.at(format!("overlay/{}/{file}", layout.ids[2]));
        replace(&path, bad);
        fails(&layout.store, "sample:1", &[path.to_str().unwrap()]);
    }
}
