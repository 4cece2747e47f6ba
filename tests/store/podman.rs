//! podman's store (containers/storage), written by skopeo with the drivers overlay and vfs. Mounted
//! by name it equals the tree that umoci unpacks; its layers are verified, saved and committed
//! upon; damage in one place at a time gives an error that names the place. Part of `mounted`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::UnmountFlags;
use testkit::need;
use testkit::need::Needed;
use testkit::store::listing;
use unionfs::oci;
use unionfs::store::discovery::Environment;
use unionfs::store::{Error, Image, Result, Stores};

use super::podman_image::{Demo, NAME, as_compared};
use super::{Mounted, is_mount};

/// A store with the image, below `data` as in a user's home.
struct Podman {
    demo: Demo,
    driver: &'static str,
}

impl Podman {
    fn make(driver: &'static str) -> Needed<Self> {
        let demo = Demo::make()?;
        let root = "data/containers/storage";
        demo.sh(&format!(
            "skopeo copy -q oci:oci:demo \"containers-storage:[{driver}@$PWD/{root}+$PWD/run]{NAME}\""
        ));
        Ok(Self { demo, driver })
    }

    fn root(&self) -> PathBuf {
        self.demo.at("data/containers/storage")
    }

    fn stores(&self) -> Result<Stores> {
        Stores::discover(Some(&self.root()), &Environment::default())
    }

    fn find(&self, name: &str) -> Result<Image> {
        self.stores()?.find(name)
    }

