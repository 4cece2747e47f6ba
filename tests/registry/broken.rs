//! Connections that break, wrong answers, and pulls that are killed.

use std::os::unix::fs::MetadataExt as _;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::fs::FlockOperation;
use rustix::process::Signal;
use testkit::home::{Home, kill, wait_until};
use testkit::{need, program};
use unionfs::oci::Digest;

use crate::images::{assert_whole, home, id, serve, serve_large};
use crate::proxy::{Act, Asked, Proxy};
use crate::server::{Server, can_serve, inspect};

const LARGE: usize = 3 << 20;

/// Makes a registry with an image of one layer that is larger than any buffer; returns its ID and
/// the digest of the layer's blob too.
fn large() -> (Home, Server, String, String) {
    let home = Home::new();
    let server = Server::start(&home);
    let id = serve_large(&home, &server, "large:1", LARGE);
    let (_, raw) = inspect(&server, "large:1");
    let manifest: serde_json::Value = serde_json::from_str(&raw).unwrap();
    let blob = manifest["layers"][0]["digest"].as_str().unwrap().to_owned();
    (home, server, id, blob)
}

/// Applies the act to the first requests for a blob.
fn first(
    blob: &str,
    times: usize,
    act: impl Fn() -> Act + Send + Sync + 'static,
) -> impl Fn(&Asked) -> Act + Send + Sync + 'static {
    let (end, count) = (blob.to_owned(), AtomicUsize::new(0));
    move |asked| {
        if asked.is_blob()
            && asked.path.ends_with(&end)
            && count.fetch_add(1, Ordering::SeqCst) < times
        {
            act()
        } else {
            Act::Pass
        }
    }
}

/// Returns the Range headers of the requests for a blob.
fn ranges(proxy: &Proxy, blob: &str) -> Vec<Option<String>> {
    let asked = proxy.blobs();
    let asked = asked.iter().filter(|asked| asked.path.ends_with(blob));
    asked
        .map(|a| a.header("range").map(str::to_owned))
        .collect()
}

fn range(from: usize) -> Option<String> {
    Some(format!("bytes={from}-"))
}

fn downloads(home: &Home) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(home.path("own/unionfs/downloads"));
    let entries = entries.into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_cut_connection_goes_on_where_it_was_cut() {
    need!(can_serve());
    let (home, server, expected, blob) = large();
    let cut = first(&blob, 2, || Act::Cut(1 << 20));
    let proxy = Proxy::start(server.port, cut);
    let output = home.run(["pull", &proxy.name("large:1")]);
    assert_eq!(output.code, Some(0), "{output:?}");
    assert_eq!(output.stderr.matches("trying again: ").count(), 2);
    assert_eq!(
        ranges(&proxy, &blob),
        [None, range(1 << 20), range(2 << 20)]
    );
    assert_eq!(
        id(&home, &home.text("own"), &proxy.name("large:1")),
        expected
    );
    assert_whole(&home, 1, 0);
    assert_eq!(downloads(&home).len(), 0);
}

#[test]
fn a_killed_pull_is_gone_on_with() {
    need!(can_serve());
    let (home, server, expected, blob) = large();
    let stall = first(&blob, 1, || Act::Stall(1 << 20));
    let proxy = Proxy::start(server.port, stall);
    let name = proxy.name("large:1");
    let mut child = home
        .command(program())
        .args(["pull", "-q", &name])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("a part is there", || {
        let found = downloads(&home);
        found.len() == 1 && found[0].metadata().unwrap().size() == 1 << 20
    });
    // During the download the part is no garbage, and other commands may change the store.
    assert_whole(&home, 0, 0);
    kill(i32::try_from(child.id()).unwrap(), Signal::KILL);
    child.wait().unwrap();
    assert_whole(&home, 0, 1);
    let output = home.run(["pull", &name]);
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.stderr.contains("continuing after "), "{output:?}");
    assert_eq!(ranges(&proxy, &blob), [None, range(1 << 20)]);
    assert_eq!(id(&home, &home.text("own"), &name), expected);
    assert_whole(&home, 1, 0);
}

