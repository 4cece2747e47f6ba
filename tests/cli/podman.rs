//! Containers of podman, and images on layers of its additional stores, made by podman itself:
//! mounted, compared with what podman shows, exported, committed, written in place.

use std::collections::BTreeSet;
use std::fs;

use rustix::mount::UnmountFlags;
use serde_json::{Value, json};
use testkit::home::{Home, Outcome};
use testkit::need;
use testkit::need::{Needed, can_mount, has_tools};

/// podman with stores in a home, which storage.conf names.
pub(super) struct Podman {
    pub(super) home: Home,
    driver: &'static str,
}

impl Podman {
    /// Starts podman with the image `app:1` of two layers in its store.
    pub(super) fn start(driver: &'static str) -> Needed<Self> {
        can_mount()?;
        has_tools(&["podman", "busybox"])?;
        let home = Home::new();
        home.dirs(&["mnt", "base/etc", "more"]);
        let podman = Self { home, driver };
        podman.conf("storage.conf", "store", &[]);
        podman.shell(
            "cp $(command -v busybox) base/busybox
            echo one > base/etc/one; echo two > base/etc/two; mkdir base/dir; echo in > base/dir/in
            tar -C base -cf base.tar .
            podman import -q base.tar localhost/base:1
            id=$(podman create localhost/base:1 /busybox)
            m=$(podman mount $id); rm $m/etc/two; echo three > $m/etc/three; podman umount $id
            podman commit -q $id localhost/app:1; podman rm $id",
        );
        Ok(podman)
    }

    /// Writes a storage.conf for the store `name`, with additional stores.
    fn conf(&self, file: &str, name: &str, additional: &[&str]) {
        let additional: Vec<String> = additional.iter().map(|name| self.home.text(name)).collect();
        let text = format!(
            "[storage]\ndriver = {:?}\ngraphroot = {:?}\nrunroot = {:?}\n[storage.options]\n\
             additionalimagestores = {additional:?}\n",
            self.driver,
            self.home.text(name),
            self.home.text(&format!("{name}-run")),
        );
        fs::write(self.home.path(file), text).unwrap();
    }

    /// Runs a script in which `podman` uses these stores, and returns its output.
    pub(super) fn shell(&self, script: &str) -> String {
        self.shell_with("storage.conf", script)
    }

