//! Image archives: saving and loading gives the same image, in every form that other programs
//! write; a damaged or hostile archive leaves nothing.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use unionfs::archive::{Format, Outgoing, Result, Source, Wanted, load, save};
use unionfs::layer_tar::Limits;
use unionfs::oci::{Digest, Reference};
use unionfs::store::Stores;

use super::writable::Own;
use super::{Fixture, discover};

/// Returns the `docker save` archive of images of a store.
pub(super) fn saved(stores: &Stores, names: &[&str], format: Format) -> Vec<u8> {
    let outgoing = |name: &&str| {
        let image = stores.find(name).unwrap();
        let store = stores.all().iter().find(|s| s.root() == image.root);
        let names = vec![Reference::parse(name).unwrap()];
        Outgoing::new(store.unwrap(), image, names)
    };
    let images: Vec<_> = names.iter().map(outgoing).collect();
    let mut archive = Vec::new();
    save(&images, format, &mut archive, &|_| ()).unwrap();
    archive
}

/// Loads an archive from bytes; returns the IDs.
pub(super) fn load_bytes(own: &Own, archive: &[u8]) -> Result<Vec<Digest>> {
    load_limited(own, archive, &Limits::default())
}

fn load_limited(own: &Own, archive: &[u8], limits: &Limits) -> Result<Vec<Digest>> {
    let store = own.open();
    let source = Source::from_reader(
        std::io::Cursor::new(archive.to_vec()),
        &store.staging(),
        Limits::default().bytes,
    )?;
    let store = store.lock().unwrap();
    let mut wanted = Wanted::default();
    wanted.limits = *limits;
    let loaded = load(&store, &source, &[], &wanted, &|_| ())?;
    Ok(loaded.into_iter().map(|image| image.id).collect())
}

fn load_path(own: &Own, path: &Path) -> Result<Vec<Digest>> {
    let store = own.open();
    let source = Source::open(path, &store.staging(), Limits::default().bytes)?;
    let store = store.lock().unwrap();
    let loaded = load(&store, &source, &[], &Wanted::default(), &|_| ())?;
    Ok(loaded.into_iter().map(|image| image.id).collect())
}

pub(super) fn assert_whole(own: &Own) {
    let report = discover(&own.root)
        .unwrap()
        .verify(None, &mut |_| ())
        .unwrap();
    assert_eq!(report.problems, []);
}

/// Asserts that a failed load left nothing.
pub(super) fn assert_empty(own: &Own) {
    assert_whole(own);
    for dir in [
        "image/overlay2/layerdb/sha256",
        "image/overlay2/layerdb/tmp",
    ] {
        assert_eq!(own.names(dir), [""; 0], "{dir}");
    }
    assert_eq!(own.names("image/overlay2/imagedb/content/sha256"), [""; 0]);
    assert_eq!(own.names("overlay2"), ["l"]);
    assert_eq!(own.names("overlay2/l"), [""; 0]);
    assert_eq!(own.names("unionfs/tmp"), [""; 0]);
}

/// Returns the entries of a tar.
pub(super) fn entries(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(archive);
    let read = |entry: std::io::Result<tar::Entry<'_, _>>| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (entry.path().unwrap().display().to_string(), content)
    };
    archive.entries().unwrap().map(read).collect()
}

pub(super) fn tar_of(entries: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        // Without `append_data`, which refuses hostile names.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        archive.append(&header, &content[..]).unwrap();
    }
    archive.into_inner().unwrap()
}

fn json_of(entries: &BTreeMap<String, Vec<u8>>, name: &str) -> Value {
    serde_json::from_slice(&entries[name]).unwrap()
}

/// A sample store, an archive of it, and the IDs of its images.
pub(super) struct Case {
    pub(super) fixture: Fixture,
    archive: Vec<u8>,
}

impl Case {
    pub(super) fn new() -> Self {
        let fixture = Fixture::new();
        let stores = fixture.stores().unwrap();
        let archive = saved(&stores, &["sample:1", "sample:2"], Format::Docker);
        Self { fixture, archive }
    }

    pub(super) fn ids(&self) -> Vec<String> {
        (0..2)
            .map(|n| format!("sha256:{}", self.fixture.id(n)))
            .collect()
    }
}

