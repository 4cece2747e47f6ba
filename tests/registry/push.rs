//! Pushes to a registry: skopeo checks the images there, and they are pulled again.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use testkit::need;
use unionfs::oci::Digest;

use crate::images::{assert_whole, home, id, serve};
use crate::proxy::{Act, Proxy};
use crate::server::{Server, can_serve, inspect, skopeo};

/// Other programs read layers in zstd, and a layer that the registry has in gzip is sent again.
#[test]
fn layers_are_pushed_in_zstd_and_at_other_levels() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    let docker = home.text("docker");
    let expected = id(&home, &docker, "sample:1");
    let push = |to: &str, more: &[&str]| {
        let name = server.name(to);
        let args = [
            &["--root", &docker, "push", "-q", "--json"],
            more,
            &["sample:1", &name],
        ];
        home.json(args.concat())
    };
    let gzip = push("packed:gzip", &[]);
    for level in [None, Some("1"), Some("20")] {
        let level = level.map_or(Vec::new(), |level| vec!["--compression-level", level]);
        let more = [&["--compression", "zstd"], &level[..]].concat();
        let pushed = push("packed:zstd", &more);
        let (about, raw) = inspect(&server, "packed:zstd");
        assert_eq!(about["Digest"], pushed["digest"]);
        let manifest: serde_json::Value = serde_json::from_str(&raw).unwrap();
        for (layer, gzip) in manifest["layers"]
            .as_array()
            .unwrap()
            .iter()
            .zip(gzip["layers"].as_array().unwrap())
        {
            assert_eq!(
                layer["mediaType"],
                "application/vnd.oci.image.layer.v1.tar+zstd"
            );
            assert_ne!(layer["digest"], gzip["digest"]);
        }
        assert_eq!(push("packed:again", &more)["layers"][0]["sent"], false);
        let archive = format!("oci-archive:{}", home.text("zstd.tar"));
        let url = server.url("packed:zstd");
        skopeo(&["copy", "-q", "--src-tls-verify=false", &url, &archive]);
        let own = home.text("own-zstd");
        let name = server.name("packed:zstd");
        let pulled = home.json(["--store", &own, "pull", "-q", "--json", &name]);
        assert_eq!(pulled["id"], expected);
        // A pulled image is sent in gzip unless another format is requested, and the blob is
        // unchanged.
        let name = server.name("packed:back");
        let back = home.json(["--root", &own, "push", "-q", "--json", &expected, &name]);
        assert_eq!(back["layers"][0]["digest"], gzip["layers"][0]["digest"]);
    }
    let fast = push("fast:1", &["--compression-level", "1"]);
    let url = server.url("fast:1");
    let archive = format!("docker-archive:{}", home.text("fast.tar"));
    skopeo(&["copy", "-q", "--src-tls-verify=false", &url, &archive]);
    assert_eq!(fast["id"], expected);
    let name = server.name("fast:1");
    for (args, words) in [
        (
            &["--compression", "zstd", "--format", "docker"][..],
            "--format oci",
        ),
        (&["--compression-level", "10"], "from 1 to 9"),
        (&["--compression-level", "0"], "from 1 to 9"),
        (
            &["--compression", "zstd", "--compression-level", "21"],
            "from 1 to 20",
        ),
    ] {
        let args = [&["--root", &docker, "push"], args, &["sample:1", &name]].concat();
        home.run(args).failed(2, &[words]);
    }
}