    fn shell_with(&self, conf: &str, script: &str) -> String {
        let mut command = self.home.command("sh");
        command.env("CONTAINERS_STORAGE_CONF", self.home.path(conf));
        let output = command.args(["-e", "-c", script]).output().unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn run(&self, args: &[&str]) -> Outcome {
        let mut command = self.home.command(testkit::program());
        command.env("CONTAINERS_STORAGE_CONF", self.home.path("storage.conf"));
        command.args(args).output().unwrap().into()
    }

    /// Returns the content of a directory: the names and contents of all files.
    pub(super) fn tree(&self, dir: &str) -> String {
        self.shell(&format!(
            "cd {dir}; find . -printf '%p %y %m %U:%G %s\\n' | sort; find . -type f | sort | xargs sha256sum"
        ))
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // Needed after a failed test. containers/storage also bind-mounts its directories on
        // themselves.
        for line in self.home.mounts().iter().rev() {
            let _ = rustix::mount::unmount(line.as_str(), UnmountFlags::DETACH);
        }
        for store in ["store", "shared"] {
            let dir = self.home.path(store).join(self.driver);
            let _ = rustix::mount::unmount(dir, UnmountFlags::DETACH);
        }
    }
}

fn lines(text: &str) -> BTreeSet<&str> {
    text.lines().collect()
}

#[test]
fn podmans_containers_are_what_podman_shows() {
    for driver in ["overlay", "vfs"] {
        let podman = need!(Podman::start(driver));
        let home = &podman.home;
        let changes =
            "rm -r $m/dir $m/etc/one; echo new > $m/new; mkdir $m/dir; echo x > $m/dir/other";
        let id = podman.shell("podman create --name web localhost/app:1 /busybox");
        let id = id.trim();
        let merged = podman.shell(&format!(
            "m=$(podman mount web); {changes}; cp -a $m shown; podman umount web >/dev/null; echo $m"
        ));
        let shown = podman.tree("shown");
        for name in ["web", id, &id[..12]] {
            podman
                .run(&["mount", "-r", "--container", name, "mnt"])
                .ok();
            assert_eq!(podman.tree("mnt"), shown, "{driver} {name}");
            home.run(["umount", "mnt"]).ok();
        }
        for name in [
            "containers-storage:app:1",
            "containers-storage:localhost/app:1",
        ] {
            podman.run(&["mount", "-r", name, "mnt"]).ok();
            home.run(["umount", "mnt"]).ok();
        }
        podman
            .run(&["inspect", "docker-daemon:app:1"])
            .failed(1, &["docker-daemon:app:1"]);
        podman
            .run(&["diff", "nothing"])
            .failed(1, &["no container", "nothing"]);
        podman.run(&["export", "-q", "-o", "ours.tar", "web"]).ok();
        podman.shell("mkdir ours; tar -C ours -xf ours.tar");
        assert_eq!(podman.tree("ours"), shown, "{driver}");
        if driver == "vfs" {
            podman.run(&["diff", "web"]).failed(1, &["whole tree"]);
            podman
                .run(&["mount", "--container", "web", "--in-place", "mnt"])
                .failed(1, &["cannot be written in place"]);
            continue;
        }
        // Podman reports a directory that was made again as deleted.
        let theirs = podman.shell("podman diff web");
        let ours = podman.run(&["diff", "web"]).ok();
        let expected = "C /dir\nA /dir/other\nC /etc\nD /etc/one\nA /new\nD /dir/in\n";
        assert_eq!(lines(&ours), lines(expected));
        let elsewhere = |text| -> BTreeSet<&str> {
            let mut lines = lines(text);
            lines.retain(|line| !line.contains("/dir"));
            lines
        };
        assert_eq!(elsewhere(&theirs), elsewhere(expected));
        podman.run(&["commit", "-q", "web", "made:1"]).ok();
        home.run(["verify", "made:1"]).ok_with_progress();
        home.run(["mount", "-r", "made:1", "mnt"]).ok();
        assert_eq!(podman.tree("mnt"), shown);
        home.run(["umount", "mnt"]).ok();
        // While podman has the container mounted, unionfs does not write to it.
        podman.shell("podman mount web");
        let in_place = ["mount", "--container", "web", "--in-place", "mnt"];
        podman.run(&in_place).failed(1, &["is running"]);
        podman.shell("podman umount web");
        assert!(!merged.trim().is_empty());
        podman.run(&in_place).ok();
        podman.shell("echo ours > mnt/ours; rm mnt/new");
        home.run(["umount", "mnt"]).ok();
        let seen = podman.shell("m=$(podman mount web); cat $m/ours; ls $m; podman umount web");
        assert!(
            seen.starts_with("ours\n") && !seen.contains("new\n"),
            "{seen}"
        );
        // The message names the damaged file.
        let records = home.path("store/overlay-containers/containers.json");
        let good = fs::read_to_string(&records).unwrap();
        for (bad, words) in [
            (
                good.replace("\"layer\":\"", "\"layer\":\"0"),
                ["layers.json", "no such layer"],
            ),
            (
                good.replace("\"layer\":", "\"none\":"),
                ["layers.json", "no layer"],
            ),
            ("[".to_owned(), ["containers.json", "line 1"]),
        ] {
            assert_ne!(bad, good);
            fs::write(&records, bad).unwrap();
            podman.run(&["diff", "web"]).failed(1, &words);
        }
    }
}

/// A shared store of images that the user's storage.conf names: its images are found, and images
/// and containers of the user lie on its layers.
#[test]
fn images_of_additional_stores_and_on_their_layers() {
    for driver in ["overlay", "vfs"] {
        let podman = need!(Podman::start(driver));
        let home = &podman.home;
        podman.conf("shared.conf", "shared", &[]);
        podman.shell_with(
            "shared.conf",
            "echo shared > base/shared; tar -C base -cf shared.tar .
            podman import -q shared.tar localhost/shared:1",
        );
        podman.conf("storage.conf", "store", &["shared"]);
        podman.shell(
            "podman create --name on-shared localhost/shared:1 /busybox
            m=$(podman mount on-shared); echo mine > $m/mine; cp -a $m shown; podman umount on-shared
            podman commit -q on-shared localhost/derived:1
            podman create --name on-derived localhost/derived:1 /busybox",
        );
        let shown = podman.tree("shown");
        let images = podman.run(&["images"]).ok();
        for name in ["localhost/shared", "localhost/derived", "localhost/app"] {
            assert!(images.contains(name), "{driver} {name}: {images}");
        }
        podman.run(&["mount", "-r", "derived:1", "mnt"]).ok();
        assert_eq!(podman.tree("mnt"), shown, "{driver}");
        home.run(["umount", "mnt"]).ok();
        podman
            .run(&["mount", "-r", "--container", "on-shared", "mnt"])
            .ok();
        assert_eq!(podman.tree("mnt"), shown, "{driver}");
        home.run(["umount", "mnt"]).ok();
        let verified = podman.run(&["verify", "derived:1"]);
        assert_eq!(verified.code, Some(0), "{driver} {verified:?}");
        podman
            .run(&["save", "-q", "-o", "derived.tar", "derived:1"])
            .ok();
        home.run(["load", "-q", "-i", "derived.tar"]).ok();
        if driver == "overlay" {
            podman.run(&["commit", "-q", "on-shared", "made:1"]).ok();
            home.run(["mount", "-r", "made:1", "mnt"]).ok();
            assert_eq!(podman.tree("mnt"), shown, "{driver}");
            home.run(["umount", "mnt"]).ok();
        }
        // The layers of its image are in both stores.
        if driver == "overlay" {
            podman.run(&["commit", "-q", "on-derived", "more:1"]).ok();
            home.run(["verify", "more:1"]).ok_with_progress();
        }
        // Without the other store the message says which layer is missing.
        let root = home.text("store");
        podman
            .run(&["--root", &root, "mount", "-r", "derived:1", "mnt"])
            .failed(1, &["layers.json", "no such layer"]);
    }
}

/// `containers-storage:[…]NAME` names an image of exactly one store, wherever an image can be named.
#[test]
fn a_name_with_a_store_names_exactly_that_store() {
    let podman = need!(Podman::start("overlay"));
    let home = &podman.home;
    podman.conf("shared.conf", "shared", &[]);
    podman.shell_with(
        "shared.conf",
        "echo shared > base/shared; tar -C base -cf shared.tar .
        podman import -q shared.tar localhost/app:1",
    );
    let of = |driver: &str, store: &str| {
        let run_root = home.text(&format!("{store}-run"));
        format!(
            "containers-storage:[{driver}{}+{run_root}]",
            home.text(store)
        )
    };
    let name = |store: &str| format!("{}localhost/app:1", of("overlay@", store));
    let (ours, theirs) = (name("store"), name("shared"));
    let id_of = |conf: &str| {
        let id = podman.shell_with(conf, "podman inspect --format '{{.Id}}' localhost/app:1");
        format!("sha256:{}", id.trim())
    };
    let [id, other] = ["storage.conf", "shared.conf"].map(id_of);
    assert_ne!(id, other);
    let inspected = |name: &str| {
        let found = podman.run(&["inspect", "--json", name]).ok();
        let found: Value = serde_json::from_str(&found).unwrap();
        found[0]["id"].as_str().unwrap().to_owned()
    };
    // storage.conf names one store: names without a store mean its image, others are not searched.
    assert_eq!(inspected("app:1"), id);
    assert_eq!(inspected(&ours), id);
    assert_eq!(inspected(&theirs), other);
    for (text, found) in [
        (format!("{}app:1", of("", "shared")), &other),
        (
            format!("{}{}", of("overlay2@", "shared"), &other[7..]),
            &other,
        ),
        (format!("{theirs}@{}", &other[7..]), &other),
        (format!("containers-storage:{id}"), &id),
    ] {
        assert_eq!(inspected(&text), *found, "{text}");
    }
    for text in [
        &other,
        &format!("containers-storage:{other}"),
        &format!("{theirs}@{}", &id[7..]),
        &format!("{}localhost/base:1", of("overlay@", "shared")),
        &format!("{}localhost/app:1", of("vfs@", "shared")),
        "docker-daemon:localhost/app:1",
    ] {
        podman.run(&["inspect", text]).failed(1, &["no image"]);
    }
    // A name with a host means no other one: only a short name also means what podman has built.
    for name in ["app:1", "containers-storage:app:1"] {
        assert_eq!(inspected(name), id, "{name}");
    }
    for name in [
        "docker.io/library/app:1",
        "docker.io/app:1",
        "library/app:1",
        "index.docker.io/app:1",
    ] {
        for store in ["", "containers-storage:", &of("overlay@", "store")] {
            let text = format!("{store}{name}");
            podman.run(&["inspect", &text]).failed(1, &["no image"]);
        }
        let with_id = format!("containers-storage:{name}@{}", &id[7..]);
        podman.run(&["inspect", &with_id]).failed(1, &["no image"]);
    }
    // Every command that takes an image.
    podman.run(&["mount", "-r", &theirs, "mnt"]).ok();
    assert_eq!(
        fs::read_to_string(home.path("mnt/shared")).unwrap(),
        "shared\n"
    );
    home.run(["umount", "mnt"]).ok();
    podman.run(&["mount", "--name", "web", &theirs, "mnt"]).ok();
    home.run(["umount", "mnt"]).ok();
    podman.run(&["mount", "--name", "web", "mnt"]).ok();
    assert!(home.path("mnt/shared").exists());
    home.run(["umount", "mnt"]).ok();
    for command in ["history", "layers", "ls"] {
        podman.run(&[command, &theirs]).ok();
    }
    let layers: Value =
        serde_json::from_str(&podman.run(&["layers", "--json", &theirs]).ok()).unwrap();
    assert_eq!(layers.as_array().unwrap().len(), 1, "{layers}");
    podman.run(&["verify", &theirs]).ok_with_progress();
    let file = format!("{theirs}:/shared");
    assert_eq!(podman.run(&["cat", &file]).ok(), "shared\n");
    podman.run(&["cp", &file, "copied"]).ok();
    let changes = podman.run(&["diff", &ours, &theirs]).ok();
    assert!(changes.contains("A /shared"), "{changes}");
    podman
        .run(&["squash", &theirs, "flat:1"])
        .ok_with_progress();
    podman
        .run(&["export", "-q", "-o", "exported.tar", &theirs])
        .ok();
    podman.run(&["catalog", "build", &theirs]).ok();
    // A name without a store becomes the name in the archive.
    podman.run(&["save", "-q", "-o", "saved.tar", &theirs]).ok();
    home.run(["load", "-q", "-i", "saved.tar"]).ok();
    let loaded = home.json(["inspect", "--json", "localhost/app:1"]);
    assert_eq!(loaded[0]["id"], *other);
    home.run(["rmi", "localhost/app:1"]).ok();
    podman
        .run(&["copy", "-q", &theirs, "docker-archive:copied.tar"])
        .ok();
    home.run(["load", "-q", "-i", "copied.tar"]).ok();
    let loaded = home.json(["inspect", "--json", "localhost/app:1"]);
    assert_eq!(loaded[0]["id"], *other);
    // What names no store is refused.
    let nowhere = format!("containers-storage:[overlay@{}]app:1", home.text("nowhere"));
    podman
        .run(&["inspect", &nowhere])
        .failed(1, &["cannot open the store of", "nowhere"]);
    let no_store = format!("containers-storage:[{}]app:1", home.text("base"));
    let failed = podman.run(&["inspect", &no_store]);
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(
        failed.stderr.contains("is not an image store"),
        "{failed:?}"
    );
    for (text, word) in [
        ("containers-storage:[/x", "bracket"),
        ("containers-storage:[x]app", "absolute"),
        ("containers-storage:[/x]", "name of the image is missing"),
    ] {
        podman.run(&["inspect", text]).failed(2, &[word]);
    }
    let root = home.text("store");
    podman
        .run(&["--root", &root, "inspect", &theirs])
        .failed(2, &["leave one of them out"]);
}

/// Moves the records of a container and its layer into the run root, where podman since 4.4 keeps those
/// of a transient store.
fn make_transient(podman: &Podman, layer: &str) {
    let home = &podman.home;
    for (kind, key) in [("layers", "id"), ("containers", "layer")] {
        let file = format!("overlay-{kind}/{kind}.json");
        let records: Vec<Value> =
            serde_json::from_slice(&fs::read(home.path("store").join(&file)).unwrap()).unwrap();
        let (moved, kept): (Vec<Value>, Vec<Value>) =
            records.into_iter().partition(|record| record[key] == layer);
        assert_eq!(moved.len(), 1, "{kind}");
        fs::write(home.path("store").join(&file), json!(kept).to_string()).unwrap();
        let run = home.path("store-run").join(format!("overlay-{kind}"));
        fs::create_dir_all(&run).unwrap();
        let file = run.join(format!("volatile-{kind}.json"));
        fs::write(file, json!(moved).to_string()).unwrap();
    }
}

/// The containers of a transient store are recorded in the run root.
#[test]
fn containers_of_a_transient_store_are_found() {
    let podman = need!(Podman::start("overlay"));
    let home = &podman.home;
    // The podman of Debian 12 has no transient stores: what it records is moved.
    let option = if podman.shell("podman --help").contains("--transient-store") {
        "--transient-store"
    } else {
        ""
    };
    let id = podman.shell(&format!(
        "podman {option} create --name web localhost/app:1 /busybox
        m=$(podman {option} mount web); rm -r $m/dir; echo new > $m/new; cp -a $m shown
        podman {option} umount web >/dev/null"
    ));
    let id = id.lines().next().unwrap();
    if option.is_empty() {
        let layer = podman
            .shell("podman inspect --type container --format '{{.GraphDriver.Data.UpperDir}}' web");
        let layer = layer.trim().strip_suffix("/diff").unwrap();
        make_transient(&podman, layer.rsplit_once('/').unwrap().1);
    }
    let lists = ["layers", "containers"];
    let list = |kind: &str| format!("store-run/overlay-{kind}/volatile-{kind}.json");
    assert!(lists.iter().all(|kind| home.path(&list(kind)).exists()));
    let shown = podman.tree("shown");
    let (root, run_root) = (home.text("store"), home.text("store-run"));
    // The run root is that of storage.conf, also if the store is named.
    for options in [&[][..], &["--root", &root], &["--runroot", &run_root]] {
        for sandbox in ["auto", "off"] {
            let sandbox = format!("sandbox={sandbox}");
            let mount = ["mount", "-r", "-o", &sandbox, "--container", "web", "mnt"];
            podman.run(&[options, &mount].concat()).ok();
            assert_eq!(podman.tree("mnt"), shown, "{options:?} {sandbox}");
            home.run(["umount", "mnt"]).ok();
        }
    }
    let expected = "A /new\nD /dir\n";
    assert_eq!(lines(&podman.run(&["diff", id]).ok()), lines(expected));
    podman.run(&["export", "-q", "-o", "ours.tar", "web"]).ok();
    podman.shell("mkdir ours; tar -C ours -xf ours.tar");
    assert_eq!(podman.tree("ours"), shown);
    assert_eq!(podman.run(&["cat", "web:/new"]).ok(), "new\n");
    podman.run(&["commit", "-q", "web", "made:1"]).ok();
    home.run(["mount", "-r", "made:1", "mnt"]).ok();
    assert_eq!(podman.tree("mnt"), shown);
    home.run(["umount", "mnt"]).ok();
    // Images are those of other stores.
    podman.run(&["images"]).ok();
    podman
        .run(&["verify", "localhost/app:1"])
        .ok_with_progress();
    // A store that no storage.conf names has the run root that the user names.
    let elsewhere = |args: &[&str]| {
        let mut command = home.command(testkit::program());
        command.env("CONTAINERS_STORAGE_CONF", home.path("none.conf"));
        let args = [&["--root", &root][..], args].concat();
        Outcome::from(command.args(args).output().unwrap())
    };
    elsewhere(&["diff", "web"]).failed(1, &["no container", "web"]);
    let named = elsewhere(&["--runroot", &run_root, "diff", "web"]).ok();
    assert_eq!(lines(&named), lines(expected));
    // Damage is named, and does not concern images.
    for kind in lists {
        let file = home.path(&list(kind));
        let good = fs::read(&file).unwrap();
        fs::write(&file, "[").unwrap();
        let failed = elsewhere(&["--runroot", &run_root, "diff", "web"]);
        failed.failed(1, &[&format!("volatile-{kind}.json"), "line 1"]);
        podman.run(&["inspect", "localhost/app:1"]).ok();
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &file).unwrap();
        let failed = podman.run(&["diff", "web"]);
        assert!(failed.stderr.contains("symlink"), "{failed:?}");
        fs::remove_file(&file).unwrap();
        fs::write(&file, good).unwrap();
    }
    // Nothing is taken from a run root of another user.
    std::os::unix::fs::chown(home.path("store-run"), Some(12345), None).unwrap();
    let failed = podman.run(&["diff", "web"]);
    assert!(
        failed.stderr.contains("belongs to user 12345"),
        "{failed:?}"
    );
    assert!(failed.stderr.contains("no container"), "{failed:?}");
    std::os::unix::fs::chown(home.path("store-run"), Some(0), None).unwrap();
}

