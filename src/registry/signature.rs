//! Signatures of sigstore: who has signed an image, and for which name.
//!
//! Formats: cosign, specs/SIGNATURE_SPEC.md (the manifest `sha256-HEX.sig` beside the image, one layer
//! for each signature); containers/image, docs/containers-signature.5.md (the payload).
//! All input is hostile: a signature counts only after its key has confirmed the payload's bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;
use spki::{ObjectIdentifier, SubjectPublicKeyInfoRef};

use super::config::policy::SignatureRule;
use super::error::{Error, Result};
use super::pull::{get_blob, get_manifest_by_tag};
use super::sources::{Needs, Sources};
use crate::oci::{Digest, Reference};

/// The limit of signatures of an image that are looked at.
const MAX_SIGNATURES: usize = 64;
/// The size limit of a payload, in bytes.
const MAX_PAYLOAD: u64 = 64 << 10;
/// The annotation with the signature.
const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
const PAYLOAD_TYPE: &str = "cosign container image signature";

const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// A key that confirms signatures.
#[derive(Clone)]
pub(super) struct PublicKey {
    algorithm: &'static dyn VerificationAlgorithm,
    bytes: Vec<u8>,
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PublicKey")
    }
}

impl PublicKey {
    /// Reads a key in PEM, as `cosign generate-key-pair` writes it.
    pub(super) fn of_pem(pem: &[u8]) -> std::result::Result<Self, &'static str> {
        const KINDS: &str = "holds a key of a kind that unionfs cannot use: ECDSA (P-256, P-384), RSA \
                             and Ed25519 can be used";
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem);
        let der = der.map_err(|_| "holds no public key in PEM")?;
        let info = SubjectPublicKeyInfoRef::try_from(der.as_ref());
        let info = info.map_err(|_| "holds a public key that is damaged")?;
        let curve = info.algorithm.parameters_oid().ok();
        let algorithm: &dyn VerificationAlgorithm = match (info.algorithm.oid, curve) {
            (EC, Some(P256)) => &signature::ECDSA_P256_SHA256_ASN1,
            (EC, Some(P384)) => &signature::ECDSA_P384_SHA256_ASN1,
            (RSA, _) => &signature::RSA_PKCS1_2048_8192_SHA256,
            (ED25519, _) => &signature::ED25519,
            _ => return Err(KINDS),
        };
        Ok(Self {
            algorithm,
            bytes: info.subject_public_key.raw_bytes().to_owned(),
        })
    }

    fn confirms(&self, payload: &[u8], signature: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(self.algorithm, &self.bytes);
        key.verify(payload, signature).is_ok()
    }
}

#[derive(Deserialize)]
struct Manifest {
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
struct Layer {
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    identity: Signed,
    image: SignedImage,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Signed {
    docker_reference: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SignedImage {
    docker_manifest_digest: String,
}

/// Checks that an image fulfils each rule. `digests` are those of its manifest and of the index that
/// has it: a signature of one of them is one of the image.
pub(super) fn require(
    rules: &[SignatureRule],
    sources: &Sources<'_>,
    name: &Reference,
    digests: &[Digest],
) -> Result<()> {
    if rules.is_empty() {
        return Ok(());
    }
    let mut found = Vec::new();
    for digest in digests {
        for (payload, signature) in signatures(sources, digest)? {
            found.push((*digest, payload, signature));
        }
    }
    for rule in rules {
        let mut why = "it has no signature of sigstore in the registry";
        let fulfils = |(digest, payload, signature): &(Digest, Vec<u8>, Vec<u8>)| {
            if !rule.keys.iter().any(|key| key.confirms(payload, signature)) {
                return Err("no signature is by the key that is demanded");
            }
            let payload: Payload =
                serde_json::from_slice(payload).map_err(|_| "its signed text is malformed")?;
            let critical = payload.critical;
            if critical.kind != PAYLOAD_TYPE
                || critical.image.docker_manifest_digest != digest.to_string()
            {
                return Err("the signature is one of another image");
            }
            if !rule
                .identity
                .accepts(name, &critical.identity.docker_reference)
            {
                return Err("the signature is for another name (see signedIdentity)");
            }
            Ok(())
        };
        let fulfilled = found.iter().any(|one| match fulfils(one) {
            Ok(()) => true,
            Err(fault) => {
                why = fault;
                false
            }
        });
        if !fulfilled {
            return Err(Error::Policy {
                what: name.to_string(),
                path: rule.path.clone(),
                why: why.to_owned(),
            });
        }
    }
    Ok(())
}

/// Returns the payloads and signatures of a manifest that a registry has.
fn signatures(sources: &Sources<'_>, digest: &Digest) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let tag = format!("sha256-{}.sig", digest.hex());
    let bytes = sources.first(Needs::Tag, |client| get_manifest_by_tag(client, &tag));
    let bytes = match bytes {
        Ok(bytes) => bytes,
        Err(Error::NotFound { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let what = format!("the signatures of {digest}");
    let manifest: Manifest = serde_json::from_slice(&bytes)
        .map_err(|error| Error::malformed(what.as_str(), error.to_string()))?;
    let mut found = Vec::new();
    for layer in manifest.layers.iter().take(MAX_SIGNATURES) {
        let signature = layer.annotations.get(ANNOTATION);
        let signature = signature.and_then(|text| STANDARD.decode(text).ok());
        let (Some(signature), Some(blob)) = (signature, Digest::parse(&layer.digest)) else {
            continue;
        };
        if layer.size > MAX_PAYLOAD {
            continue;
        }
        let payload = sources.first(Needs::Digest, |client| get_blob(client, &blob, layer.size))?;
        found.push((payload, signature));
    }
    Ok(found)
}