/// Puts a file at the path of the blob's download.
fn left_over(home: &Home, blob: &str, bytes: &[u8]) -> std::path::PathBuf {
    let dir = home.path("own/unionfs/downloads");
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join(Digest::parse(blob).unwrap().hex());
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn what_is_left_over_is_only_used_if_it_is_right() {
    need!(can_serve());
    let (home, server, expected, blob) = large();
    let proxy = Proxy::start(server.port, |_| Act::Pass);
    let ranges_of = |bytes: &[u8]| {
        let name = proxy.name("large:1");
        // Creates the store; the image is removed again.
        home.run(["pull", "-q", &name]).ok();
        home.run(["rmi", &name]).ok();
        left_over(&home, &blob, bytes);
        proxy.forget();
        let pulled = home.json(["pull", "-q", "--json", &name]);
        assert_eq!(pulled["id"], expected);
        assert_whole(&home, 1, 0);
        home.run(["rmi", &name]).ok();
        ranges(&proxy, &blob)
    };
    assert_eq!(ranges_of(&[7; 1000]), [range(1000), None]);
    assert_eq!(ranges_of(&[7; 2 * LARGE]), [None]);
    assert_eq!(ranges_of(b""), [None]);
    let (_, raw) = inspect(&server, "large:1");
    let manifest: serde_json::Value = serde_json::from_str(&raw).unwrap();
    let size = manifest["layers"][0]["size"].as_u64().unwrap();
    assert_eq!(ranges_of(&vec![7; usize::try_from(size).unwrap()]), [None]);
}

#[test]
fn a_registry_without_ranges_is_asked_for_everything() {
    need!(can_serve());
    let (home, server, expected, blob) = large();
    let times = AtomicUsize::new(0);
    let proxy = Proxy::start(server.port, move |asked| {
        if !asked.is_blob() || !asked.path.ends_with(&blob) {
            Act::Pass
        } else if times.fetch_add(1, Ordering::SeqCst) == 0 {
            Act::Cut(1 << 20)
        } else {
            Act::NoRange
        }
    });
    let pulled = home.json(["pull", "-q", "--json", &proxy.name("large:1")]);
    assert_eq!(pulled["id"], expected);
    assert_whole(&home, 1, 0);
}

#[test]
fn prune_removes_downloads_that_nobody_is_at() {
    need!(can_serve());
    let (home, server, ..) = large();
    home.run(["pull", "-q", &server.name("large:1")]).ok();
    let blob = Digest::of(b"some").to_string();
    let path = left_over(&home, &blob, b"part");
    let file = std::fs::File::open(&path).unwrap();
    rustix::fs::flock(&file, FlockOperation::LockExclusive).unwrap();
    home.run(["prune"]).ok();
    assert!(path.exists(), "somebody has it");
    drop(file);
    let pruned = home.run(["prune"]).ok();
    assert!(pruned.contains("download for a later pull"), "{pruned}");
    assert!(!path.exists());
    assert_whole(&home, 1, 0);
}

#[test]
fn false_answers_are_refused_and_leave_nothing() {
    need!(can_serve());
    let (home, server, _, blob) = large();
    let end = blob.clone();
    let flipped = Proxy::start(server.port, move |asked| {
        if asked.path.ends_with(&end) {
            Act::Flip(LARGE / 2)
        } else {
            Act::Pass
        }
    });
    home.run(["pull", "-q", &flipped.name("large:1")])
        .failed(1, &[&blob, "refused", &flipped.name("large:1")]);
    assert_whole(&home, 0, 0);
    // The configuration, and the manifest by its tag.
    let config = id(&home, &home.text("maker"), "large:1");
    let end = config.clone();
    let flipped = Proxy::start(server.port, move |asked| {
        if asked.is_blob() && asked.path.ends_with(&end) {
            Act::Flip(20)
        } else {
            Act::Pass
        }
    });
    home.run(["pull", "-q", &flipped.name("large:1")])
        .failed(1, &[&config, "refused"]);
    let flipped = Proxy::start(server.port, |asked| {
        if asked.path.contains("/manifests/") {
            Act::Flip(20)
        } else {
            Act::Pass
        }
    });
    home.run(["pull", "-q", &flipped.name("large:1")])
        .failed(1, &["SHA-256", "large:1"]);
    assert_whole(&home, 0, 0);
    assert_eq!(id(&home, &home.text("maker"), "large:1"), config);
}

/// A manifest whose layer differs from the one in its configuration.
#[test]
fn a_layer_of_another_image_is_refused() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    serve(&home, &server, "1", "app:1", &["--format", "v2s2"]);
    let (_, raw) = inspect(&server, "app:1");
    let mut manifest: serde_json::Value = serde_json::from_str(&raw).unwrap();
    let layers = manifest["layers"].as_array_mut().unwrap();
    layers.swap(1, 2);
    let media = "application/vnd.docker.distribution.manifest.v2+json";
    server.put_manifest("app", "swapped", media, &manifest.to_string());
    manifest["layers"].as_array_mut().unwrap().pop();
    server.put_manifest("app", "short", media, &manifest.to_string());
    let docker = home.text("docker");
    let second = home.json(["--root", &docker, "inspect", "--json", "sample:1"])[0].clone();
    let second = second["layers"][1]["diff_id"].as_str().unwrap().to_owned();
    home.run(["pull", "-q", &server.name("app:swapped")])
        .failed(1, &[&second, "app:swapped"]);
    assert_whole(&home, 0, 0);
    home.run(["pull", "-q", &server.name("app:short")])
        .failed(1, &["3 layers", "manifest 2"]);
    assert_eq!(downloads(&home).len(), 0);
}

