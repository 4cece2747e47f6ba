//! OCI layouts and `dir:` directories as skopeo, umoci and podman write them. Images keep the tags
//! of these tools, and objects beside images (signatures, SBOMs, charts) do not stop an image from
//! being loaded.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use testkit::home::Home;
use testkit::need;
use testkit::need::{Needed, can_mount, has_tools};
use unionfs::oci::Digest;

use super::engines::shell;

/// Returns a home with the images `app:1` and `app:2` in `app1.tar` and `app2.tar`, and an empty
/// store.
fn home(tools: &[&str]) -> Needed<Home> {
    can_mount()?;
    has_tools(tools)?;
    let home = Home::new();
    home.dirs(&["mnt", "rootfs"]);
    for number in ["1", "2"] {
        fs::write(home.path("rootfs/file"), number).unwrap();
        let name = format!("app:{number}");
        home.run(["import", "-q", "rootfs", &name]).ok();
        let archive = format!("app{number}.tar");
        home.run(["save", "-q", "-o", &archive, &name]).ok();
    }
    forget(&home);
    Ok(home)
}

fn forget(home: &Home) {
    fs::remove_dir_all(home.path("own")).unwrap();
    home.dirs(&["own"]);
}

#[test]
fn tags_of_a_layout_become_names() {
    let home = need!(home(&["skopeo", "umoci"]));
    shell(
        &home,
        "skopeo copy -q docker-archive:app1.tar oci:layout:first
         skopeo copy -q docker-archive:app2.tar oci:layout:second
         skopeo copy -q docker-archive:app2.tar oci:layout:team/app:v2
         umoci new --image layout:empty",
    );
    home.run(["load", "-q", "-i", "layout"]).ok();
    let all = [
        "layout:empty",
        "layout:first",
        "layout:second",
        "team/app:v2",
    ];
    assert_eq!(home.names(), all);
    // By the names that umoci and skopeo use.
    home.run(["mount", "layout:first", "mnt"]).ok();
    assert_eq!(fs::read_to_string(home.path("mnt/file")).unwrap(), "1");
    home.run(["umount", "mnt"]).ok();
    forget(&home);
    shell(&home, "tar -C layout -cf Layout.oci.tar.gz -z .");
    home.run(["load", "-q", "-i", "Layout.oci.tar.gz"]).ok();
    assert_eq!(home.names(), all);
    forget(&home);
    // One of the images, also under another name.
    home.run(["load", "-q", "-i", "layout", "--ref", "second"])
        .ok();
    assert_eq!(home.names(), ["layout:second"]);
    let args = [
        "load", "-q", "-i", "layout", "--ref", "first", "--tag", "other:1",
    ];
    home.run(args).ok();
    let args = [
        "load",
        "-q",
        "-i",
        "layout",
        "--ref",
        "docker.io/team/app:v2",
    ];
    home.run(args).ok();
    home.run(["load", "-q", "-i", "layout", "--ref", "@3"]).ok();
    let some = ["layout:empty", "layout:second", "other:1", "team/app:v2"];
    assert_eq!(home.names(), some);
    for reference in ["third", "@4"] {
        let refused = home.run(["load", "-q", "-i", "layout", "--ref", reference]);
        refused.failed(1, &[reference, "there are: ", "\"first\", \"second\""]);
    }
    let refused = home.run(["load", "-q", "-i", "layout", "--tag", "app:1"]);
    refused.failed(1, &["3 images", "--ref"]);
}

/// A pipe has no file name to derive names from; the output says so.
#[test]
fn a_tag_without_a_repository_is_told() {
    let home = need!(home(&["skopeo"]));
    shell(
        &home,
        "skopeo copy -q docker-archive:app1.tar oci-archive:l.tar:first",
    );
    let loaded = home.run_script("unionfs load -q < l.tar");
    assert_eq!(loaded.code, Some(0), "{loaded:?}");
    assert!(loaded.stdout.starts_with("Loaded image ID: "), "{loaded:?}");
    for word in ["\"first\"", "--ref first --tag NAME"] {
        assert!(loaded.stderr.contains(word), "no {word} in {loaded:?}");
    }
}

#[test]
fn the_library_finds_an_image_by_its_reference() {
    let home = need!(home(&["skopeo"]));
    shell(
        &home,
        "skopeo copy -q docker-archive:app1.tar oci:layout:first
         skopeo copy -q docker-archive:app2.tar oci:layout:second",
    );
    let find = |archive: &str, reference: Option<&str>| {
        let staging = unionfs::store::writable::Staging::temporary();
        let source = unionfs::archive::Source::open(&home.path(archive), &staging, 1 << 20);
        let found = unionfs::archive::find(&source.unwrap(), reference, None);
        found.map(|image| image.references)
    };
    assert_eq!(find("layout", Some("second")).unwrap(), ["second"]);
    assert_eq!(find("layout", Some("@0")).unwrap(), ["first"]);
    let error = find("layout", None).unwrap_err().to_string();
    assert!(error.contains("2 images; there are: "), "{error}");
    find("layout", Some("third")).unwrap_err();
    assert_eq!(find("app1.tar", None).unwrap(), ["app:1"]);
    let whole = "docker.io/library/app:1";
    assert_eq!(find("app1.tar", Some(whole)).unwrap(), ["app:1"]);
}

