//! Layers that real images have although no careful program writes them: entries of `./` with other
//! modes and owners, xattrs without a value, files of AUFS, markers of overlayfs, entries without a
//! name, whiteouts below whiteouts, with content, and below directories with such names. Docker and containerd unpack them first. The result is not
//! reported as damage, and our result is the same where users can see it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde_json::json;
use testkit::home::{Home, Outcome};
use testkit::need;
use testkit::need::{can_mount, has_tools};
use unionfs::oci::Digest;

use super::containerd::Containerd;
use super::engines::with_dockerd;

/// An entry of a layer, with the name as it is in the header.
struct Entry {
    name: &'static str,
    kind: u8,
    link: &'static str,
    data: &'static str,
    mode: u32,
    owner: u64,
    xattrs: &'static [(&'static str, &'static str)],
}

fn entry(kind: u8, name: &'static str) -> Entry {
    Entry {
        name,
        kind,
        link: "",
        data: "",
        mode: if kind == b'5' { 0o755 } else { 0o644 },
        owner: 0,
        xattrs: &[],
    }
}

fn dir(name: &'static str) -> Entry {
    entry(b'5', name)
}

fn file(name: &'static str, data: &'static str) -> Entry {
    Entry {
        data,
        ..entry(b'0', name)
    }
}

fn link(name: &'static str, link: &'static str) -> Entry {
    Entry {
        link,
        ..entry(b'1', name)
    }
}

