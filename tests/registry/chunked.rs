//! Pushes in zstd:chunked. The table of contents is read here by itself and compared with the tar
//! of the same blob; `zstd`, skopeo and podman read the blobs too.

use std::collections::BTreeMap;
use std::io::{BufReader, Read as _};
use std::process::Command;

use serde_json::Value;
use testkit::home::Home;
use testkit::need;
use testkit::need::{can_mount, has_tools, is_root};
use testkit::tree::{self, Mask, Tree};
use unionfs::layer_tar::tar_split::{TarSplitLine, TarSplitReader};
use unionfs::oci::Digest;

use crate::images::home;
use crate::server::{Server, can_serve, inspect, skopeo};

const KEY: &str = "io.github.containers.zstd-chunked";
/// The names of the annotations for podman 4.3.
const OLD_KEY: &str = "io.containers.zstd-chunked";

/// A layer as the registry has it.
struct Layer {
    about: Value,
    blob: Vec<u8>,
    /// The tar as the program `zstd` unpacks it.
    tar: Vec<u8>,
}

impl Layer {
    fn annotation(&self, name: &str) -> &str {
        let value = &self.about["annotations"][name];
        value.as_str().unwrap_or_else(|| panic!("{name}: {value}"))
    }

    /// Returns the numbers of a position annotation.
    fn numbers(&self, name: &str) -> Vec<usize> {
        let text = self.annotation(name).split(':');
        text.map(|number| number.parse().unwrap()).collect()
    }
}

/// Copies an image to a directory by skopeo, which checks each digest, and returns its layers.
fn layers(home: &Home, server: &Server, name: &str) -> Vec<Layer> {
    let dir = home.text(&format!("copy-{}", name.replace([':', '/'], "-")));
    let url = server.url(name);
    skopeo(&[
        "copy",
        "-q",
        "--src-tls-verify=false",
        &url,
        &format!("dir:{dir}"),
    ]);
    let (_, raw) = inspect(server, name);
    let manifest: Value = serde_json::from_str(&raw).unwrap();
    let layers = manifest["layers"].as_array().unwrap().clone();
    let read = |about: Value| {
        let hex = about["digest"].as_str().unwrap().replace("sha256:", "");
        let path = format!("{dir}/{hex}");
        let tar = Command::new("zstd").args(["-dcq", &path]).output().unwrap();
        assert!(tar.status.success(), "{tar:?}");
        let blob = std::fs::read(path).unwrap();
        let tar = tar.stdout;
        Layer { about, blob, tar }
    };
    layers.into_iter().map(read).collect()
}

/// Compares the table of contents of a layer with its tar, entry for entry, and rebuilds the tar
/// from the tar-split and the files that the table locates.
fn check(layer: &Layer) {
    let table = layer.numbers(&format!("{KEY}.manifest-position"));
    let split = layer.numbers(&format!("{KEY}.tarsplit-position"));
    let packed = &layer.blob[table[0]..table[0] + table[1]];
    assert_eq!(
        Digest::of(packed).to_string(),
        layer.annotation(&format!("{KEY}.manifest-checksum"))
    );
    for name in ["manifest-checksum", "manifest-position"] {
        let new = layer.annotation(&format!("{KEY}.{name}"));
        assert_eq!(layer.annotation(&format!("{OLD_KEY}.{name}")), new);
    }
    // The footer says the same.
    let footer = layer.blob.last_chunk::<64>().unwrap();
    let words = footer
        .chunks(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()) as usize);
    let expected = [&table[..], &split[..]].concat();
    assert_eq!(words.take(7).collect::<Vec<_>>(), expected);
    assert_eq!(&footer[56..], b"GNUlInUx");
    // Each of the three parts is a skippable frame, and nothing lies between them.
    for (at, length) in [
        (table[0], table[1]),
        (split[0], split[1]),
        (layer.blob.len() - 64, 64),
    ] {
        let header = [
            &[0x50, 0x2a, 0x4d, 0x18][..],
            &(length as u32).to_le_bytes(),
        ]
        .concat();
        assert_eq!(layer.blob[at - 8..at], header);
    }
    assert_eq!(table[0] + table[1] + 8, split[0]);
    assert_eq!(split[0] + split[1] + 8 + 64, layer.blob.len());

    let json = zstd::decode_all(packed).unwrap();
    assert_eq!((json.len(), table[3]), (table[2], 1));
    let json: Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["version"], 1);
    let files = check_entries(layer, json["entries"].as_array().unwrap());

    let packed = &layer.blob[split[0]..split[0] + split[1]];
    assert_eq!(json["tarSplitDigest"], Digest::of(packed).to_string());
    let lines = zstd::decode_all(packed).unwrap();
    assert_eq!(lines.len(), split[2]);
    let mut lines = TarSplitReader::new(BufReader::new(lines.as_slice()));
    let mut rebuilt = Vec::new();
    while let Some(line) = lines.next_line().unwrap() {
        match line {
            TarSplitLine::Segment(bytes) => rebuilt.extend(bytes),
            TarSplitLine::File { name, size, .. } if size > 0 => {
                assert_eq!(files[&name].len() as u64, size);
                rebuilt.extend(&files[&name]);
            }
            TarSplitLine::File { .. } => {}
        }
    }
    assert!(rebuilt == layer.tar, "the tar-split makes another tar");
}

