//! Images, snapshots and damage in a store of containerd. The tests run containerd themselves.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use testkit::home::{Home, Outcome, wait_until};
use testkit::need;
use testkit::need::{Needed, can_mount, has_tools};
use testkit::store::listing;
use unionfs::oci::Digest;

/// The directory of overlayfs snapshots, below the root.
const SNAPSHOTS: &str = "ctd/root/io.containerd.snapshotter.v1.overlayfs/snapshots";
const META: &str = "ctd/root/io.containerd.metadata.v1.bolt/meta.db";

/// A containerd with a store of its own in `ctd/root` of a home; killed when dropped.
pub(super) struct Containerd {
    pub(super) home: Home,
    daemon: Child,
}

impl Containerd {
    pub(super) fn start() -> Needed<Self> {
        can_mount()?;
        has_tools(&["containerd", "ctr"])?;
        let home = Home::new();
        home.dirs(&["ctd/root", "ctd/state", "mnt", "other"]);
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\n  address = {:?}\n",
            home.text("ctd/root"),
            home.text("ctd/state"),
            home.text("ctd/socket"),
        );
        std::fs::write(home.path("ctd/config.toml"), config).unwrap();
        let daemon = start(&home);
        Ok(Self { home, daemon })
    }

    pub(super) fn ctr(&self, args: &[&str]) -> String {
        let output = ctr(&self.home).args(args).output().unwrap();
        assert!(output.status.success(), "ctr {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs the program with containerd's store only.
    pub(super) fn run(&self, args: &[&str]) -> Outcome {
        let root = ["--root", "ctd/root"];
        self.home.run(root.iter().chain(args))
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.run(args).ok()).unwrap()
    }

    /// Returns the key of the topmost snapshot of an image.
    pub(super) fn top(&self, image: &str) -> String {
        let layers = &self.json(&["inspect", "--json", image])[0]["layers"];
        let top = layers.as_array().unwrap().last().unwrap();
        top["chain_id"].as_str().unwrap().to_owned()
    }

    fn umount(&self) {
        self.home.run(["umount", "mnt"]).ok();
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn ctr(home: &Home) -> Command {
    let mut command = home.command("ctr");
    command.args(["--address", &home.text("ctd/socket")]);
    command
}

fn start(home: &Home) -> Child {
    let log = std::fs::File::create(home.path("ctd/log")).unwrap();
    let mut command = home.command("containerd");
    command.args(["--config", &home.text("ctd/config.toml")]);
    let daemon = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
    wait_until("containerd answers", || {
        let asked = ctr(home).arg("version").output().unwrap();
        asked.status.success()
    });
    daemon
}

fn shell(home: &Home, script: &str) {
    let output = home.command("sh").args(["-e", "-c", script]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{script}: {output:?}");
}

/// Makes `app:1` with all kinds of files, and `app:2` with a layer that changes and removes some of
/// them, in our own store and in `app.tar`.
fn make_images(home: &Home) {
    shell(
        home,
        "mkdir -p rootfs/etc rootfs/data/sub rootfs/gone/deep rootfs/opaque
         echo one > rootfs/etc/one; echo two > rootfs/etc/two; ln rootfs/etc/one rootfs/etc/linked
         echo old > rootfs/opaque/old; echo deep > rootfs/gone/deep/file
         ln -s ../etc/one rootfs/data/link; mkfifo rootfs/data/fifo; mknod rootfs/data/null c 1 3
         echo x > rootfs/data/owned; chown 12:34 rootfs/data/owned; chmod 4750 rootfs/data/owned
         setfattr -n user.note -v yes rootfs/data/owned; touch -d 2001-02-03T04:05:06.789 rootfs/etc/two
         printf '\\303\\251' > rootfs/data/$(printf '\\303\\251')",
    );
    home.run(["import", "-q", "rootfs", "app:1"]).ok();
    home.run(["mount", "--name", "work", "app:1", "mnt"]).ok();
    shell(
        home,
        "cd mnt; echo changed >> etc/two; rm -r gone; rm -r opaque; mkdir opaque; echo new > opaque/new
         rm data/fifo; mv etc/linked etc/renamed; chmod 700 data/sub",
    );
    home.run(["umount", "mnt"]).ok();
    home.run(["commit", "-q", "work", "app:2"]).ok();
    home.run(["save", "-q", "-o", "app.tar", "app:1", "app:2"])
        .ok();
}

/// Starts a containerd with both images, unpacked.
pub(super) fn with_images() -> Needed<Containerd> {
    let containerd = Containerd::start()?;
    make_images(&containerd.home);
    containerd.ctr(&["images", "import", &containerd.home.text("app.tar")]);
    Ok(containerd)
}

#[test]
fn images_are_what_our_own_store_has() {
    let containerd = need!(with_images());
    let home = &containerd.home;
    for name in ["app:1", "app:2"] {
        home.run(["mount", "-r", name, "mnt"]).ok();
        let own = listing::of_dir(&home.path("mnt"));
        containerd.umount();
        containerd.run(&["mount", "-r", name, "mnt"]).ok();
        let theirs = listing::of_dir(&home.path("mnt"));
        containerd.umount();
        for (path, entry) in &own {
            // The tar has no entry for the root; each implementation creates the root itself.
            if !path.is_empty() {
                assert_eq!(Some(entry), theirs.get(path), "{name}: {path:?}");
            }
        }
        assert_eq!(own.len(), theirs.len(), "{name}");
        let own = home.json(["inspect", "--json", name])[0].clone();
        let theirs = containerd.json(&["inspect", "--json", name])[0].clone();
        for field in ["id", "config", "names"] {
            assert_eq!(own[field], theirs[field], "{name}: {field}");
        }
        assert_eq!(theirs["driver"], "overlayfs");
        let history = |outcome: Outcome| outcome.ok().lines().count();
        let ours = home.run(["history", name]);
        assert_eq!(history(ours), history(containerd.run(&["history", name])));
    }
    let images = containerd.json(&["images", "--json"]);
    assert_eq!(images.as_array().unwrap().len(), 2, "{images}");
    // Layers are shared, and listed once.
    let layers = containerd.json(&["layers", "--json"]);
    assert_eq!(layers.as_array().unwrap().len(), 2, "{layers}");
    containerd.run(&["df"]).ok();
    let image = &containerd.json(&["inspect", "--json", "app:2"])[0]["id"];
    let prefix = &image.as_str().unwrap()["sha256:".len()..][..12];
    containerd.run(&["inspect", prefix]).ok();
    // Docker shows the digest that the name refers to as the image's ID.
    let listed = containerd.ctr(&["images", "ls", "name==docker.io/library/app:2"]);
    let target = listed
        .split_whitespace()
        .find(|word| word.starts_with("sha256:"));
    let target = target.unwrap();
    for text in [target, &target["sha256:".len()..][..12]] {
        let found = containerd.json(&["inspect", "--json", text])[0].clone();
        assert_eq!(found["id"], *image, "{text}");
    }
}

#[test]
fn what_is_saved_is_what_came_in() {
    let containerd = need!(with_images());
    let home = &containerd.home;
    containerd
        .run(&["save", "-q", "-o", "again.tar", "app:1", "app:2"])
        .ok();
    let same = home.command("cmp").args(["app.tar", "again.tar"]).output();
    assert!(same.unwrap().status.success(), "the archives differ");
    containerd
        .run(&["export", "-o", "app2.tar", "app:2"])
        .ok_with_progress();
    // The image goes back through all steps.
    home.run(["rm", "work"]).ok();
    home.run(["rmi", "app:1", "app:2"]).ok();
    home.run(["load", "-q", "-i", "again.tar"]).ok();
    home.run(["verify", "--all"]).ok();
}

/// Imports an index of `app:1` for amd64 and `app:2` for arm64 as `example.org/multi:1`; returns its digest and
/// those of the manifests.
fn import_index(containerd: &Containerd) -> (Digest, Vec<String>) {
    let home = &containerd.home;
    home.run_script("mkdir multi; unionfs save -q --format oci app:1 app:2 | tar -x -C multi")
        .ok();
    let read = |path: &str| -> Value {
        serde_json::from_slice(&std::fs::read(home.path(path)).unwrap()).unwrap()
    };
    let mut entries = read("multi/index.json")["manifests"]
        .as_array()
        .unwrap()
        .clone();
    for (entry, architecture) in entries.iter_mut().zip(["amd64", "arm64"]) {
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        entry.as_object_mut().unwrap().remove("annotations");
    }
    let media = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": media, "manifests": entries }).to_string();
    let digest = Digest::of(index.as_bytes());
    std::fs::write(
        home.path(&format!("multi/blobs/sha256/{}", digest.hex())),
        &index,
    )
    .unwrap();
    let top = json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": media, "size": index.len(), "digest": digest,
        "annotations": { "io.containerd.image.name": "example.org/multi:1" },
    }]});
    std::fs::write(home.path("multi/index.json"), top.to_string()).unwrap();
    shell(
        home,
        "rm -f multi/manifest.json multi/repositories; tar -C multi -cf multi.tar .",
    );
    containerd.ctr(&[
        "images",
        "import",
        "--all-platforms",
        "--no-unpack",
        &home.text("multi.tar"),
    ]);
    let digests = entries
        .iter()
        .map(|entry| entry["digest"].as_str().unwrap().to_owned());
    (digest, digests.collect())
}

