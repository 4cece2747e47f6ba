//! Content of an archive or a registry that looks like an image but is not: signatures,
//! attestations and SBOMs beside images, Helm charts and other artifacts of ORAS. The media types
//! in a manifest show which it is.
//!
//! Formats: OCI image specification, manifest.md ("Guidelines for Artifact Usage"), and the media types
//! of cosign, Helm, in-toto, SPDX, CycloneDX and Singularity.

use serde::Serialize;

use crate::oci::Digest;
use crate::oci::text::excerpt;

/// Media types of image configurations: OCI's, Docker's, and unspecific ones that some tools write.
const CONFIGS: [&str; 5] = [
    "",
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
    "application/json",
    "application/octet-stream",
];

/// Media types of configurations that do not name the kind of the artifact.
const EMPTY_CONFIGS: [&str; 2] = [
    "application/vnd.oci.empty.v1+json",
    "application/vnd.unknown.config.v1+json",
];

/// Parts of media types, and the kind of artifact that each means.
const KINDS: [(&str, &str); 12] = [
    ("simplesigning", "a signature of cosign"),
    ("sigstore", "a signature"),
    ("notary", "a signature of Notary"),
    ("in-toto", "an attestation"),
    ("dsse", "an attestation"),
    ("spdx", "an SBOM"),
    ("cyclonedx", "an SBOM"),
    ("syft", "an SBOM"),
    ("helm", "a Helm chart"),
    ("sylabs", "a Singularity image"),
    ("docker.plugin", "a Docker plugin"),
    ("wasm", "a WebAssembly module"),
];

/// Content of an archive that is not an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Artifact {
    /// The digest of its manifest; `None` if the archive does not have it.
    pub digest: Option<Digest>,
    /// Its name in the archive.
    pub reference: Option<String>,
    /// Its kind: "a Helm chart (application/vnd.cncf.helm.config.v1+json)".
    pub kind: String,
}

/// One line: the kind, the digest, the name.
impl std::fmt::Display for Artifact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.kind)?;
        if let Some(digest) = &self.digest {
            write!(f, " {digest}")?;
        }
        match &self.reference {
            Some(reference) => write!(f, ", called {}", excerpt(reference.as_bytes())),
            None => Ok(()),
        }
    }
}

/// The media types of a manifest; empty if the manifest does not have them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MediaTypes<'m> {
    pub(crate) artifact: &'m str,
    /// The configuration's type; `None` if there is no configuration.
    pub(crate) config: Option<&'m str>,
    pub(crate) layers: &'m [&'m str],
}

impl MediaTypes<'_> {
    /// Returns the kind of the artifact; `None` if it is an image.
    pub(crate) fn no_image(&self) -> Option<String> {
        let odd_layer = self.layers.iter().find(|media| !is_layer(media));
        let telling = match self.config {
            Some(config) if CONFIGS.contains(&config) => odd_layer.copied(),
            Some(config) if EMPTY_CONFIGS.contains(&config) => {
                let artifact = Some(self.artifact).filter(|media| !media.is_empty());
                artifact.or(odd_layer.copied()).or(Some(config))
            }
            Some(config) => Some(config),
            None => Some(self.artifact),
        };
        telling.map(kind)
    }
}

/// Returns the kind of an artifact of this type, with the type.
pub(crate) fn kind(media: &str) -> String {
    let known = KINDS.iter().find(|(part, _)| media.contains(part));
    let what = known.map_or("an artifact", |(_, what)| what);
    match media {
        "" => what.to_owned(),
        media => format!("{what} ({})", excerpt(media.as_bytes()).trim_matches('"')),
    }
}

/// Whether a blob of this type may be a layer: a tar, compressed or not, by any tool's name for it.
fn is_layer(media: &str) -> bool {
    let tar = media.contains("tar") || media.ends_with("gzip") || media.ends_with("zstd");
    media.is_empty() || tar || media == "application/octet-stream"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_image(artifact: &str, config: Option<&str>, layers: &[&str]) -> Option<String> {
        let types = MediaTypes {
            artifact,
            config,
            layers,
        };
        types.no_image()
    }

    #[test]
    fn images_and_what_is_none_are_told_apart() {
        let oci = Some("application/vnd.oci.image.config.v1+json");
        let docker = Some("application/vnd.docker.container.image.v1+json");
        for (config, layers) in [
            (oci, &["application/vnd.oci.image.layer.v1.tar+zstd"][..]),
            (oci, &[]),
            (
                docker,
                &["application/vnd.docker.image.rootfs.diff.tar.gzip"],
            ),
            (Some(""), &[""]),
        ] {
            assert_eq!(no_image("", config, layers), None, "{layers:?}");
        }
        let empty = Some("application/vnd.oci.empty.v1+json");
        let signature = "application/vnd.dev.cosign.simplesigning.v1+json";
        let chart = "application/vnd.cncf.helm.chart.content.v1.tar+gzip";
        for (artifact, config, layers, kind) in [
            ("", oci, &[signature][..], "a signature of cosign"),
            ("", oci, &["application/vnd.in-toto+json"], "an attestation"),
            (
                "",
                Some("application/vnd.cncf.helm.config.v1+json"),
                &[chart],
                "a Helm chart",
            ),
            ("application/spdx+json", empty, &[""], "an SBOM"),
            ("", empty, &["text/plain"], "an artifact (text/plain)"),
            ("application/x", None, &[], "an artifact (application/x)"),
            ("", None, &[], "an artifact"),
        ] {
            let found = no_image(artifact, config, layers).unwrap();
            assert!(found.starts_with(kind), "{found}");
        }
    }
}
