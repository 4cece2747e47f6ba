//! Stores of Docker's driver devicemapper. The tests move the layers of the sample store to the
//! devices of a thin pool made of files.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::plain_user;
use testkit::home::{Home, Outcome};
use testkit::need;
use testkit::need::{Needed, can_mount, has_tools};
use testkit::store::devicemapper::{self, Devices, Options};
use testkit::store::thin_pool::{METADATA_BLOCK, Salt, seal};
use testkit::store::{listing, sample};

const POOL: &str = "dm/devicemapper/devicemapper";
const RECORDS: &str = "dm/devicemapper/metadata";

/// A home with two copies of the sample store: `docker` of the driver overlay2, and `dm`.
struct Bench {
    home: Home,
    devices: Devices,
}

impl Bench {
    fn new() -> Needed<Self> {
        Self::with(Options::default())
    }

    fn with(options: Options) -> Needed<Self> {
        can_mount()?;
        has_tools(&["thin_restore", "mkfs.ext4", "mkfs.xfs"])?;
        let home = Home::new();
        home.dirs(&["mnt"]);
        sample::make(&home.path("docker")).unwrap();
        sample::make(&home.path("dm")).unwrap();
        let devices = devicemapper::convert(&home.path("dm"), options);
        Ok(Self { home, devices })
    }

    /// Runs the program with that store only.
    fn run(&self, args: &[&str]) -> Outcome {
        let root = ["--root", "dm"];
        self.home.run(root.iter().chain(args))
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.run(args).ok()).unwrap()
    }

    /// Returns the listing of a mount, without its root.
    fn seen(&self, root: &str, args: &[&str]) -> listing::Listing {
        let options = [&["--root", root, "mount", "-r"], args, &["mnt"]].concat();
        self.home.run(options).ok_with_progress();
        let mut seen = listing::of_dir(&self.home.path("mnt"));
        self.home.run(["umount", "mnt"]).ok();
        seen.retain(|path, _| !path.is_empty());
        seen
    }

    fn record(&self, image: &str, layer: usize) -> PathBuf {
        let layers = &self.json(&["inspect", "--json", image])[0]["layers"];
        PathBuf::from(layers[layer]["path"].as_str().unwrap())
    }

    /// Asserts that mounting fails with these words and leaves nothing.
    #[track_caller]
    fn refused(&self, words: &[&str]) {
        self.mount_fails("sample:1", words);
        self.assert_nothing_taken();
    }

    /// Asserts that the last line gives the reason; layers may have been taken in before.
    #[track_caller]
    fn mount_fails(&self, image: &str, words: &[&str]) {
        let mut outcome = self.run(&["mount", "-r", image, "mnt"]);
        let last = outcome.stderr.lines().last().unwrap_or_default();
        outcome.stderr = format!("{last}\n");
        outcome.failed(1, words);
    }

    fn change_json(&self, path: &Path, field: &str, value: Value) {
        let mut json: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        json[field] = value;
        fs::write(path, json.to_string()).unwrap();
    }

    /// Changes a block of the metadata; with `salt` its checksum is correct.
    fn change_block(&self, number: u64, salt: Option<Salt>, change: impl FnOnce(&mut [u8])) {
        let path = self.home.path(POOL).join("metadata");
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        let mut block = vec![0; METADATA_BLOCK];
        let at = number * METADATA_BLOCK as u64;
        file.read_exact_at(&mut block, at).unwrap();
        change(&mut block);
        if let Some(salt) = salt {
            seal(&mut block, salt);
        }
        file.write_all_at(&block, at).unwrap();
    }

    /// Asserts that nothing of the image is in our own store.
    fn assert_nothing_taken(&self) {
        for dir in ["imagedb/content/sha256", "layerdb/sha256", "layerdb/tmp"] {
            let path = self.home.path("own/image/overlay2").join(dir);
            let left = fs::read_dir(path).map_or(0, Iterator::count);
            assert_eq!(left, 0, "{dir}");
        }
    }
}

