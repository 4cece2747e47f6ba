//! Catalogs of directories that are complete layers of a store, as a mount program gets them: those of
//! podman, Docker and containerd. A layer that may still be written has none.

use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Uid};
use testkit::home::{Home, wait_until};
use testkit::need::{can_mount, has_tools};
use testkit::{need, program};

use crate::catalog::{catalogs, is_used};
use crate::containerd;
use crate::engines::dockerd_script;
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
        let ends = [REFUSED, " built built=", "the catalog fits"];
        let ended = |line: &&str| ends.iter().any(|end| line.contains(end));
        let line = log.lines().find(ended);
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
    symlink(home.path("elsewhere"), &records).unwrap();
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
    for change in [
        "cp -a TOP copy; rm -r TOP; cp -a copy TOP; echo x > TOP/more",
        "echo x > TOP/again",
    ] {
        let made = || catalogs(home)[0].metadata().unwrap().ino();
        let before = made();
        podman.shell(&change.replace("TOP", top.to_str().unwrap()));
        home.run(["-o", &image, "mnt"]).ok();
        assert!(!is_used(home), "{change}");
        assert!(home.path("mnt/more").exists());
        wait_until("another one is made", || made() != before);
        umount(home);
        assert!(uses_one(home, &image));
        assert_eq!(catalogs(home).len(), 1, "it took the place of the old one");
    }
}

/// Stores share equal files of layers as hard links, and users back layers up so. Nothing else of the
/// file changes.
#[test]
fn another_link_to_a_file_changes_nothing() {
    let podman = need!(Podman::start("overlay"));
    let home = &podman.home;
    let (_, below) = layers_of_container(&podman);
    let image = lowers(&[&below[0], &below[1]]);
    built(home, &image);
    let [top, base] = [0, 1].map(|n| below[n].canonicalize().unwrap());
    podman.shell(&format!("cp -al {} {} .", base.display(), top.display()));
    let mount = format!("{image},upperdir=upper,workdir=work");
    home.dirs(&["upper", "work"]);
    home.run(["-o", &mount, "mnt"]).ok();
    assert!(is_used(home));
    let seen = podman
        .shell("cat mnt/etc/one mnt/dir/in; cmp mnt/busybox base/busybox; chmod 600 mnt/dir/in");
    assert_eq!(seen, "one\nin\n");
    assert!(is_used(home));
    umount(home);
    assert_eq!(
        std::fs::read_to_string(home.path("upper/dir/in")).unwrap(),
        "in\n"
    );
}

/// A changed file is noticed when it is opened, also if it has got another link. The next mount makes
/// another catalog.
#[test]
fn a_catalog_that_is_wrong_is_removed() {
    let podman = need!(Podman::start("overlay"));
    let home = &podman.home;
    let (_, below) = layers_of_container(&podman);
    let image = lowers(&[&below[0], &below[1]]);
    let file = below[1].canonicalize().unwrap().join("etc/one");
    for change in [
        "chmod 600 FILE",
        "chown 12 FILE",
        "setfattr -n user.a -v b FILE",
        "setfacl -m u:12:r FILE",
        "echo more >> FILE",
        "echo eno > FILE",
        "touch FILE",
        "cp FILE other; mv other FILE",
    ] {
        for link in ["", "ln FILE link;"] {
            podman.shell(&format!("rm -f link {0}; echo one > {0}", file.display()));
            built(home, &image);
            home.run(["-o", &image, "mnt"]).ok();
            assert!(is_used(home), "{change}");
            let script = format!("{link}{change}").replace("FILE", file.to_str().unwrap());
            podman.shell(&script);
            let read = std::fs::read(home.path("mnt/etc/one"));
            let errno = read.map_err(|error| error.raw_os_error());
            assert_eq!(errno, Err(Some(libc::ESTALE)), "{link}{change}");
            assert!(catalogs(home).is_empty(), "{link}{change}");
            umount(home);
        }
    }
}

/// A link is accepted once. What changes afterwards is noticed in the same mount.
#[test]
fn a_change_after_another_link_is_noticed() {
    let podman = need!(Podman::start("overlay"));
    let home = &podman.home;
    let (_, below) = layers_of_container(&podman);
    let image = lowers(&[&below[0], &below[1]]);
    let file = below[1].canonicalize().unwrap().join("etc/one");
    built(home, &image);
    home.dirs(&["upper", "work"]);
    let mount = format!("{image},upperdir=upper,workdir=work");
    home.run(["-o", &mount, "mnt"]).ok();
    podman.shell(&format!("ln {} link", file.display()));
    assert_eq!(podman.shell("cat mnt/etc/one"), "one\n");
    assert!(is_used(home));
    // The size and the time of the last change of data stay.
    podman.shell("m=$(stat -c %y link); echo eno > link; touch -d \"$m\" link");
    let copied = home
        .command("chmod")
        .args(["600", "mnt/etc/one"])
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&copied.stderr).contains("Stale"),
        "{copied:?}"
    );
    assert!(!is_used(home));
    umount(home);
}