/// Writes a blob of a layout and returns its descriptor.
fn blob(layout: &Path, media: &str, content: &[u8]) -> Value {
    let digest = Digest::of(content);
    fs::write(layout.join("blobs/sha256").join(digest.hex()), content).unwrap();
    json!({"mediaType": media, "digest": digest, "size": content.len()})
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

fn tagged(mut descriptor: Value, tag: &str) -> Value {
    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
    descriptor
}

/// Makes the objects that cosign, ORAS and Helm put beside an image.
fn artifacts(layout: &Path) -> Vec<Value> {
    let manifest = |value: Value| blob(layout, MANIFEST, value.to_string().as_bytes());
    let payload = br#"{"critical":{}}"#;
    let simple = blob(
        layout,
        "application/vnd.dev.cosign.simplesigning.v1+json",
        payload,
    );
    let config = json!({
        "architecture": "", "os": "",
        "rootfs": {"type": "layers", "diff_ids": [simple["digest"]]},
    });
    let config = blob(layout, CONFIG, config.to_string().as_bytes());
    let signature = manifest(json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [simple],
    }));
    let empty = blob(layout, EMPTY, b"{}");
    let sbom = manifest(json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/spdx+json",
        "config": empty, "layers": [blob(layout, "application/spdx+json", b"{}")],
    }));
    let mut listed = sbom.clone();
    listed["artifactType"] = json!("application/spdx+json");
    let referrers = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [listed]});
    let referrers = blob(layout, INDEX, referrers.to_string().as_bytes());
    let chart = "application/vnd.cncf.helm.chart.content.v1.tar+gzip";
    let helm = manifest(json!({
        "schemaVersion": 2,
        "config": blob(layout, "application/vnd.cncf.helm.config.v1+json", b"{}"),
        "layers": [blob(layout, chart, b"not read")],
    }));
    vec![
        tagged(signature, "sha256-0123.sig"),
        sbom,
        tagged(referrers, "sha256-0123"),
        tagged(helm, "chart"),
    ]
}

fn edit_index(layout: &Path, edit: impl FnOnce(&mut Vec<Value>)) {
    let path = layout.join("index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(index["manifests"].as_array_mut().unwrap());
    fs::write(&path, index.to_string()).unwrap();
}

#[test]
fn what_lies_beside_images_is_named_and_left_out() {
    let home = need!(home(&["skopeo"]));
    shell(
        &home,
        "skopeo copy -q docker-archive:app1.tar oci:layout:first",
    );
    let layout = home.path("layout");
    let beside = artifacts(&layout);
    edit_index(&layout, |list| {
        // Before and after the image in the list.
        list.splice(0..0, beside[..2].to_vec());
        list.extend(beside[2..].to_vec());
    });
    let loaded = home.run(["load", "-q", "-i", "layout"]);
    assert_eq!(loaded.code, Some(0), "{loaded:?}");
    assert_eq!(home.names(), ["layout:first"]);
    let told: Vec<&str> = loaded.stderr.lines().collect();
    assert_eq!(told.len(), 4, "{told:#?}");
    for (line, words) in told.iter().zip([
        ["a signature of cosign", "\"sha256-0123.sig\""],
        ["an SBOM", "application/spdx+json"],
        ["an index of artifacts, an SBOM", "\"sha256-0123\""],
        ["a Helm chart", "\"chart\""],
    ]) {
        assert!(
            words.iter().all(|word| line.contains(word)),
            "{words:?}: {line}"
        );
        assert!(line.ends_with("is no image and left out"), "{line}");
    }
    home.run(["load", "-q", "-i", "layout", "--ref", "first"])
        .ok();
    // An artifact alone is refused with the name of its kind.
    for (artifact, kind) in beside.iter().zip(["signature", "SBOM", "index", "Helm"]) {
        edit_index(&layout, |list| *list = vec![artifact.clone()]);
        let refused = home.run(["load", "-q", "-i", "layout"]);
        refused.failed(1, &["has no image: it holds", kind, "oras"]);
    }
}

#[test]
fn directories_of_skopeo_and_podman_are_loaded() {
    let home = need!(home(&["skopeo", "podman"]));
    home.run(["load", "-q", "-i", "app2.tar"]).ok();
    let id = home.json(["inspect", "--json", "app:2"])[0]["id"].clone();
    forget(&home);
    shell(
        &home,
        "skopeo copy -q docker-archive:app2.tar dir:from-skopeo
         podman=\"podman --root $PWD/p --runroot $PWD/r --storage-driver vfs\"
         $podman load -q -i app2.tar > loaded
         $podman save -q --format docker-dir -o from-podman app:2
         skopeo copy -q docker-archive:app2.tar oci:layout:2
         skopeo copy -q --all oci:layout:2 dir:of-oci",
    );
    for dir in ["from-skopeo", "from-podman", "of-oci"] {
        let text = home.run(["load", "-q", "-i", dir, "--tag", "flat:1"]).ok();
        assert_eq!(text, "Loaded image: flat:1\n", "{dir}");
        home.run(["mount", "flat:1", "mnt"]).ok();
        assert_eq!(fs::read_to_string(home.path("mnt/file")).unwrap(), "2");
        home.run(["umount", "mnt"]).ok();
        if dir == "from-skopeo" {
            assert_eq!(home.json(["inspect", "--json", "flat:1"])[0]["id"], id);
        }
        home.run(["verify", "--all"]).ok();
        forget(&home);
    }
    // Each blob is compared with the digest in the manifest.
    let layer = fs::read_dir(home.path("from-skopeo")).unwrap();
    let layer = layer.map(|entry| entry.unwrap().path());
    let largest = layer
        .max_by_key(|path| path.metadata().unwrap().len())
        .unwrap();
    let mut bytes = fs::read(&largest).unwrap();
    bytes[600] ^= 1;
    fs::write(&largest, bytes).unwrap();
    let refused = home.run(["load", "-q", "-i", "from-skopeo"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert_eq!(home.names(), [""; 0]);
}