#[test]
fn an_index_is_saved_and_copied_with_all_its_images() {
    let containerd = need!(with_images());
    let home = &containerd.home;
    let (index, manifests) = import_index(&containerd);
    let name = "example.org/multi:1";
    let layout = format!("oci:{}:x", home.text("layout"));
    let copied = containerd.json(&["copy", "--all", "--json", name, &layout]);
    assert_eq!(
        (&copied["digest"], &copied["images"]),
        (&json!(index), &json!(2))
    );
    for of in [format!("docker-daemon:{name}"), index.to_string()] {
        // Docker's images are in another namespace.
        let copied = containerd.run(&["copy", "--all", "-q", &of, "dir:copied"]);
        let is_found = !of.starts_with("docker");
        assert_eq!(copied.code, Some(i32::from(!is_found)), "{of}: {copied:?}");
    }
    containerd
        .run(&["save", "--all", "-q", name, "-o", "all.tar"])
        .ok();
    home.run_script(&format!(
        "unionfs --root ctd/root save --all -q {name} > piped.tar"
    ))
    .ok();
    for file in ["all.tar", "piped.tar"] {
        let from = format!("oci-archive:{}", home.text(file));
        let copied = home.json(["copy", "--all", "--json", &from, "dir:again"]);
        assert_eq!(copied["digest"], json!(index), "{file}");
        std::fs::remove_dir_all(home.path("again")).unwrap();
    }
    // The plain image beside it is no index; it is copied alone.
    let copied = containerd.json(&["copy", "--all", "--json", "app:1", "dir:single"]);
    assert_eq!(copied["images"], 1);
    // What was not pulled, a manifest or a layer, is named, with what to do.
    let blobs = home.path("ctd/root/io.containerd.content.v1.content/blobs/sha256");
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(blobs.join(&manifests[1][7..])).unwrap()).unwrap();
    let layer = manifest["layers"][1]["digest"].as_str().unwrap();
    for missing in [layer, &manifests[1]] {
        std::fs::remove_file(blobs.join(&missing[7..])).unwrap();
        containerd
            .run(&["copy", "--all", "-q", name, "oci-archive:none.tar"])
            .failed(1, &[missing, "--all-platforms", "leave --all out"]);
        assert!(!home.path("none.tar").exists());
    }
    containerd
        .run(&["copy", "-q", name, "oci-archive:one.tar"])
        .ok();
}

