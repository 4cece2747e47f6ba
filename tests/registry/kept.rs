//! `pull --all` and `load --all`: the own store keeps what a name means in the registry whole, an index with
//! the images for all platforms. `push --all`, `save --all` and `copy --all` give it the same digest, by
//! skopeo's reading too.

use std::path::PathBuf;

use serde_json::{Value, json};
use testkit::home::Home;
use testkit::need;
use unionfs::oci::Digest;

use crate::copy::{INDEX, LIST, serve_index};
use crate::images::{assert_whole, home, id, serve};
use crate::server::{Server, can_serve, digest_of, skopeo};

/// Returns the paths of everything that is kept whole, without the file of names.
fn kept(home: &Home) -> Vec<PathBuf> {
    let dir = home.path("own/unionfs/kept");
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.is_dir()).collect()
}

/// Changes a byte of a kept blob.
fn damage(home: &Home, object: &Digest, blob: &Digest) {
    let path = home
        .path("own/unionfs/kept")
        .join(object.hex())
        .join(blob.hex());
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn an_index_survives_the_store() {
    need!(can_serve());
    let home = home();
    for media in [LIST, INDEX] {
        let server = Server::start(&home);
        let (index, _) = serve_index(&home, &server, media);
        let name = server.name("app:all");
        let pulled = home.json(["pull", "--all", "-q", "--json", &name]);
        let expected = json!({"digest": index, "images": 2, "missing": 0});
        assert_eq!(pulled["kept"], expected);
        assert_eq!(pulled["digest"], index.to_string());
        let own = home.text("own");
        let ids = ["1", "2"].map(|tag| {
            let manifest = server.manifest("app", tag);
            manifest["config"]["digest"].as_str().unwrap().to_owned()
        });
        assert_eq!(id(&home, &own, &name), ids[0]);
        let shown = home.run(["inspect", &name]).ok();
        for line in [
            &format!("Index:        {index}\n"),
            "Platform:     linux/amd64\n",
            "Platform:     linux/arm64\n",
        ] {
            assert!(shown.contains(line), "{shown}");
        }
        let verified = home.run(["verify", &name]).ok();
        assert!(verified.contains(", 1 index, "), "{verified}");
        assert!(home.json(["df", "--json"])["kept"].as_u64().unwrap() > 0);
        // Nothing is downloaded again.
        let again = home.json(["pull", "--all", "-q", "--json", &name]);
        assert_eq!((&again["kept"], &again["needed"]), (&expected, &json!(0)));
        // The registry is gone; another one gets the same.
        drop(server);
        let other = Server::start(&home);
        let back = other.name("back/app:1");
        let pushed = home.json(["push", "--all", "--json", "-q", &name, &back]);
        assert_eq!(pushed["digest"], index.to_string());
        assert_eq!(digest_of(&other, "back/app:1"), index);
        home.run(["save", "--all", "-q", &name, "-o", "all.tar"])
            .ok();
        let tar = format!("oci-archive:{}", home.text("all.tar"));
        let tls = "--dest-tls-verify=false";
        let to = other.url("saved/app:1");
        skopeo(&["copy", "-q", "--all", tls, &tar, &to]);
        // A layout has no list of Docker.
        let same = digest_of(&other, "saved/app:1") == index;
        assert_eq!(same, media == INDEX);
        let dir = format!("dir:{}", home.text("dir"));
        home.run(["copy", "-q", "--all", &name, &dir]).ok();
        let to = other.url("dir/app:1");
        skopeo(&["copy", "-q", "--all", tls, &dir, &to]);
        assert_eq!(digest_of(&other, "dir/app:1"), index);
        std::fs::remove_dir_all(home.path("dir")).unwrap();
        // One image of the index, without a registry.
        let arm = ["copy", "-q", "--platform", "linux/arm64", &name, "arm:1"];
        home.run(arm).ok();
        assert_eq!(id(&home, &own, "arm:1"), ids[1]);
        home.run(["rmi", "arm:1"]).ok();
        home.run(["rmi", &name]).ok();
        assert_eq!(kept(&home), [""; 0].map(PathBuf::from));
        assert_whole(&home, 0, 0);
    }
}

#[test]
fn other_names_keep_it_and_another_image_ends_it() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    let (index, _) = serve_index(&home, &server, INDEX);
    let name = server.name("app:all");
    home.run(["pull", "--all", "-q", &name]).ok();
    home.run(["tag", &name, "tagged:1"]).ok();
    home.run(["copy", "-q", "--all", &name, "copied:1"]).ok();
    home.run(["rmi", &name]).ok();
    for (number, kept_by) in ["tagged:1", "copied:1"].iter().enumerate() {
        let to = format!("by/name:{number}");
        home.run(["push", "--all", "-q", kept_by, &server.name(&to)])
            .ok();
        assert_eq!(digest_of(&server, &to), index);
    }
    home.run(["rmi", "copied:1"]).ok();
    assert_eq!(kept(&home).len(), 1);
    // The name means another image now.
    home.run(["pull", "-q", &server.name("app:2")]).ok();
    home.run(["tag", &server.name("app:2"), "tagged:1"]).ok();
    home.run(["push", "--all", "tagged:1", &server.name("x:1")])
        .failed(2, &["no index", "pull --all"]);
    assert_whole(&home, 2, 1);
    let pruned = home.run(["prune"]).ok();
    assert!(pruned.contains("index of no name"), "{pruned}");
    assert_eq!(kept(&home).len(), 0);
    // The same image, but another index in the registry.
    home.run(["pull", "--all", "-q", &name]).ok();
    let (_, raw) = crate::server::inspect(&server, "app:1");
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":{},"digest":"{}","platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#,
        raw.len(),
        Digest::of(raw.as_bytes())
    );
    server.put_manifest("app", "all", INDEX, &text);
    home.run(["pull", "-q", &name]).ok();
    home.run(["push", "--all", &name, &server.name("x:1")])
        .failed(2, &["no index"]);
}