#[test]
fn what_is_pushed_is_seen_copied_and_comes_back_the_same() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    let docker = home.text("docker");
    let expected = id(&home, &docker, "sample:1");
    for (format, media) in [
        (
            "docker",
            "application/vnd.docker.distribution.manifest.v2+json",
        ),
        ("oci", "application/vnd.oci.image.manifest.v1+json"),
    ] {
        let to = format!("pushed:{format}");
        let name = server.name(&to);
        let args = [
            "--root", &docker, "push", "-q", "--json", "--format", format,
        ];
        let pushed = home.json([&args[..], &["sample:1", &name]].concat());
        let (about, raw) = inspect(&server, &to);
        assert_eq!(about["Digest"], pushed["digest"]);
        assert_eq!(
            Digest::of(raw.as_bytes()).to_string(),
            pushed["digest"].as_str().unwrap()
        );
        let manifest: serde_json::Value = serde_json::from_str(&raw).unwrap();
        assert_eq!(manifest["mediaType"], media);
        assert_eq!(manifest["config"]["digest"], expected);
        assert_eq!(pushed["layers"].as_array().unwrap().len(), 3);
        for (layer, pushed) in manifest["layers"]
            .as_array()
            .unwrap()
            .iter()
            .zip(pushed["layers"].as_array().unwrap())
        {
            assert_eq!(layer["digest"], pushed["digest"]);
            assert_eq!(pushed["sent"], format == "docker", "sent once");
        }
        // The reader of another program checks every blob.
        let archive = format!("docker-archive:{}", home.text(&format!("{format}.tar")));
        skopeo(&[
            "copy",
            "-q",
            "--src-tls-verify=false",
            &server.url(&to),
            &archive,
        ]);
        let own = home.text(&format!("own-{format}"));
        let pulled = home.json(["--store", &own, "pull", "-q", "--json", &name]);
        assert_eq!(pulled["id"], expected);
        assert_eq!(pulled["digest"], pushed["digest"]);
        let layers = |root: &str, image: &str| {
            let about = home.json(["--root", root, "inspect", "--json", image])[0].clone();
            about["layers"]
                .clone()
                .as_array()
                .unwrap()
                .iter()
                .map(|l| l["diff_id"].clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(layers(&own, &name), layers(&docker, "sample:1"));
        assert!(
            home.run(["--root", &own, "verify", "--all"])
                .ok()
                .contains("no damage")
        );
    }
    // Docker's store is only read.
    let notes = home.path("docker/image/overlay2/distribution");
    assert_eq!(std::fs::read_dir(notes).unwrap().count(), 0);
}

#[test]
fn what_was_pulled_goes_by_the_digests_it_had() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    serve(&home, &server, "1", "app:1", &["--format", "v2s2"]);
    let before = server.blobs();
    let (name, (about, _)) = (server.name("app:1"), inspect(&server, "app:1"));
    home.run(["pull", "-q", &name]).ok();
    // To the same repository nothing is packed or sent; other repositories get the blobs from this
    // one.
    let pushed = home.json(["push", "-q", "--json", &name]);
    assert_eq!(pushed["digest"], about["Digest"]);
    assert_eq!(server.blobs(), before);
    let proxy = Proxy::start(server.port, |_| Act::Pass);
    let other = home.json(["push", "-q", "--json", &name, &server.name("other:1")]);
    for layer in other["layers"].as_array().unwrap() {
        assert_eq!(
            (&layer["mounted"], &layer["sent"]),
            (&"app".into(), &false.into())
        );
    }
    assert_eq!(other["digest"], about["Digest"]);
    assert_eq!(server.blobs(), before);
    assert_eq!(inspect(&server, "other:1").0["Layers"], about["Layers"]);
    // Another registry, according to the notes: layers are packed again, once.
    let first = home.json(["push", "-q", "--json", &name, &proxy.name("third:1")]);
    let after = server.blobs();
    let output = home.run(["push", &name, &proxy.name("fourth:1")]);
    assert_eq!(output.code, Some(0), "{output:?}");
    assert_eq!(server.blobs(), after, "{output:?}");
    assert_eq!(inspect(&server, "fourth:1").0["Digest"], first["digest"]);
    assert!(output.stdout.contains(first["digest"].as_str().unwrap()));
    assert_whole(&home, 1, 0);
}