pub(super) fn texts(ids: &[Digest]) -> Vec<String> {
    ids.iter().map(Digest::to_string).collect()
}

#[test]
fn what_is_saved_and_loaded_is_the_same() {
    let case = Case::new();
    let own = Own::new();
    assert_eq!(texts(&load_bytes(&own, &case.archive).unwrap()), case.ids());
    assert_whole(&own);
    let stores = discover(&own.root).unwrap();
    let again = saved(&stores, &["sample:1", "sample:2"], Format::Docker);
    assert!(again == case.archive, "another archive came out");
    drop(stores);
    // A second load changes nothing.
    let layers = own.names("overlay2");
    load_bytes(&own, &case.archive).unwrap();
    assert_eq!(own.names("overlay2"), layers);
}

#[test]
fn compressed_archives_and_oci_layouts_are_read() {
    let case = Case::new();
    let gzip = |bytes: &[u8]| {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    };
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    let stores = case.fixture.stores().unwrap();
    let oci = saved(&stores, &["sample:1", "sample:2"], Format::Oci);
    assert!(!entries(&oci).contains_key("manifest.json"));
    for archive in [gzip(&case.archive), zstd(&case.archive), oci.clone()] {
        let own = Own::new();
        assert_eq!(texts(&load_bytes(&own, &archive).unwrap()), case.ids());
        let stores = discover(&own.root).unwrap();
        assert_eq!(
            stores.find("sample:2").unwrap().id.to_string(),
            case.ids()[1]
        );
    }
    // A layout as a directory, with layers compressed and each manifest changed to match.
    for (media, pack) in [
        ("gzip", &gzip as &dyn Fn(&[u8]) -> Vec<u8>),
        ("zstd", &zstd),
    ] {
        let temp = tempfile::tempdir().unwrap();
        write_dir(temp.path(), &compress_layers(entries(&oci), media, pack));
        let own = Own::new();
        assert_eq!(texts(&load_path(&own, temp.path()).unwrap()), case.ids());
        assert_whole(&own);
    }
}

fn write_dir(dir: &Path, entries: &BTreeMap<String, Vec<u8>>) {
    for (name, content) in entries {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
}

pub(super) fn put(entries: &mut BTreeMap<String, Vec<u8>>, content: Vec<u8>) -> (String, usize) {
    let (digest, size) = (Digest::of(&content), content.len());
    entries.insert(format!("blobs/sha256/{}", digest.hex()), content);
    (digest.to_string(), size)
}

fn blob_of(descriptor: &Value) -> String {
    let digest = Digest::parse(descriptor["digest"].as_str().unwrap()).unwrap();
    format!("blobs/sha256/{}", digest.hex())
}

fn compress_layers(
    mut entries: BTreeMap<String, Vec<u8>>,
    media: &str,
    pack: &dyn Fn(&[u8]) -> Vec<u8>,
) -> BTreeMap<String, Vec<u8>> {
    let mut index = json_of(&entries, "index.json");
    for image in index["manifests"].as_array_mut().unwrap() {
        let mut manifest = json_of(&entries, &blob_of(image));
        for layer in manifest["layers"].as_array_mut().unwrap() {
            let content = pack(&entries[&blob_of(layer)]);
            let (digest, size) = put(&mut entries, content);
            let kind = format!("application/vnd.oci.image.layer.v1.tar+{media}");
            *layer = json!({"mediaType": kind, "digest": digest, "size": size});
        }
        let (digest, size) = put(&mut entries, manifest.to_string().into_bytes());
        image["digest"] = json!(digest);
        image["size"] = json!(size);
    }
    entries.insert("index.json".into(), index.to_string().into_bytes());
    entries
}

/// `docker save` before version 25: `<id>/layer.tar`, equal layers as symlinks.
#[test]
fn old_archives_are_read() {
    let case = Case::new();
    let new = entries(&case.archive);
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, content).unwrap();
    };
    let mut manifest = json_of(&new, "manifest.json");
    for (n, image) in manifest.as_array_mut().unwrap().iter_mut().enumerate() {
        let config = image["Config"].as_str().unwrap().to_owned();
        let name = format!("{}.json", config.rsplit('/').next().unwrap());
        add(&name, &new[&config]);
        image["Config"] = json!(name);
        for (l, layer) in image["Layers"]
            .as_array_mut()
            .unwrap()
            .iter_mut()
            .enumerate()
        {
            let name = format!("{n}{l}/layer.tar");
            add(&name, &new[layer.as_str().unwrap()]);
            *layer = json!(name);
        }
    }
    // The base layer of both.
    manifest[1]["Layers"][0] = json!("linked/layer.tar");
    add("manifest.json", manifest.to_string().as_bytes());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    archive
        .append_link(&mut header, "linked/layer.tar", "../00/layer.tar")
        .unwrap();
    let own = Own::new();
    let loaded = load_bytes(&own, &archive.into_inner().unwrap()).unwrap();
    assert_eq!(texts(&loaded), case.ids());
    assert_whole(&own);
}

