//! Catalogs of directories that are complete layers of a store, as a mount program gets them: those of
//! podman, containerd, and stores with Docker's layout. A layer that may still be written has none.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Gid, Uid};
use testkit::home::{Home, wait_until};
use testkit::need::can_mount;
use testkit::{need, program};

use crate::catalog::{catalogs, is_used};
use crate::containerd;
use crate::podman::Podman;

/// Returns the log of the mount that runs, or ran last.
fn log(home: &Home) -> String {
    let logs = std::fs::read_dir(home.path("run")).unwrap();
    let logs = logs.map(|entry| entry.unwrap().path());
    let mut logs: Vec<PathBuf> = logs
        .filter(|p| p.extension().is_some_and(|e| e == "log"))
        .collect();
    logs.sort_by_key(|path| path.metadata().unwrap().modified().unwrap());
    logs.last()
        .map_or(String::new(), |log| std::fs::read_to_string(log).unwrap())
}

/// Mounts directories until the process that makes a catalog has ended; returns what it logged.
fn built(home: &Home, options: &str) -> String {
    let mut command = home.command(program());
    command.env("UNIONFS_LOG", "info");
    let mounted = command.args(["-o", options, "mnt"]).output().unwrap();
    assert!(mounted.status.success(), "{options}: {mounted:?}");
    let said = || {
        let log = log(home);
        let line = log.lines().find(|line| line.contains("catalog"));
        line.map(str::to_owned)
    };
    wait_until("a catalog is made or refused", || said().is_some());
    let said = said().unwrap();
    umount(home);
    said
}

fn umount(home: &Home) {
    home.run(["umount", "mnt"]).ok();
}

/// Mounts directories, and returns whether a catalog is used.
fn uses_one(home: &Home, options: &str) -> bool {
    home.run(["-o", options, "mnt"]).ok();
    let used = is_used(home);
    umount(home);
    used
}

/// Returns the options of a read-only mount of these lowers, top first.
fn lowers(dirs: &[&Path]) -> String {
    let dirs: Vec<_> = dirs.iter().map(|dir| dir.to_str().unwrap()).collect();
    format!("lowerdir={}", dirs.join(":"))
}

const REFUSED: &str = "no catalog is built of the layers";

#[test]
fn podmans_mount_program_makes_one_and_uses_it() {
    let podman = need!(Podman::start("overlay"));
    let home = &podman.home;
    let engine = format!("podman --storage-opt overlay.mount_program={}", program());
    let create = format!("{engine} create localhost/app:1 /busybox");
    let mounted = |kernel: bool| {
        let id = podman.shell(&create);
        let (id, engine) = (id.trim(), if kernel { "podman" } else { &engine });
        let at = podman.shell(&format!("{engine} mount {id}"));
        let at = at.trim().to_owned();
        (at, format!("{engine} umount {id}; podman rm {id}"))
    };
    let (at, umount_first) = mounted(false);
    let stats = |at: &str| home.json(["stats", "--json", at])["union"]["catalogued"].clone();
    assert_eq!(stats(&at), false, "there was none");
    wait_until("a catalog is made", || catalogs(home).len() == 1);
    let shown = podman.tree(&at);
    podman.shell(&umount_first);
    let (at, umount_second) = mounted(false);
    assert_eq!(stats(&at), true);
    assert_eq!(podman.tree(&at), shown);
    podman.shell(&format!(
        "echo x > {at}/etc/one; rm {at}/etc/three; ls {at}/dir"
    ));
    podman.shell(&umount_second);
    let rows = home.json(["catalog", "ls", "--json"]);
    assert_eq!(rows[0]["driver"], "layers");
    assert_eq!(rows[0]["store"], home.text("store"));
    home.run(["prune", "--force"]).ok();
    assert_eq!(catalogs(home).len(), 1, "it can be used again");
    podman.shell("podman rmi -f localhost/app:1 localhost/base:1");
    home.run(["prune", "--force"]).ok();
    assert!(catalogs(home).is_empty(), "its layers are gone");
}

/// The layers of a container that podman has mounted: its own, and those below, top first.
fn layers_of_container(podman: &Podman) -> (PathBuf, Vec<PathBuf>) {
    let home = &podman.home;
    podman.shell(
        "podman create --name web localhost/app:1 /busybox; podman mount web; podman umount web",
    );
    let own = podman.shell("podman inspect --format '{{.GraphDriver.Data.UpperDir}}' web");
    let own = PathBuf::from(own.trim());
    let below = std::fs::read_to_string(own.with_file_name("lower")).unwrap();
    let below = below
        .split(':')
        .map(|link| home.path("store/overlay").join(link));
    (own, below.collect())
}

