//! Stores of other storage drivers, mounted by name. A real dockerd writes `overlay` (first
//! generation) and `vfs`, which are compared with its own trees and exports. `aufs` needs a kernel
//! of its own, so that store is made from the overlay2 store and compared with it. Part of
//! `mounted`.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::need;
use testkit::store::listing;
use unionfs::store::discovery::Environment;
use unionfs::store::{Error, Stores};

use super::docker_store::{DockerStore, text};
use super::{Mounted, export, run, stores};

/// Mounts everything of a store whose driver keeps whole trees at `tree(cache id)`.
fn check_whole_trees(driver: &str, tree: fn(&str) -> String) {
    let store = need!(DockerStore::of(driver));
    let stores = stores(&store);
    for tag in [
        "app:1",
        "app:2",
        "base:1",
        "committed:1",
        "deep:1",
        "scratch:1",
    ] {
        let image = stores.find(tag).unwrap();
        assert_eq!(image.driver, driver);
        let stack = image.stack().unwrap();
        assert_eq!(stack.len(), 1, "{tag}");
        let top = image.layers.last().unwrap().cache_id.as_str();
        let truth = store.root().join(tree(top));
        let mount = Mounted::new(&store, &["--read-only", tag]);
        let found = listing::of_dir(&mount.path());
        assert!(found.len() > 3, "{tag}");
        // Hard links into the trees of other layers are in no layer above: the names are those of
        // the tree.
        listing::assert_same(tag, &found, &listing::of_dir(&truth));
        mount.unmount();
    }
    for fact in store.facts("containers.json") {
        let name = text(&fact, "/Name").trim_start_matches('/');
        let mount = Mounted::new(&store, &["--read-only", "--container", name]);
        let found = export::as_exported(listing::of_dir(&mount.path()));
        let expected = export::of_export(&store.file(&format!("truth/{name}.tar")));
        listing::assert_same(name, &found, &expected);
        mount.unmount();
    }
}

#[test]
fn vfs_store_of_dockerd() {
    check_whole_trees("vfs", |id| format!("vfs/dir/{id}"));
    let store = need!(DockerStore::of("vfs"));
    let container = stores(&store).container("changed").unwrap();
    let error = container.stack_in_place().unwrap_err();
    assert!(matches!(error, Error::NotAnUpper { .. }), "{error}");
}

#[test]
fn first_overlay_store_of_dockerd() {
    check_whole_trees("overlay", |id| format!("overlay/{id}/root"));
    let store = need!(DockerStore::of("overlay"));
    let container = stores(&store).container("changed").unwrap();
    let stack = container.stack_in_place().unwrap();
    let upper = stack.upper.unwrap();
    assert_eq!(upper.work.path(), upper.layer.path().with_file_name("work"));
    assert!(stack.lowers[0].path().ends_with("root") && stack.lowers.len() == 1);
}

/// Rewrites an overlay2 layer's markers in the form of AUFS.
fn to_aufs(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = path.symlink_metadata().unwrap();
        if meta.file_type().is_char_device() && meta.rdev() == 0 {
            let name = [b".wh.", path.file_name().unwrap().as_bytes()].concat();
            fs::remove_file(&path).unwrap();
            fs::write(dir.join(std::ffi::OsStr::from_bytes(&name)), "").unwrap();
        } else if meta.is_dir() {
            to_aufs(&path);
        }
    }
    let mut value = [0; 8];
    let opaque = "trusted.overlay.opaque";
    if rustix::fs::lgetxattr(dir, opaque, &mut value).is_ok() {
        rustix::fs::lremovexattr(dir, opaque).unwrap();
        fs::write(dir.join(".wh..wh..opq"), "").unwrap();
    }
}

/// Copies the modification times of `from`'s directories to those of `to`.
fn directory_times(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            directory_times(&entry.path(), &to.join(entry.file_name()));
        }
    }
    let modified = from.metadata().unwrap().modified().unwrap();
    fs::File::open(to).unwrap().set_modified(modified).unwrap();
}

/// Makes a copy of an overlay2 store in the layout of aufs.
fn aufs_store(overlay2: &Path, root: &Path) {
    for dir in ["image", "aufs/diff", "aufs/layers", "aufs/mnt"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    let copy = |from: PathBuf, to: PathBuf| run(Command::new("cp").arg("-a").arg(from).arg(to));
    copy(overlay2.join("image/overlay2"), root.join("image/aufs"));
    copy(overlay2.join("containers"), root.join("containers"));
    for entry in fs::read_dir(overlay2.join("overlay2")).unwrap() {
        let from = entry.unwrap().path();
        if !from.join("diff").is_dir() {
            continue;
        }
        let id = from.file_name().unwrap();
        let diff = root.join("aufs/diff").join(id);
        copy(from.join("diff"), diff.clone());
        to_aufs(&diff);
        for metadata in [".wh..wh.plnk", ".wh..wh.orph"] {
            fs::create_dir(diff.join(metadata)).unwrap();
        }
        fs::write(diff.join(".wh..wh.aufs"), "").unwrap();
        fs::write(diff.join(".wh..wh.plnk/1234.5678"), "pseudo-link").unwrap();
        directory_times(&from.join("diff"), &diff);
        let mut below = String::new();
        let lower = fs::read_to_string(from.join("lower")).unwrap_or_default();
        for link in lower.split(':').filter(|link| !link.is_empty()) {
            let target = fs::read_link(overlay2.join("overlay2").join(link)).unwrap();
            let id = target.parent().unwrap().file_name().unwrap();
            below.push_str(id.to_str().unwrap());
            below.push('\n');
        }
        fs::write(root.join("aufs/layers").join(id), below).unwrap();
    }
}

#[test]
fn aufs_store_shows_what_the_overlay2_store_shows() {
    let store = need!(DockerStore::get());
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("docker");
    aufs_store(&store.root(), &root);
    let same = |label: &str, what: &[&str]| {
        let mount = Mounted::of_root(&root, what);
        let found = listing::of_dir(&mount.path());
        mount.unmount();
        let mount = Mounted::new(&store, what);
        listing::assert_same(label, &found, &listing::of_dir(&mount.path()));
        mount.unmount();
    };
    for tag in ["app:1", "app:2", "committed:1", "deep:1", "scratch:1"] {
        same(tag, &["--read-only", tag]);
    }
    for name in ["changed", "deepest", "stopped"] {
        same(name, &["--read-only", "--container", name]);
    }
    damaged_aufs(&root);
}

/// Asserts that `layers/` must agree with the chain.
fn damaged_aufs(root: &Path) {
    let find = || {
        let stores = Stores::discover(Some(root), &Environment::default()).unwrap();
        stores.find("app:1")
    };
    let image = find().unwrap();
    let file = root
        .join("aufs/layers")
        .join(image.layers[2].cache_id.as_str());
    let good = fs::read_to_string(&file).unwrap();
    for bad in [
        "",
        "../../etc\n",
        &good.replacen(['0', '1', '2', '3'], "f", 1),
    ] {
        fs::write(&file, bad).unwrap();
        let error = find().unwrap_err();
        assert!(matches!(error, Error::ChainMismatch { .. }), "{error}");
    }
    fs::remove_file(&file).unwrap();
    assert!(find().is_err());
    fs::write(&file, good).unwrap();
    let diff = root
        .join("aufs/diff")
        .join(image.layers[2].cache_id.as_str());
    fs::remove_dir_all(diff).unwrap();
    let error = find().unwrap_err();
    assert!(matches!(error, Error::LayerDirMissing { .. }), "{error}");
}
