//! Pulls of images from a registry: by tag, by digest, from an index, in every format.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use testkit::need;
use unionfs::oci::Digest;

use crate::images::{assert_whole, home, id, serve, serve_large};
use crate::proxy::{Act, Proxy};
use crate::server::{Server, can_serve, digest_of, inspect};

const FORMATS: [&[&str]; 4] = [
    &["--format", "v2s2"],
    &["--format", "oci"],
    &["--format", "oci", "--dest-compress-format", "zstd"],
    // With a table of its files, in frames that the reader skips.
    &["--format", "oci", "--dest-compress-format", "zstd:chunked"],
];

#[test]
fn every_format_gives_the_same_image_and_pulling_again_moves_no_blob() {
    need!(can_serve());
    let home = home();
    let docker = home.text("docker");
    let expected = id(&home, &docker, "sample:1");
    for (number, format) in FORMATS.iter().enumerate() {
        // Each in a registry of its own, else skopeo reuses the existing blobs.
        let server = Server::start(&home);
        let proxy = Proxy::start(server.port, |_| Act::Pass);
        let tag = format!("app:{number}");
        serve(&home, &server, "1", &tag, format);
        let (_, raw) = inspect(&server, &tag);
        assert_eq!(raw.contains("zstd"), number >= 2, "{raw}");
        assert_eq!(raw.contains("zstd-chunked"), number == 3, "{raw}");
        let digest = digest_of(&server, &tag);
        let own = home.text(&format!("own-{number}"));
        let root = ["--store", own.as_str(), "--root", own.as_str()];
        proxy.forget();
        let pulled = home.json([&root[..2], &["pull", "-q", "--json", &proxy.name(&tag)]].concat());
        assert_eq!(pulled["digest"], digest.to_string());
        assert_eq!(pulled["new_layers"].as_array().unwrap().len(), 3);
        assert_eq!(proxy.blobs().len(), 4, "configuration and layers");
        // skopeo writes OCI configurations with other bytes.
        if number == 0 {
            assert_eq!(pulled["id"], expected);
        }
        let names = pulled["names"].as_array().unwrap();
        let by_digest = format!("{}@{digest}", proxy.name("app"));
        assert_eq!(names.len(), 2);
        assert_eq!(names[0], proxy.name(&tag));
        assert_eq!(names[1], by_digest);
        let verified = home.run([&root[..], &["verify", "--all"]].concat());
        assert!(verified.ok().contains("3 layers"));
        // Once more by each name.
        proxy.forget();
        for name in [proxy.name(&tag), by_digest] {
            let again = home.json([&root[..2], &["pull", "-q", "--json", &name]].concat());
            assert_eq!(again["id"], pulled["id"]);
            assert_eq!(again["new_layers"].as_array().unwrap().len(), 0);
        }
        assert_eq!(proxy.blobs().len(), 0, "{:?}", proxy.asked());
        let report = home.json([&root[..], &["prune", "-n", "--json"]].concat());
        assert_eq!(report["items"].as_array().unwrap().len(), 0, "{report}");
    }
}

#[test]
fn shared_layers_are_not_downloaded() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    let proxy = Proxy::start(server.port, |_| Act::Pass);
    serve(&home, &server, "1", "app:1", FORMATS[0]);
    serve(&home, &server, "2", "app:2", FORMATS[0]);
    home.run(["pull", "-q", &proxy.name("app:1")]).ok();
    proxy.forget();
    let output = home.run(["pull", &proxy.name("app:2")]);
    assert_eq!(output.code, Some(0), "{output:?}");
    assert_eq!(output.stderr.matches(": exists").count(), 2, "{output:?}");
    assert_eq!(output.stderr.matches(": downloaded, ").count(), 1);
    assert_eq!(output.stderr.matches(": unpacked, ").count(), 1);
    // A layer has one name.
    let name = |what: &str| {
        let mut lines = output.stderr.lines();
        lines.find_map(|line| Some(line.split_once(what)?.0.to_owned()))
    };
    assert_eq!(name(": downloaded, "), name(": unpacked, "));
    assert_eq!(proxy.blobs().len(), 2, "configuration and one layer");
    assert_whole(&home, 2, 0);
    // The short list has tags, the long one also their digests.
    let table = home.run(["images"]).ok();
    assert!(!table.contains('@') && table.contains("app:2"), "{table}");
    // An image is removed with its tag, also if it has a digest.
    home.run(["rmi", &proxy.name("app:1")]).ok();
    home.run(["rmi", &id(&home, &home.text("own"), &proxy.name("app:2"))])
        .ok();
    assert_whole(&home, 0, 0);
}