#[test]
fn a_storage_conf_that_is_damaged_is_named_and_passed_over() {
    let podman = need!(Podman::start("overlay"));
    fs::write(podman.home.path("storage.conf"), "[storage\n").unwrap();
    podman.home.dirs(&["base2"]);
    podman.home.run(["import", "-q", "base", "own:1"]).ok();
    let listed = podman.run(&["images"]);
    assert_eq!(listed.code, Some(0), "{listed:?}");
    assert!(listed.stdout.contains("own"), "{listed:?}");
    assert!(listed.stderr.contains("storage.conf"), "{listed:?}");
}

/// Rewrites what podman recorded as CRI-O records it (internal/storage/runtime.go): names of pods, its own
/// metadata, names of layers, and volatile lists.
fn make_crio(podman: &Podman) {
    let store = podman.home.path("store");
    let read = |file: &str| -> Vec<Value> {
        serde_json::from_slice(&fs::read(store.join(file)).unwrap()).unwrap()
    };
    let write = |file: &str, records: Value| {
        fs::write(store.join(file), records.to_string()).unwrap();
    };
    let mut containers = read("overlay-containers/containers.json");
    let pod = containers
        .iter()
        .find(|c| c["names"][0] == "infra")
        .unwrap()["id"]
        .clone();
    let mut layers = read("overlay-layers/layers.json");
    let mut of_containers = Vec::new();
    for container in &mut containers {
        let is_pod = container["id"] == pod;
        let (name, pod_name) = (
            if is_pod { "POD" } else { "app" },
            "k8s_web_default_1f-2e_0",
        );
        let full = format!("k8s_{name}_web_default_1f-2e_0");
        container["names"] = if is_pod {
            json!([full, pod_name])
        } else {
            json!([full])
        };
        container["metadata"] = json!(
            json!({
                "pod-name": pod_name, "pod-id": pod, "image-name": "localhost/app:1", "name": full,
                "image-id": container["image"], "metadata-name": name, "uid": "1f-2e",
                "namespace": "default", "created-at": 1_700_000_000, "pod": is_pod,
            })
            .to_string()
        );
        let at = layers
            .iter()
            .position(|layer| layer["id"] == container["layer"]);
        let mut layer = layers.remove(at.unwrap());
        layer["names"] = json!([format!("{full}-layer")]);
        of_containers.push(layer);
    }
    write("overlay-containers/containers.json", json!([]));
    write(
        "overlay-containers/volatile-containers.json",
        json!(containers),
    );
    write("overlay-layers/layers.json", json!(layers));
    write("overlay-layers/volatile-layers.json", json!(of_containers));
    // An image that was pulled by its digest has that name too.
    let mut images = read("overlay-images/images.json");
    for image in &mut images {
        let named = format!(
            "registry.example.org/app@sha256:{}",
            image["id"].as_str().unwrap()
        );
        image["names"].as_array_mut().unwrap().push(json!(named));
    }
    write("overlay-images/images.json", json!(images));
}

