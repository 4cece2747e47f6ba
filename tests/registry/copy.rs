//! `copy` between registries, layouts, `dir:` directories and stores. skopeo reads what it writes, and it
//! reads what skopeo writes; digests stay.

use std::path::Path;

use serde_json::Value;
use testkit::home::Home;
use testkit::need;
use unionfs::archive::{Source, Wanted, load};
use unionfs::layer_tar::Limits;
use unionfs::oci::Digest;
use unionfs::store::Writable;

use crate::images::{home, id, serve};
use crate::server::{Server, can_serve, digest_of, skopeo};

pub(crate) const LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Serves an index `app:all` with two images; returns its digest and those of the images.
pub(crate) fn serve_index(home: &Home, server: &Server, media: &str) -> (Digest, [Digest; 2]) {
    let options: &[&str] = match media {
        INDEX => &["--format", "oci"],
        _ => &[],
    };
    let mut entries = Vec::new();
    let mut digests = Vec::new();
    for (tag, arch) in [("1", "amd64"), ("2", "arm64")] {
        let rest = format!("app:{tag}");
        serve(home, server, tag, &rest, options);
        let (_, raw) = crate::server::inspect(server, &rest);
        let manifest: Value = serde_json::from_str(&raw).unwrap();
        let digest = Digest::of(raw.as_bytes());
        let of_manifest = manifest["mediaType"].as_str().unwrap();
        entries.push(format!(
            r#"{{"mediaType":"{of_manifest}","size":{},"digest":"{digest}","platform":{{"os":"linux","architecture":"{arch}"}}}}"#,
            raw.len()
        ));
        digests.push(digest);
    }
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{media}","manifests":[{}]}}"#,
        entries.join(",")
    );
    server.put_manifest("app", "all", media, &text);
    (Digest::of(text.as_bytes()), [digests[0], digests[1]])
}

#[test]
fn an_index_is_kept_through_all_kinds_of_places() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    for media in [LIST, INDEX] {
        let (index, images) = serve_index(&home, &server, media);
        let other = Server::start(&home);
        let places = [
            other.url("copied/app:all"),
            format!("oci:{}:all", home.text("layout")),
            format!("oci-archive:{}:all", home.text("layout.tar")),
            format!("dir:{}", home.text("dir")),
            other.url("back/app:all"),
        ];
        let mut from = server.url("app:all");
        let mut digests = Vec::new();
        for to in &places {
            let copied = home.json(["copy", "--json", "--all", &from, to]);
            assert_eq!(copied["images"], 2, "{to}");
            digests.push(copied["digest"].as_str().unwrap().to_owned());
            from.clone_from(to);
        }
        // A layout has no list of Docker: it becomes an index. All else stays.
        let kept = if media == INDEX { 5 } else { 1 };
        assert!(
            digests[..kept]
                .iter()
                .all(|digest| *digest == index.to_string())
        );
        assert!(digests[1..].iter().all(|digest| *digest == digests[1]));
        assert_eq!(digest_of(&other, "back/app:all").to_string(), digests[4]);
        // skopeo reads each of them, with all that they refer to.
        for (number, from) in places.iter().enumerate() {
            let rest = format!("skopeo/app:{number}");
            let to = other.url(&rest);
            let tls = ["--src-tls-verify=false", "--dest-tls-verify=false"];
            skopeo(&[&["copy", "-q", "--all"], &tls[..], &[from, &to]].concat());
            assert_eq!(
                digest_of(&other, &rest).to_string(),
                digests[number],
                "{from}"
            );
        }
        for image in images.iter().filter(|_| media == INDEX) {
            let name = other.name(&format!("back/app@{image}"));
            assert_eq!(home.run(["digest", &name]).ok().trim(), image.to_string());
        }
        // One image of the index.
        let one = other.url("one:1");
        let args = ["copy", "-q", "--platform", "linux/arm64", &places[1], &one];
        let said = home.run(args).ok();
        assert_eq!(said.contains(&images[1].to_string()), media == INDEX);
        for place in ["layout", "dir"] {
            std::fs::remove_dir_all(home.path(place)).unwrap();
        }
        let _ = std::fs::remove_file(home.path("2.tar"));
    }
}