    /// Runs unionfs with a store of its own and podman's at the default place; returns its output.
    fn unionfs(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(testkit::program());
        let command = command
            .args(arguments)
            .env("UNIONFS_ROOT", self.demo.at("own"))
            .env("XDG_DATA_HOME", self.demo.at("data"))
            .current_dir(self.demo.at(""));
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Damages a file, expects an error with these words, restores the file.
    fn broken(&self, file: &Path, edit: impl FnOnce(String) -> String, words: &[&str]) -> Error {
        let good = fs::read_to_string(file).unwrap();
        let bad = edit(good.clone());
        assert_ne!(good, bad, "{words:?}");
        fs::write(file, bad).unwrap();
        let error = self.find(NAME).unwrap_err();
        fs::write(file, good).unwrap();
        for word in words {
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
        error
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // Needed after a failed test. containers/storage also bind-mounts its directory on itself.
        for path in [self.demo.at("mnt"), self.root().join(self.driver)] {
            let _ = rustix::mount::unmount(path, UnmountFlags::DETACH);
        }
    }
}

#[test]
fn podmans_image_is_what_umoci_unpacks() {
    for driver in ["overlay", "vfs"] {
        let podman = need!(Podman::make(driver));
        let image = podman.find(NAME).unwrap();
        assert_eq!((image.driver, image.layers.len()), (driver, 4));
        assert_eq!(podman.find(&image.id.hex()[..12]).unwrap().id, image.id);
        assert_eq!(podman.find("demo:1").unwrap().id, image.id);
        assert!(podman.find("localhost/demo:2").is_err());
        let truth = podman.demo.truth();
        for how in ["--read-only", "--ephemeral"] {
            let mount = Mounted::of_root(&podman.root(), &[how, NAME]);
            let what = format!("{driver} {how}");
            listing::assert_same(&what, &as_compared(&mount.path()), &truth);
            mount.unmount();
        }
        damage(&podman, &image);
        podman.find(NAME).unwrap();
    }
}

/// Damages the records; `bad_drivers` damages the drivers' own files.
fn damage(podman: &Podman, image: &Image) {
    let below = |dir: &str| podman.root().join(format!("{}-{dir}", podman.driver));
    let layers = below("layers/layers.json");
    let ids: Vec<&str> = image.layers.iter().map(|l| l.cache_id.as_str()).collect();
    let parent = |id: &str| format!("\"parent\":\"{id}\"");
    let cut = |text: String| text[..text.len() / 2].to_owned();
    let error = podman.broken(&layers, cut, &["layers.json", "line 1"]);
    assert!(matches!(error, Error::Oci(oci::Error::Json { .. })));
    // A cycle, a missing parent, a chain that is too short.
    for to in [ids[2], "../../etc", ""] {
        let edit = |text: String| text.replace(&parent(ids[0]), &parent(to));
        let error = podman.broken(&layers, edit, &["layers.json"]);
        assert!(matches!(error, Error::ChainMismatch { .. }), "{error}");
    }
    let diff = image.layers[1].diff_id.to_string();
    let other = image.layers[0].diff_id.to_string();
    let edit = |text: String| {
        text.replace(
            &format!("\"{diff}\",\"diff-size"),
            &format!("\"{other}\",\"diff-size"),
        )
    };
    podman.broken(&layers, edit, &["layers.json", &diff]);
    let images = below("images/images.json");
    let edit = |text: String| text.replace(ids[3], "../../../etc");
    podman.broken(&images, edit, &["layers.json", "../../../etc"]);
    let config = fs::read_dir(below("images").join(image.id.hex())).unwrap();
    let mut config = config.map(|entry| entry.unwrap().path());
    let config = config.find(|path| fs::read_to_string(path).is_ok_and(|t| t.contains("rootfs")));
    let edit = |text: String| text.replace("rootfs", "rootfz");
    let error = podman.broken(&config.unwrap(), edit, &["is damaged"]);
    assert!(matches!(error, Error::ConfigHash { .. }));
}

#[test]
fn podmans_layers_are_verified_and_saved() {
    for driver in ["overlay", "vfs"] {
        let podman = need!(Podman::make(driver));
        let image = podman.find(NAME).unwrap();
        let verify = || podman.stores().unwrap().verify(None, &mut |_| {}).unwrap();
        let report = verify();
        assert_eq!(report.problems, []);
        assert_eq!((report.images, report.layers), (1, 4));
        // The archive gives the same image, so every layer has its digest.
        podman.unionfs(&["save", NAME, "-o", "saved.tar"]);
        podman.unionfs(&["load", "-i", "saved.tar"]);
        let own = Stores::discover(Some(&podman.demo.at("own")), &Environment::default());
        assert_eq!(own.unwrap().find(NAME).unwrap().id, image.id);
        let file = image.layers[2].place.path().join("gone");
        fs::write(&file, "bacK\n").unwrap();
        let report = verify();
        assert_eq!(report.problems.len(), 1, "{report:?}");
        let problem = &report.problems[0];
        assert!(problem.what.contains("gone"), "{problem:?}");
        fs::write(&file, "back\n").unwrap();
        let name = format!("{driver}-layers/{}.tar-split.gz", image.layers[2].cache_id);
        fs::remove_file(podman.root().join(&name)).unwrap();
        let report = verify();
        assert_eq!(report.problems.len(), 1, "{report:?}");
        assert!(report.problems[0].what.contains(&name), "{report:?}");
    }
}

#[test]
fn a_named_layer_on_podmans_image_is_kept_and_committed() {
    for driver in ["overlay", "vfs"] {
        let podman = need!(Podman::make(driver));
        let before = listing::of_dir(&podman.root());
        let mnt = podman.demo.at("mnt");
        fs::create_dir(&mnt).unwrap();
        podman.unionfs(&["mount", "--name", "work", "demo:1", "mnt"]);
        assert_eq!(as_compared(&mnt), podman.demo.truth());
        fs::write(mnt.join("a/keep"), "changed\n").unwrap();
        fs::remove_file(mnt.join("gone")).unwrap();
        fs::write(mnt.join("hidden/mine"), "mine\n").unwrap();
        let changed = as_compared(&mnt);
        podman.unionfs(&["umount", "mnt"]);
        assert!(!is_mount(&mnt));
        // Again without naming the image.
        podman.unionfs(&["mount", "--name", "work", "mnt"]);
        listing::assert_same(driver, &as_compared(&mnt), &changed);
        podman.unionfs(&["umount", "mnt"]);
        let diff = podman.unionfs(&["diff", "work"]);
        let diff: Vec<&str> = diff.lines().collect();
        let expected = [
            "C /a",
            "C /a/keep",
            "D /gone",
            "C /hidden",
            "A /hidden/mine",
        ];
        for line in expected {
            assert!(diff.contains(&line), "{line}: {diff:?}");
        }
        // Also the other name of the changed file.
        assert_eq!(diff.len(), 6, "{diff:?}");
        podman.unionfs(&["commit", "work", "derived:1"]);
        podman.unionfs(&["verify", "derived:1"]);
        podman.unionfs(&["mount", "--read-only", "derived:1", "mnt"]);
        listing::assert_same(driver, &as_compared(&mnt), &changed);
        podman.unionfs(&["umount", "mnt"]);
        podman.unionfs(&["rm", "work"]);
        assert!(before == listing::of_dir(&podman.root()), "podman's store");
    }
}