#[test]
fn damage_is_found_in_blobs_and_in_snapshots() {
    let containerd = need!(with_images());
    let home = &containerd.home;
    let text = containerd.run(&["verify", "--all"]).ok();
    assert!(text.contains("2 images, 2 layers"), "{text}");
    let base = containerd.json(&["inspect", "--json", "app:1"])[0]["layers"][0].clone();
    let path = Path::new(base["path"].as_str().unwrap());
    assert!(path.starts_with(home.path(SNAPSHOTS)), "{base}");
    let times = "-d 2001-02-03T04:05:06.789";
    let two = path.join("etc/two");
    shell(
        home,
        &format!("printf 'TWO\\n' > {two:?}; touch {times} {two:?}"),
    );
    containerd
        .run(&["verify", "app:2"])
        .failed_with_output(&["1 problem found"]);
    shell(
        home,
        &format!("printf 'two\\n' > {two:?}; touch {times} {two:?}"),
    );
    containerd.run(&["verify", "--all"]).ok();
    shell(
        home,
        &format!(
            "rm {:?}; touch {:?}",
            path.join("data/fifo"),
            path.join("data/more")
        ),
    );
    let verified = containerd.run(&["verify", "app:1"]);
    for word in ["data/fifo", "data/more"] {
        assert!(verified.stdout.contains(word), "{verified:?}");
    }
    // A blob with other content is neither saved nor accepted.
    let blobs = home.path("ctd/root/io.containerd.content.v1.content/blobs/sha256");
    let diff = base["diff_id"].as_str().unwrap();
    let blob = blobs.join(&diff["sha256:".len()..]);
    let mut bytes = std::fs::read(&blob).unwrap();
    let end = bytes.len() - 1;
    bytes[end] ^= 1;
    std::fs::write(&blob, &bytes).unwrap();
    containerd
        .run(&["save", "-q", "-o", "bad.tar", "app:1"])
        .failed(1, &["not"]);
    assert!(!home.path("bad.tar").exists());
    containerd
        .run(&["verify", "app:1"])
        .failed_with_output(&["problem"]);
    std::fs::remove_file(&blob).unwrap();
    containerd
        .run(&["save", "-q", "-o", "bad.tar", "app:1"])
        .failed(1, &["missing"]);
    // Its directories are mounted as before.
    containerd.run(&["mount", "-r", "app:1", "mnt"]).ok();
    containerd.umount();
}