/// Makes an index of sample:1 for linux/arm/v6 and of sample:2 for v7, with the other entries that
/// indexes have.
fn serve_index(home: &testkit::home::Home, server: &Server) -> Digest {
    let entry = |from: &str, platform: &str| {
        let (_, raw) = inspect(server, from);
        let (digest, size) = (Digest::of(raw.as_bytes()), raw.len());
        let media = "application/vnd.docker.distribution.manifest.v2+json";
        format!(
            r#"{{"mediaType":"{media}","digest":"{digest}","size":{size},"platform":{platform}}}"#
        )
    };
    serve(home, server, "1", "many:one", FORMATS[0]);
    serve(home, server, "2", "many:two", FORMATS[0]);
    let arm =
        |variant: &str| format!(r#"{{"os":"linux","architecture":"arm","variant":"{variant}"}}"#);
    let entries = [
        entry("many:one", r#"{"os":"unknown","architecture":"unknown"}"#),
        entry("many:two", &arm("v7")),
        entry("many:one", &arm("v6")),
    ];
    let media = "application/vnd.docker.distribution.manifest.list.v2+json";
    let body = format!(
        r#"{{"schemaVersion":2,"mediaType":"{media}","manifests":[{}]}}"#,
        entries.join(",")
    );
    server.put_manifest("many", "all", media, &body);
    Digest::of(body.as_bytes())
}

#[test]
fn an_index_gives_the_image_of_the_platform() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    let index = serve_index(&home, &server);
    let docker = home.text("docker");
    let (one, two) = (
        id(&home, &docker, "sample:1"),
        id(&home, &docker, "sample:2"),
    );
    let by_digest = server.name(&format!("many@{index}"));
    let by_tag = server.name("many:all");
    for (name, platform, expected) in [
        (&by_tag, "linux/arm/v7", &two),
        (&by_tag, "linux/arm/v6", &one),
        (&by_digest, "linux/arm/v6", &one),
        // An arm platform without a variant is v7.
        (&by_digest, "linux/arm", &two),
    ] {
        let args = ["pull", "-q", "--json", "--platform", platform, name];
        // The images themselves say amd64, which is not checked again.
        let pulled = home.run(args);
        let pulled: serde_json::Value = serde_json::from_str(&pulled.ok()).unwrap();
        assert_eq!(pulled["id"], **expected, "{platform}");
        assert_eq!(pulled["digest"], index.to_string());
    }
    for args in [
        &["pull", "-q", "--platform", "linux/riscv64", &by_tag][..],
        &["pull", "-q", &by_tag],
    ] {
        home.run(args)
            .failed(1, &["no image for linux/", "linux/arm/v7, linux/arm/v6:"]);
    }
    // A single image is for its own platform only.
    let single = server.name("many:one");
    home.run(["pull", "-q", "--platform", "linux/s390x", &single])
        .failed(1, &["no image for linux/s390x"]);
    let bad = home.run(["pull", "-q", "--platform", "a/b/c/d", &single]);
    assert!(
        bad.code == Some(2) && bad.stderr.contains("os/arch"),
        "{bad:?}"
    );
}

#[test]
fn so_many_blobs_at_once_as_asked_for() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    serve(&home, &server, "1", "app:1", FORMATS[0]);
    for parallel in [1, 2, 3] {
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let peak = most.clone();
        let config = id(&home, &home.text("docker"), "sample:1");
        let proxy = Proxy::start(server.port, move |asked| {
            if asked.is_blob() && !asked.path.ends_with(&config) {
                let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                peak.fetch_max(now, Ordering::SeqCst);
                // First the others get time to arrive, then to exceed the limit.
                let start = Instant::now();
                while peak.load(Ordering::SeqCst) < parallel && start.elapsed().as_secs() < 10 {
                    sleep(Duration::from_millis(5));
                }
                sleep(Duration::from_millis(100));
                running.fetch_sub(1, Ordering::SeqCst);
            }
            Act::Pass
        });
        let (own, number) = (home.text(&format!("own-{parallel}")), parallel.to_string());
        let name = proxy.name("app:1");
        let args = ["--store", &own, "pull", "-q", "--parallel", &number, &name];
        home.run(args).ok();
        assert_eq!(most.load(Ordering::SeqCst), parallel);
    }
}