/// Compares the entries, and returns the contents that the table locates.
fn check_entries(layer: &Layer, entries: &[Value]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut archive = tar::Archive::new(layer.tar.as_slice());
    let mut listed = entries.iter();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let told = listed.next().expect("an entry more than the table has");
        let head = entry.header().clone();
        let name = entry.path_bytes().into_owned();
        assert_eq!(told["name"].as_str().unwrap().as_bytes(), name, "{told}");
        let number = |key: &str| told[key].as_u64().unwrap_or(0);
        let kind = match head.entry_type().as_byte() {
            b'0' => "reg",
            b'1' => "hardlink",
            b'2' => "symlink",
            b'3' => "char",
            b'4' => "block",
            b'5' => "dir",
            b'6' => "fifo",
            other => panic!("{other}"),
        };
        assert_eq!(told["type"], kind, "{told}");
        assert_eq!(number("mode"), u64::from(head.mode().unwrap()), "{told}");
        assert_eq!(number("uid"), head.uid().unwrap(), "{told}");
        assert_eq!(number("gid"), head.gid().unwrap(), "{told}");
        assert_eq!(number("size"), entry.size(), "{told}");
        // An empty field is no number for the crate.
        let number_of =
            |field: std::io::Result<Option<u32>>| u64::from(field.ok().flatten().unwrap_or(0));
        let device = (
            number_of(head.device_major()),
            number_of(head.device_minor()),
        );
        assert_eq!((number("devMajor"), number("devMinor")), device, "{told}");
        let link = entry
            .link_name_bytes()
            .map_or(Vec::new(), |link| link.into_owned());
        assert_eq!(told["linkName"].as_str().unwrap_or("").as_bytes(), link);
        let date = humantime::parse_rfc3339(told["modtime"].as_str().unwrap()).unwrap();
        let since = date.duration_since(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(since.as_secs(), head.mtime().unwrap(), "{told}");
        let mut xattrs = serde_json::Map::new();
        for record in entry.pax_extensions().unwrap().into_iter().flatten() {
            let record = record.unwrap();
            if let Some(name) = record.key().unwrap().strip_prefix("SCHILY.xattr.") {
                use base64::Engine as _;
                let value = base64::engine::general_purpose::STANDARD.encode(record.value_bytes());
                xattrs.insert(name.to_owned(), value.into());
            }
        }
        let empty = Value::Object(serde_json::Map::new());
        assert_eq!(told.get("xattrs").unwrap_or(&empty), &Value::Object(xattrs));
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        if content.is_empty() {
            assert!(told.get("digest").is_none(), "{told}");
            continue;
        }
        assert_eq!(told["digest"], Digest::of(&content).to_string(), "{told}");
        let range = number("offset") as usize..number("endOffset") as usize;
        let found = zstd::decode_all(&layer.blob[range]).unwrap();
        assert!(found == content, "{told}");
        files.insert(name, found);
    }
    assert_eq!(listed.next(), None);
    files
}