#[test]
fn snapshots_that_are_written_to_are_containers() {
    let containerd = need!(with_images());
    let home = &containerd.home;
    let top = containerd.top("app:2");
    containerd.ctr(&["snapshots", "prepare", "written", &top]);
    // Docker makes a snapshot for its init layer and commits it.
    containerd.ctr(&["snapshots", "prepare", "init", &top]);
    containerd.ctr(&["snapshots", "commit", "box-init", "init"]);
    containerd.ctr(&["snapshots", "prepare", "box", "box-init"]);
    for (key, added) in [("written", "a"), ("box", "b")] {
        let mounts = containerd.ctr(&["snapshots", "mounts", &home.text("other"), key]);
        let script = format!("{mounts}\ntouch other/{added}; rm other/etc/two; umount other");
        shell(home, &script);
        let diff = containerd.run(&["diff", key]).ok();
        assert_eq!(diff, format!("A /{added}\nC /etc\nD /etc/two\n"), "{key}");
        containerd
            .run(&["mount", "-r", "--container", key, "mnt"])
            .ok();
        assert!(home.path("mnt").join(added).exists());
        assert!(!home.path("mnt/etc/two").exists() && home.path("mnt/etc/one").exists());
        containerd.umount();
        containerd
            .run(&["mount", "--container", key, "--in-place", "mnt"])
            .failed(1, &["cannot be written in place"]);
        containerd
            .run(&["export", "-o", "box.tar", key])
            .ok_with_progress();
    }
    // A container record names its snapshot.
    let image = "docker.io/library/app:2";
    containerd.ctr(&["containers", "create", image, "made", "/bin/sh"]);
    assert_eq!(containerd.run(&["diff", "made"]).ok(), "");
    containerd
        .run(&["diff", "nothing"])
        .failed(1, &["no container"]);
}

