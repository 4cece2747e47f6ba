//! `verify`: it finds no problem in whole stores, Docker's among them, and finds and names each
//! kind of damage. Unpacking gives the same files that Docker unpacked.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::Path;

use testkit::need;
use testkit::store::listing;
use unionfs::layer::Dialect;
use unionfs::layer_tar::{self, Limits};
use unionfs::oci::Digest;
use unionfs::progress::Progress;
use unionfs::store::verify::Report;
use unionfs::store::writable::Writable;

use super::docker_store::DockerStore;
use super::tarball::Tar;
use super::{Fixture, children, discover};

fn verify(root: &Path, image: Option<&str>) -> Report {
    discover(root).unwrap().verify(image, &mut |_| {}).unwrap()
}

/// Asserts that there is exactly one problem, with all of `words`.
#[track_caller]
fn finds(store: &Fixture, words: &[&str]) -> Report {
    let report = verify(&store.root, None);
    assert_eq!(report.problems.len(), 1, "{report:#?}");
    let text = format!("{}: {}", report.problems[0].of, report.problems[0].what);
    for word in words {
        assert!(text.contains(word), "no {word:?} in {text}");
    }
    report
}

#[test]
fn a_whole_store_has_no_problems() {
    let store = Fixture::new();
    let mut total = None;
    let mut layers = 0;
    let mut done = 0;
    let mut hashed = 0;
    let mut progress = |step: Progress<'_, &Digest>| match step {
        Progress::Total { items, size } => total = Some((items, size)),
        Progress::Begin { .. } => layers += 1,
        Progress::Advance { count, .. } => hashed += count,
        Progress::Done { .. } => done += 1,
        other => panic!("{other:?}"),
    };
    let stores = store.stores().unwrap();
    let report = stores.verify(None, &mut progress).unwrap();
    assert_eq!(report.problems, []);
    assert_eq!((report.images, report.layers), (2, 4));
    assert_eq!((layers, done, hashed), (4, 4, report.bytes));
    assert_eq!(total.unwrap().0, 4);
    let one = verify(&store.root, Some("sample:1"));
    assert_eq!((one.images, one.layers), (1, 3));
    assert!(one.bytes < report.bytes);
    stores.verify(Some("nobody:1"), &mut |_| {}).unwrap_err();
}

/// Returns the largest file of a layer.
fn largest(dir: &Path) -> std::path::PathBuf {
    let mut files = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for path in children(&dir) {
            let meta = path.symlink_metadata().unwrap();
            if meta.is_dir() {
                todo.push(path);
            } else if meta.is_file() {
                files.push((meta.len(), path));
            }
        }
    }
    files.sort();
    files.pop().unwrap().1
}

#[test]
fn damage_to_files_is_named() {
    let store = Fixture::new();
    let file = largest(&store.layer_dir(0).join("diff"));
    let mut bytes = fs::read(&file).unwrap();
    bytes[0] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let name = file.file_name().unwrap().to_str().unwrap();
    let chain = store.layer(0).file_name().unwrap().to_owned();
    finds(&store, &["layer", chain.to_str().unwrap(), name, "damaged"]);
    // Another image is whole if it does not have this layer; these two share it.
    assert_eq!(verify(&store.root, Some("sample:2")).problems.len(), 1);
    bytes.pop();
    fs::write(&file, &bytes).unwrap();
    let report = verify(&store.root, Some("sample:1"));
    let all: Vec<&str> = report.problems.iter().map(|p| p.what.as_str()).collect();
    assert_eq!(all.len(), 2, "{all:?}");
    assert!(
        all[0].contains(name) && all[1].contains("bytes of files"),
        "{all:?}"
    );
    fs::remove_file(&file).unwrap();
    let report = verify(&store.root, None);
    assert!(report.problems[0].what.contains("is missing"), "{report:?}");
}

#[test]
fn damage_to_records_is_named() {
    let store = Fixture::new();
    fs::write(store.layer(2).join("size"), "12345").unwrap();
    finds(&store, &["12345", "size"]);
    let store = Fixture::new();
    fs::remove_file(store.layer(2).join("tar-split.json.gz")).unwrap();
    finds(&store, &["tar-split.json.gz", "missing"]);
    let store = Fixture::new();
    let split = store.layer(2).join("tar-split.json.gz");
    let bytes = fs::read(&split).unwrap();
    fs::write(&split, &bytes[..bytes.len() / 2]).unwrap();
    finds(&store, &["tar-split.json.gz", "line"]);
    // A complete tar-split of another layer.
    let store = Fixture::new();
    let split = store.layer(2).join("tar-split.json.gz");
    let mut other = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(
        &mut other,
        b"{\"type\":2,\"payload\":\"\",\"position\":0}\n",
    )
    .unwrap();
    fs::write(&split, other.finish().unwrap()).unwrap();
    finds(&store, &["tar-split.json.gz", "damaged", "sha256:"]);
    let store = Fixture::new();
    let config = store.path(&format!(
        "image/overlay2/imagedb/content/sha256/{}",
        store.id(0)
    ));
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("amd64", "arm64")).unwrap();
    // Its top layer is still checked, because it is in the store.
    let report = finds(&store, &["image", store.id(0), "damaged"]);
    assert_eq!(report.layers, 4);
}