#[test]
fn containers_and_images_of_crio_are_found() {
    let podman = need!(Podman::start("overlay"));
    let home = &podman.home;
    let ids = podman.shell(
        "podman create --name infra localhost/base:1 /busybox
        podman create --name app localhost/app:1 /busybox
        m=$(podman mount app); rm -r $m/dir; echo new > $m/new; cp -a $m shown
        podman umount app >/dev/null
        m=$(podman mount infra); cp -a $m paused; podman umount infra >/dev/null
        podman inspect --format '{{.Id}}' localhost/app:1",
    );
    let ids: Vec<&str> = ids.lines().collect();
    let (infra, app, image) = (ids[0], ids[1], *ids.last().unwrap());
    make_crio(&podman);
    for (names, tree) in [
        (["k8s_app_web_default_1f-2e_0", app, &app[..13]], "shown"),
        (
            [
                "k8s_POD_web_default_1f-2e_0",
                "k8s_web_default_1f-2e_0",
                infra,
            ],
            "paused",
        ),
    ] {
        for name in names {
            podman
                .run(&["mount", "-r", "--container", name, "mnt"])
                .ok();
            assert_eq!(podman.tree("mnt"), podman.tree(tree), "{name}");
            home.run(["umount", "mnt"]).ok();
        }
    }
    let changes = podman.run(&["diff", "k8s_app_web_default_1f-2e_0"]).ok();
    assert_eq!(lines(&changes), lines("A /new\nD /dir\n"));
    assert_eq!(podman.run(&["diff", infra]).ok(), "");
    podman.run(&["commit", "-q", app, "made:1"]).ok();
    home.run(["mount", "-r", "made:1", "mnt"]).ok();
    assert_eq!(podman.tree("mnt"), podman.tree("shown"));
    home.run(["umount", "mnt"]).ok();
    let by_digest = format!("registry.example.org/app@sha256:{image}");
    for name in ["localhost/app:1", "app:1", &by_digest] {
        let found = podman.run(&["inspect", "--format", "{{.Id}}", name]).ok();
        assert_eq!(found.trim(), format!("sha256:{image}"), "{name}");
    }
    assert!(podman.run(&["images"]).ok().contains("podman"));
}