/// The image `odd:1`: of a tar with every kind of entry, long names, xattrs and a large file.
fn make_odd(home: &Home, root: &str) {
    let made = home.run_script(
        "mkdir -p tree/d/deep && cd tree
        head -c 3000000 /dev/urandom > large; seq 200000 > text; : > empty; echo one > d/one
        ln d/one d/two; ln -s ../text d/link; mkfifo fifo; mknod null c 1 3; mknod disk b 7 2
        chmod 4755 d/one; chown 12:34 text; setfattr -n user.name -v value text
        echo x > d/deep/$(printf 'n%.0s' $(seq 200)); echo u > 'd/\u{e4}\u{f6}'
        setfattr -n security.capability \
            -v 0sAQAAAgAEAAAAAAAAAAAAAAAAAAA= large
        cd .. && tar --xattrs --xattrs-include='*' --format=pax -C tree -cf odd.tar .",
    );
    assert_eq!(made.code, Some(0), "{made:?}");
    home.run(["--store", root, "import", "odd.tar", "odd:1"])
        .ok_with_progress();
}

fn push(home: &Home, server: &Server, root: &str, image: &str, more: &[&str]) -> Value {
    let name = server.name(image);
    let args = [
        "--root",
        root,
        "push",
        "-q",
        "--json",
        "--compression",
        "zstd:chunked",
    ];
    home.json([&args[..], more, &[image, &name]].concat())
}

/// Every reader gets the exact tar, and the table describes it.
#[test]
fn chunked_layers_are_described_exactly_and_come_back_the_same() {
    need!(can_serve());
    need!(is_root());
    need!(has_tools(&["zstd", "setfattr"]));
    let home = home();
    let server = Server::start(&home);
    let docker = home.text("docker");
    make_odd(&home, &home.text("own"));
    for (root, image) in [(&docker, "sample:1"), (&home.text("own"), "odd:1")] {
        let pushed = push(&home, &server, root, image, &[]);
        for level in ["1", "20"] {
            push(&home, &server, root, image, &["--compression-level", level]);
            for layer in layers(&home, &server, image) {
                check(&layer);
            }
        }
        // The same bytes again.
        let again = push(&home, &server, root, image, &[]);
        assert_eq!(again["digest"], pushed["digest"]);
        let about = home.json(["--root", root, "inspect", "--json", image])[0].clone();
        let about = about.as_array().map_or(&about, |all| &all[0]).clone();
        for (layer, known) in layers(&home, &server, image)
            .iter()
            .zip(about["layers"].as_array().unwrap())
        {
            check(layer);
            assert_eq!(known["diff_id"], Digest::of(&layer.tar).to_string());
        }
        let back = home.text(&format!("back-{}", image.replace(':', "-")));
        let pulled = home.json([
            "--store",
            &back,
            "pull",
            "-q",
            "--json",
            &server.name(image),
        ]);
        assert_eq!(pulled["id"], pushed["id"]);
        home.run(["--root", &back, "verify", "--all"]).ok();
    }
    let args = [
        "--root",
        &docker,
        "push",
        "--compression",
        "zstd:chunked",
        "--format",
        "docker",
    ];
    let name = server.name("no:1");
    home.run([&args[..], &["sample:1", &name]].concat())
        .failed(2, &["--format oci"]);
}