/// The notes are only hints: if the registry does not have the layer, it is sent.
#[test]
fn a_blob_that_another_repository_has_not_any_more_is_sent() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    serve(&home, &server, "1", "app:1", &["--format", "v2s2"]);
    let name = server.name("app:1");
    home.run(["pull", "-q", &name]).ok();
    let notes = home.path("own/image/overlay2/distribution/v2metadata-by-diffid/sha256");
    for note in std::fs::read_dir(notes).unwrap() {
        let path = note.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, text.replace("/app", "/gone")).unwrap();
    }
    let pushed = home.json(["push", "-q", "--json", &name, &server.name("other:1")]);
    for layer in pushed["layers"].as_array().unwrap() {
        assert_eq!((layer.get("mounted"), &layer["sent"]), (None, &true.into()));
    }
    assert_eq!(inspect(&server, "other:1").0["Digest"], pushed["digest"]);
    // The uploads that the registry started instead are cancelled.
    let uploads = home.path(&format!(
        "registry-{}/docker/registry/v2/repositories/other/_uploads",
        server.port
    ));
    let uploads = std::fs::read_dir(uploads).into_iter().flatten().flatten();
    let open = |upload: &std::fs::DirEntry| upload.path().join("startedat").exists();
    assert_eq!(uploads.filter(open).count(), 0);
}

#[test]
fn names_by_digest_come_with_a_push() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    let archive = home.text("sample.tar");
    home.run([
        "--root",
        &home.text("docker"),
        "save",
        "-q",
        "sample:1",
        "-o",
        &archive,
    ])
    .ok();
    let name = server.name("app:1");
    home.run(["load", "-q", "-i", &archive, "--tag", &name])
        .ok();
    let pushed = home.json(["push", "-q", "--json", &name]);
    let names = home.json(["images", "--json"])[0]["names"].to_string();
    let digest = pushed["digest"].as_str().unwrap();
    assert!(names.contains(&format!("app@{digest}")), "{names}");
    // A push to a name that the image does not have gives it no name.
    home.run(["push", "-q", &name, &server.name("elsewhere:1")])
        .ok();
    let after = home.json(["images", "--json"])[0]["names"].to_string();
    assert_eq!(after, names);
}

#[test]
fn uploads_are_tried_again_and_what_cannot_be_pushed_is_said() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    let docker = home.text("docker");
    let times = AtomicUsize::new(0);
    let proxy = Proxy::start(server.port, move |asked| {
        let upload = asked.method == "POST" || asked.method == "PUT";
        if upload && times.fetch_add(1, Ordering::SeqCst).is_multiple_of(3) {
            Act::Answer("502 Bad Gateway".to_owned(), String::new())
        } else {
            Act::Pass
        }
    });
    let args = ["--root", &docker, "push", "-q", "--json", "sample:2"];
    let pushed = home.json([&args[..], &[&proxy.name("app:2")]].concat());
    assert_eq!(inspect(&server, "app:2").0["Digest"], pushed["digest"]);
    let push = |args: &[&str]| home.run([&["--root", &docker, "push", "-q"][..], args].concat());
    push(&["nothing:1", &server.name("x")]).failed(1, &["nothing:1"]);
    push(&[
        "sample:1",
        &format!("{}@{}", server.name("x"), Digest::of(b"")),
    ])
    .failed(2, &["digest"]);
    let id = id(&home, &docker, "sample:1");
    push(&[&id]).failed(2, &["is an ID", "destination"]);
    push(&["sample:1", "127.0.0.1:1/x"]).failed(1, &["refused"]);
}