#[test]
fn a_layer_of_podmans_that_may_change_has_none() {
    let podman = need!(Podman::start("overlay"));
    let home = &podman.home;
    let (own, below) = layers_of_container(&podman);
    assert_eq!(below.len(), 2);
    let image = lowers(&[&below[0], &below[1]]);
    let refused = |options: &str, why: &str| {
        let said = built(home, options);
        assert!(
            said.contains(REFUSED) && said.contains(why),
            "{why}: {said}"
        );
        assert!(catalogs(home).is_empty(), "{why}");
    };
    let with_own = lowers(&[&own, &below[0], &below[1]]);
    refused(&with_own, "no complete layer");
    refused(&lowers(&[&own]), "no complete layer");
    // What the records say of the layers of the image decides.
    let records = home.path("store/overlay-layers/layers.json");
    let good = std::fs::read_to_string(&records).unwrap();
    let incomplete = good.replace("{\"id\"", "{\"flags\":{\"incomplete\":true},\"id\"");
    for (bad, why) in [
        (incomplete, "no complete layer"),
        (
            good.replace("diff-digest", "no-digest"),
            "no complete layer",
        ),
        (good.replace("\"sha256:", "\"sha256:x"), "no complete layer"),
        ("[]".to_owned(), "no complete layer"),
        ("[".to_owned(), "layers.json"),
    ] {
        assert_ne!(bad, good);
        std::fs::write(&records, bad).unwrap();
        refused(&image, why);
    }
    std::fs::write(&records, &good).unwrap();
    // A container's own layer has none, even if it has a digest.
    let containers = home.path("store/overlay-containers/containers.json");
    let of_web = std::fs::read_to_string(&containers).unwrap();
    let top = below[0].canonicalize().unwrap();
    let (own_id, top_id) = [&own, &top]
        .map(|dir| dir.parent().unwrap().file_name().unwrap())
        .into();
    let other = of_web.replace(own_id.to_str().unwrap(), top_id.to_str().unwrap());
    assert_ne!(other, of_web);
    std::fs::write(&containers, other).unwrap();
    refused(&image, "no complete layer");
    std::fs::write(&containers, of_web).unwrap();
    // Another user promises nothing.
    let owned_by = |path: &Path, user| {
        rustix::fs::chown(path, Some(Uid::from_raw(user)), Some(Gid::from_raw(user))).unwrap();
    };
    let dirs = [&below[0], &below[1]].map(|dir| dir.canonicalize().unwrap());
    let without_links = lowers(&[&dirs[0], &dirs[1]]);
    for path in [&records, &containers, &home.path("store")] {
        owned_by(path, 12);
        refused(&without_links, "another user may change");
        owned_by(path, 0);
    }
    std::fs::rename(&records, home.path("elsewhere")).unwrap();
    refused(&image, "no records of a store");
    std::os::unix::fs::symlink(home.path("elsewhere"), &records).unwrap();
    refused(&image, "symlink");
    std::fs::rename(home.path("elsewhere"), &records).unwrap();
    let said = built(home, &image);
    assert!(said.contains("built") && !said.contains(REFUSED), "{said}");
    assert!(uses_one(home, &image));
    assert!(!uses_one(home, &with_own));
}

/// A layer that was removed and made again at the same place is another one.
#[test]
fn a_layer_made_again_is_another_one() {
    let podman = need!(Podman::start("overlay"));
    let home = &podman.home;
    let (_, below) = layers_of_container(&podman);
    let image = lowers(&[&below[0], &below[1]]);
    built(home, &image);
    assert!(uses_one(home, &image));
    let top = below[0].canonicalize().unwrap();
    let script = format!(
        "cp -a {0} copy; rm -r {0}; cp -a copy {0}; echo x > {0}/more",
        top.display()
    );
    podman.shell(&script);
    home.run(["-o", &image, "mnt"]).ok();
    assert!(!is_used(home));
    assert!(home.path("mnt/more").exists());
    umount(home);
}

#[test]
fn containerds_committed_snapshots_have_one() {
    let containerd = need!(containerd::with_images());
    let home = &containerd.home;
    let top = containerd.top("app:2");
    containerd.ctr(&["snapshots", "prepare", "written", &top]);
    let mount = containerd.ctr(&["snapshots", "mounts", &home.text("mnt"), "written"]);
    let of = |option: &str| {
        let mut options = mount.split([' ', ',']);
        let found = options.find_map(|text| text.strip_prefix(option));
        found
            .unwrap_or_else(|| panic!("no {option} in {mount}"))
            .trim()
            .to_owned()
    };
    let (below, upper, work) = (of("lowerdir="), of("upperdir="), of("workdir="));
    let with_own = format!("lowerdir={upper}:{below}");
    let said = built(home, &with_own);
    assert!(
        said.contains(REFUSED) && said.contains("no complete layer"),
        "{said}"
    );
    let as_containerd = format!("lowerdir={below},upperdir={upper},workdir={work}");
    let said = built(home, &as_containerd);
    assert!(!said.contains(REFUSED), "{said}");
    assert!(uses_one(home, &as_containerd));
    assert!(!uses_one(home, &with_own));
}

/// Our own store has Docker's layout.
#[test]
fn layers_in_dockers_layout_have_one() {
    need!(can_mount());
    let home = Home::new();
    home.dirs(&["mnt", "rootfs/dir"]);
    std::fs::write(home.path("rootfs/dir/file"), "x").unwrap();
    home.run(["import", "-q", "rootfs", "app:1"]).ok();
    home.run([
        "mount",
        "--name",
        "work",
        "-o",
        "catalog=off",
        "app:1",
        "mnt",
    ])
    .ok();
    std::fs::write(home.path("mnt/new"), "x").unwrap();
    umount(&home);
    let mut all = Command::new("sh");
    all.args(["-c", "ls -d own/overlay2/*/diff"])
        .current_dir(home.path("."));
    let all = String::from_utf8(all.output().unwrap().stdout).unwrap();
    let all: Vec<PathBuf> = all.lines().map(|line| home.path(line)).collect();
    let (own, image): (Vec<_>, Vec<_>) = all.into_iter().partition(|dir| dir.join("new").exists());
    let (own, image) = (
        &own[0],
        image
            .iter()
            .find(|dir| dir.join("dir/file").exists())
            .unwrap(),
    );
    let said = built(&home, &lowers(&[own, image]));
    assert!(
        said.contains(REFUSED) && said.contains("no complete layer"),
        "{said}"
    );
    let options = lowers(&[image]);
    let said = built(&home, &options);
    assert!(!said.contains(REFUSED), "{said}");
    assert!(uses_one(&home, &options));
    assert_eq!(catalogs(&home).len(), 1);
    home.run(["rm", "work"]).ok();
    home.run(["rmi", "app:1"]).ok();
    assert!(catalogs(&home).is_empty(), "it goes with its layers");
}