/// A layer that a table cannot describe is plain zstd: readers would refuse a wrong table.
#[test]
fn layers_that_no_table_can_describe_are_plain_zstd() {
    need!(can_serve());
    need!(is_root());
    need!(has_tools(&["zstd", "python3"]));
    let home = home();
    let server = Server::start(&home);
    let own = home.text("own");
    let made = home.run_script(
        "cat > make.py <<'E'
import io, sys, tarfile
def add(tar, name, data=b'x', **more):
    entry = tarfile.TarInfo(name); entry.size = len(data)
    for key, value in more.items(): setattr(entry, key, value)
    tar.addfile(entry, io.BytesIO(data))
with tarfile.open('twice.tar', 'w') as tar:
    add(tar, 'd', b'', type=tarfile.DIRTYPE); add(tar, './d', b'', type=tarfile.DIRTYPE, mode=0o700)
with tarfile.open('bytes.tar', 'w', encoding='latin-1', format=tarfile.GNU_FORMAT) as tar:
    add(tar, 'caf\\u00e9')
with tarfile.open('old.tar', 'w', format=tarfile.PAX_FORMAT) as tar:
    add(tar, 'old', mtime=-5.5)
with tarfile.open('global.tar', 'w', format=tarfile.PAX_FORMAT, pax_headers={'comment': 'x'}) as tar:
    add(tar, 'a')
E
        python3 make.py && truncate -s 1M hole && echo end >> hole && tar -S -cf sparse.tar hole",
    );
    assert_eq!(made.code, Some(0), "{made:?}");
    for case in ["twice", "bytes", "old", "global", "sparse"] {
        let image = format!("{case}:1");
        home.run(["--store", &own, "import", &format!("{case}.tar"), &image])
            .ok_with_progress();
        let pushed = push(&home, &server, &own, &image, &[]);
        let layers = layers(&home, &server, &image);
        assert_eq!(layers[0].about.get("annotations"), None, "{case}");
        assert_eq!(
            layers[0].about["mediaType"],
            "application/vnd.oci.image.layer.v1.tar+zstd"
        );
        assert_eq!(
            pushed["layers"][0]["diff_id"],
            Digest::of(&layers[0].tar).to_string()
        );
    }
}

/// podman pulls parts of the image where it may (podman 4.3 by the older names), and the whole.
#[test]
fn podman_pulls_parts_of_chunked_layers() {
    need!(can_serve());
    need!(is_root());
    need!(can_mount());
    need!(has_tools(&["podman", "setfattr"]));
    let home = home();
    let server = Server::start(&home);
    make_odd(&home, &home.text("own"));
    push(&home, &server, &home.text("own"), "odd:1", &[]);
    let name = server.name("odd:1");
    let pull = |kind: &str, partial: &str| -> (String, Tree) {
        let conf = home.path(&format!("{kind}.conf"));
        let text = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = {:?}\nrunroot = {:?}\n[storage.options]\n\
             pull_options = {{enable_partial_images = \"{partial}\"}}\n",
            home.text(kind),
            home.text(&format!("{kind}-run")),
        );
        std::fs::write(&conf, text).unwrap();
        let podman = |args: &[&str]| {
            let mut command = home.command("podman");
            let output = command
                .env("CONTAINERS_STORAGE_CONF", &conf)
                .args(args)
                .output();
            let output = output.unwrap();
            assert!(output.status.success(), "podman {args:?}: {output:?}");
            output
        };
        let pulled = podman(&["--log-level=debug", "pull", "--tls-verify=false", &name]);
        let log = String::from_utf8_lossy(&pulled.stderr).into_owned();
        let mounted = podman(&["image", "mount", &name]);
        let place = String::from_utf8(mounted.stdout).unwrap();
        let found = tree::list(place.trim().as_ref());
        podman(&["image", "umount", &name]);
        podman(&["rmi", &name]);
        (log, found)
    };
    let (log, whole) = pull("whole", "false");
    assert!(log.contains("Applying tar"), "{log}");
    let (log, mut parts) = pull("parts", "true");
    assert!(log.contains("Retrieved partial blob"), "{log}");
    // podman 4.3 sets no times and owners then, and makes no pipes and devices, with layers that it has pushed itself too.
    for (path, entry) in &whole {
        let found = parts.entry(path.clone()).or_insert_with(|| {
            assert!([&b"fifo"[..], b"null", b"disk"].contains(&path.as_slice()));
            entry.clone()
        });
        found.mtime = entry.mtime;
        (found.uid, found.gid) = (entry.uid, entry.gid);
    }
    let skip_root = |mut tree: Tree| {
        tree.remove(&b""[..]);
        tree
    };
    tree::assert_same(
        "parts and whole",
        &skip_root(parts),
        &skip_root(whole),
        &Mask::ALL,
    );
}