#[test]
fn images_are_what_they_are_with_overlay2() {
    let bench = need!(Bench::new());
    let home = &bench.home;
    for name in ["sample:1", "sample:2"] {
        let expected = bench.seen("docker", &[name]);
        // With a sandbox and without one; the first run takes the image into our own store.
        for options in ["sandbox=strict", "sandbox=off"] {
            let seen = bench.seen("dm", &["-o", options, name]);
            listing::assert_same(name, &seen, &expected);
        }
        let whole = |root: &str| home.json(["--root", root, "inspect", "--json", name])[0].clone();
        let (theirs, ours) = (whole("docker"), whole("dm"));
        for field in ["id", "config", "names", "size"] {
            assert_eq!(ours[field], theirs[field], "{name}: {field}");
        }
        assert_eq!(ours["driver"], "devicemapper");
        for command in ["history", "layers"] {
            let lines = |root: &str| home.run(["--root", root, command, name]).ok();
            assert_eq!(lines("dm"), lines("docker"), "{command}");
        }
    }
    home.run(["verify", "--all"]).ok();
    // Without the pool, the second mount finds the image in our own store.
    fs::remove_dir_all(home.path(POOL)).unwrap();
    let id = bench.json(&["inspect", "--json", "sample:1"])[0]["id"].clone();
    home.run(["mount", "-r", id.as_str().unwrap(), "mnt"]).ok();
    home.run(["umount", "mnt"]).ok();
}

#[test]
fn nothing_of_the_pool_is_read_for_lists() {
    let bench = need!(Bench::new());
    fs::remove_dir_all(bench.home.path(POOL)).unwrap();
    let images = bench.json(&["images", "--json"]);
    assert_eq!(images.as_array().unwrap().len(), 2, "{images}");
    for image in images.as_array().unwrap() {
        assert!(image["size"].as_u64().unwrap() > 0, "{image}");
    }
    for args in [
        &["images"][..],
        &["inspect", "sample:1"],
        &["history", "sample:1"],
        &["layers"],
        &["df"],
    ] {
        bench.run(args).ok();
    }
    bench
        .run(&["mount", "-r", "sample:1", "mnt"])
        .failed(1, &["data", "--pool-data", "is missing"]);
    bench.assert_nothing_taken();
}

#[test]
fn what_is_saved_is_what_came_in() {
    let bench = need!(Bench::new());
    let home = &bench.home;
    for root in ["docker", "dm"] {
        let out = format!("{root}.tar");
        let save = [
            "--root", root, "save", "-q", "-o", &out, "sample:1", "sample:2",
        ];
        home.run(save).ok();
    }
    let same = home.command("cmp").args(["docker.tar", "dm.tar"]).output();
    assert!(same.unwrap().status.success(), "the archives differ");
    let text = bench.run(&["verify", "--all"]);
    // The container of the sample has no device.
    assert!(text.stdout.contains("2 images, 4 layers"), "{text:?}");
    bench.run(&["verify", "sample:1"]).ok();
}

#[test]
fn a_named_layer_on_it_stays() {
    let bench = need!(Bench::new());
    let home = &bench.home;
    let mount = ["mount", "--name", "work", "sample:2", "mnt"];
    let mounted = bench.run(&mount);
    let shown = mounted
        .stderr
        .lines()
        .filter(|line| line.contains(": unpacked, "));
    assert_eq!(shown.count(), 3, "a line for each layer: {mounted:?}");
    mounted.ok_with_progress();
    fs::write(home.path("mnt/srv/new"), "new").unwrap();
    home.run(["umount", "mnt"]).ok();
    fs::remove_dir_all(home.path("dm")).unwrap();
    home.run(["mount", "--name", "work", "mnt"]).ok();
    assert_eq!(fs::read(home.path("mnt/srv/new")).unwrap(), b"new");
    let page = fs::read_to_string(home.path("mnt/srv/index.html")).unwrap();
    assert_eq!(page, "<h1>sample 2</h1>\n");
    home.run(["umount", "mnt"]).ok();
}

#[test]
fn other_places_and_options_of_the_driver() {
    let block = 192 << 10;
    let bench = need!(Bench::with(Options {
        block,
        ..Options::default()
    }));
    let home = &bench.home;
    fs::rename(home.path(POOL), home.path("elsewhere")).unwrap();
    bench.refused(&["data", "--pool-data"]);
    let pool = [
        "--pool-data",
        "elsewhere/data",
        "--pool-metadata",
        "elsewhere/metadata",
    ];
    let mount = [&["mount", "-r"], &pool[..], &["sample:1", "mnt"]].concat();
    let half = bench.run(&["mount", "-r", "--pool-data", "x", "sample:1", "mnt"]);
    assert_eq!(half.code, Some(2), "{half:?}");
    let expected = bench.seen("docker", &["sample:1"]);
    bench.run(&mount).ok_with_progress();
    let mut seen = listing::of_dir(&home.path("mnt"));
    seen.retain(|path, _| !path.is_empty());
    listing::assert_same("sample:1", &seen, &expected);
    home.run(["umount", "mnt"]).ok();
    bench
        .run(&[&["verify"], &pool[..], &["sample:2"]].concat())
        .ok();
    bench
        .run(&[&["save", "-q", "-o", "out.tar"], &pool[..], &["sample:2"]].concat())
        .ok();
    home.command("mkfifo").arg("fifo").output().unwrap();
    for (data, words) in [
        ("fifo", "neither a file nor a block device"),
        ("mnt", "neither a file nor a block device"),
        ("nothing", "No such file"),
        ("elsewhere/metadata", "cut off"),
    ] {
        let args = [
            "mount",
            "-r",
            "--pool-data",
            data,
            "--pool-metadata",
            pool[3],
        ];
        let mounted = bench.run(&[&args[..], &["sample:2", "mnt"]].concat());
        mounted.failed(1, &[words]);
    }
    let args = [
        "mount",
        "-r",
        "--pool-data",
        pool[1],
        "--pool-metadata",
        pool[1],
    ];
    bench
        .run(&[&args[..], &["sample:2", "mnt"]].concat())
        .failed(1, &["not the metadata of a thin pool"]);
}