#[test]
fn what_skopeo_writes_is_copied() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    let (index, images) = serve_index(&home, &server, INDEX);
    let from = server.url("app:all");
    for kind in ["dir", "oci"] {
        let place = format!("{kind}:{}", home.text(kind));
        let tagged = if kind == "oci" {
            format!("{place}:x")
        } else {
            place
        };
        skopeo(&[
            "copy",
            "-q",
            "--all",
            "--src-tls-verify=false",
            &from,
            &tagged,
        ]);
        let to = server.url(&format!("{kind}/app:1"));
        home.run(["copy", "-q", "--all", &tagged, &to]).ok();
        assert_eq!(
            digest_of(&server, &format!("{kind}/app:1")),
            index,
            "{kind}"
        );
    }
    // push and save keep an index too.
    let layout = format!("oci:{}:x", home.text("oci"));
    let name = server.name("pushed/app:1");
    let pushed = home.json(["push", "--all", "--json", "-q", &layout, &name]);
    assert_eq!(
        (&pushed["digest"], &pushed["images"]),
        (&index.to_string().into(), &2.into())
    );
    assert_eq!(digest_of(&server, "pushed/app:1"), index);
    let saved = home
        .run(["save", "--all", "-q", &layout, "-o", "saved.tar"])
        .ok();
    assert!(saved.contains(&index.to_string()), "{saved}");
    let piped = home.run_script(&format!("unionfs save --all -q {layout} | cat > piped.tar"));
    assert_eq!(piped.ok(), "");
    for file in ["saved.tar", "piped.tar"] {
        let from = format!("oci-archive:{}", home.text(file));
        let to = server.url(&format!("{file}/app:1"));
        home.run(["copy", "-q", "--all", &from, &to]).ok();
        assert_eq!(
            digest_of(&server, &format!("{file}/app:1")),
            index,
            "{file}"
        );
    }
    for (args, word) in [
        (["save", "--all", &layout, &layout], "one image"),
        (["save", "--all", &layout, "-oa:b.tar"], "colon"),
        (
            ["copy", "--json", &layout, "oci-archive:-"],
            "not beside --json",
        ),
    ] {
        home.run(args).failed(2, &[word]);
    }
    // The image for this machine, without --all.
    home.run(["copy", "-q", &from, &server.url("single:1")])
        .ok();
    assert!(images.contains(&digest_of(&server, "single:1")));
    let layout = home.text("oci");
    home.run([
        "copy",
        "-q",
        &format!("oci:{layout}:none"),
        "docker://127.0.0.1:1/x",
    ])
    .failed(1, &["\"x\"", "PATH:TAG"]);
    // The same tag again takes the place of the old one, another is added.
    for (tag, count) in [("x", 1), ("y", 2)] {
        let to = format!("oci:{layout}:{tag}");
        home.run(["copy", "-q", &server.url("app:2"), &to]).ok();
        let text = std::fs::read_to_string(home.path("oci/index.json")).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["manifests"].as_array().unwrap().len(), count);
    }
}

