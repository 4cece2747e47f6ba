//! Docker's stores of the drivers btrfs and zfs. dockerd writes the first on a btrfs; bind mounts
//! replace the datasets of zfs here. Their images and containers mount with the same content that
//! Docker itself shows.

use std::fs;
use std::path::PathBuf;

use rustix::mount::{UnmountFlags, mount_bind, unmount};
use testkit::disk::Disk;
use testkit::home::Home;
use testkit::need;
use testkit::need::{Needed, can_mount, has_tools};

use crate::engines::{shell, with_dockerd_on};

/// A home with Docker's store in `disk/docker`: `app:2` on `app:1`, and the container `box`.
struct Store {
    home: Home,
    /// Unmounted before the home is removed.
    _disk: Disk,
    /// The mounts that the test made.
    mounted: Vec<PathBuf>,
}

impl Store {
    fn make() -> Needed<Self> {
        can_mount()?;
        has_tools(&["dockerd", "mkfs.btrfs"])?;
        let home = Home::new();
        home.dirs(&["mnt", "answers", "base/etc", "base/dir"]);
        fs::write(home.path("base/etc/one"), "one").unwrap();
        fs::write(home.path("base/dir/in"), "in").unwrap();
        let disk = Disk::made_with("btrfs", &home.path(""), "disk", 256, &[]).unwrap();
        home.dirs(&["disk/docker"]);
        with_dockerd_on(
            "btrfs",
            &home,
            "disk/docker",
            "tar -C ../base -c . | docker import - app:1
            docker create --name change app:1 /x; mkdir new; echo two > new/two
            docker cp new change:/; docker cp new/two change:/etc/one
            docker commit change app:2; docker rm change
            docker create --name box app:2 /x; docker cp new/two box:/boxed
            docker export box > box.tar",
        );
        let mounted = Vec::new();
        Ok(Self {
            home,
            _disk: disk,
            mounted,
        })
    }

    fn run(&self, args: &[&str]) -> testkit::home::Outcome {
        let root = self.home.text("disk/docker");
        self.home.run([&["--root", &root], args].concat())
    }

    fn tree(&self, dir: &str) -> String {
        let script = format!(
            "cd {dir}; find . -printf '%p %y %m %U:%G %T@\\n' | sort; find . -type f | sort | xargs cat"
        );
        shell(&self.home, &script)
    }

    /// Mounts everything and compares it with what Docker shows.
    fn check(&self, driver: &str, trees: &str) {
        let about = self.run(&["inspect", "--json", "app:2"]).ok();
        let about: serde_json::Value = serde_json::from_str(&about).unwrap();
        let about = &about[0];
        assert_eq!(about["driver"], driver);
        let top = about["layers"][1]["cache_id"].as_str().unwrap();
        let truth = self.tree(&format!("disk/docker/{trees}/{top}"));
        for how in ["-r", "--ephemeral"] {
            self.run(&["mount", how, "app:2", "mnt"]).ok();
            assert_eq!(self.tree("mnt"), truth, "{driver} {how}");
            assert!(truth.contains("./new/two"));
            self.home.run(["umount", "mnt"]).ok();
        }
        let verified = self.run(&["verify", "app:2"]);
        assert_eq!(verified.code, Some(0), "{verified:?}");
        self.run(&["save", "-q", "-o", "saved.tar", "app:2"]).ok();
        self.home.run(["load", "-q", "-i", "saved.tar"]).ok();
        self.home.run(["mount", "-r", "app:2", "mnt"]).ok();
        let loaded = shell(&self.home, "cd mnt; find . -type f | sort | xargs cat");
        assert!(loaded.contains("two"), "{loaded}");
        self.home.run(["umount", "mnt"]).ok();
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        for path in self.mounted.iter().rev() {
            let _ = unmount(path, UnmountFlags::DETACH);
        }
    }
}

#[test]
fn a_store_of_btrfs_is_read_and_one_of_zfs_where_its_datasets_are_mounted() {
    let mut store = need!(Store::make());
    store.check("btrfs", "btrfs/subvolumes");
    let home = &store.home;
    home.run([
        "mount",
        "--root",
        &home.text("disk/docker"),
        "-r",
        "--container",
        "box",
        "mnt",
    ])
    .ok();
    assert_eq!(fs::read_to_string(home.path("mnt/boxed")).unwrap(), "two\n");
    shell(
        home,
        "mkdir exported; tar -C exported -xf answers/box.tar; cd mnt; find . | sort > ../ours
        cd ../exported; find . | sort | diff ../ours -",
    );
    home.run(["umount", "mnt"]).ok();
    // The same store in the form of zfs.
    shell(
        home,
        "cd disk/docker; mv image/btrfs image/zfs; mkdir -p zfs; mv btrfs/subvolumes zfs/graph; rmdir btrfs",
    );
    let layers = home.path("disk/docker/zfs/graph");
    let layers: Vec<PathBuf> = fs::read_dir(layers)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    store
        .run(&["mount", "-r", "app:2", "mnt"])
        .failed(1, &["zfs/graph", "not mounted"]);
    for layer in layers {
        mount_bind(&layer, &layer).unwrap();
        store.mounted.push(layer);
    }
    store.check("zfs", "zfs/graph");
}