#[test]
fn what_is_not_there_is_said_so() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    let large = serve_large(&home, &server, "large:1", 100_000);
    let other = Digest::of(b"another");
    let run = |name: &str| home.run(["pull", "-q", name]);
    run(&server.name("large:2")).failed(1, &["large:2", "MANIFEST_UNKNOWN", "check the name"]);
    run(&server.name("none")).failed(1, &["none:latest", "the registry does not have it"]);
    let by_digest = server.name(&format!("large@{other}"));
    run(&by_digest).failed(1, &[&other.to_string(), "the registry does not have it"]);
    run("127.0.0.1:1/app").failed(1, &["http://127.0.0.1:1/", "refused"]);
    // libc asks all its modules for the name, such as libnss_mymachines, whose libcap calls prctl.
    run("no-such-host.invalid/app").failed(1, &["https://no-such-host.invalid/"]);
    run("App:1").failed(1, &["lower case"]);
    let sha512 = format!("{}@sha512:{}", server.name("large"), "a".repeat(128));
    run(&sha512).failed(1, &["SHA-256"]);
    let small = [
        "pull",
        "-q",
        "--max-layer-size",
        "1000",
        &server.name("large:1"),
    ];
    home.run(small)
        .failed(1, &["1000 are allowed", "blob sha256:"]);
    assert_whole(&home, 0, 0);
    run(&server.name("large:1")).ok();
    assert_eq!(id(&home, &home.text("own"), &server.name("large:1")), large);
}

#[test]
fn what_is_no_image_is_called_what_it_is() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    serve(&home, &server, "1", "app:1", &[]);
    let (_, raw) = inspect(&server, "app:1");
    let image: serde_json::Value = serde_json::from_str(&raw).unwrap();
    let layer = &image["layers"][0];
    let media = "application/vnd.oci.image.manifest.v1+json";
    let put = |tag: &str, artifact: Option<&str>, config: &str, layer_media: &str| {
        let mut config_blob = image["config"].clone();
        config_blob["mediaType"] = serde_json::json!(config);
        let mut layer = layer.clone();
        layer["mediaType"] = serde_json::json!(layer_media);
        let mut manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": media, "config": config_blob, "layers": [layer],
        });
        if let Some(artifact) = artifact {
            manifest["artifactType"] = serde_json::json!(artifact);
        }
        server.put_manifest("app", tag, media, &manifest.to_string());
    };
    let helm = "application/vnd.cncf.helm.config.v1+json";
    let chart = "application/vnd.cncf.helm.chart.content.v1.tar+gzip";
    put("chart", None, helm, chart);
    let config = "application/vnd.oci.image.config.v1+json";
    let signature = "application/vnd.dev.cosign.simplesigning.v1+json";
    put("signature", None, config, signature);
    let empty = "application/vnd.oci.empty.v1+json";
    put("oras", Some("application/vnd.example"), empty, "text/plain");
    for (tag, kind) in [
        (
            "chart",
            "a Helm chart (application/vnd.cncf.helm.config.v1+json)",
        ),
        ("signature", "a signature of cosign"),
        ("oras", "an artifact (application/vnd.example)"),
    ] {
        let name = server.name(&format!("app:{tag}"));
        let refused = home.run(["pull", "-q", &name]);
        refused.failed(1, &["is no image: it is", kind, "oras"]);
    }
}

#[test]
fn a_damaged_layer_is_pulled_again_where_that_is_asked_for() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    serve(&home, &server, "1", "app:1", &[]);
    let name = server.name("app:1");
    home.run(["pull", "-q", &name]).ok();
    let image = home.json(["inspect", "--json", &name])[0].clone();
    let top = image["layers"].as_array().unwrap().last().unwrap()["path"].clone();
    std::fs::write(
        std::path::Path::new(top.as_str().unwrap()).join("extra"),
        "",
    )
    .unwrap();
    home.run(["pull", "-q", &name]).ok();
    let verified = home.run(["verify", &name]);
    verified.failed_with_output(&["unionfs pull --repair IMAGE"]);
    let text = home.run(["pull", "-q", "--repair", &name]).ok();
    assert_eq!(text.matches("Repaired layer: ").count(), 1, "{text}");
    assert_whole(&home, 1, 0);
    let text = home.run(["pull", "-q", "--repair", &name]).ok();
    assert!(!text.contains("Repaired"), "{text}");
}