#[test]
fn a_damaged_blob_is_not_copied() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    serve(&home, &server, "1", "app:1", &[]);
    let layout = format!("oci:{}:1", home.text("layout"));
    home.run(["copy", "-q", &server.url("app:1"), &layout]).ok();
    let (_, raw) = crate::server::inspect(&server, "app:1");
    let manifest: Value = serde_json::from_str(&raw).unwrap();
    let digest = manifest["layers"][0]["digest"].as_str().unwrap();
    let blob = home.path("layout/blobs/sha256").join(&digest[7..]);
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[10] ^= 1;
    std::fs::write(&blob, &bytes).unwrap();
    let other = Server::start(&home);
    home.run(["copy", "-q", &layout, &other.url("app:1")])
        .failed(1, &["SHA-256", "refused"]);
    home.run(["tags", &other.name("app")])
        .failed(1, &["does not have it"]);
    // A copy to the layout repairs it.
    home.run(["copy", "-q", &server.url("app:1"), &layout]).ok();
    home.run(["copy", "-q", &layout, &other.url("app:1")]).ok();
    home.run(["pull", "-q", &other.name("app:1")]).ok();
}

#[test]
fn copies_from_and_to_stores_are_those_of_the_other_commands() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    let docker = home.text("docker");
    let to = server.url("app:1");
    home.run(["--root", &docker, "copy", "-q", "sample:1", &to])
        .ok();
    let wanted = id(&home, &docker, "sample:1");
    let own = home.text("own");
    home.run(["copy", "-q", &to, "mine:1"]).ok();
    assert_eq!(id(&home, &own, "mine:1"), wanted);
    let archive = format!("docker-archive:{}", home.text("a.tar"));
    home.run(["copy", "-q", "mine:1", &archive]).ok();
    let layout = format!("oci-archive:{}", home.text("l.tar"));
    home.run(["copy", "-q", "mine:1", &layout]).ok();
    home.run(["copy", "-q", &archive, &server.url("app:2")])
        .ok_with_progress();
    assert_eq!(digest_of(&server, "app:2"), digest_of(&server, "app:1"));
    home.run(["rmi", "mine:1"]).ok();
    home.run(["copy", "-q", &layout, "again:1"]).ok();
    assert_eq!(id(&home, &own, "again:1"), wanted);
    for (args, words) in [
        (["copy", "again:1", "containers-storage:x"], "only reads"),
        (["copy", "docker://-x", "y"], "minus sign"),
    ] {
        home.run(args).failed(2, &[words]);
    }
    home.run(["copy", "--all", "again:1", &to])
        .failed(2, &["no index"]);
    home.run(["save", "--all", "again:1", "-o", "all.tar"])
        .failed(2, &["no index", "copy --all docker://again:1"]);
    assert!(!home.path("all.tar").exists());
    home.run(["push", "--all", "again:1", &server.name("app:3")])
        .failed(2, &["no index"]);
}

/// Loads an archive or directory in this process into a new store, which checks every layer; returns the
/// image's ID.
fn loaded(home: &Home, path: &Path) -> String {
    let root = home.path("loaded");
    let store = Writable::open(&root).unwrap();
    let limits = Limits::default();
    let source = Source::open(path, &store.staging(), limits.bytes).unwrap();
    let locked = store.lock().unwrap();
    let loaded = load(&locked, &source, &[], &Wanted::default(), &|_| ()).unwrap();
    let [image] = loaded.as_slice() else {
        panic!("{path:?} has {} images", loaded.len());
    };
    let id = image.id.to_string();
    std::fs::remove_dir_all(&root).unwrap();
    id
}