#[test]
fn what_is_not_unpacked_is_unpacked_into_our_store() {
    let containerd = need!(Containerd::start());
    let home = &containerd.home;
    make_images(home);
    containerd.ctr(&["images", "import", "--no-unpack", &home.text("app.tar")]);
    home.run(["mount", "-r", "app:2", "mnt"]).ok();
    let own = listing::of_dir(&home.path("mnt"));
    containerd.umount();
    home.run(["rm", "work"]).ok();
    home.run(["rmi", "app:1", "app:2"]).ok();
    let images = containerd.json(&["images", "--json"]);
    for image in images.as_array().unwrap() {
        assert_eq!(
            (&image["unpacked"], &image["size"]),
            (&false.into(), &0.into())
        );
    }
    assert_eq!(images.as_array().unwrap().len(), 2, "{images}");
    containerd.run(&["verify", "--all"]).ok();
    containerd
        .run(&["inspect", "app:2"])
        .failed(1, &["not unpacked"]);
    // In a sandbox and without one.
    for options in ["sandbox=strict", "sandbox=off"] {
        let mount = ["mount", "-r", "-o", options, "app:2", "mnt"];
        let said = containerd.run(&mount).ok_with_progress();
        let expected = format!("app:2 is unpacked into {}\n", home.text("own"));
        assert_eq!(said, expected, "{options}");
        let theirs = listing::of_dir(&home.path("mnt"));
        assert_eq!(own.len(), theirs.len());
        // The tar has no entry for the root.
        let named = own.iter().filter(|(path, _)| !path.is_empty());
        for (path, entry) in named {
            assert_eq!(Some(entry), theirs.get(path), "{path:?}");
        }
        containerd.umount();
    }
    home.run(["verify", "--all"]).ok();
    let all = home.json(["images", "--json", "--all"]);
    assert_eq!(all.as_array().unwrap().len(), 1, "{all}");
    home.run(["mount", "-r", all[0]["id"].as_str().unwrap(), "mnt"])
        .ok();
    containerd.umount();
    let named = ["mount", "--name", "more", "app:1", "mnt"];
    containerd.run(&named).ok_with_progress();
    containerd.umount();
    home.run(["mount", "--name", "more", "mnt"]).ok();
    containerd.umount();
    home.run(["rm", "more"]).ok();
    home.run(["prune", "--dangling"]).ok();
    let all = home.json(["images", "--json", "--all"]);
    assert_eq!(all.as_array().unwrap().len(), 0, "{all}");
}

#[test]
fn namespaces_are_searched_in_order() {
    let containerd = need!(with_images());
    let home = &containerd.home;
    // In Docker's store, app:1 is the image that is app:2 elsewhere.
    let archive = home.text("app.tar");
    containerd.ctr(&["--namespace", "moby", "images", "import", &archive]);
    let tag = ["docker.io/library/app:2", "docker.io/library/app:1"];
    let args = [
        "--namespace",
        "moby",
        "images",
        "tag",
        "--force",
        tag[0],
        tag[1],
    ];
    containerd.ctr(&args);
    let id = |name: &str| containerd.json(&["inspect", "--json", name])[0]["id"].clone();
    assert_eq!(id("app:1"), id("app:2"));
    // With --namespace only one namespace is searched.
    let only = |namespace: &str, name: &str| {
        containerd.json(&["--namespace", namespace, "inspect", "--json", name])[0]["id"].clone()
    };
    assert_eq!(only("moby", "app:1"), id("app:2"));
    assert_ne!(only("default", "app:1"), id("app:2"));
    assert_eq!(only("default", "app:2"), id("app:2"));
    // `docker-daemon:` means the namespace of Docker.
    assert_eq!(id("docker-daemon:app:1"), id("app:2"));
    let tag = ["docker.io/library/app:2", "docker.io/library/others:1"];
    containerd.ctr(&["images", "tag", tag[0], tag[1]]);
    assert_eq!(id("others:1"), id("app:2"));
    containerd
        .run(&["inspect", "docker-daemon:others:1"])
        .failed(1, &["no image", "docker-daemon:others:1"]);
    let of_default = only("default", "app:1");
    let of_default = of_default.as_str().unwrap();
    assert_eq!(id(of_default), of_default);
    for name in [of_default, &of_default["sha256:".len()..][..12]] {
        containerd
            .run(&["inspect", &format!("docker-daemon:{name}")])
            .failed(1, &["no image"]);
    }
    containerd
        .run(&["--namespace", "k8s.io", "mount", "-r", "app:1", "mnt"])
        .failed(1, &["no image", "app:1"]);
    containerd
        .run(&["mount", "-r", "--namespace", "default", "app:1", "mnt"])
        .ok();
    containerd.umount();
    let mut command = home.command(testkit::program());
    command.env("CONTAINERD_NAMESPACE", "k8s.io");
    let listed: Outcome = command
        .args(["--root", "ctd/root", "images", "--json"])
        .output()
        .unwrap()
        .into();
    assert_eq!(listed.ok().trim(), "[]");
    // The store is found below Docker's data root, as Docker places it.
    home.dirs(&["docker/containerd"]);
    std::fs::rename(home.path("ctd/root"), home.path("docker/containerd/daemon")).unwrap();
    let moved = home.run(["--root", "docker", "images", "--json"]).ok();
    let moved: Value = serde_json::from_str(&moved).unwrap();
    assert!(moved.as_array().unwrap().len() >= 2, "{moved}");
    home.run(["--root", "docker", "mount", "-r", "app:2", "mnt"])
        .ok();
    containerd.umount();
    std::fs::rename(home.path("docker/containerd/daemon"), home.path("ctd/root")).unwrap();
}