/// An archive that is cut anywhere, or has any one bit flipped, is refused, or the loaded image is
/// the original.
#[test]
fn damaged_archives_leave_nothing() {
    let case = Case::new();
    let len = case.archive.len();
    let whole = case.ids();
    for step in 0..60 {
        let own = Own::new();
        let mut archive = case.archive.clone();
        let at = len / 60 * step + 17 * step;
        if step % 2 == 0 {
            archive.truncate(at);
        } else {
            archive[at] ^= 1 << (step % 8);
        }
        match load_bytes(&own, &archive) {
            Ok(ids) => assert_eq!(texts(&ids), whole, "byte {at}"),
            Err(error) => {
                let text = error.to_string();
                assert!(!text.contains('\n') && text.len() > 20, "{text}");
                assert_empty(&own);
            }
        }
    }
}

fn refused(name: &str, change: impl FnOnce(&mut BTreeMap<String, Vec<u8>>), expected: &str) {
    let case = Case::new();
    let stores = case.fixture.stores().unwrap();
    let mut archive = entries(&saved(&stores, &["sample:1"], Format::Docker));
    change(&mut archive);
    let own = Own::new();
    let error = load_bytes(&own, &tar_of(&archive)).unwrap_err().to_string();
    assert!(error.contains(expected), "{name}: {error}");
    assert_empty(&own);
}

pub(super) fn edit(
    entries: &mut BTreeMap<String, Vec<u8>>,
    name: &str,
    change: impl FnOnce(&mut Value),
) {
    let mut value = json_of(entries, name);
    change(&mut value);
    entries.insert(name.into(), value.to_string().into_bytes());
}

#[test]
fn hostile_archives_are_refused() {
    let manifest = |change: fn(&mut Value)| {
        move |entries: &mut BTreeMap<String, Vec<u8>>| {
            edit(entries, "manifest.json", |m| change(&mut m[0]));
        }
    };
    refused(
        "a configuration outside",
        manifest(|image| image["Config"] = json!("../../../etc/passwd")),
        "leads out of the archive",
    );
    refused(
        "a layer outside",
        manifest(|image| image["Layers"][0] = json!("/../etc/passwd")),
        "leads out of the archive",
    );
    refused(
        "a layer that is missing",
        manifest(|image| image["Layers"][1] = json!("blobs/sha256/none")),
        "listed but missing",
    );
    refused(
        "a layer too few",
        manifest(|image| drop(image["Layers"].as_array_mut().unwrap().pop())),
        "the configuration has 3 layers, the manifest 2",
    );
    refused(
        "layers that have changed places",
        manifest(|image| image["Layers"].as_array_mut().unwrap().swap(0, 1)),
        "its SHA-256 is sha256:",
    );
    refused(
        "a name that is none",
        manifest(|image| image["RepoTags"] = json!(["../../x:1"])),
        "invalid image reference",
    );
    refused(
        "a name with a digest, which anybody could claim",
        |entries| {
            let name = format!("app@sha256:{}", "a".repeat(64));
            edit(entries, "manifest.json", |m| {
                m[0]["RepoTags"] = json!([name]);
            });
        },
        "has a digest",
    );
    refused(
        "no manifest",
        |e| e.retain(|n, _| n.starts_with("blobs")),
        "is not an image archive",
    );
    refused(
        "no image",
        |e| drop(e.insert("manifest.json".into(), b"[]".to_vec())),
        "lists no image",
    );
    refused(
        "a huge manifest",
        |e| drop(e.insert("manifest.json".into(), vec![b' '; 5 << 20])),
        "larger than",
    );
}

