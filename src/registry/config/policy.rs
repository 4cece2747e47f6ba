//! policy.json: which images are accepted from where.
//!
//! Format: containers-policy.json(5). `insecureAcceptAnything`, `reject` and `sigstoreSigned` with keys
//! are enforced. What we cannot check (signatures of GPG, certificates of Fulcio, the log Rekor) refuses
//! the image: a requirement is never left out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::super::error::{Error, Result};
use super::super::signature::PublicKey;
use super::{ConfigurationFiles, bad, read};
use crate::oci::Reference;

/// The requirements of a scope.
type Requirements = Vec<serde_json::Value>;

#[derive(Deserialize)]
struct File {
    default: Requirements,
    #[serde(default)]
    transports: BTreeMap<String, BTreeMap<String, Requirements>>,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Requirement {
    #[serde(rename = "insecureAcceptAnything")]
    Anything,
    #[serde(rename = "reject")]
    Reject,
    #[serde(rename = "signedBy")]
    SignedBy {},
    #[serde(rename = "signedBaseLayer")]
    SignedBaseLayer {},
    #[serde(rename = "sigstoreSigned")]
    Sigstore(Sigstore),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Sigstore {
    key_path: Option<PathBuf>,
    key_paths: Option<Vec<PathBuf>>,
    key_data: Option<String>,
    key_datas: Option<Vec<String>>,
    signed_identity: Option<Identity>,
}

/// Which name a signature must be for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub(in crate::registry) enum Identity {
    MatchExact,
    #[default]
    MatchRepoDigestOrExact,
    MatchRepository,
    ExactReference {
        docker_reference: String,
    },
    ExactRepository {
        docker_repository: String,
    },
    #[serde(rename = "remapIdentity")]
    Remapped {
        prefix: String,
        signed_prefix: String,
    },
}

/// The signature that an image must have: by one of the keys, for the name.
#[derive(Clone, Debug)]
pub(in crate::registry) struct SignatureRule {
    pub(in crate::registry) keys: Vec<PublicKey>,
    pub(in crate::registry) identity: Identity,
    /// The file that demands it.
    pub(in crate::registry) path: PathBuf,
}

impl ConfigurationFiles {
    /// Returns the signatures that an image of a registry must have.
    ///
    /// # Errors
    /// [`Error::Policy`] if the policy refuses the image.
    pub(in crate::registry) fn rules_for(&self, name: &Reference) -> Result<Vec<SignatureRule>> {
        self.rules("docker", &scopes(name), &name.to_string())
    }

    /// Checks that the policy accepts an image of an archive or a directory: `transport` is the name
    /// that skopeo gives to its kind.
    ///
    /// # Errors
    /// [`Error::Policy`] if the policy refuses it, or wants a signature, which archives do not have;
    /// [`Error::Configuration`] if the policy cannot be read.
    pub fn accept_archive(&self, transport: &str, path: &Path) -> Result<()> {
        let scopes: Vec<String> = path
            .ancestors()
            .map(|path| path.display().to_string())
            .collect();
        let what = format!("{transport}:{}", path.display());
        match self.rules(transport, &scopes, &what)?.first() {
            None => Ok(()),
            Some(rule) => Err(refused(
                &rule.path,
                &what,
                "it wants a signature of sigstore, which unionfs looks for in registries only: take \
                 the image from its registry",
            )),
        }
    }

