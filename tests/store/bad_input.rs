//! Bad input: each kind gets its own one-line error that names the file or digest and the remedy.
//! Every test damages a valid store in one place. This file has names, images and containers;
//! `bad_layers` has layers.

use std::path::{Path, PathBuf};

use testkit::store::builder;
use unionfs::oci::{self, Digest};
use unionfs::store::{Error, Result};

use super::{Fixture, discover};

/// Returns the error of looking up `text`, after checking that its message is one line that has all
/// of `parts`.
pub(crate) fn fails(store: &Fixture, text: &str, parts: &[&str]) -> Error {
    shown(store.stores().and_then(|s| s.find(text)).map(|_| ()), parts)
}

pub(crate) fn shown(result: Result<()>, parts: &[&str]) -> Error {
    let error = result.unwrap_err();
    let message = error.to_string();
    assert!(!message.contains(['\n', '\x1b']), "{message:?}");
    for part in parts {
        assert!(message.contains(part), "{part:?} not in {message:?}");
    }
    error
}

pub(crate) fn replace(path: &Path, content: impl AsRef<[u8]>) {
    assert!(path.exists(), "{path:?}");
    std::fs::write(path, content).unwrap();
}

fn repositories(store: &Fixture) -> PathBuf {
    store.root.join("image/overlay2/repositories.json")
}

fn config(store: &Fixture) -> PathBuf {
    let dir = store.root.join("image/overlay2/imagedb/content/sha256");
    dir.join(store.id(0))
}

#[test]
fn unknown_images() {
    let store = Fixture::new();
    let root = store.root.to_str().unwrap().to_owned();
    for text in [
        "nothing",
        "sample:3",
        "other.io/sample:1",
        "0000000",
        &"0".repeat(64),
    ] {
        let error = fails(&store, text, &[text, &root, "unionfs images"]);
        assert!(matches!(error, Error::UnknownImage { .. }), "{text}");
    }
}

#[test]
fn texts_that_are_no_reference() {
    let store = Fixture::new();
    for text in [
        "",
        "Sample",
        "../sample",
        "sample:",
        "a\nb",
        "sample@sha256:12",
    ] {
        let error = fails(&store, text, &["invalid image reference", "name[:tag]"]);
        assert!(
            matches!(error, Error::Oci(oci::Error::BadReference { .. })),
            "{text:?}"
        );
    }
}