#[test]
fn a_layer_that_expands_beyond_the_limit_is_refused() {
    let case = Case::new();
    let own = Own::new();
    let limits = Limits {
        bytes: 2000,
        ..Limits::default()
    };
    let error = load_limited(&own, &case.archive, &limits).unwrap_err();
    assert!(error.to_string().contains("possible bomb"), "{error}");
    assert_empty(&own);
}

/// The files of a loaded image equal those of the store it was saved from.
#[test]
fn loaded_files_are_the_saved_ones() {
    let case = Case::new();
    let own = Own::new();
    load_bytes(&own, &case.archive).unwrap();
    let (theirs, ours) = (case.fixture.stores().unwrap(), discover(&own.root).unwrap());
    for name in ["sample:1", "sample:2"] {
        let (theirs, ours) = (theirs.find(name).unwrap(), ours.find(name).unwrap());
        let dirs = |image: &unionfs::store::Image| -> Vec<PathBuf> {
            image
                .layers
                .iter()
                .map(|l| l.place.path().to_owned())
                .collect()
        };
        for (theirs, ours) in dirs(&theirs).iter().zip(dirs(&ours)) {
            assert_eq!(tree(theirs), tree(&ours), "{theirs:?}");
        }
    }
}

fn tree(dir: &Path) -> String {
    // Type, mode, owner, links, seconds of change, name, target; a whiteout has no time.
    let find = std::process::Command::new("find")
        .arg(dir)
        .args([
            "-mindepth",
            "1",
            "-type",
            "c",
            "-printf",
            "%y %m %U:%G %P\n",
        ])
        .args(["-o", "-mindepth", "1"])
        .args(["-printf", "%y %m %U:%G %n %Ts %P %l\n"])
        .output()
        .unwrap();
    let mut lines: Vec<_> = std::str::from_utf8(&find.stdout).unwrap().lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// From an index, only the images that run here are loaded, without attestations and other
/// platforms.
#[test]
fn other_platforms_are_left_out() {
    let case = Case::new();
    let stores = case.fixture.stores().unwrap();
    let mut archive = entries(&saved(&stores, &["sample:1"], Format::Oci));
    edit(&mut archive, "index.json", |index| {
        let mut other = index["manifests"][0].clone();
        other["platform"] = json!({"architecture": "s390x", "os": "linux"});
        other["digest"] = json!(format!("sha256:{}", "0".repeat(64)));
        let mut attestation = other.clone();
        attestation["platform"] = json!({"architecture": "unknown", "os": "unknown"});
        let manifests = index["manifests"].as_array_mut().unwrap();
        manifests.insert(0, other);
        manifests.push(attestation);
    });
    let own = Own::new();
    let loaded = load_bytes(&own, &tar_of(&archive)).unwrap();
    assert_eq!(texts(&loaded), case.ids()[..1]);
    edit(&mut archive, "index.json", |index| {
        index["manifests"].as_array_mut().unwrap().remove(1);
    });
    let error = load_bytes(&own, &tar_of(&archive)).unwrap_err().to_string();
    assert!(error.contains("no image for linux/"), "{error}");
}

/// A compressed stream of zeros, and an entry that claims gigabytes.
#[test]
fn bombs_are_refused() {
    let own = Own::new();
    let store = own.open();
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::copy(&mut std::io::repeat(0).take(64 << 20), &mut bomb).unwrap();
    let bomb = std::io::Cursor::new(bomb.finish().unwrap());
    let error = Source::from_reader(bomb, &store.staging(), 1 << 20).unwrap_err();
    assert!(error.to_string().contains("possible bomb"), "{error}");
    let sparse = own.root.join("sparse.tar");
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(6 << 30);
    header.set_cksum();
    std::fs::write(&sparse, header.as_bytes()).unwrap();
    let file = std::fs::File::options().write(true).open(&sparse).unwrap();
    file.set_len(7 << 30).unwrap();
    let error = Source::open(&sparse, &store.staging(), 1 << 20).unwrap_err();
    assert!(error.to_string().contains("headers take more"), "{error}");
}
