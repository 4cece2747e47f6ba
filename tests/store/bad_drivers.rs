//! Bad input, continued from `bad_layers`: Docker's stores of the drivers overlay (first
//! generation) and vfs, damaged in one place at a time.

use std::fs;
use std::os::unix::fs::symlink;

use testkit::store::layouts::Layout;
use unionfs::store::{Container, Error, Result};

use super::bad_input::{fails, shown};

/// Returns the path of the tree of a layer of `sample:1`, base first.
fn tree(driver: &str, layout: &Layout, number: usize) -> std::path::PathBuf {
    let id = &layout.ids[number];
    layout.at(match driver {
        "vfs" => format!("vfs/dir/{id}"),
        _ => format!("overlay/{id}/root"),
    })
}

fn container(layout: &Layout) -> Result<Container> {
    layout.store.stores()?.container("sample")
}

#[test]
fn whole_stores_of_whole_trees() {
    for driver in ["overlay", "vfs"] {
        let layout = Layout::docker(driver);
        let stores = layout.store.stores().unwrap();
        let image = stores.find("sample:1").unwrap();
        assert_eq!(image.driver, driver);
        let stack = image.stack().unwrap();
        assert_eq!(stack.len(), 1);
        assert_eq!(stack[0].path(), tree(driver, &layout, 2));
        let found = container(&layout).unwrap();
        let lowers = found.observed_stack().lowers;
        // With vfs the container's own tree hides the image's.
        assert_eq!(lowers.len(), usize::from(driver == "overlay"));
        assert_eq!(stores.images().problems.len(), 0);
    }
}

#[test]
fn what_vfs_does_not_record_is_refused() {
    let layout = Layout::docker("vfs");
    let found = container(&layout).unwrap();
    let path = found.upper.layer.path().to_str().unwrap();
    assert_eq!(found.stack().lowers[0].path().to_str(), Some(path));
    let error = shown(found.changed_stack().map(drop), &[path, "use export"]);
    assert!(matches!(error, Error::WholeTree { .. }));
    let error = shown(found.stack_in_place().map(drop), &[path, "--in-place"]);
    assert!(matches!(error, Error::NotAnUpper { .. }));
    // The first overlay driver does record the changes.
    let layout = Layout::docker("overlay");
    let found = container(&layout).unwrap();
    assert_eq!(found.changed_stack().unwrap(), found.observed_stack());
    assert!(found.stack_in_place().unwrap().upper.is_some());
}

#[test]
fn trees_missing_or_no_directories() {
    for driver in ["overlay", "vfs"] {
        let layout = Layout::docker(driver);
        let dir = tree(driver, &layout, 1);
        let path = dir.to_str().unwrap();
        fs::remove_dir_all(&dir).unwrap();
        let error = fails(
            &layout.store,
            "sample:1",
            &[path, "is missing", "load or pull"],
        );
        assert!(matches!(error, Error::LayerDirMissing { .. }));
        fs::write(&dir, "").unwrap();
        let error = fails(&layout.store, "sample:1", &[path, "not a directory"]);
        assert!(matches!(error, Error::LayerNotDirectory { .. }));
        fs::remove_file(&dir).unwrap();
        symlink("/etc", &dir).unwrap();
        let error = fails(&layout.store, "sample:1", &[path]);
        let refused = matches!(
            error,
            Error::LayerNotDirectory { .. } | Error::Symlink { .. }
        );
        assert!(refused, "{error:?}");
    }
}

#[test]
fn no_symlink_is_followed() {
    for (driver, name) in [
        ("vfs", "vfs"),
        ("vfs", "vfs/dir"),
        ("vfs", "image/vfs"),
        ("overlay", "overlay"),
        ("overlay", "image/overlay"),
    ] {
        let layout = Layout::docker(driver);
        let (path, moved) = (layout.at(name), layout.at("moved"));
        fs::rename(&path, &moved).unwrap();
        symlink(&moved, &path).unwrap();
        let error = fails(&layout.store, "sample:1", &["symlink"]);
        assert!(matches!(error, Error::Symlink { .. }), "{name}: {error:?}");
    }
}

#[test]
fn the_tree_a_container_lies_on() {
    let broken = |edit: &dyn Fn(&Layout, &std::path::Path), words: &[&str]| {
        let layout = Layout::docker("overlay");
        let file = layout.at(format!("overlay/{}/lower-id", layout.mount_id));
        edit(&layout, &file);
        shown(container(&layout).map(drop), words)
    };
    let other = |layout: &Layout, file: &std::path::Path| {
        fs::write(file, &layout.ids[0]).unwrap();
    };
    let error = broken(&other, &["lower-id", "load or pull"]);
    assert!(matches!(error, Error::ChainMismatch { .. }));
    for bad in ["", "../../../etc", "\u{1b}[2J", "a\nb"] {
        let error = broken(&|_, file| fs::write(file, bad).unwrap(), &["lower-id"]);
        assert!(matches!(error, Error::ChainMismatch { .. }), "{bad:?}");
    }
    let long = |_: &Layout, file: &std::path::Path| fs::write(file, [b'a'; 5000]).unwrap();
    let error = broken(&long, &["lower-id", "larger than 4096"]);
    assert!(matches!(error, Error::TooLarge { .. }));
    // Without the file the layer should be a whole tree, and it is not.
    let error = broken(
        &|_, file| fs::remove_file(file).unwrap(),
        &["root", "is missing"],
    );
    assert!(matches!(error, Error::LayerDirMissing { .. }));
    for dir in ["upper", "work"] {
        let gone = |_: &Layout, file: &std::path::Path| {
            fs::remove_dir_all(file.with_file_name(dir)).unwrap();
        };
        let error = broken(&gone, &[dir, "is missing"]);
        assert!(matches!(error, Error::LayerDirMissing { .. }), "{dir}");
    }
}

#[test]
fn records_of_layers_and_containers() {
    for driver in ["overlay", "vfs"] {
        for file in ["diff", "cache-id", "size"] {
            let layout = Layout::docker(driver);
            let layer = layout
                .store
                .path(&format!("image/{driver}/layerdb/sha256/*"));
            let chain = layer.file_name().unwrap().to_str().unwrap().to_owned();
            fs::remove_file(layer.join(file)).unwrap();
            // Whichever layer it is, the container or an image has it.
            let listing = layout.store.stores().unwrap().images();
            assert!(!listing.problems.is_empty());
            let text = listing.problems[0].to_string();
            assert!(text.contains(file) && text.contains(&chain), "{text}");
        }
        let layout = Layout::docker(driver);
        let file = layout
            .store
            .path(&format!("image/{driver}/layerdb/mounts/*/mount-id"));
        fs::write(&file, "../../x").unwrap();
        let error = shown(
            container(&layout).map(drop),
            &["mount-id", "plain path component"],
        );
        assert!(matches!(error, Error::BadCacheId { .. }));
    }
}
