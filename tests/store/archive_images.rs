//! Archives of several images, and of images for several machines: all images for this machine are
//! loaded, together or not at all, and no name is given twice.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use unionfs::archive::{Format, Result, Source, Wanted, load};
use unionfs::oci::{Digest, Platform, Reference};

use super::archives::{
    Case, assert_empty, assert_whole, edit, entries, load_bytes, put, saved, tar_of, texts,
};
use super::discover;
use super::writable::Own;

fn load_for(own: &Own, archive: &[u8], platform: &str) -> Result<Vec<String>> {
    let store = own.open();
    let input = std::io::Cursor::new(archive.to_vec());
    let source = Source::from_reader(input, &store.staging(), u64::MAX)?;
    let store = store.lock().unwrap();
    let platform = Platform::parse(platform).unwrap();
    let mut wanted = Wanted::default();
    wanted.platform = Some(&platform);
    let loaded = load(&store, &source, &[], &wanted, &|_| ())?;
    Ok(loaded.iter().map(|image| image.id.to_string()).collect())
}

#[test]
fn two_images_that_ask_for_one_name_are_refused_and_both_told() {
    let case = Case::new();
    let stores = case.fixture.stores().unwrap();
    for format in [Format::Docker, Format::Oci] {
        let mut archive = entries(&saved(&stores, &["sample:1", "sample:2"], format));
        match format {
            Format::Docker => edit(&mut archive, "manifest.json", |images| {
                images[1]["RepoTags"] = json!(["other:1", "docker.io/library/sample:1"]);
            }),
            Format::Oci => edit(&mut archive, "index.json", |index| {
                index["manifests"][1]["annotations"] = index["manifests"][0]["annotations"].clone();
            }),
        }
        let own = Own::new();
        let error = load_bytes(&own, &tar_of(&archive)).unwrap_err().to_string();
        for word in case
            .ids()
            .iter()
            .map(String::as_str)
            .chain(["sample:1", "nothing was loaded"])
        {
            assert!(error.contains(word), "no {word:?} in {error}");
        }
        assert_empty(&own);
    }
}

/// An archive that has one image twice gives one image with both names.
#[test]
fn an_image_that_comes_twice_is_one() {
    let case = Case::new();
    let stores = case.fixture.stores().unwrap();
    let mut archive = entries(&saved(&stores, &["sample:1"], Format::Docker));
    edit(&mut archive, "manifest.json", |images| {
        let mut again = images[0].clone();
        again["RepoTags"] = json!(["again:1", "sample:1"]);
        images.as_array_mut().unwrap().push(again);
    });
    let own = Own::new();
    assert_eq!(
        texts(&load_bytes(&own, &tar_of(&archive)).unwrap()),
        case.ids()[..1]
    );
    let stores = discover(&own.root).unwrap();
    for name in ["again:1", "sample:1"] {
        assert_eq!(stores.find(name).unwrap().id.to_string(), case.ids()[0]);
    }
}

/// A bad second image prevents the good first one from being loaded; its name stays with the image
/// that had it.
#[test]
fn a_bad_image_keeps_all_of_the_archive_out() {
    let case = Case::new();
    let own = Own::new();
    // `sample:1` is another image at first.
    let stores = case.fixture.stores().unwrap();
    load_bytes(&own, &saved(&stores, &["sample:2"], Format::Docker)).unwrap();
    let store = own.open();
    let held = Reference::parse("sample:1").unwrap();
    let holder = Digest::parse(&case.ids()[1]).unwrap();
    store.lock().unwrap().tag(&held, &holder).unwrap();
    drop(store);
    let before = (
        own.names("overlay2"),
        own.names("image/overlay2/layerdb/sha256"),
    );

    let mut archive = entries(&saved(&stores, &["sample:1", "sample:2"], Format::Docker));
    edit(&mut archive, "manifest.json", |images| {
        // A third image, whose configuration has a layer that differs from its blob.
        let mut third = images[0].clone();
        third["Layers"].as_array_mut().unwrap().swap(1, 2);
        third["RepoTags"] = json!(["third:1"]);
        images.as_array_mut().unwrap().push(third);
    });
    let config = archive
        .iter()
        .find(|(name, _)| name.contains(&case.ids()[0][7..]));
    let mut config: Value = serde_json::from_slice(config.unwrap().1).unwrap();
    let diffs = config["rootfs"]["diff_ids"].as_array_mut().unwrap();
    diffs[1] = json!(format!("sha256:{}", "1".repeat(64)));
    let (digest, _) = put(&mut archive, config.to_string().into_bytes());
    edit(&mut archive, "manifest.json", |images| {
        images[2]["Config"] = json!(format!("blobs/sha256/{}", &digest[7..]));
    });
    let error = load_bytes(&own, &tar_of(&archive)).unwrap_err().to_string();
    assert!(error.contains(&"1".repeat(64)), "{error}");
    assert_whole(&own);
    let after = (
        own.names("overlay2"),
        own.names("image/overlay2/layerdb/sha256"),
    );
    assert_eq!(before, after);
    let ours = discover(&own.root).unwrap();
    assert_eq!(ours.find("sample:1").unwrap().id, holder);
    assert_eq!(ours.images().images.len(), 1);
}