/// Root removes the file that was the catalog, and no other that has its name now.
#[test]
fn a_newer_catalog_stays() {
    let podman = need!(Podman::start("overlay"));
    let home = &podman.home;
    let (_, below) = layers_of_container(&podman);
    let image = lowers(&[&below[0], &below[1]]);
    built(home, &image);
    home.run(["-o", &image, "mnt"]).ok();
    assert!(is_used(home));
    let path = catalogs(home).remove(0);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "another one").unwrap();
    podman.shell(&format!("touch {}/etc/one", below[1].display()));
    assert!(std::fs::read(home.path("mnt/etc/one")).is_err());
    assert!(!is_used(home));
    assert_eq!(std::fs::read(&path).unwrap(), b"another one");
    umount(home);
}

/// The catalog may be below the mountpoint: the path then leads into the mount.
#[test]
fn a_catalog_below_its_own_mountpoint_is_removed() {
    need!(can_mount());
    let home = Home::new();
    home.dirs(&["mnt", "lower/dir", "upper", "work"]);
    std::fs::write(home.path("lower/dir/file"), "x").unwrap();
    let build = ["catalog", "build", "-o", "lowerdir=lower", "./mnt/catalog"];
    home.run(build).ok_with_progress();
    for sandbox in ["auto", "off"] {
        if !home.path("mnt/catalog").exists() {
            home.run(build).ok_with_progress();
        }
        let options = format!(
            "lowerdir=lower,upperdir=upper,workdir=work,catalog=./mnt/catalog,sandbox={sandbox}"
        );
        home.run(["-o", &options, "mnt"]).ok();
        assert!(is_used(&home), "{sandbox}");
        std::fs::write(home.path("lower/dir/file"), "changed").unwrap();
        // The rename copies the file up while the kernel holds the directory.
        let renamed = std::fs::rename(home.path("mnt/dir/file"), home.path("mnt/dir/other"));
        let errno = renamed.map_err(|error| error.raw_os_error());
        assert_eq!(errno, Err(Some(libc::ESTALE)), "{sandbox}");
        assert!(!is_used(&home), "{sandbox}");
        umount(&home);
        assert!(!home.path("mnt/catalog").exists(), "{sandbox}");
    }
}

/// The records say nothing of a file system that is mounted on a layer.
#[test]
fn what_is_mounted_on_a_layer_has_none() {
    need!(has_tools(&["mksquashfs"]));
    let containerd = need!(containerd::with_images());
    let home = &containerd.home;
    let top = containerd.top("app:2");
    containerd.ctr(&["snapshots", "prepare", "written", &top]);
    let mount = containerd.ctr(&["snapshots", "mounts", &home.text("mnt"), "written"]);
    let below = option(&mount, "lowerdir=");
    let layer = below.split(':').next().unwrap();
    home.dirs(&["tree"]);
    std::fs::write(home.path("tree/file"), "x").unwrap();
    let run = |program: &str, args: &[&str]| {
        let done = home.command(program).args(args).output().unwrap();
        assert!(done.status.success(), "{program} {args:?}: {done:?}");
    };
    run("mksquashfs", &["tree", "image", "-quiet", "-no-progress"]);
    let options = format!("lowerdir={below}");
    run(
        "mount",
        &["-t", "squashfs", "-o", "loop,ro", "image", layer],
    );
    home.run(["-o", &options, "mnt"]).ok();
    assert!(home.path("mnt/file").exists() && !is_used(home));
    umount(home);
    run("umount", &[layer]);
    // On a file system that has times of birth, the process that makes catalogs notices it.
    run("mount", &["--bind", "tree", layer]);
    let said = built(home, &options);
    assert!(
        said.contains("is no complete layer")
            || said.contains("not the directory")
            || said.contains("another file system"),
        "{said}"
    );
    run("umount", &[layer]);
    assert!(built(home, &options).contains("built"));
}

/// Returns the value of an option in the mount command that ctr prints.
fn option(mount: &str, name: &str) -> String {
    let mut options = mount.split([' ', ',']);
    let found = options.find_map(|text| text.strip_prefix(name));
    let found = found.unwrap_or_else(|| panic!("no {name} in {mount}"));
    found.trim().to_owned()
}

