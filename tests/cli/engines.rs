//! Docker, podman and skopeo read what unionfs wrote: archives of both forms, and a copy of the
//! store itself. What they write back is the same image.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use testkit::home::Home;
use testkit::need;
use testkit::need::{Needed, can_mount, has_tools};

/// Returns a home with `app:1`, which has a shell, and `app:2`, made from it by `unionfs commit`.
fn home(tools: &[&str]) -> Needed<Home> {
    can_mount()?;
    has_tools(&["busybox"])?;
    has_tools(tools)?;
    let home = Home::new();
    home.dirs(&["mnt", "answers"]);
    let rootfs = r#"
        mkdir -p rootfs/bin rootfs/etc rootfs/dev rootfs/proc rootfs/sys rootfs/data/sub
        cp -L "$(command -v busybox)" rootfs/bin/busybox
        for applet in sh cat ls test; do ln -s busybox rootfs/bin/$applet; done
        echo gone > rootfs/data/gone; echo kept > rootfs/data/kept; echo old > rootfs/data/sub/old
        ln rootfs/data/kept rootfs/data/linked; chown 12:34 rootfs/data/kept
    "#;
    shell(&home, rootfs);
    let change = [
        "import",
        "-q",
        "rootfs",
        "app:1",
        "-c",
        "CMD [\"/bin/cat\", \"/data/kept\"]",
    ];
    home.run(change).ok();
    home.run(["mount", "--name", "work", "app:1", "mnt"]).ok();
    shell(
        &home,
        "cd mnt/data; rm gone; echo new > new; rm -r sub; mkdir sub; echo again > sub/again; chmod 4750 linked",
    );
    home.run(["umount", "mnt"]).ok();
    home.run(["commit", "-q", "work", "app:2", "-m", "changed"])
        .ok();
    home.run(["save", "-q", "-o", "docker.tar", "app:1", "app:2"])
        .ok();
    home.run(["save", "-q", "--format", "oci", "-o", "oci.tar", "app:2"])
        .ok();
    Ok(home)
}

