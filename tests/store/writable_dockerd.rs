//! A real dockerd on a copy of a store that unionfs wrote: it lists the images, exports and runs
//! them, and the layers that it saves have the same digests.

use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::json;
use testkit::need;
use testkit::store::builder::whiteout;
use testkit::store::layer_tar;
use unionfs::oci::{Digest, Reference};
use unionfs::store::writable::Exclusive;

use super::docker_store::has_dockerd;
use super::writable::Own;

/// Commits a layer; returns its diff ID and chain ID.
fn layer(
    store: &Exclusive<'_>,
    parent: Option<&Digest>,
    fill: impl FnOnce(&Path),
) -> (Digest, Digest) {
    let mut staged = store.stage_layer(parent).unwrap();
    let diff = staged.diff_path();
    fill(&diff);
    let tar = layer_tar::tar_of(&diff).unwrap();
    let diff_id = Digest::of(&tar);
    let split = layer_tar::split_of(&tar).unwrap();
    staged.split().write_all(&split).unwrap();
    let size = layer_tar::size_of(&diff).unwrap();
    (diff_id, staged.commit(diff_id, size).unwrap())
}

fn base(dir: &Path) {
    for name in ["bin", "etc", "dev", "proc", "sys", "data"] {
        std::fs::create_dir(dir.join(name)).unwrap();
    }
    let busybox = Command::new("sh")
        .args([
            "-c",
            "cp -L \"$(command -v busybox)\" \"$0/bin/sh\"",
            dir.to_str().unwrap(),
        ])
        .status();
    assert!(busybox.unwrap().success());
    symlink("sh", dir.join("bin/cat")).unwrap();
    for name in ["kept", "gone", "changed"] {
        std::fs::write(dir.join("data").join(name), name).unwrap();
    }
    let mode = std::fs::Permissions::from_mode(0o1777);
    std::fs::set_permissions(dir.join("data"), mode).unwrap();
}

fn change(dir: &Path) {
    whiteout(&dir.join("data/gone")).unwrap();
    std::fs::write(dir.join("data/changed"), "again").unwrap();
    let mode = std::fs::Permissions::from_mode(0o1777);
    std::fs::set_permissions(dir.join("data"), mode).unwrap();
}

/// The commands for dockerd; the answers are files in the current directory.
const QUESTIONS: &str = r"
set -e
docker images --no-trunc --format '{{.Repository}}:{{.Tag}} {{.ID}}' | sort > images
docker inspect ours:1 > inspect
docker ps -a -q > containers
docker run --rm --network none ours:1 /bin/sh -c 'cd /data; /bin/cat kept changed; test ! -e gone' > run
docker create --name made ours:1 /bin/sh > /dev/null
docker export made | tar -tf - | sort > export
docker rm made > /dev/null
docker save ours:1 -o save.tar
mkdir saved
tar -xf save.tar -C saved
docker tag ours:1 theirs:1
docker rmi ours:1 ours:base > /dev/null
";

#[test]
fn a_dockerd_lists_runs_exports_and_saves_what_we_wrote() {
    need!(has_dockerd());
    let own = Own::new();
    let store = own.open();
    let locked = store.lock().unwrap();
    let (base_diff, base_chain) = layer(&locked, None, base);
    let (top_diff, _) = layer(&locked, Some(&base_chain), change);
    let register = |name: &str, diffs: &[Digest]| {
        let config = json!({
            "architecture": "amd64", "os": "linux", "created": "2020-09-13T12:26:40Z",
            "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": diffs},
        });
        let id = locked
            .register_image(config.to_string().as_bytes())
            .unwrap();
        locked.tag(&Reference::parse(name).unwrap(), &id).unwrap();
        id
    };
    let base_id = register("ours:base", &[base_diff]);
    let id = register("ours:1", &[base_diff, top_diff]);
    // A named layer must not disturb it.
    let image = locked.image(&id).unwrap();
    let named = locked.create_container("named", &image).unwrap();
    drop(locked);

    let copy = own.root.with_file_name("copy");
    let answers = own.root.with_file_name("answers");
    std::fs::create_dir(&answers).unwrap();
    let copied = Command::new("cp")
        .arg("-a")
        .arg(&own.root)
        .arg(&copy)
        .status();
    assert!(copied.unwrap().success());
    // To dockerd an interrupted removal of unionfs looks like one of its own.
    let hex = "ab".repeat(32);
    let removing = copy.join(format!("image/overlay2/layerdb/sha256/{hex}-1234-removing"));
    std::fs::create_dir(&removing).unwrap();
    std::fs::write(removing.join("cache-id"), &hex).unwrap();
    std::fs::write(removing.join("diff"), Digest::of(b"").to_string()).unwrap();
    std::fs::create_dir(copy.join("overlay2").join(&hex)).unwrap();
    let asked = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/ci/with-dockerd.sh"))
        .arg(&copy)
        .args(["sh", "-c", QUESTIONS])
        .current_dir(&answers)
        .output()
        .unwrap();
    assert!(asked.status.success(), "{asked:?}");

    let answer = |name: &str| std::fs::read_to_string(answers.join(name)).unwrap();
    assert_eq!(
        answer("images"),
        format!("ours:1 {id}\nours:base {base_id}\n")
    );
    assert_eq!(answer("containers"), "");
    assert_eq!(answer("run"), "keptagain");
    let exported = answer("export");
    let has = |name: &str| exported.lines().any(|line| line == name);
    assert!(
        has("data/kept") && has("data/changed") && !has("data/gone"),
        "{exported}"
    );
    let inspect: serde_json::Value = serde_json::from_str(&answer("inspect")).unwrap();
    assert_eq!(inspect[0]["RootFS"]["Layers"], json!([base_diff, top_diff]));
    assert_eq!(inspect[0]["Size"], json!(image.size));
    saved_layers(&answers.join("saved"), &[base_diff, top_diff]);

    assert!(!removing.exists() && !copy.join("overlay2").join(&hex).exists());

    // dockerd has taken over the copy, and left the objects that it does not know.
    assert!(unionfs::store::Writable::open(&copy).is_err());
    let upper = Path::new("overlay2").join(named.mount_id.as_str());
    assert!(copy.join(upper).join("diff").is_dir());
    // The layer with the name `named` stays, though its image is gone.
    let ours = super::discover(&copy).unwrap();
    assert_eq!(ours.container("named").unwrap().layers.len(), 2);
}

/// Finds the layers in an archive of `docker save` by their digests.
fn saved_layers(dir: &Path, expected: &[Digest]) {
    let manifest = std::fs::read_to_string(dir.join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    let layers = manifest[0]["Layers"].as_array().unwrap().iter();
    let digests: Vec<Digest> = layers
        .map(|layer| Digest::of(&std::fs::read(dir.join(layer.as_str().unwrap())).unwrap()))
        .collect();
    assert_eq!(digests, expected);
}
