//! Changes of mounts without a name, mounts without a mountpoint, unmounting by name, and the
//! stores that `--root` and `--store` name.

use std::path::PathBuf;

use serde_json::{Value, json};
use testkit::home::Home;
use testkit::need;
use testkit::need::can_mount;
use testkit::store::sample;

use crate::own_store::home;

/// Mounts `image` without a name, makes a change, unmounts, and returns the ID of the changes.
fn change(home: &Home, image: &str) -> String {
    let said = home.run(["mount", image, "mnt"]).ok();
    std::fs::write(home.path("mnt/new"), "new").unwrap();
    let mounted = home.json(["ps", "--json"]);
    let id = mounted[0]["changes"].as_str().unwrap().to_owned();
    assert!(said.contains(&id), "{said}");
    home.run(["umount", "mnt"]).ok();
    id
}

fn stopped(home: &Home) -> Vec<Value> {
    let rows = home.json(["ps", "-a", "--json"]);
    let rows = rows.as_array().unwrap().iter();
    rows.filter(|row| row["state"] == "stopped")
        .cloned()
        .collect()
}

#[test]
fn changes_without_a_name_are_listed_compared_committed_and_removed() {
    need!(can_mount());
    let home = home();
    let id = change(&home, "one:1");
    let rows = stopped(&home);
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!(
        (rows[0]["changes"].as_str(), &rows[0]["image"]),
        (Some(&*id), &json!("one:1"))
    );
    assert!(home.run(["ps", "-a"]).ok().contains(&id[..12]));
    let df = home.json(["df", "--json"]);
    assert_eq!(df["unnamed"][0]["id"], json!(id));
    assert!(df["read_write"].as_u64().unwrap() > 0);
    assert!(home.run(["df"]).ok().contains(&id[..12]));
    let path = df["unnamed"][0]["path"].as_str().unwrap();
    for name in [&id[..6], &id, &format!("rw/{id}"), path] {
        assert_eq!(home.run(["diff", name]).ok(), "A /new\n", "{name}");
    }
    assert_eq!(home.run(["cat", &id[..8], "/new"]).ok(), "new");
    let lines = home.run(["diff", "one:1", &id]).ok();
    assert!(lines.starts_with("A /new  3B\n"), "{lines}");
    home.run(["commit", "-q", &id[..8], "made:1"]).ok();
    assert_eq!(home.run(["cat", "made:1:/new"]).ok(), "new");
    // They can be mounted again, also to write to them.
    home.run(["mount", "--container", &id, "--in-place", "mnt"])
        .ok();
    assert_eq!(std::fs::read(home.path("mnt/new")).unwrap(), b"new");
    home.run(["rm", &id]).failed(1, &["in use", "mounted"]);
    assert_eq!(
        home.json(["prune", "--changes", "-n", "--json"])["items"],
        json!([])
    );
    home.run(["umount", &id[..8]]).ok();
    assert_eq!(home.run(["rm", &id[..8]]).ok(), format!("{id}\n"));
    assert_eq!(stopped(&home), Vec::<Value>::new());
    home.run(["diff", &id]).failed(1, &[&id]);
    home.run(["rm", &id]).failed(1, &[&id, "ps -a"]);
}