/// A loop device over a file.
struct Loop(String);

impl Loop {
    fn over(home: &Home, file: &str) -> Self {
        let mut losetup = home.command("losetup");
        let made = losetup.args(["--find", "--show", "--read-only"]);
        let made = made.arg(home.path(file)).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let name = String::from_utf8(made.stdout).unwrap();
        Self(name.trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Command::new("losetup").args(["--detach", &self.0]).status();
        assert!(detached.is_ok_and(|status| status.success()));
    }
}

#[test]
fn a_pool_may_be_on_block_devices() {
    let bench = need!(Bench::new());
    need!(has_tools(&["losetup", "/dev/loop-control"]));
    let home = &bench.home;
    fs::rename(home.path(POOL), home.path("elsewhere")).unwrap();
    let data = Loop::over(home, "elsewhere/data");
    let metadata = Loop::over(home, "elsewhere/metadata");
    let expected = bench.seen("docker", &["sample:2"]);
    let pool = ["--pool-data", &data.0, "--pool-metadata", &metadata.0];
    let args = [&["-o", "sandbox=strict"], &pool[..], &["sample:2"]].concat();
    let seen = bench.seen("dm", &args);
    listing::assert_same("sample:2", &seen, &expected);
}

#[test]
fn a_plain_user_mounts_what_the_user_may_read() {
    need!(has_tools(&["thin_restore", "mkfs.ext4"]));
    let home = need!(plain_user::home());
    let docker = home.path("data/docker");
    sample::make(&docker).unwrap();
    devicemapper::convert(&docker, Options::default());
    let owner = format!("{0}:{0}", plain_user::USER);
    let mut chown = home.command("chown");
    let chown = chown.args(["-R", &owner, "data"]).status().unwrap();
    assert!(chown.success());
    let mount = "./unionfs mount -r sample:1 mnt; cat mnt/etc/os-release; ./unionfs umount mnt";
    let first = plain_user::as_user(&home, mount).ok_with_progress();
    assert!(first.contains("sample:1 is unpacked into"), "{first}");
    // The second mount finds the image in our own store: it unpacks nothing and does not need the
    // pool.
    fs::remove_dir_all(docker.join("devicemapper/devicemapper")).unwrap();
    let second = plain_user::as_user(&home, mount).ok();
    assert_eq!(second, "NAME=sample\nVERSION_ID=1\n");
}

#[test]
fn what_the_records_say_is_believed() {
    let bench = need!(Bench::new());
    let record = bench.record("sample:1", 1);
    let before = fs::read(&record).unwrap();
    let nothing = json!(null);
    for (field, value, words) in [
        ("deleted", json!(true), "marked as deleted"),
        ("initialized", json!(false), "no file system yet"),
        ("device_id", json!(4711), "device 4711 is not in the pool"),
        ("device_id", json!(1 << 24), "no number of a device"),
        ("device_id", json!(-1), "invalid value"),
        ("transaction_id", json!(99), "of transaction 99"),
        ("size", json!(4096), "geometry"),
        ("size", json!(0), "no file system"),
        ("size", json!(u64::MAX), "a device of"),
        ("size", nothing, "invalid type"),
    ] {
        bench.change_json(&record, field, value);
        bench.refused(&[words, record.file_name().unwrap().to_str().unwrap()]);
        fs::write(&record, &before).unwrap();
    }
    fs::remove_file(&record).unwrap();
    bench.refused(&["is missing"]);
    fs::write(&record, &before).unwrap();
    // The device of another layer: its files differ from those of this layer.
    let other = bench.devices.ids.values().max().unwrap();
    bench.change_json(&record, "device_id", json!(1));
    bench.refused(&["no directory rootfs"]);
    bench.change_json(&record, "device_id", json!(other));
    let verified = bench.run(&["verify", "sample:2"]);
    verified.failed_with_output(&["problem"]);
    fs::write(&record, &before).unwrap();
    bench.run(&["verify", "sample:2"]).ok();
}

#[test]
fn containers_are_refused_with_a_way_on() {
    let bench = need!(Bench::new());
    let mount = ["mount", "-r", "--container", "sample", "mnt"];
    bench
        .run(&mount)
        .failed(1, &["devicemapper", "docker commit"]);
    bench.run(&["diff", "sample"]).failed(1, &["docker commit"]);
}

#[test]
fn a_pool_that_is_not_at_rest_is_refused() {
    let bench = need!(Bench::new());
    let noted = bench.home.path(RECORDS).join("transaction-metadata");
    let before = fs::read(&noted).unwrap();
    let next = bench.devices.transaction + 1;
    bench.change_json(&noted, "open_transaction_id", json!(next));
    bench.refused(&["is open", "start that Docker once"]);
    fs::write(&noted, before).unwrap();
    bench.change_block(0, Some(Salt::Superblock), |block| block[4] = 1);
    bench.refused(&["needs a check", "thin_repair"]);
    bench.change_block(0, Some(Salt::Superblock), |block| block[4] = 0);
    bench.seen("dm", &["sample:1"]);
}

#[test]
fn a_damaged_pool_is_refused() {
    let bench = need!(Bench::new());
    let metadata = bench.home.path(POOL).join("metadata");
    let whole = fs::read(&metadata).unwrap();
    let restored = || fs::write(&metadata, &whole).unwrap();
    bench.change_block(0, None, |block| block[400] ^= 1);
    bench.refused(&["wrong check sum", "thin_check"]);
    restored();
    for (at, value, words) in [
        (32, 1, "magic number"),
        (40, 9, "version 9"),
        (360, 1, "features"),
        (336, 100, "data blocks of 100 sectors"),
        (340, 16, "metadata blocks of 16 sectors"),
        (327, 1, "blocks"),
    ] {
        bench.change_block(0, Some(Salt::Superblock), |block| {
            block[at] = value;
        });
        bench.refused(&[words]);
        restored();
    }
    // The root of the mappings.
    let root = u64::from_le_bytes(whole[320..328].try_into().unwrap());
    bench.change_block(root, None, |block| block[2000] ^= 1);
    bench.refused(&["wrong check sum", &format!("block {root}")]);
    bench.change_block(root, Some(Salt::Node), |block| block[8] ^= 1);
    bench.refused(&["by its own words"]);
    restored();
    fs::write(&metadata, &whole[..3 * METADATA_BLOCK]).unwrap();
    bench.refused(&["it has only 3 blocks"]);
    restored();
    let data = bench.home.path(POOL).join("data");
    let data = fs::File::options().write(true).open(data).unwrap();
    let length = data.metadata().unwrap().len();
    data.set_len(1 << 20).unwrap();
    bench.refused(&["cut off", "restore the whole file"]);
    data.set_len(length).unwrap();
    // The block contains only zeros now.
    bench.refused(&["neither ext4 nor xfs"]);
}

#[test]
fn a_changed_file_is_found() {
    let bench = need!(Bench::new());
    let data = bench.home.path(POOL).join("data");
    let mut bytes = fs::read(&data).unwrap();
    let text = b"VERSION_ID=2\n";
    let at = bytes.windows(text.len()).position(|at| at == text).unwrap();
    bytes[at + 11] = b'3';
    fs::write(&data, bytes).unwrap();
    bench.mount_fails("sample:2", &["etc/os-release", "content is damaged"]);
    bench
        .run(&["verify", "sample:2"])
        .failed_with_output(&["1 problem"]);
    bench
        .run(&["save", "-q", "-o", "out.tar", "sample:2"])
        .failed(1, &["etc/os-release"]);
    bench.run(&["verify", "sample:1"]).ok();
}

#[test]
fn xfs_is_refused_with_a_way_on() {
    let xfs = Options {
        xfs: true,
        ..Options::default()
    };
    let bench = need!(Bench::with(xfs));
    bench.refused(&[
        "xfs",
        "docker save -o app.tar",
        "unionfs load -i app.tar",
        "unionfs import DIR/rootfs",
    ]);
    bench.run(&["inspect", "sample:1"]).ok();
}
