//! podman's store (containers/storage), written by skopeo from layers that umoci packed:
//! mounted by name it equals what umoci unpacks; broken in one place at a time it gives
//! an error that names the place. Part of `mounted`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::UnmountFlags;
use unionfs::store::roots::Environment;
use unionfs::store::{Error, Image, Result, Stores};

use super::{Mounted, export, listing, run};

/// A store with the image localhost/demo:1, and the tree that it is.
struct Podman {
    temp: tempfile::TempDir,
}

impl Podman {
    /// Without root or the tools there is none: on CI that is a failure.
    fn make() -> Option<Self> {
        let has = |tool| Command::new(tool).arg("--version").output().is_ok();
        if !rustix::process::geteuid().is_root() || !has("skopeo") || !has("umoci") {
            assert!(
                std::env::var_os("CI").is_none(),
                "CI must run as root, with skopeo and umoci"
            );
            eprintln!("SKIPPED: needs root, skopeo and umoci");
            return None;
        }
        let temp = tempfile::tempdir().unwrap();
        let made = Self { temp };
        let image = format!("{}:demo", made.at("oci").display());
        let sh = |script: &str| {
            let mut command = Command::new("sh");
            command.current_dir(made.temp.path()).args(["-ec", script]);
            run(command.env("IMAGE", &image));
        };
        sh("umoci init --layout oci; umoci new --image $IMAGE");
        for (number, change) in [
            "mkdir -p a/b gone opaque/sub; echo 1 > a/keep; echo 1 > a/delete; echo 1 > gone/in
             ln a/keep a/linked; ln -s keep a/symlink; mkfifo a/fifo; chmod 4711 a/delete
             echo old > opaque/old; echo old > opaque/sub/old; chown 12:34 a/b",
            "rm a/delete; rm -r gone; echo 2 >> a/b/new; rm -r opaque; mkdir opaque; echo 2 > opaque/new",
            "echo back > gone; chmod 700 a/b; touch -d @0 a/b/new",
        ]
        .iter()
        .enumerate()
        {
            sh(&format!(
                "umoci unpack --image $IMAGE b{number}; (cd b{number}/rootfs; {change}); \
                 umoci repack --image $IMAGE b{number}"
            ));
        }
        sh("umoci unpack --image $IMAGE truth");
        sh(
            "skopeo copy -q oci:$IMAGE \"containers-storage:[overlay@$PWD/root+$PWD/run]localhost/demo:1\"",
        );
        Some(made)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn find(&self, name: &str) -> Result<Image> {
        let root = self.at("root");
        Stores::discover(Some(&root), &Environment::default())?.find(name)
    }

    /// Breaks a file, expects an error with these words, restores the file.
    fn broken(&self, file: &Path, edit: impl FnOnce(String) -> String, words: &[&str]) -> Error {
        let good = fs::read_to_string(file).unwrap();
        let bad = edit(good.clone());
        assert_ne!(good, bad, "{words:?}");
        fs::write(file, bad).unwrap();
        let error = self.find("localhost/demo:1").unwrap_err();
        fs::write(file, good).unwrap();
        for word in words {
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
        error
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // containers/storage bind-mounts its directory on itself.
        let _ = rustix::mount::unmount(self.at("root/overlay"), UnmountFlags::DETACH);
    }
}

#[test]
fn podmans_image_is_what_umoci_unpacks() {
    let Some(podman) = Podman::make() else {
        return;
    };
    let image = podman.find("localhost/demo:1").unwrap();
    assert_eq!(image.layers.len(), 3);
    assert_eq!(podman.find(&image.id.hex()[..12]).unwrap().id, image.id);
    assert_eq!(podman.find("demo:1").unwrap().id, image.id);
    assert!(podman.find("localhost/demo:2").is_err());
    // umoci keeps whole seconds; containers/storage has its own mode for the root.
    let of = |path: &Path| export::as_exported(listing::of_dir(path));
    let truth = of(&podman.at("truth/rootfs"));
    assert_eq!(truth.len(), 10);
    for how in ["--read-only", "--ephemeral"] {
        let mount = Mounted::of_root(&podman.at("root"), &[how, "localhost/demo:1"]);
        listing::assert_same(how, &of(&mount.path()), &truth);
        mount.unmount();
    }
    damage(&podman, &image);
    podman.find("localhost/demo:1").unwrap();
}

fn damage(podman: &Podman, image: &Image) {
    let root = podman.at("root");
    let layers = root.join("overlay-layers/layers.json");
    let ids: Vec<&str> = image.layers.iter().map(|l| l.cache_id.as_str()).collect();
    let parent = |id: &str| format!("\"parent\":\"{id}\"");
    let cut = |text: String| text[..text.len() / 2].to_owned();
    let error = podman.broken(&layers, cut, &["layers.json", "line 1"]);
    assert!(matches!(error, Error::Json { .. }));
    // A cycle, a parent that is not there, one too few.
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
    let images = root.join("overlay-images/images.json");
    let edit = |text: String| text.replace(ids[2], "../../../etc");
    podman.broken(&images, edit, &["layers.json", "../../../etc"]);
    let lower = root.join("overlay").join(ids[2]).join("lower");
    podman.broken(&lower, |_| "l/../../etc".into(), &["lower", "l/../../etc"]);
    let dir = root.join("overlay-images").join(image.id.hex());
    let config = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut config =
        config.filter(|path| fs::read_to_string(path).is_ok_and(|t| t.contains("rootfs")));
    let edit = |text: String| text.replace("rootfs", "rootfz");
    let error = podman.broken(&config.next().unwrap(), edit, &["is damaged"]);
    assert!(matches!(error, Error::ConfigHash { .. }));
}