    fn rules(&self, transport: &str, scopes: &[String], what: &str) -> Result<Vec<SignatureRule>> {
        for path in &self.policies {
            if let Some(text) = read(path)? {
                return rules_in((path, &text), transport, scopes, what);
            }
        }
        Ok(Vec::new())
    }
}

/// Returns the signatures that a policy demands of an image. `file`: its path and its text.
fn rules_in(
    file: (&Path, &str),
    transport: &str,
    scopes: &[String],
    what: &str,
) -> Result<Vec<SignatureRule>> {
    let (path, text) = file;
    let fault = |error: serde_json::Error| bad(path, error.to_string());
    let file: File = serde_json::from_str(text).map_err(fault)?;
    let of_transport = file.transports.get(transport);
    let found = of_transport.and_then(|known| {
        let fitting = scopes.iter().find_map(|scope| known.get(scope));
        fitting.or_else(|| known.get(""))
    });
    let wanted = found.unwrap_or(&file.default);
    if wanted.is_empty() {
        return Err(bad(
            path,
            "a scope has no requirement, which accepts nothing",
        ));
    }
    let rules = wanted.iter().map(|one| rule(path, what, one));
    let rules = rules.collect::<Result<Vec<_>>>()?;
    Ok(rules.into_iter().flatten().collect())
}

/// Parses a policy for a name of a registry (feature `fuzzing`). Returns how many signatures it demands.
#[cfg(feature = "fuzzing")]
pub(in crate::registry) fn fuzzed(path: &Path, text: &str, name: &Reference) -> Result<usize> {
    let what = name.to_string();
    let rules = rules_in((path, text), "docker", &scopes(name), &what)?;
    for rule in &rules {
        let _ = rule.identity.accepts(name, &what);
    }
    Ok(rules.len())
}

fn refused(path: &Path, what: &str, why: &str) -> Error {
    Error::Policy {
        what: what.to_owned(),
        path: path.to_owned(),
        why: why.to_owned(),
    }
}

fn rule(path: &Path, what: &str, text: &serde_json::Value) -> Result<Option<SignatureRule>> {
    let requirement = Requirement::deserialize(text).map_err(|error| {
        let why = format!("a requirement that unionfs cannot check ({error}): pull it with podman");
        refused(path, what, &why)
    })?;
    match requirement {
        Requirement::Anything => Ok(None),
        Requirement::Reject => Err(refused(path, what, "it is rejected there")),
        Requirement::SignedBy {} | Requirement::SignedBaseLayer {} => Err(refused(
            path,
            what,
            "it wants a signature of GPG (signedBy), which unionfs cannot check: pull it with podman or \
             skopeo, whose store unionfs mounts, or demand a signature of sigstore (sigstoreSigned)",
        )),
        Requirement::Sigstore(wanted) => {
            let identity = wanted.signed_identity.clone().unwrap_or_default();
            let keys = keys(path, wanted)?;
            let path = path.to_owned();
            Ok(Some(SignatureRule {
                keys,
                identity,
                path,
            }))
        }
    }
}

/// Reads the keys of a requirement.
fn keys(path: &Path, wanted: Sigstore) -> Result<Vec<PublicKey>> {
    let paths = wanted.key_path.into_iter();
    let paths: Vec<PathBuf> = paths.chain(wanted.key_paths.unwrap_or_default()).collect();
    let datas = wanted.key_data.into_iter();
    let datas: Vec<String> = datas.chain(wanted.key_datas.unwrap_or_default()).collect();
    let mut keys = Vec::new();
    for file in &paths {
        let pem =
            read(file)?.ok_or_else(|| bad(file, "does not exist, but policy.json names it"))?;
        keys.push(PublicKey::of_pem(pem.as_bytes()).map_err(|why| bad(file, why))?);
    }
    for data in &datas {
        let pem = STANDARD.decode(data);
        let pem = pem.map_err(|_| bad(path, "keyData is not base64"))?;
        keys.push(PublicKey::of_pem(&pem).map_err(|why| bad(path, format!("keyData {why}")))?);
    }
    if keys.is_empty() {
        return Err(bad(path, "sigstoreSigned has no key (keyPath or keyData)"));
    }
    Ok(keys)
}

/// Returns the scopes that fit a name, the most specific first.
fn scopes(name: &Reference) -> Vec<String> {
    let repository = format!("{}/{}", name.domain(), name.path());
    let own = match (name.digest(), name.tag()) {
        (Some(digest), _) => format!("{repository}@{digest}"),
        (None, tag) => format!("{repository}:{}", tag.unwrap_or("latest")),
    };
    let mut scopes = vec![own];
    let mut rest = repository.as_str();
    loop {
        scopes.push(rest.to_owned());
        match rest.rsplit_once('/') {
            Some((above, _)) => rest = above,
            None => break,
        }
    }
    let mut host = name.domain();
    while let Some((_, above)) = host.split_once('.') {
        scopes.push(format!("*.{above}"));
        host = above;
    }
    scopes
}

impl Identity {
    /// Whether a signature for `signed` is one for `wanted`, the name by which the image is pulled.
    pub(in crate::registry) fn accepts(&self, wanted: &Reference, signed: &str) -> bool {
        let Ok(signed) = Reference::parse(signed) else {
            return false;
        };
        let same_repository =
            |a: &Reference, b: &Reference| a.domain() == b.domain() && a.path() == b.path();
        let exact = |a: &Reference, b: &Reference| {
            let tagged = b.tag().is_some() || b.digest().is_some();
            tagged && same_repository(a, b) && full(a) == full(b)
        };
        match self {
            Self::MatchExact => exact(wanted, &signed),
            Self::MatchRepoDigestOrExact if wanted.digest().is_some() => {
                same_repository(wanted, &signed)
            }
            Self::MatchRepoDigestOrExact => exact(wanted, &signed),
            Self::MatchRepository => same_repository(wanted, &signed),
            Self::ExactReference { docker_reference } => {
                Reference::parse(docker_reference).is_ok_and(|named| exact(&named, &signed))
            }
            Self::ExactRepository { docker_repository } => Reference::parse(docker_repository)
                .is_ok_and(|named| same_repository(&named, &signed)),
            Self::Remapped {
                prefix,
                signed_prefix,
            } => {
                let text = full(wanted);
                let rest = text.strip_prefix(prefix.as_str());
                let rest = rest.filter(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']));
                match rest {
                    Some(rest) => Reference::parse(&format!("{signed_prefix}{rest}"))
                        .is_ok_and(|named| Self::default().accepts(&named, &full(&signed))),
                    None => Self::default().accepts(wanted, &full(&signed)),
                }
            }
        }
    }
}

/// Returns a name with its tag or digest.
fn full(name: &Reference) -> String {
    let base = format!("{}/{}", name.domain(), name.path());
    match (name.digest(), name.tag()) {
        (Some(digest), _) => format!("{base}@{digest}"),
        (None, tag) => format!("{base}:{}", tag.unwrap_or("latest")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(policy: &str, name: &str) -> Result<Vec<SignatureRule>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.json");
        std::fs::write(&path, policy).unwrap();
        let files = ConfigurationFiles {
            policies: vec![dir.path().join("absent.json"), path],
            ..ConfigurationFiles::default()
        };
        files.rules_for(&Reference::parse(name).unwrap())
    }

    const ANYTHING: &str = r#"[{"type":"insecureAcceptAnything"}]"#;
    const REJECT: &str = r#"[{"type":"reject"}]"#;

    #[test]
    fn the_most_specific_scope_decides() {
        let policy = format!(
            r#"{{"default":{REJECT},"transports":{{"docker":{{
                "r.example":{ANYTHING},"r.example/team":{REJECT},"r.example/team/app":{ANYTHING},
                "r.example/team/app:bad":{REJECT},"*.wild.example":{ANYTHING}}},
                "dir":{{"":{ANYTHING}}}}}}}"#
        );
        for name in ["r.example/x", "r.example/team/app", "a.b.wild.example/x"] {
            assert!(check(&policy, name).is_ok(), "{name}");
        }
        for name in [
            "app",
            "r.example/team/x",
            "r.example/team/app:bad",
            "wild.example/x",
            "r.example:5000/x",
        ] {
            let error = check(&policy, name).unwrap_err().to_string();
            assert!(
                error.contains("policy.json") && error.contains(name),
                "{error}"
            );
        }
    }

    #[test]
    fn what_cannot_be_checked_is_refused() {
        for requirement in [
            r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/x"}"#,
            r#"{"type":"signedBaseLayer","baseLayerIdentity":{}}"#,
            r#"{"type":"sigstoreSigned","fulcio":{"caPath":"/x"}}"#,
            r#"{"type":"sigstoreSigned","keyPath":"/x","rekorPublicKeyPath":"/y"}"#,
            r#"{"type":"sigstoreSigned","keyPath":"/nonexistent.pub"}"#,
            r#"{"type":"sigstoreSigned","keyData":"!"}"#,
            r#"{"type":"sigstoreSigned"}"#,
            r#"{"type":"unheardOf"}"#,
            "{}",
        ] {
            // One requirement that accepts everything does not make up for another.
            let policy =
                format!(r#"{{"default":[{{"type":"insecureAcceptAnything"}},{requirement}]}}"#);
            assert!(check(&policy, "app").is_err(), "{requirement}");
        }
        assert!(check("{}", "app").is_err() && check(r#"{"default":[]}"#, "app").is_err());
    }

    #[test]
    fn a_signature_is_for_a_name() {
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let by_digest = format!("r.example/a@{digest}");
        let accepts = |rule: &Identity, wanted: &str, signed: &str| {
            rule.accepts(&Reference::parse(wanted).unwrap(), signed)
        };
        let default = Identity::default();
        assert!(accepts(&default, "r.example/a:1", "r.example/a:1"));
        assert!(!accepts(&default, "r.example/a:1", "r.example/a:2"));
        assert!(!accepts(&default, "r.example/a", "r.example/a"));
        assert!(accepts(&default, &by_digest, "r.example/a:2"));
        assert!(!accepts(&Identity::MatchExact, &by_digest, "r.example/a:2"));
        assert!(accepts(
            &Identity::MatchRepository,
            "r.example/a:1",
            "r.example/a"
        ));
        assert!(!accepts(
            &Identity::MatchRepository,
            "r.example/a:1",
            "r.example/b"
        ));
        let remap = Identity::Remapped {
            prefix: "m.example".into(),
            signed_prefix: "r.example".into(),
        };
        assert!(accepts(&remap, "m.example/a:1", "r.example/a:1"));
        assert!(!accepts(&remap, "m.example/a:1", "m.example/a:1"));
    }
}
