//! Bad input: each kind gets its own one-line error that names the file or digest and
//! the remedy, and nothing is written. Every test breaks a valid store in one place.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use unionfs::store::{Digest, Error, Result};

use super::{Fixture, builder, discover};

/// The error of looking up `text`, after checking that its message is one line that
/// holds all of `parts`.
fn fails(store: &Fixture, text: &str, parts: &[&str]) -> Error {
    shown(store.stores().and_then(|s| s.find(text)).map(|_| ()), parts)
}

fn shown(result: Result<()>, parts: &[&str]) -> Error {
    let error = result.unwrap_err();
    let message = error.to_string();
    assert!(!message.contains(['\n', '\x1b']), "{message:?}");
    for part in parts {
        assert!(message.contains(part), "{part:?} not in {message:?}");
    }
    error
}

fn replace(path: &Path, content: impl AsRef<[u8]>) {
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
        assert!(matches!(error, Error::BadReference { .. }), "{text:?}");
    }
}

#[test]
fn ambiguous_prefixes_list_the_candidates() {
    let temp = tempfile::tempdir().unwrap();
    let mut made = builder::StoreBuilder::new(temp.path()).unwrap();
    // Of 17 IDs two begin with the same digit.
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
        assert!(matches!(error, Error::Json { .. }), "{text:?}");
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

#[test]
fn small_files_too_large() {
    let store = Fixture::new();
    replace(&store.layer(1).join("cache-id"), [b'a'; 5000]);
    let error = fails(&store, "sample:1", &["cache-id", "larger than 4096"]);
    assert!(matches!(error, Error::TooLarge { .. }));
}

/// A store whose image `bad` has the given configuration.
fn with_config(text: &str) -> Result<()> {
    let temp = tempfile::tempdir().unwrap();
    let mut made = builder::StoreBuilder::new(temp.path()).unwrap();
    made.image_from(&["bad:latest"], text.as_bytes()).unwrap();
    made.finish().unwrap();
    let image = discover(temp.path())?.find("bad")?;
    image.stack().map(|_| ())
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
        assert!(matches!(error, Error::Json { .. }), "{text}");
    }
    let error = shown(
        with_config(r#"{"rootfs":{"type":"\u001b[2J"}}"#),
        &["not \"layers\""],
    );
    assert!(matches!(error, Error::ConfigRootfs { .. }));
    let error = shown(
        with_config(r#"{"rootfs":{"type":"layers"}}"#),
        &["has no layers"],
    );
    assert!(matches!(error, Error::NoLayers { .. }));
}

#[test]
fn too_many_layers() {
    let ids = vec![format!("\"{}\"", Digest::of(b"x")); 501].join(",");
    let text = format!(r#"{{"rootfs":{{"type":"layers","diff_ids":[{ids}]}}}}"#);
    let error = shown(with_config(&text), &["more than 500 layers", "squash"]);
    assert!(matches!(error, Error::TooManyLayers { .. }));
}

#[test]
fn layer_missing() {
    let store = Fixture::new();
    let layer = store.layer(0);
    let chain = layer.file_name().unwrap().to_str().unwrap().to_owned();
    std::fs::remove_dir_all(&layer).unwrap();
    let error = fails(&store, "sample:1", &[&chain, "is missing", "load or pull"]);
    assert!(matches!(error, Error::LayerMissing { .. }));
    for file in ["diff", "cache-id", "size"] {
        let store = Fixture::new();
        std::fs::remove_file(store.layer(1).join(file)).unwrap();
        let error = fails(&store, "sample:1", &[file, "is missing"]);
        assert!(matches!(error, Error::LayerMissing { .. }), "{file}");
    }
}

#[test]
fn parent_absent_or_wrong() {
    let store = Fixture::new();
    std::fs::remove_file(store.layer(1).join("parent")).unwrap();
    let error = fails(&store, "sample:1", &["/parent", "no parent"]);
    assert!(matches!(error, Error::ChainMismatch { .. }));
    // A parent that is no layer of the store, one that is the wrong one, one of a base.
    for (layer, parent) in [
        (1, Digest::of(b"nobody").to_string()),
        (2, format!("sha256:{}", name_of(&Fixture::new().layer(0)))),
        (0, Digest::of(b"nobody").to_string()),
    ] {
        let store = Fixture::new();
        std::fs::write(store.layer(layer).join("parent"), &parent).unwrap();
        let error = fails(&store, "sample:1", &["/parent", &parent]);
        assert!(matches!(error, Error::ChainMismatch { .. }));
    }
    let store = Fixture::new();
    replace(&store.layer(1).join("parent"), "../../etc");
    let error = fails(&store, "sample:1", &["/parent", "../../etc", "a digest"]);
    assert!(matches!(error, Error::Malformed { .. }));
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn diff_id_is_not_the_configurations() {
    let store = Fixture::new();
    let other = Digest::of(b"other").to_string();
    replace(&store.layer(1).join("diff"), &other);
    let error = fails(&store, "sample:1", &["/diff", &other]);
    assert!(matches!(error, Error::ChainMismatch { .. }));
}

#[test]
fn a_cycle_of_parents_ends() {
    let store = Fixture::new();
    let top = name_of(&store.layer(2));
    std::fs::write(store.layer(0).join("parent"), format!("sha256:{top}")).unwrap();
    let result = store.stores().and_then(|s| s.container("sample"));
    let error = shown(result.map(|_| ()), &["parent", &top, "its own ancestor"]);
    assert!(matches!(error, Error::Cycle { .. }));
    // An image's chain is computed, so there the parent is just wrong.
    let error = fails(&store, "sample:1", &["/parent", &top]);
    assert!(matches!(error, Error::ChainMismatch { .. }));
}

#[test]
fn a_containers_parents_must_add_up_to_its_chain() {
    let store = Fixture::new();
    // Two layers below the container's instead of three.
    std::fs::remove_file(store.layer(1).join("parent")).unwrap();
    let result = store.stores().and_then(|s| s.container("sample"));
    let error = shown(result.map(|_| ()), &["load or pull"]);
    let mismatch = matches!(
        error,
        Error::ChainMismatch { .. } | Error::LayerMissing { .. }
    );
    assert!(mismatch, "{error:?}");
}

#[test]
fn cache_ids_that_are_no_plain_component() {
    for bad in [
        "../x",
        "",
        "/etc",
        "..",
        ".",
        "a/b",
        "a\0b",
        "a\nb",
        "\u{1b}[2J",
    ] {
        let store = Fixture::new();
        replace(&store.layer(1).join("cache-id"), bad);
        let error = fails(&store, "sample:1", &["cache-id", "plain path component"]);
        assert!(matches!(error, Error::BadCacheId { .. }), "{bad:?}");
    }
    for (file, bad) in [("mount-id", "../../x"), ("init-id", "/")] {
        let store = Fixture::new();
        let path = store.path(&format!("image/overlay2/layerdb/mounts/*/{file}"));
        replace(&path, bad);
        let result = store.stores().and_then(|s| s.container("sample"));
        let error = shown(result.map(|_| ()), &[file, "plain path component"]);
        assert!(matches!(error, Error::BadCacheId { .. }), "{bad:?}");
    }
}

#[test]
fn layer_directory_missing_or_not_a_directory() {
    let store = Fixture::new();
    let diff = store.layer_dir(1).join("diff");
    std::fs::remove_dir_all(&diff).unwrap();
    let path = diff.to_str().unwrap();
    let error = fails(&store, "sample:1", &[path, "is missing", "load or pull"]);
    assert!(matches!(error, Error::LayerDirMissing { .. }));

    std::fs::write(&diff, "").unwrap();
    let error = fails(&store, "sample:1", &[path, "not a directory"]);
    assert!(matches!(error, Error::LayerNotDirectory { .. }));

    std::fs::remove_file(&diff).unwrap();
    symlink("/etc", &diff).unwrap();
    let error = fails(&store, "sample:1", &[path]);
    let refused = matches!(
        error,
        Error::LayerNotDirectory { .. } | Error::Symlink { .. }
    );
    assert!(refused, "{error:?}");
}

#[test]
fn no_symlink_is_followed() {
    for target in [
        "overlay2",
        "image",
        "image/overlay2/layerdb",
        "image/overlay2/repositories.json",
    ] {
        let store = Fixture::new();
        let path = store.root.join(target);
        // Even to what would be right: a moved original.
        let moved = store.root.join("moved");
        std::fs::rename(&path, &moved).unwrap();
        symlink(&moved, &path).unwrap();
        let error = fails(&store, "sample:1", &["symlink"]);
        assert!(
            matches!(error, Error::Symlink { .. }),
            "{target}: {error:?}"
        );
    }
    let store = Fixture::new();
    let outside = tempfile::tempdir().unwrap();
    std::fs::create_dir(outside.path().join("diff")).unwrap();
    let dir = store.layer_dir(0);
    std::fs::rename(&dir, outside.path().join("layer")).unwrap();
    symlink(outside.path().join("layer"), &dir).unwrap();
    let error = fails(&store, "sample:1", &["symlink"]);
    assert!(matches!(error, Error::Symlink { .. }), "{error:?}");
}

#[test]
fn special_files_neither_hang_nor_are_read() {
    let store = Fixture::new();
    let path = store.layer(1).join("cache-id");
    std::fs::remove_file(&path).unwrap();
    let name = CString::new(path.as_os_str().as_bytes()).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        name.as_c_str(),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let error = fails(&store, "sample:1", &["cache-id", "not a regular file"]);
    assert!(matches!(error, Error::NotAFile { .. }));
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let error = fails(&store, "sample:1", &["cache-id", "not a regular file"]);
    assert!(matches!(error, Error::NotAFile { .. }));
}

#[test]
fn size_is_no_number() {
    for bad in ["", "-1", "1e9", "99999999999999999999999"] {
        let store = Fixture::new();
        replace(&store.layer(1).join("size"), bad);
        let error = fails(&store, "sample:1", &["/size", "a size in bytes"]);
        assert!(matches!(error, Error::Malformed { .. }), "{bad:?}");
    }
}

#[test]
fn link_and_l_must_lead_back_to_the_layer() {
    let store = Fixture::new();
    let link = store.layer_dir(1).join("link");
    for bad in [
        "",
        "../../../../../../../../etc",
        "abcdefghijklmnopqrstuvwxyz",
        "A",
        &"A".repeat(27),
    ] {
        replace(&link, bad);
        let error = fails(&store, "sample:1", &["/link", "26"]);
        assert!(matches!(error, Error::Malformed { .. }), "{bad:?}");
    }
    std::fs::remove_file(&link).unwrap();
    let error = fails(&store, "sample:1", &["/link", "is missing"]);
    assert!(matches!(error, Error::LayerDirMissing { .. }));
    for target in [None, Some("/etc"), Some("../../x/diff"), Some("../x/diff")] {
        let store = Fixture::new();
        let short = std::fs::read_to_string(store.layer_dir(1).join("link")).unwrap();
        let entry = store.root.join("overlay2/l").join(short);
        std::fs::remove_file(&entry).unwrap();
        if let Some(target) = target {
            symlink(target, &entry).unwrap();
        }
        let parts = [
            "overlay2/l/",
            target.unwrap_or("nothing"),
            "restore the link",
        ];
        let error = fails(&store, "sample:1", &parts);
        assert!(matches!(error, Error::BadLink { .. }), "{target:?}");
    }
}

#[test]
fn lower_must_be_the_chain() {
    let store = Fixture::new();
    let [base, top] = [0, 2].map(|n| store.layer_dir(n).join("lower"));
    let right = std::fs::read_to_string(&top).unwrap();
    for bad in [
        "",
        "l/x",
        &right[..28],
        &format!("{right}:{right}"),
        &right.replace("l/", "../"),
    ] {
        replace(&top, bad);
        let error = fails(&store, "sample:1", &["/lower", "the chain of layers"]);
        assert!(matches!(error, Error::ChainMismatch { .. }), "{bad:?}");
    }
    std::fs::remove_file(&top).unwrap();
    let error = fails(&store, "sample:1", &["/lower", "nothing"]);
    assert!(matches!(error, Error::ChainMismatch { .. }));
    std::fs::write(&top, right).unwrap();
    store.stores().unwrap().find("sample:1").unwrap();
    // A base layer has none.
    std::fs::write(&base, "l/x").unwrap();
    let error = fails(&store, "sample:1", &["/lower", "nothing"]);
    assert!(matches!(error, Error::ChainMismatch { .. }));
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
    std::fs::remove_dir(&work).unwrap();
    let error = shown(stores.container(id).map(|_| ()), &[work.to_str().unwrap()]);
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
    std::fs::create_dir_all(temp.path().join("image/zfs/imagedb")).unwrap();
    let error = shown(
        discover(temp.path()).map(|_| ()),
        &[path, "zfs", "overlay2"],
    );
    assert!(matches!(error, Error::UnknownDriver { .. }));
}