#[test]
fn a_single_image_keeps_its_digest_too() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    serve(&home, &server, "1", "app:1", &[]);
    let name = server.name("app:1");
    let digest = digest_of(&server, "app:1");
    let pulled = home.json(["pull", "--all", "-q", "--json", &name]);
    assert_eq!(
        pulled["kept"],
        json!({"digest": digest, "images": 1, "missing": 0})
    );
    let other = Server::start(&home);
    home.run(["push", "--all", "-q", &name, &other.name("app:1")])
        .ok();
    assert_eq!(digest_of(&other, "app:1"), digest);
    home.run(["pull", "--all-tags", &name])
        .failed(2, &["one tag at a time", "unionfs tags"]);
}

#[test]
fn archives_of_skopeo_are_kept_whole() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    let (index, images) = serve_index(&home, &server, INDEX);
    let from = server.url("app:all");
    for kind in ["oci", "dir"] {
        let place = format!("{kind}:{}", home.text(kind));
        let tls = "--src-tls-verify=false";
        skopeo(&["copy", "-q", "--all", tls, &from, &place]);
        let name = format!("from-{kind}:1");
        let load = ["load", "-q", "--all", "--json", &place, "--tag", &name];
        let loaded = home.json(load);
        assert_eq!(
            loaded[0]["kept"],
            json!({"digest": index, "images": 2, "missing": 0})
        );
        let to = server.name(&format!("{kind}/app:1"));
        home.run(["push", "--all", "-q", &name, &to]).ok();
        assert_eq!(digest_of(&server, &format!("{kind}/app:1")), index);
        home.run(["rmi", &name]).ok();
    }
    // An archive with only some images of its index, as docker save writes it.
    let manifest = home.path("oci/blobs/sha256").join(images[1].hex());
    std::fs::remove_file(manifest).unwrap();
    let layout = home.text("oci");
    let loaded = home.json(["load", "-q", "--all", "--json", &layout, "--tag", "part:1"]);
    assert_eq!(
        loaded[0]["kept"],
        json!({"digest": index, "images": 1, "missing": 1})
    );
    let shown = home.run(["inspect", "part:1"]).ok();
    assert!(shown.contains("linux/arm64 (not kept)"), "{shown}");
    home.run(["verify", "--all"]).ok();
    home.run(["push", "--all", "-q", "part:1", &server.name("part:1")])
        .failed(1, &[&images[1].to_string(), "pull --all part:1"]);
    // Without --all nothing is kept beside the image.
    home.run(["load", "-q", &layout, "--tag", "single:1"]).ok();
    home.run(["save", "--all", "single:1", "-o", "x.tar"])
        .failed(2, &["no index"]);
    // The missing image comes, the others stay.
    home.run(["copy", "-q", "--all", &from, "part:1"]).ok();
    home.run(["push", "--all", "-q", "part:1", &server.name("part:1")])
        .ok();
    assert_eq!(digest_of(&server, "part:1"), index);
}

#[test]
fn damage_is_found_and_replaced() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    let (index, images) = serve_index(&home, &server, INDEX);
    let name = server.name("app:all");
    home.run(["pull", "--all", "-q", &name]).ok();
    let manifest = server.manifest("app", "2");
    let layers = manifest["layers"].as_array().unwrap();
    let layer = layers.last().unwrap()["digest"].as_str().unwrap();
    let layer = Digest::parse(layer).unwrap();
    for blob in [layer, images[1], index] {
        damage(&home, &index, &blob);
        let found = home.run(["verify", &name]);
        assert_eq!(found.code, Some(1), "{found:?}");
        assert!(
            found.stdout.contains(&blob.hex()) && found.stdout.contains("pull --all"),
            "{found:?}"
        );
        home.run(["push", "--all", "-q", &name, &server.name("bad/app:1")])
            .failed(1, &["SHA-256"]);
        home.run(["pull", "--all", "-q", &name]).ok();
        home.run(["verify", "--all"]).ok();
    }
    // Whatever another writes into the file of names leads nowhere.
    let file = home.path("own/unionfs/kept/names.json");
    let good: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    for (digest, words) in [
        ("../../../etc", "no index"),
        (&*format!("{layer}"), "does not have"),
    ] {
        let mut names = good.clone();
        for images in names["Names"].as_object_mut().unwrap().values_mut() {
            for object in images.as_object_mut().unwrap().values_mut() {
                *object = json!(digest);
            }
        }
        std::fs::write(&file, names.to_string()).unwrap();
        let refused = home.run(["push", "--all", "-q", &name, &server.name("x:1")]);
        assert_ne!(refused.code, Some(0), "{words}: {refused:?}");
    }
    std::fs::write(&file, "{").unwrap();
    home.run(["push", "--all", "-q", &name, &server.name("x:1")])
        .failed(1, &["names.json"]);
    let shown = home.run(["inspect", &name]);
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(shown.stderr.contains("names.json"), "{shown:?}");
}