/// One namespace has pulled the image, another one has unpacked it too.
#[test]
fn an_image_is_taken_where_it_is_unpacked() {
    let containerd = need!(with_images());
    let archive = containerd.home.text("app.tar");
    let import = ["--namespace", "moby", "images", "import", "--no-unpack"];
    containerd.ctr(&[&import[..], &[&archive]].concat());
    let mounted = containerd.run(&["mount", "-r", "app:2", "mnt"]);
    assert_eq!(mounted.ok(), "", "nothing is unpacked");
    containerd.umount();
    let images = containerd.json(&["images", "--json"]);
    for image in images.as_array().unwrap() {
        assert_eq!(image["unpacked"], true, "{images}");
    }
}

/// Reads repeatedly while images are added and removed: each answer is complete.
#[test]
fn a_containerd_that_writes_meanwhile_disturbs_nobody() {
    let containerd = need!(with_images());
    let home = &containerd.home;
    let archive = home.text("app.tar");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..15 {
                let namespace = format!("n{round}");
                containerd.ctr(&["--namespace", &namespace, "images", "import", &archive]);
                let names = ["docker.io/library/app:1", "docker.io/library/app:2"];
                let remove = ["--namespace", &namespace, "images", "rm", "--sync"];
                containerd.ctr(&[&remove[..], &names].concat());
            }
            done.store(true, Ordering::Relaxed);
        });
        let mut looks = 0;
        while !done.load(Ordering::Relaxed) {
            let image = containerd.json(&["inspect", "--json", "app:2"])[0].clone();
            assert_eq!(image["layers"].as_array().unwrap().len(), 2);
            looks += 1;
        }
        assert!(looks > 5, "{looks}");
    });
    containerd.run(&["verify", "--all"]).ok();
}

/// A change of any byte of the metadata gives an answer or one line of error, never a panic or a
/// hang.
#[test]
fn damaged_metadata_is_refused() {
    let containerd = need!(with_images());
    let home = &containerd.home;
    let snapshots = "ctd/root/io.containerd.snapshotter.v1.overlayfs/metadata.db";
    let whole: Vec<(PathBuf, Vec<u8>)> = [META, snapshots]
        .map(|name| (home.path(name), std::fs::read(home.path(name)).unwrap()))
        .into();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |most: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % most as u64) as usize
    };
    for round in 0..60 {
        let (path, bytes) = &whole[round % 2];
        let mut bytes = bytes.clone();
        match round {
            0 | 1 => bytes.truncate(5000),
            2 | 3 => bytes.fill(0),
            4 | 5 => bytes.clear(),
            // Both meta pages stay; the pages that they refer to change.
            _ => (0..40).for_each(|_| {
                let at = 8192 + next(bytes.len() - 8192);
                bytes[at] = next(256) as u8;
            }),
        }
        std::fs::write(path, &bytes).unwrap();
        for args in [&["images"][..], &["inspect", "app:2"], &["verify", "--all"]] {
            let outcome = containerd.run(args);
            assert!(
                matches!(outcome.code, Some(0 | 1)),
                "{round}, {args:?}: {outcome:?}"
            );
            assert!(!outcome.stderr.contains("panicked"), "{round}: {outcome:?}");
        }
        std::fs::write(path, &whole[round % 2].1).unwrap();
    }
    containerd.run(&["verify", "--all"]).ok();
}

