//! Bad input, continued from `bad_input`: layers, their records and directories.

use std::os::unix::fs::symlink;
use std::path::Path;

use unionfs::oci::Digest;
use unionfs::store::Error;

use super::Fixture;
use super::bad_input::{fails, replace, shown};

#[test]
fn small_files_too_large() {
    let store = Fixture::new();
    replace(&store.layer(1).join("cache-id"), [b'a'; 5000]);
    let error = fails(&store, "sample:1", &["cache-id", "larger than 4096"]);
    assert!(matches!(error, Error::TooLarge { .. }));
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
    // A parent that is not a layer of the store, one that is the wrong one, one of a base.
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
    // An image's chain ID is computed, so the parent is just wrong there.
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
        // Even if the target is correct: the moved original.
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
fn special_files_neither_hang_nor_are_opened() {
    use rustix::fs::inotify;
    let store = Fixture::new();
    let path = store.layer(1).join("cache-id");
    std::fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    // Opening a device can have any effect, even without reading it.
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&watch, &path, inotify::WatchFlags::OPEN).unwrap();
    let error = fails(&store, "sample:1", &["cache-id", "not a regular file"]);
    assert!(matches!(error, Error::NotAFile { .. }));
    let events = rustix::io::read(&watch, &mut [0u8; 256]);
    assert_eq!(events, Err(rustix::io::Errno::AGAIN), "it was opened");
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
    // A base layer has no lower file.
    std::fs::write(&base, "l/x").unwrap();
    let error = fails(&store, "sample:1", &["/lower", "nothing"]);
    assert!(matches!(error, Error::ChainMismatch { .. }));
}
