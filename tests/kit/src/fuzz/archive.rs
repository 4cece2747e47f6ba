//! The manifests of image archives, in a directory. The first byte chooses the form: even is
//! `manifest.json`, odd is an OCI `index.json`; with the second bit, the blobs are beside it as in
//! `dir:`. Documents separated by NULs follow. The first is that file, the others are blobs. `@1`,
//! `@2` and so on in an earlier document stand for their digests.

use std::cell::RefCell;
use std::fs;

use unionfs::archive::{Source, Wanted, contents, find};
use unionfs::oci::Digest;
use unionfs::store::writable::Staging;

use super::one_line;

thread_local! {
    static DIR: RefCell<tempfile::TempDir> = RefCell::new(tempfile::tempdir().unwrap());
}

/// The maximum number of documents.
const MAX: usize = 8;

pub fn run(bytes: &[u8]) {
    let Some((mode, bytes)) = bytes.split_first() else {
        return;
    };
    DIR.with_borrow(|dir| {
        let root = dir.path().join("archive");
        let blobs = match mode & 2 {
            0 => root.join("blobs/sha256"),
            _ => root.clone(),
        };
        fs::create_dir_all(&blobs).unwrap();
        let mut digests = vec![String::new(); MAX];
        let documents: Vec<&[u8]> = bytes.splitn(MAX, |&b| b == 0).collect();
        for (number, document) in documents.iter().enumerate().rev() {
            let document = referring(document, &digests);
            let digest = Digest::of(&document).hex();
            let path = match (number, mode % 2) {
                (0, 0) => root.join("manifest.json"),
                (0, _) => root.join("index.json"),
                _ => blobs.join(&digest),
            };
            fs::write(path, document).unwrap();
            digests[number] = digest;
        }
        let source = Source::open(&root, &Staging::temporary(), 1 << 20).unwrap();
        let mut wanted = Wanted::default();
        wanted.repository = Some("layout");
        match contents(&source, &wanted) {
            Err(error) => one_line(&error),
            Ok(found) => {
                for image in &found.images {
                    assert_eq!(image.layers.len(), image.diff_ids.len());
                    assert!(image.names.iter().all(|name| name.digest().is_none()));
                    for reference in image.references.iter().take(2) {
                        // Several images may have this name.
                        if let Err(error) = find(&source, Some(reference), None) {
                            one_line(&error);
                        }
                    }
                }
                for artifact in &found.artifacts {
                    assert_eq!(artifact.to_string().lines().count(), 1, "{artifact:?}");
                }
            }
        }
        fs::remove_dir_all(&root).unwrap();
    });
}

fn referring(document: &[u8], digests: &[String]) -> Vec<u8> {
    let mut parts = document.split(|&b| b == b'@');
    let mut out = parts.next().unwrap_or_default().to_vec();
    for part in parts {
        let number = part.first().map(|b| usize::from(b.wrapping_sub(b'0')));
        match number.and_then(|number| digests.get(number)) {
            Some(digest) => {
                out.extend_from_slice(digest.as_bytes());
                out.extend_from_slice(&part[1..]);
            }
            None => {
                out.push(b'@');
                out.extend_from_slice(part);
            }
        }
    }
    out
}

pub fn seeds() -> Vec<Vec<u8>> {
    let diff = Digest::of(b"layer");
    let config = format!(r#"{{"os":"linux","rootfs":{{"type":"layers","diff_ids":["{diff}"]}}}}"#);
    let docker = r#"[{"Config":"blobs/sha256/@1","RepoTags":["a:1","r.io/b@sha256:0"],"Layers":["blobs/sha256/@2"]}]"#;
    let old = r#"[{"Config":"@1.json","RepoTags":null,"Layers":["@2/layer.tar","../x"]}]"#;
    let index = r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:@1","size":1,"annotations":{"io.containerd.image.name":"docker.io/library/a:1","org.opencontainers.image.ref.name":"b:2"},"platform":{"architecture":"amd64","os":"linux"}}]}"#;
    let nested = r#"{"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:@1"}]}"#;
    let manifest = r#"{"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:@2","size":2},"layers":[{"digest":"sha256:@3","size":5}]}"#;
    let manifest_below =
        r#"{"config":{"digest":"sha256:@3"},"layers":[{"digest":"sha256:@4","size":5}]}"#;
    let index_below = index.replace("@1", "@2");
    let tagged = index
        .replace("docker.io/library/a:1", "")
        .replace("b:2", "tag");
    let signature = manifest.replace(
        r#""layers":[{"#,
        r#""layers":[{"mediaType":"application/vnd.dev.cosign.simplesigning.v1+json","#,
    );
    let artifact = r#"{"manifests":[{"digest":"sha256:@1","artifactType":"application/spdx+json"},{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:@2"}]}"#;
    let plain = r#"{"schemaVersion":2,"config":{"digest":"sha256:@1","size":2},"layers":[{"digest":"sha256:@2","size":5}]}"#;
    let joined =
        |mode: u8, documents: &[&str]| [&[mode][..], documents.join("\0").as_bytes()].concat();
    vec![
        joined(0, &[docker, &config, "layer"]),
        joined(0, &[old, &config]),
        joined(1, &[index, manifest, &config, "layer"]),
        joined(1, &[&tagged, manifest, &config, "layer"]),
        joined(1, &[&tagged, &signature, &config, "layer"]),
        joined(
            1,
            &[
                artifact,
                "{}",
                r#"{"manifests":[{"digest":"sha256:@3","artifactType":"x"}]}"#,
            ],
        ),
        joined(2, &[plain, &config, "layer"]),
        joined(1, &[nested, &index_below, manifest_below, &config, "layer"]),
    ]
}
