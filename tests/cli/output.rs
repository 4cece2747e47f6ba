//! The output of the commands on the sample store: tables for people, JSON for programs. Also
//! images mounted by name, with every place for changes.

use std::path::PathBuf;

use serde_json::Value;
use testkit::home::{Home, Outcome};
use testkit::need::{Needed, can_mount};
use testkit::store::sample::{self, Sample};
use testkit::{need, program};

/// A home with the sample store in `store`.
struct Shop {
    home: Home,
    root: String,
    sample: Sample,
}

/// Returns the home. Only root can make the device nodes of its layers.
fn shop() -> Needed<Shop> {
    can_mount()?;
    let home = Home::new();
    home.dirs(&["mnt"]);
    let sample = sample::make(&home.path("store")).unwrap();
    let root = home.text("store");
    Ok(Shop { home, root, sample })
}

impl Shop {
    fn run(&self, args: &[&str]) -> Outcome {
        self.home.run([&["--root", &self.root], args].concat())
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.run(args).ok()).unwrap()
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.home.path("mnt").join(name)).unwrap()
    }

    fn umount(&self) {
        self.home.run(["umount", "mnt"]).ok();
    }

    /// Returns the read-write layers in our own store.
    fn kept(&self) -> Vec<PathBuf> {
        let rw = std::fs::read_dir(self.home.path("own/rw"))
            .into_iter()
            .flatten();
        rw.map(|entry| entry.unwrap().path()).collect()
    }
}

fn strings(value: &Value) -> Vec<&str> {
    let list = value.as_array().unwrap();
    list.iter().map(|v| v.as_str().unwrap()).collect()
}

#[test]
fn images() {
    let shop = need!(shop());
    let rows = shop.json(&["images", "--json"]);
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), shop.sample.images.len());
    for (name, id) in &shop.sample.images {
        let row = rows.iter().find(|row| row["id"] == **id).unwrap();
        assert!(strings(&row["names"]).contains(&name.as_str()));
        assert_eq!(row["layers"], 3);
        assert!(row["size"].as_u64().unwrap() > row["unshared"].as_u64().unwrap());
        assert_eq!(row["root"], *shop.root);
        assert_eq!(row["driver"], "overlay2");
    }
    let table = shop.run(&["images"]).ok();
    let mut lines = table.lines();
    assert!(lines.next().unwrap().starts_with("NAME"));
    for (name, id) in &shop.sample.images {
        let short = &id["sha256:".len()..][..12];
        assert!(table.contains(name) && table.contains(short), "{table}");
    }
    // The option works after the command as well as before it.
    let behind = shop.home.run(["images", "--root", &shop.root]).ok();
    assert_eq!(behind, table);
}

#[test]
fn inspect_and_history() {
    let shop = need!(shop());
    let (_, id) = &shop.sample.images[1];
    let image = shop.json(&["inspect", "--json", "sample:2"])[0].clone();
    assert_eq!(image["id"], **id);
    assert_eq!(strings(&image["names"]), ["sample:2"]);
    assert_eq!(image["layers"].as_array().unwrap().len(), 3);
    assert_eq!(image["layers"][0]["parent"], Value::Null);
    let text = shop.run(&["inspect", &id[..20]]).ok();
    assert!(
        text.contains(id.as_str()) && text.contains("Layer 3:"),
        "{text}"
    );

    let rows = shop.json(&["history", "--json", "sample:2"]);
    let rows = rows.as_array().unwrap();
    let layers = rows
        .iter()
        .filter(|row| row["chain_id"].is_string())
        .count();
    assert_eq!(layers, 3);
    let table = shop.run(&["history", "sample:2"]).ok();
    assert_eq!(table.lines().count(), rows.len() + 1);
}

#[test]
fn layers() {
    let shop = need!(shop());
    let nodes = shop.json(&["layers", "--json"]);
    let nodes = nodes.as_array().unwrap();
    // Two images of three layers each share two.
    assert_eq!(nodes.len(), 4);
    let sharing: Vec<u64> = nodes
        .iter()
        .map(|n| n["shared_by"].as_u64().unwrap())
        .collect();
    assert_eq!(sharing, [2, 2, 1, 1]);
    let table = shop.run(&["layers"]).ok();
    assert!(table.contains("├─") && table.contains("└─"), "{table}");
    let one = shop.json(&["layers", "--json", "sample:2"]);
    assert_eq!(one.as_array().unwrap().len(), 3);
}

#[test]
fn what_is_not_there() {
    let shop = need!(shop());
    for command in ["inspect", "history", "layers"] {
        shop.run(&[command, "absent:9"])
            .failed(1, &["absent:9", "unionfs images"]);
    }
    let before = shop.home.snapshot();
    shop.run(&["mount", "absent:9", "mnt"])
        .failed(1, &["absent:9"]);
    shop.run(&["mount", "--container", "absent", "mnt"])
        .failed(1, &["absent"]);
    shop.run(&["mount", "UPPER CASE", "mnt"])
        .failed(1, &["invalid image reference"]);
    assert_eq!(shop.home.snapshot(), before);
}