#[test]
fn links_and_chains_are_compared() {
    let store = Fixture::new();
    let link = store.layer_dir(2).join("link");
    fs::write(&link, "ABCDEFGHIJKLMNOPQRSTUVWXYZ").unwrap();
    finds(&store, &["layer", "/l/", "points to nothing"]);
    // A damaged layer below others: the others are counted and not reported one by one; containers
    // too.
    let store = Fixture::new();
    fs::write(store.layer_dir(1).join("lower"), "l/X").unwrap();
    let report = verify(&store.root, None);
    assert_eq!((report.layers, report.unchecked), (1, 2));
    let layers = report.problems.iter().filter(|p| p.of.starts_with("layer"));
    assert_eq!(layers.count(), 1, "{report:#?}");
    let store = Fixture::new();
    fs::write(store.layer(2).join("parent"), "sha256:x").unwrap();
    let report = verify(&store.root, None);
    assert!(report.problems[0].what.contains("/parent"), "{report:#?}");
}

#[test]
fn a_layer_without_an_image_is_checked_too() {
    let store = Fixture::new();
    let content = store.root.join("image/overlay2/imagedb/content/sha256");
    fs::remove_dir_all(&content).unwrap();
    fs::create_dir(&content).unwrap();
    let names = store.root.join("image/overlay2/repositories.json");
    fs::write(names, r#"{"Repositories":{}}"#).unwrap();
    let report = verify(&store.root, None);
    assert_eq!((report.images, report.layers), (0, 4));
    assert_eq!(report.problems, []);
    let some = fs::read_to_string(store.path("image/overlay2/layerdb/sha256/*/cache-id"));
    let diff = store.root.join("overlay2").join(some.unwrap()).join("diff");
    fs::remove_file(largest(&diff)).unwrap();
    let report = verify(&store.root, None);
    assert!(
        report.problems[0].what.contains("is missing"),
        "{report:#?}"
    );
}

#[test]
fn a_store_of_ours_filled_from_tars_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("own");
    let store = Writable::open(&root).unwrap();
    let lock = store.lock().unwrap();
    let base = Tar::default()
        .dir("d")
        .file("d/f", b"base")
        .file("gone", b"x");
    let top = Tar::default()
        .file(".wh.gone", b"")
        .file("d/.wh..wh..opq", b"")
        .entry(b'0', b"d/\xff", b"", b"?")
        .file("new", b"new")
        .link("l", "new");
    let mut parent = None;
    let mut diffs = Vec::new();
    for tar in [base.end(), top.end()] {
        let mut staged = lock.stage_layer(parent.as_ref()).unwrap();
        let dialect = staged.dialect();
        let (diff, split) = staged.parts();
        let done = layer_tar::unpack(&tar[..], diff, dialect, split, &Limits::default()).unwrap();
        parent = Some(staged.commit(done.diff_id, done.size).unwrap());
        diffs.push(format!("\"{}\"", done.diff_id));
    }
    let config = format!(
        r#"{{"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        diffs.join(",")
    );
    let image = lock.register_image(config.as_bytes()).unwrap();
    drop(lock);
    let report = verify(&root, Some(&image.hex()));
    assert_eq!(report.problems, []);
    assert_eq!((report.images, report.layers), (1, 2));
    assert_eq!(verify(&root, None), report);
}

#[test]
fn dockers_own_store_is_whole_and_its_layers_unpack_to_the_same() {
    let store = need!(DockerStore::get());
    let report = verify(&store.root(), None);
    assert_eq!(report.problems, []);
    assert!(report.images >= 7 && report.layers > 40, "{report:?}");
    for layer in children(&store.root().join("image/overlay2/layerdb/sha256")) {
        let read = |name: &str| fs::read_to_string(layer.join(name)).unwrap();
        let theirs = store
            .root()
            .join("overlay2")
            .join(read("cache-id"))
            .join("diff");
        let mut split = Vec::new();
        let file = File::open(layer.join("tar-split.json.gz")).unwrap();
        flate2::read::GzDecoder::new(file)
            .read_to_end(&mut split)
            .unwrap();
        let mut tar = Vec::new();
        let dir = File::open(&theirs).unwrap();
        layer_tar::rebuild(&split[..], dir.as_fd(), &mut tar).unwrap();
        let ours = tempfile::tempdir().unwrap();
        let dir = File::open(ours.path()).unwrap();
        let mut again = Vec::new();
        let limits = Limits::default();
        let done = layer_tar::unpack(&tar[..], dir.as_fd(), Dialect::KERNEL, &mut again, &limits);
        let done = done.unwrap();
        assert_eq!(done.diff_id.to_string(), read("diff"));
        assert_eq!(done.size.to_string(), read("size"));
        assert!(again == split, "{layer:?}: not Docker's tar-split");
        // A tar states the mtime neither of the root nor of a whiteout.
        let list = |dir: &Path| {
            let mut list = listing::of_dir(dir);
            for (name, entry) in &mut list {
                if name.is_empty() || entry.device == Some((0, 0)) {
                    entry.mtime = (0, 0);
                }
            }
            list
        };
        listing::assert_same(&read("diff"), &list(ours.path()), &list(&theirs));
    }
}