#[test]
fn prune_removes_changes_only_on_demand() {
    need!(can_mount());
    let home = home();
    let (one, two) = (change(&home, "one:1"), change(&home, "two:1"));
    // A mounted one stays.
    home.run(["mount", "one:1", "mnt"]).ok();
    let report = home.json(["prune", "--json"]);
    assert_eq!(report["items"], json!([]));
    assert_eq!(stopped(&home).len(), 2);
    // What stays is said, with the option that removes it; the mounted one is not counted.
    assert_eq!(report["kept_changes"]["count"], 2);
    assert!(report["kept_changes"]["bytes"].as_u64() > Some(0));
    for args in [
        &["prune"][..],
        &["prune", "-n", "--all"],
        &["system", "prune", "-n"],
        &["image", "prune"],
    ] {
        let said = home.run(args).ok();
        let line = said.lines().last().unwrap();
        assert!(
            line.contains("2 mounts without a name stay") && line.contains("prune --changes"),
            "{said}"
        );
    }
    let items = |args: &[&str]| {
        let report = home.json(args);
        let items = report["items"].as_array().unwrap().iter();
        let mut ids: Vec<String> = items
            .map(|item| {
                assert_eq!(item["kind"], "changes");
                let path = PathBuf::from(item["path"].as_str().unwrap());
                path.file_name().unwrap().to_str().unwrap().to_owned()
            })
            .collect();
        ids.sort();
        ids
    };
    let mut both = vec![one, two];
    both.sort();
    assert_eq!(items(&["prune", "--changes", "-n", "--json"]), both);
    assert_eq!(stopped(&home).len(), 2);
    assert_eq!(items(&["prune", "--changes", "--json"]), both);
    assert_eq!(home.run(["prune"]).ok(), "0B reclaimed\n");
    assert_eq!(stopped(&home).len(), 0);
    assert_eq!(std::fs::read(home.path("mnt/base")).unwrap(), b"base");
    home.run(["umount", "mnt"]).ok();
}

/// The directory of a mount that is just beginning is locked, and has no record yet.
#[test]
fn changes_of_a_mount_that_begins_are_not_removed() {
    need!(can_mount());
    let home = home();
    let id = change(&home, "one:1");
    let dir = std::fs::File::open(home.path("own/rw").join(&id)).unwrap();
    rustix::fs::flock(&dir, rustix::fs::FlockOperation::LockShared).unwrap();
    assert_eq!(
        home.json(["prune", "--changes", "--json"])["items"],
        json!([])
    );
    home.run(["rm", &id]).failed(1, &[&id, "being mounted"]);
    assert_eq!(home.run(["diff", &id]).ok(), "A /new\n");
    drop(dir);
    home.run(["rm", &id]).ok();
    // Then the mount has locks of its own.
    let said = home.run(["mount", "one:1", "mnt"]).ok();
    let id = said.rsplit('/').nth(1).unwrap();
    home.run(["rm", id])
        .failed(1, &["mounted, unmount it first"]);
    home.run(["umount", "mnt"]).ok();
}

/// The image may be in a store that is only read, and there may be no store of ours at all.
#[test]
fn changes_to_an_image_of_another_store_are_found_without_a_store_of_ours() {
    need!(can_mount());
    let home = Home::new();
    home.dirs(&["mnt"]);
    let docker = home.path("docker");
    sample::make(&docker).unwrap();
    let docker = docker.to_str().unwrap();
    let with = |args: &[&str]| home.run([&["--root", docker], args].concat());
    with(&["mount", "sample:1", "mnt"]).ok();
    std::fs::write(home.path("mnt/new"), "new").unwrap();
    home.run(["umount", "mnt"]).ok();
    let rows = stopped(&home);
    let id = rows[0]["changes"].as_str().unwrap();
    assert_eq!(home.run(["diff", id]).ok(), "A /new\n");
    let said = home.run(["prune"]).ok();
    assert!(said.contains("1 mount without a name stay"), "{said}");
    home.run(["commit", "-q", id, "ours:1"]).ok_with_progress();
    assert_eq!(home.run(["cat", "ours:1:/new"]).ok(), "new");
    assert_eq!(home.run(["rm", id]).ok(), format!("{id}\n"));
}

#[test]
fn a_mountpoint_is_made_printed_and_removed() {
    need!(can_mount());
    let home = home();
    for (args, name) in [
        (&["mount", "one:1"][..], "one:1"),
        (&["mount", "-r", "one:1"], "one:1"),
    ] {
        let said = home.run(args).ok();
        let mountpoint = PathBuf::from(said.strip_suffix('\n').unwrap());
        assert!(mountpoint.starts_with(home.path("run/mnt")), "{said}");
        assert_eq!(std::fs::read(mountpoint.join("base")).unwrap(), b"base");
        home.run(["umount", name]).ok();
        assert!(!mountpoint.exists());
    }
    // A named layer, made with a mountpoint.
    home.run(["mount", "--name", "work", "one:1", "mnt"]).ok();
    home.run(["umount", "work"]).ok();
    assert!(home.path("mnt").exists(), "it was not made by mount");
    let said = home.run(["mount", "--name", "work"]).ok();
    assert!(said.contains("/run/mnt/work-"), "{said}");
    home.run(["umount", "work"]).ok();
    // Nothing stays of a mount that fails.
    home.run(["mount", "none:1"]).failed(1, &["none:1"]);
    assert_eq!(std::fs::read_dir(home.path("run/mnt")).unwrap().count(), 0);
    home.run(["mount"]).failed(2, &["IMAGE is missing"]);
}