fn layer(entries: &[Entry]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for entry in entries {
        let records = entry.xattrs.iter().map(|(name, value)| {
            let key = format!("SCHILY.xattr.{name}");
            (key, value.as_bytes())
        });
        let records: Vec<_> = records.collect();
        if !records.is_empty() {
            let records = records.iter().map(|(key, value)| (key.as_str(), *value));
            tar.append_pax_extensions(records).unwrap();
        }
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::new(entry.kind));
        header.set_mode(entry.mode);
        header.set_uid(entry.owner);
        header.set_gid(entry.owner);
        header.set_mtime(1_500_000_000);
        header.set_size(entry.data.len() as u64);
        // The calls of the crate refuse names like these.
        let old = header.as_old_mut();
        old.name[..entry.name.len()].copy_from_slice(entry.name.as_bytes());
        old.linkname[..entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header.set_cksum();
        tar.append(&header, entry.data.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Writes a `docker save` archive of one image.
fn archive(path: &Path, name: &str, layers: &[Vec<u8>]) {
    let mut tar = tar::Builder::new(fs::File::create(path).unwrap());
    let mut add = |name: &str, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        tar.append_data(&mut header, name, data).unwrap();
    };
    let diff_ids: Vec<String> = layers.iter().map(|l| Digest::of(l).to_string()).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/x"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = config.to_string().into_bytes();
    let config_name = format!("{}.json", Digest::of(&config).hex());
    add(&config_name, &config);
    let names = (0..layers.len()).map(|number| format!("{number}/layer.tar"));
    let names: Vec<String> = names.collect();
    for (name, layer) in names.iter().zip(layers) {
        add(name, layer);
    }
    let manifest = json!([{"Config": config_name, "RepoTags": [name], "Layers": names}]);
    add("manifest.json", manifest.to_string().as_bytes());
    tar.finish().unwrap();
}

fn base() -> Vec<u8> {
    layer(&[
        dir("dir"),
        file("dir/low", "low"),
        dir("gone"),
        file("gone/low", "low"),
    ])
}

/// Returns the images, by the names after `odd:`.
fn images() -> Vec<(&'static str, Vec<u8>)> {
    let root = Entry {
        mode: 0o700,
        owner: 5,
        xattrs: &[("user.root", "x")],
        ..dir("./")
    };
    let empty = Entry {
        xattrs: &[("user.empty", ""), ("user.note", "value")],
        ..file("empty", "")
    };
    let opaque = Entry {
        xattrs: &[("trusted.overlay.opaque", "y")],
        ..dir("dir")
    };
    vec![
        ("root", layer(&[root, file("a", "a")])),
        ("empty", layer(&[empty])),
        (
            "plnk",
            layer(&[
                file(".wh..wh.aufs", ""),
                dir(".wh..wh.orph"),
                dir(".wh..wh.plnk"),
                file(".wh..wh.plnk/12.34", "linked"),
                link("dir/h", ".wh..wh.plnk/12.34"),
                link("dir/i", ".wh..wh.plnk/12.34"),
                file("dir/b", "b"),
            ]),
        ),
        (
            "deep",
            layer(&[
                dir("dir"),
                file("dir/.wh..wh.aufs", ""),
                dir("dir/.wh..wh.plnk"),
                file("dir/.wh..wh.plnk/1", "linked"),
            ]),
        ),
        ("opaque", layer(&[opaque, file("dir/new", "new")])),
        ("nameless", layer(&[file("", ""), file("after", "x")])),
        (
            "content",
            layer(&[
                file(".wh.gone", "content"),
                dir("dir"),
                file("dir/.wh..wh..opq", "content"),
                file(".wh..wh.aufs", "content"),
                file("after", "x"),
            ]),
        ),
        ("dot", layer(&[file(".", "root"), file("after", "x")])),
        ("up", layer(&[file("dir/..", "root"), file("after", "x")])),
        ("fifo", layer(&[entry(b'6', "."), file("after", "x")])),
        (
            "marked",
            layer(&[
                dir(".wh.foo"),
                file(".wh.foo/.wh.bar", ""),
                file(".wh.foo/kept", "kept"),
                dir(".wh.gone"),
                dir(".wh.gone/.wh.dir"),
                file(".wh.gone/.wh.dir/.wh.low", ""),
                file(".wh.none/.wh.low", ""),
            ]),
        ),
        (
            "later",
            layer(&[
                file(".wh.foo/bar", "bar"),
                file(".wh.foo/.wh.low", ""),
                file(".wh.foo", ""),
                file("after", "x"),
            ]),
        ),
    ]
}

fn home() -> Home {
    let home = Home::new();
    home.dirs(&["mnt", "answers", "docker"]);
    for (name, top) in images() {
        let path = home.path(&format!("{name}.tar"));
        archive(&path, &format!("odd:{name}"), &[base(), top]);
    }
    home
}

/// Returns the directory of an image's topmost layer.
fn top(home: &Home, root: &str, name: &str) -> PathBuf {
    let args = ["--root", root, "inspect", "--json", name];
    let image = home.json(args);
    let layers = image[0]["layers"].as_array().unwrap();
    PathBuf::from(layers.last().unwrap()["path"].as_str().unwrap())
}

/// Asserts that `verify` has found damage and prints these words.
#[track_caller]
fn damage(verified: &Outcome, words: &[&str]) {
    assert_eq!(verified.code, Some(1), "{verified:?}");
    for word in words {
        assert!(
            verified.stdout.contains(word),
            "no {word:?} in {verified:?}"
        );
    }
}

#[test]
fn what_docker_leaves_of_odd_layers_is_no_damage() {
    need!(can_mount());
    need!(has_tools(&["dockerd"]));
    let home = home();
    with_dockerd(
        &home,
        "docker",
        "for archive in ../*.tar; do docker load -i $archive; done
        for name in content dot up later; do
            ! docker save -o refused.tar odd:$name || exit 1
        done
        docker save -o kept.tar odd:marked",
    );
    let verified = home.run(["--root", "docker", "verify", "--all"]).ok();
    // Docker cannot save these layers either: it has not kept the content of all entries.
    let not_kept = [
        ("content", ".wh.gone", "is a whiteout with content"),
        ("dot", "", "with the name of the layer's root"),
        ("up", "", "with the name of the layer's root"),
        ("later", ".wh.foo/bar", "is removed by a later whiteout"),
    ];
    for (name, entry, why) in not_kept {
        let image = format!("odd:{name}");
        let verified = home.run(["--root", "docker", "verify", &image]).ok();
        for words in [
            entry,
            why,
            "digest of the layer cannot be checked",
            "no damage",
        ] {
            assert!(
                verified.contains(words),
                "{name}: no {words:?} in {verified}"
            );
        }
        let save = ["--root", "docker", "save", "-q", "-o", "out.tar", &image];
        home.run(save).failed(1, &[entry]);
    }
    let saved = [
        "--root",
        "docker",
        "save",
        "-q",
        "-o",
        "out.tar",
        "odd:content",
    ];
    home.run(saved)
        .failed(1, &["cannot be made again", "registry or archive"]);
    let notes = verified.matches("cannot be checked").count();
    // Three entries of `content`, one of each of the others.
    assert_eq!(notes, 6, "{verified}");
    let saved = [
        "--root",
        "docker",
        "save",
        "-q",
        "-o",
        "out.tar",
        "odd:marked",
    ];
    home.run(saved).ok();
    // Other files of such a layer are checked.
    let content = top(&home, "docker", "odd:content");
    fs::write(content.join("after"), "y").unwrap();
    let verified = home.run(["--root", "docker", "verify", "odd:content"]);
    damage(&verified, &["after", "content is damaged"]);
    fs::write(content.join("after"), "x").unwrap();
    // The files themselves are checked: damage of one of them is found.
    let plnk = top(&home, "docker", "odd:plnk");
    fs::write(plnk.join("dir/h"), "LINKED").unwrap();
    let verified = home.run(["--root", "docker", "verify", "--all"]);
    damage(&verified, &["12.34", "content is damaged"]);
    fs::write(plnk.join("dir/h"), "linked").unwrap();
    let extra = plnk.join(".wh..wh.orph");
    fs::create_dir(&extra).unwrap();
    let verified = home.run(["--root", "docker", "verify", "--all"]);
    damage(&verified, &[".wh..wh.orph", "is not in the layer's tar"]);
}

#[test]
fn what_containerd_leaves_of_odd_layers_is_no_damage() {
    let containerd = need!(Containerd::start());
    let home = home();
    for (name, _) in images() {
        let archive = home.text(&format!("{name}.tar"));
        containerd.ctr(&["images", "import", &archive]);
    }
    containerd.run(&["verify", "--all"]).ok();
}

#[test]
fn odd_layers_are_taken_in() {
    need!(can_mount());
    let home = home();
    for (name, _) in images() {
        let archive = format!("{name}.tar");
        home.run(["load", "-q", "-i", &archive]).ok();
    }
    home.run(["verify", "--all"]).ok();
    for (name, _) in images() {
        // Saving gives the same layers.
        let out = format!("{name}.out");
        home.run(["save", "-q", "-o", &out, &format!("odd:{name}")])
            .ok();
        let again = Home::new();
        let out = home.text(&out);
        again.run(["load", "-q", "-i", &out]).ok();
        let image = format!("odd:{name}");
        let id = |home: &Home| home.json(["inspect", "--json", &image])[0]["id"].clone();
        assert_eq!(id(&home), id(&again));
    }
    home.run(["mount", "odd:plnk", "mnt"]).ok();
    let (h, i) = (home.path("mnt/dir/h"), home.path("mnt/dir/i"));
    assert_eq!(fs::read_to_string(&h).unwrap(), "linked");
    assert_eq!(h.metadata().unwrap().ino(), i.metadata().unwrap().ino());
    home.run(["umount", "mnt"]).ok();
    // The topmost layer determines mode and owner of `/`.
    home.run(["mount", "odd:root", "mnt"]).ok();
    let root = home.path("mnt").metadata().unwrap();
    assert_eq!((root.mode() & 0o7777, root.uid()), (0o700, 5));
    home.run(["umount", "mnt"]).ok();
}

/// In our own store the layer's own directory has the attributes that the tar states.
#[test]
fn a_changed_root_directory_of_ours_is_damage() {
    need!(can_mount());
    let home = home();
    home.run(["load", "-q", "-i", "root.tar"]).ok();
    let dir = top(&home, &home.text("own"), "odd:root");
    fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
    let verified = home.run(["verify", "--all"]);
    damage(&verified, &["has mode 0755, not 0700"]);
}

/// Old umoci writes a whiteout of a directory and of its content. podman ignores the second one.
#[test]
fn a_whiteout_below_a_whiteout_is_passed_over() {
    need!(can_mount());
    need!(has_tools(&["podman"]));
    let home = Home::new();
    home.dirs(&["mnt"]);
    let top_layer = layer(&[
        file(".wh.gone", ""),
        file("gone/.wh.low", ""),
        file("after", "x"),
    ]);
    archive(&home.path("below.tar"), "odd:below", &[base(), top_layer]);
    let podman = home
        .command("podman")
        .args(["--root", "podman", "--runroot", "run"])
        .args(["--storage-driver", "vfs", "load", "-q", "-i", "below.tar"])
        .output()
        .unwrap();
    assert!(podman.status.success(), "{podman:?}");
    home.run(["load", "-q", "-i", "below.tar"]).ok();
    home.run(["verify", "--all"]).ok();
    home.run(["mount", "odd:below", "mnt"]).ok();
    let names = fs::read_dir(home.path("mnt")).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["after", "dir"]);
    home.run(["umount", "mnt"]).ok();
    // If the first whiteout is gone, the second one has an effect.
    let dir = top(&home, &home.text("own"), "odd:below");
    fs::remove_file(dir.join("gone")).unwrap();
    let verified = home.run(["verify", "--all"]);
    damage(&verified, &["was a whiteout, which is missing"]);
}

/// A directory that is created only by its own marker, and a whiteout of it after that.
#[test]
fn an_opaque_directory_that_is_whited_out_is_no_damage() {
    need!(can_mount());
    let home = Home::new();
    let top_layer = layer(&[file("gone/.wh..wh..opq", ""), file(".wh.gone", "")]);
    archive(&home.path("both.tar"), "odd:both", &[base(), top_layer]);
    home.run(["load", "-q", "-i", "both.tar"]).ok();
    home.run(["verify", "--all"]).ok();
}

/// `commit` writes the `/` of the read-write layer, which starts with the attributes of the image's
/// root.
#[test]
fn commit_keeps_the_root_directory_as_it_was_seen() {
    need!(can_mount());
    let home = home();
    home.run(["load", "-q", "-i", "root.tar"]).ok();
    let root = || {
        let root = home.path("mnt").metadata().unwrap();
        (root.mode() & 0o7777, root.uid())
    };
    for (name, mode) in [("same", None), ("changed", Some(0o711))] {
        home.run(["mount", "--name", name, "odd:root", "mnt"]).ok();
        assert_eq!(root(), (0o700, 5));
        fs::write(home.path("mnt/new"), "").unwrap();
        if let Some(mode) = mode {
            fs::set_permissions(home.path("mnt"), Permissions::from_mode(mode)).unwrap();
        }
        home.run(["umount", "mnt"]).ok();
        home.run(["commit", "-q", name, &format!("{name}:1")]).ok();
        home.run(["mount", "-r", &format!("{name}:1"), "mnt"]).ok();
        assert_eq!(root(), (mode.unwrap_or(0o700), 5), "{name}");
        home.run(["umount", "mnt"]).ok();
    }
}