/// From each kind of place to each other, in one step. Each copy is one process; its result is read in this
/// process.
#[test]
fn each_kind_of_place_is_copied_to_each_other() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    let docker = home.text("docker");
    home.run(["--root", &docker, "copy", "-q", "sample:1", "mine:1"])
        .ok();
    let own = home.text("own");
    let wanted = id(&home, &docker, "sample:1");
    assert_eq!(id(&home, &own, "mine:1"), wanted);
    let to_server = server.url("from/app:1");
    let archive = format!("docker-archive:{}:app:1", home.text("first.tar"));
    let layout = format!("oci:{}:one", home.text("first"));
    let packed = format!("oci-archive:{}:one", home.text("packed.tar"));
    let dir = format!("dir:{}", home.text("first.dir"));
    for to in [&to_server, &archive, &layout, &packed, &dir] {
        home.run(["copy", "-q", "mine:1", to]).ok();
    }
    let sources = [&to_server, &archive, &layout, &packed, &dir, "mine:1"];
    for (number, from) in sources.iter().enumerate() {
        let new = home.path("new");
        let text = home.text("new");
        for to in [
            format!("docker-archive:{text}"),
            format!("docker-archive:{text}:new/name:2"),
            format!("oci:{text}:t"),
            format!("oci-archive:{text}:t"),
            format!("dir:{text}"),
        ] {
            let said = home.run(["copy", "-q", from, &to]).ok();
            assert!(said.contains("Copied: "), "{from} to {to}: {said}");
            assert_eq!(loaded(&home, &new), wanted, "{from} to {to}");
            if number == 0 {
                let read = skopeo(&["inspect", "--raw", &to]);
                assert!(read.contains("layers"), "{read}");
            }
            if new.is_dir() {
                std::fs::remove_dir_all(&new).unwrap();
            } else {
                std::fs::remove_file(&new).unwrap();
            }
        }
        // The registry takes a manifest only if it has its blobs.
        let tag = number.to_string();
        let to = server.url(&format!("to{number}/app:{tag}"));
        home.run(["copy", "-q", from, &to]).ok();
        let manifest = server.manifest(&format!("to{number}/app"), &tag);
        assert_eq!(manifest["config"]["digest"], *wanted, "{from}");
        // A store that has nothing yet.
        let store = home.text(&format!("store-{number}"));
        let source = if *from == "mine:1" {
            vec!["--root", &own]
        } else {
            Vec::new()
        };
        let copy = [
            &source[..],
            &["--store", &store, "copy", "-q", from, "copied:1"],
        ]
        .concat();
        home.run(copy).ok();
        assert_eq!(id(&home, &store, "copied:1"), wanted, "{from}");
    }
    // Names: the one that is given, else that of the source.
    let names = |to: &str, file: &str| {
        home.run(["copy", "-q", &archive, to]).ok_with_progress();
        home.run(["load", "-q", "-i", file]).ok()
    };
    let file = home.text("named.tar");
    let said = names(&format!("docker-archive:{file}"), &file);
    assert!(said.contains("app:1"), "{said}");
    let said = names(&format!("docker-archive:{file}:other/app:3"), &file);
    assert!(said.contains("other/app:3"), "{said}");
    for (from, to) in [("mine:1", &*layout), (&*to_server, &*archive)] {
        home.run(["copy", "--all", from, to])
            .failed(2, &["no index", "leave --all out"]);
    }
}

/// A copy that fails leaves no file of an archive, and nothing in a new directory.
#[test]
fn a_copy_that_fails_leaves_nothing() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    serve(&home, &server, "1", "app:1", &[]);
    let layout = format!("oci:{}:1", home.text("layout"));
    home.run(["copy", "-q", &server.url("app:1"), &layout])
        .ok_with_progress();
    let blobs = home.path("layout/blobs/sha256");
    let largest = std::fs::read_dir(&blobs)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let largest = largest
        .max_by_key(|path| path.metadata().unwrap().len())
        .unwrap();
    let mut bytes = std::fs::read(&largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&largest, &bytes).unwrap();
    for (to, name) in [
        (
            format!("docker-archive:{}", home.text("out.tar")),
            "out.tar",
        ),
        (format!("oci-archive:{}", home.text("out.oci")), "out.oci"),
        (format!("oci:{}:x", home.text("out")), "out"),
        (format!("dir:{}", home.text("out.dir")), "out.dir"),
    ] {
        let outcome = home.run(["copy", "-q", &layout, &to]);
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        let left = home.path(name);
        if left.is_dir() {
            assert_eq!(std::fs::read_dir(&left).unwrap().count(), 0, "{to}");
        } else {
            assert!(!left.exists(), "{to}");
        }
    }
}
