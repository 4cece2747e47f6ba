//! `unionfs mount` on a real dockerd's store: every image and container, mounted by name, equals
//! the tree that the kernel's overlayfs shows of the same layers, entry for entry.

// Tests may fail by panicking, also in their helpers.
#![allow(clippy::unwrap_used, clippy::panic)]

mod changed_container;
mod docker_store;
mod drivers;
mod export;
mod podman;
mod podman_image;
mod podman_rootless;

use std::path::{Path, PathBuf};
use std::process::Command;

use docker_store::{DockerStore, KernelOverlay, text};
use rustix::mount::UnmountFlags;
use testkit::need;
use testkit::store::listing;
use unionfs::store::Stores;
use unionfs::store::discovery::Environment;

/// A unionfs mount, unmounted when dropped; uppers go to a directory of its own.
struct Mounted {
    temp: tempfile::TempDir,
}

impl Mounted {
    fn new(store: &DockerStore, what: &[&str]) -> Self {
        Self::of_root(&store.root(), what)
    }

    fn of_root(root: &Path, what: &[&str]) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let mounted = Self { temp };
        std::fs::create_dir(mounted.path()).unwrap();
        let mut command = mounted.unionfs();
        command.arg("--root").arg(root).arg("mount").args(what);
        run(command.arg(mounted.path()));
        // The command returns when the mount is live.
        assert!(is_mount(&mounted.path()), "{what:?}");
        mounted
    }

    fn unionfs(&self) -> Command {
        let mut command = Command::new(testkit::program());
        command.env("UNIONFS_ROOT", self.temp.path().join("own"));
        command
    }

    fn path(&self) -> PathBuf {
        self.temp.path().join("mnt")
    }

    fn unmount(self) {
        run(self.unionfs().arg("umount").arg(self.path()));
        assert!(!is_mount(&self.path()));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Needed after a failed test; otherwise it fails because nothing is mounted.
        let _ = rustix::mount::unmount(self.path(), UnmountFlags::DETACH);
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{error}",
        output.status
    );
}

fn is_mount(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let device = |path: &Path| path.metadata().unwrap().dev();
    device(path) != device(path.parent().unwrap())
}

fn stores(store: &DockerStore) -> Stores {
    Stores::discover(Some(&store.root()), &Environment::default()).unwrap()
}

#[test]
fn every_image_is_what_the_kernel_shows() {
    let store = need!(DockerStore::get());
    let stores = stores(&store);
    let mut count = 0;
    for fact in store.facts("images.json") {
        for tag in fact["RepoTags"].as_array().into_iter().flatten() {
            let tag = tag.as_str().unwrap();
            let truth = KernelOverlay::new(&stores.find(tag).unwrap().stack().unwrap());
            let mount = Mounted::new(&store, &["--read-only", tag]);
            let found = listing::of_dir(&mount.path());
            listing::assert_same(tag, &found, &listing::of_dir(truth.path()));
            mount.unmount();
            count += 1;
        }
    }
    assert_eq!(count, 8);
}

#[test]
fn every_container_is_what_the_kernel_shows() {
    let store = need!(DockerStore::get());
    let stores = stores(&store);
    for fact in store.facts("containers.json") {
        let name = text(&fact, "/Name").trim_start_matches('/');
        let stack = stores.container(name).unwrap().stack();
        let truth = KernelOverlay::new(&stack.lowers);
        let mount = Mounted::new(&store, &["--read-only", "--container", name]);
        let found = listing::of_dir(&mount.path());
        listing::assert_same(name, &found, &listing::of_dir(truth.path()));
        mount.unmount();
    }
}

#[test]
fn a_writable_mount_shows_the_image_and_leaves_the_store_alone() {
    let store = need!(DockerStore::get());
    let layers = stores(&store).find("app:2").unwrap().stack().unwrap();
    let before: Vec<_> = layers.iter().map(|l| listing::of_dir(l.path())).collect();
    let truth = listing::of_dir(KernelOverlay::new(&layers).path());
    let mount = Mounted::new(&store, &["--ephemeral", "app:2"]);
    listing::assert_same("app:2", &listing::of_dir(&mount.path()), &truth);
    let data = mount.path().join("data");
    std::fs::write(data.join("keep"), "changed\n").unwrap();
    std::fs::remove_dir_all(data.join("names")).unwrap();
    std::fs::rename(data.join("append"), data.join("appended")).unwrap();
    assert_eq!(std::fs::read(data.join("keep")).unwrap(), b"changed\n");
    assert!(!data.join("names").exists() && !data.join("append").exists());
    mount.unmount();
    let after: Vec<_> = layers.iter().map(|l| listing::of_dir(l.path())).collect();
    assert!(before == after, "a layer of the image has changed");
}