/// Returns the mount that `ctr` would make for a snapshot, as containerd's fuse-overlayfs snapshotter
/// names it: its source, and its options. The snapshotter gives the options of overlayfs, without
/// those that fuse-overlayfs does not know.
fn snapshotter_mount(containerd: &Containerd, key: &str) -> (String, Vec<String>) {
    let target = containerd.home.text("other");
    let line = containerd.ctr(&["snapshots", "mounts", &target, key]);
    let words: Vec<&str> = line.split_whitespace().collect();
    let ["mount", "-t", kind, source, at, "-o", options] = words[..] else {
        panic!("{line}");
    };
    assert_eq!((kind, at), ("overlay", &*target), "{line}");
    let known = |option: &&str| !option.starts_with("index=") && *option != "userxattr";
    let options = options.split(',').filter(known).map(str::to_owned);
    (source.to_owned(), options.collect())
}

/// Mounts as containerd's package `mount` does for the type `fuse3.fuse-overlayfs`: by the helper
/// mount.fuse3, which runs the program that PATH has under that name.
fn mount_by_helper(home: &Home, (source, options): &(String, Vec<String>), target: &str) {
    let mut helper = home.command("mount.fuse3");
    helper.args([source, &home.text(target)]);
    for option in options {
        helper.args(["-o", option]);
    }
    helper.args(["-t", "fuse-overlayfs"]);
    let path = std::env::var("PATH").unwrap();
    helper.env("PATH", format!("{}:{path}", home.text("bin")));
    assert_eq!(Outcome::from(helper.output().unwrap()).ok(), "");
    let mounts = home.mounts();
    let mount = mounts.iter().find(|line| line.contains(&home.text(target)));
    let kind = mount.unwrap().split(' ').nth(2);
    assert_eq!(kind, Some("fuse.unionfs"), "{mounts:?}");
}

/// Snapshots that are written to, read, and committed as lowers of others, each mounted in the way
/// of the fuse-overlayfs snapshotter. In the end they are what containerd's own snapshotter shows.
#[test]
fn snapshots_are_mounted_as_for_the_fuse_overlayfs_snapshotter() {
    need!(has_tools(&["mount.fuse3"]));
    let containerd = need!(with_images());
    let home = &containerd.home;
    home.dirs(&["bin", "kernel"]);
    std::os::unix::fs::symlink(testkit::program(), home.path("bin/fuse-overlayfs")).unwrap();
    let top = containerd.top("app:2");
    containerd.ctr(&["snapshots", "prepare", "first", &top]);
    let first = snapshotter_mount(&containerd, "first");
    assert!(first.1.iter().any(|o| o.starts_with("upperdir=")));
    mount_by_helper(home, &first, "other");
    shell(
        home,
        "cd other; rm etc/two; echo more >> etc/one; rm -r opaque; mkdir opaque; echo 1 > opaque/in
         mkdir made; chown 7:8 made; mv etc/renamed made/; echo data > made/.wh.name",
    );
    shell(home, "umount other");
    containerd.ctr(&["snapshots", "commit", "second", "first"]);
    containerd.ctr(&["snapshots", "view", "seen", "second"]);
    let seen = snapshotter_mount(&containerd, "seen");
    assert!(!seen.1.iter().any(|o| o.starts_with("upperdir=")));
    mount_by_helper(home, &seen, "other");
    let ours = listing::of_dir(&home.path("other"));
    let refused = std::fs::write(home.path("other/new"), "").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    // The kernel mounts the same snapshot.
    let line = containerd.ctr(&["snapshots", "mounts", &home.text("kernel"), "seen"]);
    shell(home, &line);
    let theirs = listing::of_dir(&home.path("kernel"));
    assert!(ours.contains_key(&b"made/.wh.name"[..]) && !ours.contains_key(&b"etc/two"[..]));
    assert_eq!(ours, theirs);
    shell(home, "umount kernel other");
    // A container on top of it.
    containerd.ctr(&["snapshots", "prepare", "third", "second"]);
    let third = snapshotter_mount(&containerd, "third");
    mount_by_helper(home, &third, "other");
    shell(
        home,
        "cd other; rm -r made; echo 3 > third; umount -l ../other",
    );
    wait_until("the server has ended", || {
        !home.mounts().iter().any(|line| line.contains("/other"))
    });
    let line = containerd.ctr(&["snapshots", "mounts", &home.text("kernel"), "third"]);
    shell(home, &line);
    assert!(home.path("kernel/third").exists() && !home.path("kernel/made").exists());
    shell(home, "umount kernel");
}