#[test]
fn damage_is_reported_and_hides_nothing_else() {
    let shop = need!(shop());
    let (_, id) = &shop.sample.images[0];
    let hex = id.strip_prefix("sha256:").unwrap();
    let config = shop
        .home
        .path("store/image/overlay2/imagedb/content/sha256")
        .join(hex);
    std::fs::write(config, "{}").unwrap();
    let outcome = shop.run(&["images"]);
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stdout.contains("sample:2") && !outcome.stdout.contains("sample:1"));
    assert!(outcome.stderr.contains(hex), "{outcome:?}");
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let shop = need!(shop());
    let script = format!(
        "{} --root {} inspect sample:2 | true; exit ${{PIPESTATUS[0]}}",
        program(),
        shop.root
    );
    let output = shop
        .home
        .command("bash")
        .args(["-c", &script])
        .output()
        .unwrap();
    assert_eq!(Outcome::from(output).ok(), "");
}

#[test]
fn a_mounted_image_keeps_changes_and_tells_where() {
    let shop = need!(shop());
    let text = shop.run(&["mount", "sample:2", "mnt"]).ok();
    let diff = text
        .strip_prefix("changes are kept in ")
        .unwrap()
        .trim_end();
    assert_eq!(shop.read("etc/os-release"), "NAME=sample\nVERSION_ID=2\n");
    std::fs::write(shop.home.path("mnt/etc/os-release"), "changed").unwrap();
    std::fs::remove_file(shop.home.path("mnt/bin/hello")).unwrap();
    let rows = shop.home.json(["ps", "--json"]);
    assert_eq!(
        (&rows[0]["state"], &rows[0]["image"]),
        (&"live".into(), &"sample:2".into())
    );
    assert_eq!(rows[0]["upper"], *diff);
    let table = shop.home.run(["ps"]).ok();
    assert!(
        table.contains("sample:2") && table.contains(diff),
        "{table}"
    );
    let stats = shop.home.json(["stats", "--json", "mnt"]);
    assert!(stats["requests"]["LOOKUP"].as_u64().unwrap() > 0);
    assert!(stats["union"]["copy_ups"].as_u64().unwrap() > 0);
    assert!(shop.home.run(["stats", "mnt"]).ok().contains("copy-ups"));
    shop.run(&["mount", "sample:1", "mnt"])
        .failed(1, &["mnt", "already", "unionfs umount"]);
    shop.umount();
    let kept = std::fs::read_to_string(PathBuf::from(diff).join("etc/os-release")).unwrap();
    assert_eq!(kept, "changed");
    // The layer is mounted again on the same image.
    let work = diff.replace("/diff", "/work");
    assert_eq!(
        shop.run(&["mount", "sample:2", "mnt", "--upper", diff, "--work", &work])
            .ok(),
        ""
    );
    assert_eq!(shop.read("etc/os-release"), "changed");
    assert!(!shop.home.path("mnt/bin/hello").exists());
    shop.umount();
}

#[test]
fn ephemeral_changes_are_gone() {
    let shop = need!(shop());
    assert_eq!(
        shop.run(&["mount", "--ephemeral", "sample:1", "mnt"]).ok(),
        ""
    );
    assert_eq!(shop.kept().len(), 1);
    std::fs::write(shop.home.path("mnt/new"), "x").unwrap();
    shop.umount();
    assert_eq!(shop.kept(), Vec::<PathBuf>::new());
}

#[test]
fn read_only_makes_nothing() {
    let shop = need!(shop());
    for flags in [&["--read-only"][..], &["-o", "ro"]] {
        assert_eq!(
            shop.run(&[&["mount", "sample:1", "mnt"], flags].concat())
                .ok(),
            ""
        );
        let error = std::fs::write(shop.home.path("mnt/new"), "x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        assert_eq!(shop.read("etc/os-release"), "NAME=sample\nVERSION_ID=1\n");
        shop.umount();
        assert_eq!(shop.kept(), Vec::<PathBuf>::new());
    }
}

#[test]
fn a_failed_mount_takes_its_upper_back() {
    let shop = need!(shop());
    let name = format!("fsname={}", "x".repeat(5000));
    shop.run(&["mount", "sample:1", "mnt", "-o", &name])
        .failed(1, &["mnt"]);
    assert_eq!(shop.kept(), Vec::<PathBuf>::new());
    assert_eq!(shop.home.mounts(), Vec::<String>::new());
}

#[test]
fn containers() {
    let shop = need!(shop());
    let file = "srv/from-the-container";
    let store = shop.home.path("store/overlay2");
    let in_store = || -> usize {
        let layers = std::fs::read_dir(&store).unwrap();
        layers
            .filter(|l| l.as_ref().unwrap().path().join("diff/added").exists())
            .count()
    };
    for name in [shop.sample.container_name.as_str(), &shop.sample.container] {
        shop.run(&["mount", "--container", name, "mnt"]).ok();
        assert_eq!(shop.read(file), "kept\n");
        std::fs::write(shop.home.path("mnt/added"), "").unwrap();
        shop.umount();
        assert_eq!(in_store(), 0, "the store is only read");
    }
    let name = shop.sample.container_name.as_str();
    assert_eq!(
        shop.run(&["mount", "--container", name, "--in-place", "mnt"])
            .ok(),
        ""
    );
    std::fs::write(shop.home.path("mnt/added"), "").unwrap();
    shop.umount();
    assert_eq!(in_store(), 1);
}