/// Two pushes of the same image at once: the registry may refuse a blob that it has by then, and
/// may for a moment not find a blob that it has.
#[test]
fn what_another_push_brings_meanwhile_is_no_failure() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    let docker = home.text("docker");
    let refused = |code: &str| {
        let body = json!({"errors": [{"code": code, "message": "of another push"}]});
        ("400 Bad Request".to_owned(), body.to_string())
    };
    let answer = move |code| {
        let (head, body) = refused(code);
        Act::Answer(head, body)
    };
    let push = |name: &str| home.run(["--root", &docker, "push", "-q", "sample:2", name]);
    for code in ["DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN"] {
        let times = AtomicUsize::new(0);
        let proxy = Proxy::start(server.port, move |asked| {
            let manifest = asked.method == "PUT" && asked.path.contains("/manifests/");
            if manifest && times.fetch_add(1, Ordering::SeqCst) < 2 {
                answer(code)
            } else {
                Act::Pass
            }
        });
        push(&proxy.name("twice:1")).ok();
    }
    let other = Proxy::start(server.port, move |asked| {
        if asked.method == "PUT" && asked.path.contains("/manifests/") {
            answer("MANIFEST_INVALID")
        } else {
            Act::Pass
        }
    });
    push(&other.name("twice:2")).failed(1, &["MANIFEST_INVALID"]);
    // The registry has the blob when it refuses it.
    let proxy = Proxy::start(server.port, move |asked| {
        if asked.method == "PUT" && asked.path.contains("/uploads/") {
            let (head, body) = refused("BLOB_UPLOAD_INVALID");
            Act::Instead(head, body)
        } else {
            Act::Pass
        }
    });
    push(&proxy.name("late:1")).ok();
    assert_eq!(
        inspect(&server, "late:1").0["Digest"],
        inspect(&server, "twice:1").0["Digest"]
    );
    // The registry does not have the blob.
    let proxy = Proxy::start(server.port, move |asked| {
        if asked.method == "PUT" && asked.path.contains("/uploads/") {
            answer("BLOB_UPLOAD_INVALID")
        } else {
            Act::Pass
        }
    });
    push(&proxy.name("never:1")).failed(1, &["BLOB_UPLOAD_INVALID"]);
}

/// A layer whose files were changed in the store does not match its digest.
#[test]
fn a_damaged_layer_is_not_pushed() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    let docker = home.text("docker");
    let about = home.json(["--root", &docker, "inspect", "--json", "sample:1"])[0].clone();
    let top = about["layers"][0]["path"].as_str().unwrap().to_owned();
    std::fs::write(format!("{top}/etc/passwd"), "root::0:0::/:\n").unwrap();
    home.run([
        "--root",
        &docker,
        "push",
        "-q",
        "sample:1",
        &server.name("app:1"),
    ])
    .failed(1, &["etc/passwd"]);
    home.run(["pull", "-q", &server.name("app:1")])
        .failed(1, &["app:1", "the registry does not have it"]);
}

/// skopeo's names of stores are sources of `push`, and `docker://` is before the name of a registry.
#[test]
fn names_with_a_store_are_pushed() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    let docker = home.text("docker");
    serve(&home, &server, "1", "app:1", &[]);
    let wanted = id(&home, &docker, "sample:1");
    let host = server.name("implied");
    let store = format!(
        "containers-storage:[vfs@{}+{}]",
        home.text("graph"),
        home.text("run-root")
    );
    let archive = format!("docker-archive:{}", home.text("1.tar"));
    for name in ["localhost/app:1", &format!("{host}:1")] {
        skopeo(&["copy", "-q", &archive, &format!("{store}{name}")]);
    }
    let config =
        |repository: &str, tag: &str| server.manifest(repository, tag)["config"]["digest"].clone();
    // Without a destination the name in the store counts.
    home.run(["push", "-q", &format!("{store}{host}:1")]).ok();
    assert_eq!(config("implied", "1"), *wanted);
    let to = server.url("given/app:1");
    for name in [
        format!("{store}localhost/app:1"),
        format!("{store}app:1"),
        format!("{store}{}", &wanted[7..]),
    ] {
        home.run(["push", "-q", &name, &to]).ok();
        assert_eq!(config("given/app", "1"), *wanted, "{name}");
    }
    home.run([
        "push",
        "-q",
        &format!("{store}docker.io/library/app:1"),
        &to,
    ])
    .failed(1, &["no image"]);
    home.run(["push", "-q", &format!("{store}{}", &wanted[7..])])
        .failed(2, &["is an ID", "destination"]);
    let to = server.name("daemon/app:2");
    home.run([
        "--root",
        &docker,
        "push",
        "-q",
        "docker-daemon:sample:1",
        &to,
    ])
    .ok();
    assert_eq!(config("daemon/app", "2"), *wanted);
    home.run(["pull", "-q", &server.url("daemon/app:2")]).ok();
    assert_eq!(id(&home, &home.text("own"), &to), wanted);
    home.run(["history", "-q", &server.url("daemon/app:2")])
        .ok();
}