#[test]
fn umount_takes_a_name_that_one_mount_has() {
    need!(can_mount());
    let home = home();
    home.dirs(&["two"]);
    home.run(["mount", "-r", "one:1", "mnt"]).ok();
    home.run(["mount", "-r", "one:1", "two"]).ok();
    home.run(["umount", "one:1"])
        .failed(1, &["several mounts", "/mnt", "/two"]);
    home.run(["umount", "two"]).ok();
    home.run(["umount", "docker.io/library/one:1"]).ok();
    home.run(["umount", "one:1"]).failed(1, &["one:1"]);
    assert_eq!(home.mounts(), Vec::<String>::new());
}

#[test]
fn root_is_where_to_look_and_store_where_to_write() {
    need!(can_mount());
    let home = Home::new();
    home.dirs(&["mnt"]);
    sample::make(&home.path("docker")).unwrap();
    home.run([
        "--store", "mine", "--root", "docker", "squash", "-q", "sample:1", "flat:1",
    ])
    .ok();
    let names = |args: &[&str]| {
        let images = home.json([args, &["images", "--json"]].concat());
        let images = images.as_array().unwrap().iter();
        let names = images.flat_map(|image| image["names"].as_array().unwrap().clone());
        let names = names.map(|name| name.as_str().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    assert_eq!(names(&["--root", "mine"]), ["flat:1"]);
    // It is also the own store, in which is searched.
    assert!(names(&["--store", "mine"]).contains(&"flat:1".to_owned()));
    // Without --store the own store is written to, since that of --root is only read.
    home.run(["--root", "docker", "squash", "-q", "sample:1", "flat:2"])
        .ok();
    assert_eq!(names(&["--root", "own"]), ["flat:2"]);
    home.run(["--store", "mine", "tag", "flat:1", "flat:3"])
        .ok();
    assert_eq!(names(&["--root", "mine"]), ["flat:1", "flat:3"]);
    home.run(["--store", "mine", "mount", "-r", "flat:3", "mnt"])
        .ok();
    home.run(["umount", "mnt"]).ok();
    // What only writes does not take --root, also not for a store of ours.
    home.dirs(&["rootfs"]);
    for args in [
        &["import", "rootfs", "made:1"][..],
        &["load", "-i", "none.tar"],
        &["pull", "none:1"],
        &["tag", "flat:1", "made:1"],
        &["rmi", "flat:1"],
        &["rm", "none"],
        &["prune"],
    ] {
        home.run([&["--root", "mine"], args].concat())
            .failed(2, &["--store mine", args[0]]);
    }
    assert_eq!(names(&["--root", "mine"]), ["flat:1", "flat:3"]);
    // An image of a store of ours below --root is not written there either.
    home.run(["--root", "mine", "squash", "-q", "flat:1", "flat:4"])
        .ok();
    assert_eq!(names(&["--root", "mine"]), ["flat:1", "flat:3"]);
    assert_eq!(names(&["--root", "own"]), ["flat:2", "flat:4"]);
    // The variable of --store, and its older name.
    let with = |name: &str, store: &str| {
        let mut command = home.command(testkit::program());
        command.env(name, home.path(store));
        let run = command
            .args(["images", "-q", "--no-trunc", "flat:3"])
            .output();
        String::from_utf8(run.unwrap().stdout).unwrap()
    };
    assert_eq!(with("UNIONFS_STORE", "mine").lines().count(), 1);
    assert_eq!(with("UNIONFS_ROOT", "mine").lines().count(), 1);
    assert_eq!(with("UNIONFS_STORE", "own"), "");
}