#[test]
fn errors_that_pass_are_waited_out_and_others_not() {
    need!(can_serve());
    let (home, server, expected, blob) = large();
    let busy = || Act::Answer("503 Service Unavailable".to_owned(), "busy".to_owned());
    let proxy = Proxy::start(server.port, first(&blob, 2, busy));
    let pulled = home.json(["pull", "-q", "--json", &proxy.name("large:1")]);
    assert_eq!(pulled["id"], expected);
    assert_eq!(ranges(&proxy, &blob).len(), 3);
    home.run(["rmi", &proxy.name("large:1")]).ok();
    for status in ["400 Bad Request", "429 Too Many Requests", "410 Gone"] {
        let body = r#"{"errors":[{"code":"NO","message":"not\nnow"}]}"#;
        let no = move || Act::Answer(status.to_owned(), body.to_owned());
        let proxy = Proxy::start(server.port, first(&blob, 9, no));
        home.run(["pull", "-q", &proxy.name("large:1")])
            .failed(1, &[&blob, &status[..3], "NO: not\\nnow"]);
        assert_eq!(ranges(&proxy, &blob).len(), 1, "tried again");
    }
    assert_whole(&home, 0, 1);
}

/// A registry that restarts closes connections without an answer. Places of blobs and uploads may be relative
/// (RFC 3986, 5.2.4).
#[test]
fn dropped_connections_are_waited_out_and_relative_places_followed() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    serve(&home, &server, "1", "app:1", &[]);
    let wanted = id(&home, &home.text("docker"), "sample:1");
    let dropped = [AtomicBool::new(false), AtomicBool::new(false)];
    let dropping = Proxy::start(server.port, move |asked: &Asked| {
        let kind = usize::from(asked.is_blob());
        let matters = asked.is_blob() || asked.path.contains("/manifests/");
        if matters && !dropped[kind].swap(true, Ordering::SeqCst) {
            Act::HangUp
        } else {
            Act::Pass
        }
    });
    let pulled = home.run(["pull", &dropping.name("app:1")]);
    assert_eq!(pulled.code, Some(0), "{pulled:?}");
    assert_eq!(
        pulled.stderr.matches("trying again").count(),
        2,
        "{pulled:?}"
    );
    assert_eq!(
        id(&home, &home.text("own"), &dropping.name("app:1")),
        wanted
    );
    let relative = Proxy::start(server.port, |asked: &Asked| {
        let rest = asked.path.strip_prefix("/v2/").unwrap_or_default();
        match asked.method.as_str() {
            "POST" => Act::RelativeUpload,
            _ if asked.is_blob() && !rest.ends_with("?again") => {
                let head = format!("307 Temporary Redirect\r\nLocation: ../.././{rest}?again");
                Act::Answer(head, String::new())
            }
            _ => Act::Pass,
        }
    });
    let (other, name) = (home.text("other"), relative.name("app:1"));
    home.run(["--store", &other, "pull", "-q", &name]).ok();
    assert_eq!(id(&home, &other, &name), wanted);
    let again = |asked: &Asked| {
        asked.path.starts_with("/v2/app/blobs/sha256:") && asked.path.ends_with("?again")
    };
    assert!(relative.blobs().iter().any(again), "{:?}", relative.blobs());
    home.run([
        "push",
        "-q",
        &dropping.name("app:1"),
        &relative.name("pushed:1"),
    ])
    .ok();
    assert_eq!(server.manifest("pushed", "1")["config"]["digest"], *wanted);
    let uploaded = |asked: &Asked| {
        asked.method != "POST" && asked.path.starts_with("/v2/pushed/blobs/uploads/")
    };
    assert!(relative.asked().iter().any(uploaded));
}
