//! The commands that change our own store: names, images and named read-write layers are added and
//! removed, everything in use stays, and leftovers are pruned.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use testkit::home::Home;
use testkit::need;
use testkit::need::can_mount;
use testkit::store::sample;
use unionfs::layer_tar::Limits;
use unionfs::oci::{Digest, Reference};
use unionfs::store::Writable;
use unionfs::store::writable::Exclusive;

/// Commits a layer with a file `name` whose content is its own name.
fn layer(store: &Exclusive<'_>, parent: Option<&Digest>, name: &str) -> Digest {
    let mut staged = store.stage_layer(parent).unwrap();
    let unpacked = staged.unpack(&tar_of(name)[..], &Limits::default());
    let unpacked = unpacked.unwrap();
    staged.commit(unpacked.diff_id, unpacked.size).unwrap()
}

/// Returns a layer tar with one file.
fn tar_of(name: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(name.len() as u64);
    header.set_mode(0o644);
    header.set_uid(rustix::process::getuid().as_raw().into());
    header.set_gid(rustix::process::getgid().as_raw().into());
    tar.append_data(&mut header, name, name.as_bytes()).unwrap();
    tar.into_inner().unwrap()
}

pub(crate) fn image(store: &Exclusive<'_>, names: &[&str], layers: &[&str]) {
    let mut parent = None;
    for name in layers {
        parent = Some(layer(store, parent.as_ref(), name));
    }
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|name| Digest::of(&tar_of(name)).to_string())
        .collect();
    let config = json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let id = store.register_image(config.to_string().as_bytes()).unwrap();
    for name in names {
        store.tag(&Reference::parse(name).unwrap(), &id).unwrap();
    }
}

/// Fills the home's own store: `one:1` and `one:latest` of layers base, middle and top, `two:1` of
/// base and other.
pub(crate) fn fill(root: &Path) {
    let store = Writable::open(root).unwrap();
    let store = store.lock().unwrap();
    image(&store, &["one:1", "one"], &["base", "middle", "top"]);
    image(&store, &["two:1"], &["base", "other"]);
}

pub(crate) fn home() -> Home {
    let home = Home::new();
    home.dirs(&["mnt"]);
    fill(&home.path("own"));
    home
}

/// Returns how many layer directories and short names there are.
pub(crate) fn counts(home: &Home) -> (usize, usize) {
    let count = |dir: &str| std::fs::read_dir(home.path(dir)).unwrap().count();
    (count("own/overlay2") - 1, count("own/overlay2/l"))
}

#[test]
fn an_import_that_others_cannot_enter_is_warned_of() {
    need!(can_mount());
    let home = Home::new();
    home.dirs(&["rootfs"]);
    let set = |mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(home.path("rootfs"), mode).unwrap();
    };
    set(0o700);
    let tar = home.run_script("tar -C rootfs -cf rootfs.tar .");
    assert_eq!(tar.code, Some(0), "{tar:?}");
    for from in ["rootfs", "rootfs.tar"] {
        let made = home.run(["import", "-q", from, "app:1"]);
        assert_eq!(made.code, Some(0), "{made:?}");
        assert!(made.stderr.contains("/ has mode 0700"), "{made:?}");
    }
    set(0o711);
    home.run(["import", "-q", "rootfs", "app:2"]).ok();
}

#[test]
fn names_come_and_go_and_the_last_takes_the_image_along() {
    let home = home();
    assert_eq!(home.run(["tag", "one:1", "example.org/x/one"]).ok(), "");
    // The name is taken from the image that had it.
    assert_eq!(home.run(["tag", "two:1", "one:1"]).ok(), "");
    assert_eq!(
        home.names(),
        ["example.org/x/one:latest", "one:1", "one:latest", "two:1"]
    );
    assert_eq!(home.run(["rmi", "one:1"]).ok(), "Untagged: one:1\n");
    assert_eq!(counts(&home), (4, 4));
    let id = home.json(["inspect", "--json", "one"])[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    home.run(["rmi", &id[7..19]])
        .failed(1, &["several names", "one:latest", "--force"]);
    home.run(["rmi", "one"]).ok();
    let text = home.run(["rmi", "example.org/x/one"]).ok();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[..2],
        [
            "Untagged: example.org/x/one:latest",
            &format!("Deleted: {id}")
        ]
    );
    // The other image has the layer base too.
    assert_eq!((lines.len(), counts(&home)), (4, (2, 2)));
    assert_eq!(home.names(), ["two:1"]);
    let removed = home.json(["rmi", "--json", "two:1"]);
    assert_eq!(removed[0]["layers"].as_array().unwrap().len(), 2);
    assert_eq!(removed[0]["untagged"], json!(["two:1"]));
    assert_eq!(counts(&home), (0, 0));
    assert_eq!(home.json(["prune", "--json"])["items"], json!([]));
    home.refused(1, ["rmi", "two:1"], &["no image \"two:1\""]);
    home.refused(2, ["tag", "x", &format!("y@{id}")], &["digest"]);
}