/// Makes an OCI archive of one name: an index with an image for each of these platforms. The second
/// value has the image of each platform.
fn for_platforms(case: &Case, nested: bool, platforms: &[&str]) -> (Vec<u8>, Vec<String>) {
    let stores = case.fixture.stores().unwrap();
    let mut archive: BTreeMap<String, Vec<u8>> =
        entries(&saved(&stores, &["sample:1"], Format::Oci));
    let index: Value = serde_json::from_slice(&archive["index.json"]).unwrap();
    let first = &index["manifests"][0];
    let blob = |value: &Value| format!("blobs/sha256/{}", &value["digest"].as_str().unwrap()[7..]);
    let manifest: Value = serde_json::from_slice(&archive[&blob(first)]).unwrap();
    let config: Value = serde_json::from_slice(&archive[&blob(&manifest["config"])]).unwrap();
    let (mut all, mut ids) = (Vec::new(), Vec::new());
    for text in platforms {
        let platform = Platform::parse(text).unwrap();
        let (mut config, mut manifest, mut descriptor) =
            (config.clone(), manifest.clone(), first.clone());
        config["architecture"] = json!(platform.architecture);
        config["variant"] = json!(platform.variant);
        let (id, size) = put(&mut archive, config.to_string().into_bytes());
        manifest["config"]["digest"] = json!(id);
        manifest["config"]["size"] = json!(size);
        let (digest, size) = put(&mut archive, manifest.to_string().into_bytes());
        descriptor["digest"] = json!(digest);
        descriptor["size"] = json!(size);
        descriptor["platform"] = json!({"os": "linux", "architecture": platform.architecture});
        if let Some(variant) = &platform.variant {
            descriptor["platform"]["variant"] = json!(variant);
        }
        all.push(descriptor);
        ids.push(id);
    }
    let index = if nested {
        let media = "application/vnd.oci.image.index.v1+json";
        let inner = json!({"schemaVersion": 2, "mediaType": media, "manifests": all});
        let (digest, size) = put(&mut archive, inner.to_string().into_bytes());
        let annotations = &first["annotations"];
        json!({"schemaVersion": 2, "manifests": [
            {"mediaType": media, "digest": digest, "size": size, "annotations": annotations},
        ]})
    } else {
        json!({"schemaVersion": 2, "manifests": all})
    };
    archive.insert("index.json".into(), index.to_string().into_bytes());
    (tar_of(&archive), ids)
}

#[test]
fn variants_of_a_platform_are_told_apart() {
    let case = Case::new();
    let offered = [
        "linux/arm/v6",
        "linux/arm/v7",
        "linux/amd64/v3",
        "linux/amd64",
        "linux/arm64",
    ];
    for nested in [false, true] {
        let (archive, ids) = for_platforms(&case, nested, &offered);
        for (wanted, expected) in [
            ("linux/arm/v7", 1),
            ("arm/v8", 1),
            ("arm/v6", 0),
            ("linux/amd64", 3),
            ("amd64/v3", 2),
            ("linux/arm64/v8", 4),
        ] {
            let own = Own::new();
            let loaded = load_for(&own, &archive, wanted).unwrap();
            assert_eq!(
                loaded,
                ids[expected..=expected],
                "{wanted}, nested: {nested}"
            );
            let stores = discover(&own.root).unwrap();
            assert_eq!(
                stores.find("sample:1").unwrap().id.to_string(),
                ids[expected]
            );
        }
        for wanted in ["linux/arm/v5", "linux/s390x", "amd64/v2"] {
            let own = Own::new();
            let error = load_for(&own, &archive, wanted).unwrap_err().to_string();
            assert!(error.contains("no image for linux/"), "{error}");
            assert_empty(&own);
        }
    }
}