pub(super) fn shell(home: &Home, script: &str) -> String {
    let output = home
        .command("sh")
        .args(["-e", "-c", script])
        .output()
        .unwrap();
    assert!(output.status.success(), "{script}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a script with a dockerd on `root`, in the directory of its answers.
pub(super) fn with_dockerd(home: &Home, root: &str, script: &str) {
    with_dockerd_on("overlay2", home, root, script);
}

/// Like [`with_dockerd`], with another storage driver.
pub(super) fn with_dockerd_on(driver: &str, home: &Home, root: &str, script: &str) {
    let asked = dockerd_script(driver, home, root, script).output().unwrap();
    assert!(asked.status.success(), "{asked:?}");
}

/// Returns the command of [`with_dockerd_on`].
pub(super) fn dockerd_script(driver: &str, home: &Home, root: &str, script: &str) -> Command {
    let mut command = home.command(concat!(env!("CARGO_MANIFEST_DIR"), "/ci/with-dockerd.sh"));
    command
        .arg(home.path(root))
        .args(["sh", "-e", "-c", script])
        .env("STORAGE_DRIVER", driver)
        .current_dir(home.path("answers"));
    command
}

fn answer(home: &Home, name: &str) -> String {
    std::fs::read_to_string(home.path("answers").join(name)).unwrap()
}

/// Returns the ID and the diff IDs that an engine's `inspect` shows.
fn engine_image(text: &str) -> (String, Value) {
    let value: Value = serde_json::from_str(text).unwrap();
    let id = value[0]["Id"].as_str().unwrap();
    let id = id.strip_prefix("sha256:").unwrap_or(id);
    (format!("sha256:{id}"), value[0]["RootFS"]["Layers"].clone())
}

fn our_image(home: &Home, name: &str) -> (String, Value) {
    let image = home.json(["inspect", "--json", name])[0].clone();
    let layers = image["layers"].as_array().unwrap().iter();
    let layers = layers.map(|layer| layer["diff_id"].clone()).collect();
    (image["id"].as_str().unwrap().to_owned(), layers)
}

/// A script that shows the files of the image when it runs or is exported.
const LOOK: &str = r"
    docker run --rm --network none app:2 /bin/sh -c 'cd /data; cat kept new; ls -R .; test ! -e gone' > run
    docker create --name made app:2 > /dev/null
    docker export made | tar -tf - data | sort > export
    docker rm made > /dev/null
    docker inspect app:2 > inspect
    docker history --no-trunc --format '{{.Comment}}' app:2 | head -1 > history
";

fn check_looks(home: &Home) {
    assert_eq!(
        answer(home, "run"),
        "kept\nnew\n.:\nkept\nlinked\nnew\nsub\n\n./sub:\nagain\n"
    );
    assert_eq!(
        answer(home, "export"),
        "data/\ndata/kept\ndata/linked\ndata/new\ndata/sub/\ndata/sub/again\n"
    );
    assert_eq!(
        engine_image(&answer(home, "inspect")),
        our_image(home, "app:2")
    );
    assert_eq!(answer(home, "history"), "changed\n");
}

#[test]
fn a_dockerd_takes_over_a_store_with_a_committed_image() {
    let home = need!(home(&["dockerd", "docker"]));
    shell(&home, "cp -a own copy");
    with_dockerd(
        &home,
        "copy",
        &format!(
            "docker images --format '{{{{.Repository}}}}:{{{{.Tag}}}}' | sort > images\n{LOOK}"
        ),
    );
    assert_eq!(answer(&home, "images"), "app:1\napp:2\n");
    check_looks(&home);
}

#[test]
fn docker_load_takes_our_archive_and_we_take_docker_saves() {
    let home = need!(home(&["dockerd", "docker", "skopeo"]));
    home.dirs(&["docker-root"]);
    let script = format!(
        r"
        docker load -i ../docker.tar > load
        {LOOK}
        docker save -o ../theirs.tar app:1 app:2
        docker rmi app:1 app:2 > /dev/null
        # An OCI layout, which older dockerds do not load themselves.
        skopeo copy --quiet oci-archive:../oci.tar docker-archive:../from-oci.tar:app:2
        docker load -i ../from-oci.tar > /dev/null
        docker inspect app:2 > from-oci
        "
    );
    with_dockerd(&home, "docker-root", &script);
    assert_eq!(
        answer(&home, "load"),
        "Loaded image: app:1\nLoaded image: app:2\n"
    );
    check_looks(&home);
    assert_eq!(
        engine_image(&answer(&home, "from-oci")),
        our_image(&home, "app:2")
    );
    // The reverse direction: every digest is unchanged.
    let before = (our_image(&home, "app:1"), our_image(&home, "app:2"));
    std::fs::rename(home.path("own"), home.path("before")).unwrap();
    home.run(["load", "-q", "-i", "theirs.tar"]).ok();
    assert_eq!(
        (our_image(&home, "app:1"), our_image(&home, "app:2")),
        before
    );
    assert!(home.run(["verify", "--all"]).ok().ends_with("no damage\n"));
}

#[test]
fn podman_load_takes_both_forms() {
    let home = need!(home(&["podman"]));
    let podman = format!(
        "podman --root {0}/root --runroot {0}/runroot --storage-driver vfs",
        home.text("podman")
    );
    for archive in ["docker.tar", "oci.tar"] {
        shell(&home, &format!("{podman} load --quiet -i {archive}"));
        let inspect = shell(&home, &format!("{podman} image inspect app:2"));
        assert_eq!(
            engine_image(&inspect),
            our_image(&home, "app:2"),
            "{archive}"
        );
        shell(
            &home,
            &format!("{podman} rmi --all --force; {podman} system prune --all --force"),
        );
    }
}

#[test]
fn skopeo_copies_from_both_forms_and_we_load_what_it_writes() {
    let home = need!(home(&["skopeo"]));
    let ours = our_image(&home, "app:2");
    for (from, to) in [
        ("docker-archive:docker.tar:app:2", "oci:layout:app:2"),
        ("oci-archive:oci.tar", "oci-archive:again.tar:app:2"),
        ("oci-archive:oci.tar", "docker-archive:again.tar:app:2"),
        (
            "docker-archive:docker.tar:app:2",
            "oci-archive:packed.tar:app:2 --dest-compress-format=zstd",
        ),
        (
            "docker-archive:docker.tar:app:2",
            "oci:layout:app:2 --dest-compress-format=zstd:chunked",
        ),
    ] {
        let config = shell(&home, &format!("skopeo inspect --config --raw {from}"));
        let config: Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"], ours.1, "{from}");
        shell(
            &home,
            &format!("rm -rf layout again.tar packed.tar; skopeo copy --quiet {from} {to}"),
        );
        let written = ["layout", "again.tar", "packed.tar"];
        let written = written
            .iter()
            .find(|name| home.path(name).exists())
            .unwrap();
        std::fs::rename(home.path("own"), home.path("before")).unwrap();
        home.run(["load", "-q", "-i", written, "--tag", "app:2"])
            .ok();
        // skopeo may write the configuration again, but the layers are the same.
        assert_eq!(our_image(&home, "app:2").1, ours.1, "{from} {to}");
        assert!(home.run(["verify", "--all"]).ok().ends_with("no damage\n"));
        std::fs::remove_dir_all(home.path("own")).unwrap();
        std::fs::rename(home.path("before"), home.path("own")).unwrap();
    }
    assert!(Path::new(&home.text("own")).exists());
    let images = home.json(["images", "--json"]);
    assert_eq!(
        images.as_array().map(Vec::len),
        Some(2),
        "{}",
        json!(images)
    );
}