#[test]
fn containerds_committed_snapshots_have_one() {
    let containerd = need!(containerd::with_images());
    let home = &containerd.home;
    let top = containerd.top("app:2");
    containerd.ctr(&["snapshots", "prepare", "written", &top]);
    let mount = containerd.ctr(&["snapshots", "mounts", &home.text("mnt"), "written"]);
    let (below, upper, work) = (
        option(&mount, "lowerdir="),
        option(&mount, "upperdir="),
        option(&mount, "workdir="),
    );
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
    let before = catalogs(home);
    home.run(["prune", "--force"]).ok();
    assert_eq!(catalogs(home), before, "it can be used again");
}

/// In a user namespace, other users all have the number of nobody. What they own is not believed.
#[test]
fn in_a_user_namespace_other_users_promise_nothing() {
    let podman = need!(Podman::start("overlay"));
    let home = &podman.home;
    let (_, below) = layers_of_container(&podman);
    let dirs = [&below[0], &below[1]].map(|dir| dir.canonicalize().unwrap());
    let options = lowers(&[&dirs[0], &dirs[1]]);
    podman.shell("chown -R 12 store; chmod -R a+rX store");
    let script = format!(
        "{} -o {options} mnt
        for n in $(seq 100); do ! grep -q 'catalog.*layers' run/*.log || break; sleep 0.1; done
        umount mnt",
        program()
    );
    let mut command = home.command("unshare");
    command.env("UNIONFS_LOG", "info");
    let done = command
        .args(["-Urm", "sh", "-euc", &script])
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    let log = log(home);
    assert!(log.contains("another user may change"), "{log}");
    assert!(catalogs(home).is_empty());
}

/// Returns a home with Docker's store of the driver fuse-overlayfs in `docker`, and runs a script in
/// `answers` with a dockerd whose mount program is unionfs. `stats NAME` writes what its container's mount says.
fn with_docker(home: &Home, script: &str) {
    let functions = r#"
        stats() {
            m=$(docker inspect -f '{{.GraphDriver.Data.MergedDir}}' "$1")
            nsenter -t "$(cat "$(dirname "${DOCKER_HOST#unix://}")/pid")" -m unionfs stats --json "$m" > "$1.stats"
        }
        start() {
            docker run -d --network none --name "$1" app:1 /busybox sleep 1000 > /dev/null
        }
    "#;
    let script = [functions, script].concat();
    let mut command = dockerd_script("fuse-overlayfs", home, "docker", &script);
    let dirs = [
        home.path("bin"),
        Path::new(program()).parent().unwrap().to_owned(),
    ];
    let others = std::env::var_os("PATH").unwrap_or_default();
    let path = dirs.into_iter().chain(std::env::split_paths(&others));
    command.env("PATH", std::env::join_paths(path).unwrap());
    let ended = command.output().unwrap();
    assert!(ended.status.success(), "{script}: {ended:?}");
}

/// Docker puts a layer of its own above those of the image, for each container.
#[test]
fn dockers_containers_share_one() {
    need!(can_mount());
    need!(has_tools(&["dockerd", "docker", "busybox", "nsenter"]));
    let home = Home::new();
    home.dirs(&["answers", "docker", "bin", "base/etc", "base/dir"]);
    symlink(program(), home.path("bin/fuse-overlayfs")).unwrap();
    with_docker(
        &home,
        r"
        cp $(command -v busybox) ../base/busybox
        echo one > ../base/etc/one; echo two > ../base/etc/two; echo in > ../base/dir/in
        tar -C ../base -c . | docker import - base:1
        docker run --network none --name step base:1 /busybox sh -c \
            'PATH=/; busybox rm /etc/two; echo three > /etc/three; busybox mkdir /dir/sub'
        docker commit step app:1; docker rm step
        start first; stats first
        for _ in $(seq 100); do
            if grep -q '.catalogued.: *true' first.stats; then break; fi
            docker restart -t 0 first; stats first
        done
        start second; stats second
        docker exec second /busybox sh -c 'cd etc; /busybox cat one three; /busybox ls . /dir
            echo new > one; /busybox rm three; echo x > hosts.mine' > shown
        docker diff second | sort > diff
        docker commit second app:2
        docker run --rm --network none app:2 /busybox sh -c 'cd etc; /busybox cat one; /busybox ls' > third
        docker rm -f first second
        ",
    );
    let answer = |name: &str| std::fs::read_to_string(home.path("answers").join(name)).unwrap();
    for container in ["first", "second"] {
        let stats = answer(&format!("{container}.stats"));
        let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
        assert_eq!(stats["union"]["catalogued"], true, "{container}");
    }
    let etc = "hostname\nhosts\n";
    let of_image =
        format!("one\nthree\n.:\n{etc}mtab\none\nresolv.conf\nthree\n\n/dir:\nin\nsub\n");
    assert_eq!(answer("shown"), of_image);
    assert_eq!(
        answer("diff"),
        "A /etc/hosts.mine\nC /etc\nC /etc/one\nD /etc/three\n"
    );
    assert_eq!(
        answer("third"),
        format!("new\n{etc}hosts.mine\nmtab\none\nresolv.conf\n")
    );
    let labels = home.json(["catalog", "ls", "--json"]);
    let labels = labels.as_array().unwrap();
    assert!(!labels.is_empty());
    for label in labels {
        assert_eq!(label["driver"], "layers");
        assert_eq!(label["store"], home.text("docker"));
    }
    with_docker(&home, "docker rmi app:2 app:1 base:1");
    home.run(["prune", "--force"]).ok();
    assert!(catalogs(&home).is_empty(), "the layers are gone");
}

/// A layer without a record, and records that another user may write.
#[test]
fn a_layer_of_dockers_that_may_change_has_none() {
    need!(can_mount());
    let home = Home::new();
    let records = "docker/image/fuse-overlayfs/layerdb/sha256";
    home.dirs(&["mnt"]);
    let layer = |id: &str| {
        let dir = format!("docker/fuse-overlayfs/{id}/diff");
        home.dirs(&[&dir]);
        std::fs::write(home.path(&dir).join(id), id).unwrap();
        home.path(&dir)
    };
    let [own, top, base] = ["c-init", "top", "base"].map(layer);
    let record = |digit: &str, id: &str| {
        let dir = format!("{records}/{}", digit.repeat(64));
        home.dirs(&[&dir]);
        std::fs::write(home.path(&dir).join("cache-id"), id).unwrap();
        home.path(&dir)
    };
    let refused = |dirs: &[&Path], why: &str| {
        let said = built(&home, &lowers(dirs));
        assert!(
            said.contains(REFUSED) && said.contains(why),
            "{why}: {said}"
        );
        assert!(catalogs(&home).is_empty(), "{why}");
    };
    let container: [&Path; 3] = [&own, &top, &base];
    refused(&container, "no records");
    let of_base = record("a", "base");
    refused(&container, "no complete layer");
    // Docker renames the record of a layer that it removes.
    let of_top = record("b", "top");
    let removing = of_top.with_file_name(format!("{}-123-removing", "b".repeat(64)));
    std::fs::rename(&of_top, &removing).unwrap();
    refused(&container, "no complete layer");
    std::fs::rename(&removing, &of_top).unwrap();
    let nobody = (Some(Uid::from_raw(1000)), Some(Gid::from_raw(1000)));
    for foreign in [
        of_base.join("cache-id"),
        of_top.clone(),
        home.path(records),
        home.path("docker"),
    ] {
        rustix::fs::chown(&foreign, nobody.0, nobody.1).unwrap();
        refused(&container, "another user may change");
        rustix::fs::chown(&foreign, Some(Uid::ROOT), Some(Gid::ROOT)).unwrap();
    }
    // Only the layer on top is a container's.
    refused(&[&top, &own, &base], "no complete layer");
    assert!(built(&home, &lowers(&container)).contains("names: 2"));
    assert!(uses_one(&home, &lowers(&container)));
    assert!(
        uses_one(&home, &lowers(&[&top, &base])),
        "that of the image"
    );
    assert_eq!(catalogs(&home).len(), 1);
    let other = layer("d-init");
    home.run(["-o", &lowers(&[&other, &top, &base]), "mnt"])
        .ok();
    assert!(is_used(&home), "all containers share it");
    let shown = ["d-init", "top", "base"].map(|name| home.path("mnt").join(name).exists());
    assert_eq!(shown, [true; 3]);
    umount(&home);
    // One that leads elsewhere does not use it, and does not make it again.
    let unfit = layer("e-init");
    rustix::fs::setxattr(
        unfit.join("e-init"),
        "trusted.overlay.metacopy",
        b"",
        rustix::fs::XattrFlags::CREATE,
    )
    .unwrap();
    let before = catalogs(&home)[0].metadata().unwrap().ino();
    let said = built(&home, &lowers(&[&unfit, &top, &base]));
    assert!(said.contains("the catalog fits"), "{said}");
    assert_eq!(catalogs(&home)[0].metadata().unwrap().ino(), before);
}