#[test]
fn by_id_and_force_an_image_goes_with_all_its_names() {
    let home = home();
    let id = home.json(["inspect", "--json", "one"])[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let text = home.run(["rmi", "-f", &id]).ok();
    assert_eq!(text.lines().count(), 2 + 1 + 2, "{text}");
    // Each argument is handled separately.
    let outcome = home.run(["rmi", "none", "two:1"]);
    assert_eq!(outcome.code, Some(1));
    assert!(
        outcome.stdout.starts_with("Untagged: two:1\n"),
        "{outcome:?}"
    );
    assert!(outcome.stderr.contains("\"none\""), "{outcome:?}");
    assert_eq!(counts(&home), (0, 0));
}

#[test]
fn what_is_not_ours_is_not_touched() {
    let home = Home::new();
    let root = home.text("store");
    home.refused(1, ["rmi", "x"], &["no unionfs store", "own"]);
    home.refused(1, ["rm", "x"], &["no unionfs store"]);
    assert_eq!(home.json(["prune", "--json"])["bytes"], 0);
    assert_eq!(std::fs::read_dir(home.path("own")).unwrap().count(), 0);
    home.dirs(&["store/image/overlay2/imagedb"]);
    for args in [
        &["rmi", "x"][..],
        &["tag", "x", "y"],
        &["rm", "x"],
        &["prune"],
    ] {
        home.refused(
            1,
            [&["--store", &root], args].concat(),
            &["not a store of ours"],
        );
    }
}

#[test]
fn a_named_layer_keeps_its_content_until_it_is_removed() {
    need!(can_mount());
    let home = home();
    home.refused(
        1,
        ["mount", "--name", "work", "mnt"],
        &["no read-write layer \"work\""],
    );
    home.refused(
        1,
        ["mount", "--name", "../x", "one:1", "mnt"],
        &["../x", "letters"],
    );
    assert_eq!(
        home.run(["mount", "--name", "work", "one:1", "mnt"]).ok(),
        ""
    );
    std::fs::write(home.path("mnt/new"), "new").unwrap();
    std::fs::remove_file(home.path("mnt/base")).unwrap();
    home.run(["rm", "work"])
        .failed(1, &["\"work\" is in use", "mounted"]);
    let row = &home.json(["ps", "--json"])[0];
    assert_eq!(
        (&row["state"], &row["name"]),
        (&json!("live"), &json!("work"))
    );
    assert_eq!(row["image"], "one:1");
    home.run(["umount", "mnt"]).ok();

    assert_eq!(home.json(["ps", "--json"]), json!([]));
    let row = &home.json(["ps", "-a", "--json"])[0];
    assert_eq!(
        (&row["state"], &row["name"]),
        (&json!("stopped"), &json!("work"))
    );
    let table = home.run(["ps", "-a"]).ok();
    assert!(
        table.starts_with("NAME") && table.contains("work  -"),
        "{table}"
    );
    home.run(["rmi", "-f", "one", "one:1"])
        .failed_with_output(&["\"work\"", "unionfs rm work"]);
    home.run(["mount", "--name", "work", "two:1", "mnt"])
        .failed(1, &["is on one:1", "not on two:1"]);
    let own = home.json(["df", "--json"]);
    assert_eq!(own["named"][0]["name"], "work");

    // With the image's name, without it, and as a container.
    for args in [
        &["--name", "work", "one:1"][..],
        &["--name", "work"],
        &["--container", "work"],
    ] {
        home.run([&["mount"], args, &["mnt"]].concat()).ok();
        assert_eq!(
            std::fs::read_to_string(home.path("mnt/new")).unwrap(),
            "new"
        );
        assert!(!home.path("mnt/base").exists() && home.path("mnt/top").exists());
        home.run(["umount", "mnt"]).ok();
    }
    assert_eq!(home.run(["rm", "work"]).ok(), "work\n");
    // The changes of the mount of the container, which had no name.
    let rows = home.json(["ps", "-a", "--json"]);
    let changes = rows[0]["changes"].as_str().unwrap();
    home.run(["diff", changes])
        .failed(1, &["it is not recorded which image"]);
    home.run(["rm", changes]).ok();
    assert_eq!(home.json(["ps", "-a", "--json"]), json!([]));
    assert_eq!(counts(&home), (4, 4));
    home.run(["rm", "work"])
        .failed(1, &["no read-write layer \"work\""]);
    assert_eq!(home.json(["prune", "--json"])["items"], json!([]));
}

#[test]
fn a_layer_made_for_a_mount_that_fails_is_gone_again() {
    need!(can_mount());
    let home = home();
    let before = counts(&home);
    // The mountpoint is inside its own lower, which the command detects after the layer was made.
    let layer = home.json(["inspect", "--json", "one"])[0]["layers"][0]["path"]
        .as_str()
        .unwrap()
        .to_owned();
    std::fs::create_dir(Path::new(&layer).join("in")).unwrap();
    let target = format!("{layer}/in");
    home.run(["mount", "--name", "work", "one", &target])
        .failed(1, &["inside lower layer"]);
    assert_eq!(counts(&home), before);
    assert_eq!(home.json(["ps", "-a", "--json"]), json!([]));
    assert_eq!(home.json(["prune", "--json"])["items"], json!([]));
}

#[test]
fn a_named_layer_on_an_image_of_another_store_is_in_ours() {
    need!(can_mount());
    let home = Home::new();
    home.dirs(&["mnt"]);
    sample::make(&home.path("store")).unwrap();
    let root = home.text("store");
    let snapshot = || {
        let all = home.snapshot();
        let lines = all.lines().filter(|line| line.contains("/store/"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let before = snapshot();
    home.run([
        "--root", &root, "mount", "--name", "work", "sample:1", "mnt",
    ])
    .ok();
    std::fs::write(home.path("mnt/new"), "new").unwrap();
    home.run(["umount", "mnt"]).ok();
    // The record of the layer names the image.
    home.run(["mount", "--name", "work", "mnt"]).ok();
    assert_eq!(
        std::fs::read_to_string(home.path("mnt/new")).unwrap(),
        "new"
    );
    assert!(home.path("mnt/bin").exists());
    home.run(["umount", "mnt"]).ok();
    assert_eq!(home.json(["prune", "--json"])["items"], json!([]));
    home.run(["rm", "work"]).ok();
    assert_eq!(counts(&home), (0, 0));
    assert_eq!(snapshot(), before, "the other store was written to");
}

#[test]
fn layers_of_live_mounts_stay() {
    need!(can_mount());
    let home = home();
    home.run(["mount", "--ephemeral", "two:1", "mnt"]).ok();
    home.run(["rmi", "two:1"])
        .failed(1, &["is mounted on", "unionfs umount"]);
    // Its layers also stay if the image was removed in some other way.
    let images = home.path("own/image/overlay2");
    let id = home.json(["inspect", "--json", "two:1"])[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    std::fs::remove_file(images.join("imagedb/content/sha256").join(&id[7..])).unwrap();
    std::fs::write(images.join("repositories.json"), "{}").unwrap();
    assert_eq!(home.json(["prune", "--json"])["items"], json!([]));
    assert_eq!(
        std::fs::read_to_string(home.path("mnt/other")).unwrap(),
        "other"
    );
    home.run(["umount", "mnt"]).ok();
    let report = home.json(["prune", "--json"]);
    let layers = report["items"].as_array().unwrap().iter();
    let layers = layers.filter(|item| item["kind"] == "layer").count();
    assert_eq!((layers, counts(&home)), (1, (3, 3)), "{report}");
}

/// Puts one piece of each kind of garbage into the store.
fn litter(own: &Path) -> Vec<(&'static str, PathBuf)> {
    let layerdb = own.join("image/overlay2/layerdb");
    let hex = "ab".repeat(32);
    let dirs = [
        ("layer-directory", own.join("overlay2").join(&hex)),
        (
            "removing",
            layerdb.join(format!("sha256/{hex}-1234-removing")),
        ),
        ("staging", layerdb.join("tmp/write-set-1")),
        (
            "image-metadata",
            own.join("image/overlay2/imagedb/metadata/sha256")
                .join(&hex),
        ),
        ("layer", layerdb.join("sha256").join(&hex)),
    ];
    for (_, dir) in &dirs {
        std::fs::create_dir(dir).unwrap();
        std::fs::write(dir.join("file"), "x").unwrap();
    }
    let short = own.join("overlay2/l/ABCDEFGHIJKLMNOPQRSTUVWXYZ");
    std::os::unix::fs::symlink(format!("../{hex}/diff"), &short).unwrap();
    let record = own.join("unionfs/containers/half");
    let id = Digest::of(b"");
    let text = json!({"id": hex, "mount_id": hex, "image": id, "image_name": "x", "created": 1});
    std::fs::write(&record, text.to_string()).unwrap();
    let mut all = dirs.to_vec();
    all.extend([("short-name", short), ("name-record", record)]);
    all
}

#[test]
fn prune_finds_every_kind_of_leftover_and_nothing_else() {
    let home = home();
    let before = counts(&home);
    let litter = litter(&home.path("own"));
    let sorted = |report: &Value| {
        let items = report["items"].as_array().unwrap().iter();
        let mut found: Vec<(String, PathBuf)> = items
            .map(|i| {
                (
                    i["kind"].as_str().unwrap().into(),
                    i["path"].as_str().unwrap().into(),
                )
            })
            .collect();
        found.sort();
        found
    };
    let mut expected: Vec<_> = litter
        .iter()
        .map(|(k, p)| (k.to_string(), p.clone()))
        .collect();
    expected.sort();
    let snapshot = home.snapshot();
    let report = home.json(["prune", "--dry-run", "--json"]);
    assert_eq!(sorted(&report), expected);
    assert!(report["bytes"].as_u64().unwrap() >= 5 * 4096, "{report}");
    assert_eq!(home.snapshot(), snapshot, "a dry run writes nothing");
    let text = home.run(["prune"]).ok();
    assert!(
        text.contains("directory of no layer") && text.ends_with("reclaimed\n"),
        "{text}"
    );
    for (kind, path) in litter {
        assert!(path.symlink_metadata().is_err(), "{kind}");
    }
    assert_eq!(home.run(["prune"]).ok(), "0B reclaimed\n");
    assert_eq!(counts(&home), before);
    assert_eq!(home.names(), ["one:1", "one:latest", "two:1"]);
}

#[test]
fn a_damaged_image_stops_what_could_take_its_layers_and_can_be_removed_itself() {
    let home = home();
    let id = home.json(["inspect", "--json", "two:1"])[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let content = home
        .path("own/image/overlay2/imagedb/content/sha256")
        .join(&id[7..]);
    std::fs::write(content, "{}").unwrap();
    for args in [&["rmi", "-f", "one:1", "one"][..], &["prune"]] {
        let outcome = home.run(args);
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert!(outcome.stderr.contains("is damaged"), "{outcome:?}");
    }
    assert_eq!(counts(&home), (4, 4));
    home.run(["rmi", "two:1"]).ok();
    home.run(["prune"]).ok();
    assert_eq!(counts(&home), (3, 3));
}

#[test]
fn space_is_told_by_image_shared_and_own() {
    let home = home();
    let report = home.json(["df", "--json"]);
    let two = report["images"].as_array().unwrap().iter();
    let two = two
        .clone()
        .find(|image| image["names"] == json!(["two:1"]))
        .unwrap();
    assert_eq!(
        (&two["size"], &two["shared"], &two["own"]),
        (&json!(9), &json!(4), &json!(5))
    );
    assert_eq!(report["layers"], 4 + 6 + 3 + 5);
    let text = home.run(["df"]).ok();
    assert!(
        text.contains("one:1 one:latest") && text.contains("each once: 18B"),
        "{text}"
    );
}

#[test]
fn commands_at_the_same_time_wait_for_each_other_and_readers_see_whole_images() {
    let home = home();
    std::thread::scope(|scope| {
        let tagging: Vec<_> = (0..8)
            .map(|n| {
                let home = &home;
                scope.spawn(move || home.run(["tag", "one:1", &format!("many:{n}")]))
            })
            .collect();
        let reading = scope.spawn(|| {
            for _ in 0..20 {
                let outcome = home.run(["images", "--json"]);
                assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
            }
        });
        assert_eq!(home.run(["rmi", "two:1"]).code, Some(0));
        for tag in tagging {
            assert_eq!(tag.join().unwrap().code, Some(0));
        }
        reading.join().unwrap();
    });
    assert_eq!(home.names().len(), 2 + 8);
    assert_eq!(counts(&home), (3, 3));
}