#[test]
fn ambiguous_prefixes_list_the_candidates() {
    let temp = tempfile::tempdir().unwrap();
    let mut made = builder::StoreBuilder::new(temp.path()).unwrap();
    // Of 17 IDs, two begin with the same digit.
    let mut ids = Vec::new();
    for n in 0..17 {
        let config = format!(r#"{{"os":"{n}","rootfs":{{"type":"layers"}}}}"#);
        let name = format!("image-{n}:1");
        ids.push((made.image_from(&[&name], config.as_bytes()).unwrap(), name));
    }
    made.finish().unwrap();
    ids.sort();
    let pair = ids
        .windows(2)
        .find(|p| p[0].0.as_bytes()[7] == p[1].0.as_bytes()[7])
        .unwrap();
    let prefix = &pair[0].0[7..8];
    let found = discover(temp.path()).unwrap().find(prefix);
    let parts = pair
        .iter()
        .flat_map(|(id, name)| [id.as_str(), name])
        .collect::<Vec<_>>();
    let error = shown(found.map(|_| ()), &parts);
    assert!(matches!(error, Error::AmbiguousImage { .. }));
}

#[test]
fn repositories_missing() {
    let store = Fixture::new();
    std::fs::remove_file(repositories(&store)).unwrap();
    let error = fails(
        &store,
        "sample:1",
        &["repositories.json", "is missing", "image ID"],
    );
    assert!(matches!(error, Error::NoRepositories { .. }));
    // The ID still works, as the message says.
    store.stores().unwrap().find(store.id(0)).unwrap();
    assert_eq!(store.stores().unwrap().images().images.len(), 2);
}

#[test]
fn repositories_malformed() {
    for (text, place) in [
        ("", "line 1, column 0"),
        (
            "{\n \"Repositories\": {\n  \"sample\": 3}}",
            "line 3, column",
        ),
        ("{\"Repositories\": {\"\u{1b}[2J\": []}}", "line 1, column"),
        ("\u{0}\u{0}\u{0}", "line 1, column 1"),
    ] {
        let store = Fixture::new();
        replace(&repositories(&store), text);
        let error = fails(&store, "sample:1", &["repositories.json", place, "restore"]);
        assert!(
            matches!(error, Error::Oci(oci::Error::Json { .. })),
            "{text:?}"
        );
        let listing = store.stores().unwrap().images();
        assert_eq!((listing.images.len(), listing.problems.len()), (0, 1));
    }
}

#[test]
fn repositories_with_a_bad_id_only_spoil_that_name() {
    let store = Fixture::new();
    let two = store.id(1);
    replace(
        &repositories(&store),
        format!(
            r#"{{"Repositories":{{"sample":{{"sample:1":"sha256:../x","sample:2":"sha256:{two}"}}}}}}"#
        ),
    );
    let error = fails(
        &store,
        "sample:1",
        &["repositories.json", "sha256:../x", "image ID"],
    );
    assert!(matches!(error, Error::Malformed { .. }));
    assert_eq!(
        store.stores().unwrap().find("sample:2").unwrap().id.hex(),
        two
    );
    let listing = store.stores().unwrap().images();
    assert_eq!((listing.images.len(), listing.problems.len()), (2, 1));
}

#[test]
fn configuration_missing() {
    let store = Fixture::new();
    std::fs::remove_file(config(&store)).unwrap();
    let error = fails(
        &store,
        "sample:1",
        &[store.id(0), "is missing", "load or pull"],
    );
    assert!(matches!(error, Error::ConfigMissing { .. }));
    let listing = store.stores().unwrap().images();
    assert_eq!((listing.images.len(), listing.problems.len()), (1, 1));
}

#[test]
fn configuration_hash_is_not_its_name() {
    let store = Fixture::new();
    let mut bytes = std::fs::read(config(&store)).unwrap();
    bytes.push(b' ');
    replace(&config(&store), &bytes);
    let actual = Digest::of(&bytes).to_string();
    let error = fails(&store, "sample:1", &[store.id(0), &actual, "is damaged"]);
    assert!(matches!(error, Error::ConfigHash { .. }));
}

#[test]
fn configuration_too_large() {
    let store = Fixture::new();
    // Sparse, and refused by its size before a byte is read.
    let file = std::fs::File::create(config(&store)).unwrap();
    file.set_len(1 << 40).unwrap();
    let error = fails(&store, "sample:1", &[store.id(0), "larger than"]);
    assert!(matches!(
        error,
        Error::TooLarge {
            limit: 33_554_432,
            ..
        }
    ));
}

/// Reads a store whose image `bad` has the given configuration.
fn with_config(text: &str) -> Result<()> {
    let temp = tempfile::tempdir().unwrap();
    let mut made = builder::StoreBuilder::new(temp.path()).unwrap();
    made.image_from(&["bad:latest"], text.as_bytes()).unwrap();
    made.finish().unwrap();
    discover(temp.path())?.find("bad").map(drop)
}

#[test]
fn configurations_that_hash_right_and_are_wrong() {
    for text in [
        "",
        "{",
        "[]",
        "{}",
        r#"{"rootfs":{"type":"layers","diff_ids":["sha256:.."]}}"#,
    ] {
        let error = shown(with_config(text), &["imagedb", "line 1, column"]);
        assert!(
            matches!(error, Error::Oci(oci::Error::Json { .. })),
            "{text}"
        );
    }
    let error = shown(
        with_config(r#"{"rootfs":{"type":"\u001b[2J"}}"#),
        &["not \"layers\""],
    );
    assert!(matches!(error, Error::Oci(oci::Error::ConfigRootfs { .. })));
    // An image without layers cannot have wrong layers.
    with_config(r#"{"rootfs":{"type":"layers"}}"#).unwrap();
}

#[test]
fn too_many_layers() {
    let ids = vec![format!("\"{}\"", Digest::of(b"x")); 501].join(",");
    let text = format!(r#"{{"rootfs":{{"type":"layers","diff_ids":[{ids}]}}}}"#);
    let error = shown(with_config(&text), &["more than 500 layers", "squash"]);
    assert!(matches!(
        error,
        Error::Oci(oci::Error::TooManyLayers { .. })
    ));
}

#[test]
fn containers_unknown_ambiguous_or_without_work() {
    let store = Fixture::new();
    let stores = store.stores().unwrap();
    for text in ["", "nobody", "../x"] {
        let error = shown(
            stores.container(text).map(|_| ()),
            &["no container", "full ID"],
        );
        assert!(matches!(error, Error::UnknownContainer { .. }), "{text:?}");
    }
    let id = &store.sample.container;
    let mounts = store.root.join("image/overlay2/layerdb/mounts");
    let twin = format!("{}x", &id[..20]);
    std::fs::create_dir(mounts.join(&twin)).unwrap();
    let error = shown(stores.container(&id[..9]).map(|_| ()), &[id, &twin]);
    assert!(matches!(error, Error::AmbiguousContainer { .. }));

    let work = stores.container(id).unwrap().upper.work;
    std::fs::remove_dir(work.path()).unwrap();
    let error = shown(
        stores.container(id).map(|_| ()),
        &[work.path().to_str().unwrap()],
    );
    assert!(matches!(error, Error::LayerDirMissing { .. }));
}

#[test]
fn roots_that_are_no_store() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().to_str().unwrap();
    let error = shown(
        discover(temp.path()).map(|_| ()),
        &[path, "not an image store"],
    );
    assert!(matches!(error, Error::NotAStore { .. }));
    let none = temp.path().join("none");
    let error = shown(discover(&none).map(|_| ()), &[none.to_str().unwrap()]);
    assert_eq!(error.errno(), Some(rustix::io::Errno::NOENT));
    std::fs::create_dir_all(temp.path().join("image/windowsfilter/imagedb")).unwrap();
    let error = shown(
        discover(temp.path()).map(|_| ()),
        &[path, "windowsfilter", "overlay2"],
    );
    assert!(matches!(error, Error::UnknownDriver { .. }));
}
