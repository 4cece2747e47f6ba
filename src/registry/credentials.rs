//! Users and passwords that `docker login` and `podman login` have stored.
//!
//! The files may belong to another user, for example if root has that user's `$HOME`. Then they are
//! read, but programs that they name are not run, and no symlink of that user is followed.
//!
//! Formats: docker/cli, `config.json` (`auths`, `credsStore`, `credHelpers`);
//! containers-auth.json(5); docker-credential-helpers (server on stdin,
//! `{ServerURL, Username, Secret}` on stdout).
//! No message and no Debug output contains a secret.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;

use super::config::registries_conf::AUTH_FILES;
use super::credential_helper as helper;
use super::error::{Error, Result};
use crate::oci::text::excerpt;
use crate::sys::walk::{self, Trust};

/// The size limit of a file with credentials, in bytes.
const LIMIT: u64 = 4 << 20;
/// The key of Docker Hub's credentials.
pub(super) const HUB: &str = "https://index.docker.io/v1/";

/// The credential of a user.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credential {
    Password {
        user: String,
        password: String,
    },
    /// The OAuth 2 refresh token that `docker login` got instead of a password.
    Identity(String),
}

impl Credential {
    /// Returns the user for messages.
    pub(super) fn who(&self) -> String {
        match self {
            Self::Password { user, .. } => {
                format!("the credentials of user {}", excerpt(user.as_bytes()))
            }
            Self::Identity(_) => "the stored login".to_owned(),
        }
    }

    /// Returns the value of the Authorization header (RFC 7617); `None` for a token.
    pub(super) fn basic(&self) -> Option<String> {
        match self {
            Self::Password { user, password } => {
                let pair = STANDARD.encode(format!("{user}:{password}"));
                Some(format!("Basic {pair}"))
            }
            Self::Identity(_) => None,
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential")
    }
}

/// The files that may contain credentials; the first that has them is used.
#[derive(Clone, Debug, Default)]
pub struct CredentialFiles {
    /// The paths; files that do not exist are skipped.
    pub paths: Vec<PathBuf>,
    /// What the user gives for the registry that he names.
    given: Option<Credential>,
}

impl CredentialFiles {
    /// Returns the files of this process's user: `$REGISTRY_AUTH_FILE`,
    /// `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`, and podman's.
    pub fn of_user() -> Self {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let dir = |name| var(name).map(PathBuf::from);
        let home = dir("HOME");
        let below = |base: &Option<PathBuf>, name: &str| base.as_ref().map(|b| b.join(name));
        let config = dir("XDG_CONFIG_HOME").or_else(|| below(&home, ".config"));
        let docker = dir("DOCKER_CONFIG").or_else(|| below(&home, ".docker"));
        let uid = rustix::process::geteuid().as_raw();
        // Podman's place for a user without a session.
        let run = PathBuf::from(format!("/run/containers/{uid}"));
        let session = below(&dir("XDG_RUNTIME_DIR"), "containers").unwrap_or(run);
        let paths = [
            dir("REGISTRY_AUTH_FILE"),
            below(&docker, "config.json"),
            Some(session.join("auth.json")),
            below(&config, "containers/auth.json"),
        ];
        Self {
            paths: paths.into_iter().flatten().collect(),
            given: None,
        }
    }

    /// Returns one file, and no other.
    pub fn of_file(path: &Path) -> Self {
        Self {
            paths: vec![path.to_owned()],
            given: None,
        }
    }

    /// Uses a user and password for the registry that the user names, whatever the files say.
    pub fn give(&mut self, user: String, password: String) {
        self.given = Some(Credential::Password { user, password });
    }

    pub(super) fn given(&self) -> Option<&Credential> {
        self.given.as_ref()
    }

    /// Returns the file to which a login is written: `$REGISTRY_AUTH_FILE`, else Docker's, which
    /// Docker, podman and skopeo read.
    pub(super) fn to_write(&self) -> Option<&Path> {
        self.paths.first().map(PathBuf::as_path)
    }

    /// As [`Self::find`], with the helpers of registries.conf, in its order.
    pub(super) fn find_with(
        &self,
        helpers: Option<&[String]>,
        host: &str,
        repository: &str,
    ) -> Result<Option<Credential>> {
        let Some(helpers) = helpers else {
            return self.find(host, repository);
        };
        for helper in helpers {
            let found = match helper.as_str() {
                AUTH_FILES => self.find(host, repository)?,
                helper => helper::get(helper, server_of(host))?,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Returns the credentials for a repository: the most specific entry of the first file that has
    /// one.
    pub(super) fn find(&self, host: &str, repository: &str) -> Result<Option<Credential>> {
        for path in &self.paths {
            if let Some((file, trusted)) = read(path)?
                && let Some(found) = file.find(path, trusted, host, repository)?
            {
                tracing::debug!(?path, host, "credentials found");
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

/// Returns the name of a registry in the protocol of helpers.
pub(super) fn server_of(host: &str) -> &str {
    if host == "docker.io" { HUB } else { host }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    auths: BTreeMap<String, Option<Entry>>,
    creds_store: Option<String>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

pub(super) fn bad(what: impl Into<String>, why: impl Into<String>) -> Error {
    Error::Credentials {
        what: what.into(),
        why: why.into(),
    }
}

/// Returns the configuration in a file, and whether that file may name a program to run: it must
/// belong to root or to this user.
fn read(path: &Path) -> Result<Option<(Config, bool)>> {
    use std::io::Read as _;
    let shown = || format!("{path:?}");
    let unreadable = |error| bad(shown(), format!("cannot be read: {error}"));
    let file = match walk::open_file(path, Trust::of_root()) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let trusted = walk::is_trusted(&file).map_err(unreadable)?;
    let mut bytes = Vec::new();
    let read = file.take(LIMIT).read_to_end(&mut bytes);
    read.map_err(unreadable)?;
    if bytes.trim_ascii().is_empty() {
        return Ok(None);
    }
    // serde's message is left out, because it may quote a password.
    let config = serde_json::from_slice(&bytes).map_err(|e| {
        let place = format!("line {}, column {}", e.line(), e.column());
        bad(shown(), format!("{place}: not the JSON of `docker login`"))
    })?;
    Ok(Some((config, trusted)))
}

/// Returns the keys that may stand for a repository, the most specific first.
pub(super) fn keys(host: &str, repository: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut path = repository;
    // Keys for namespaces: containers-auth.json(5).
    while !path.is_empty() {
        keys.push(format!("{host}/{path}"));
        path = path.rsplit_once('/').map_or("", |(up, _)| up);
    }
    keys.push(host.to_owned());
    if host == "docker.io" {
        keys.extend([HUB, "index.docker.io"].map(str::to_owned));
    }
    for scheme in ["https", "http"] {
        for end in ["", "/", "/v1/", "/v2/"] {
            keys.push(format!("{scheme}://{host}{end}"));
        }
    }
    keys
}

impl Config {
    /// Returns the credential for a repository of a host. `trusted` says whether the file at `path`
    /// may name a helper.
    fn find(
        &self,
        path: &Path,
        trusted: bool,
        host: &str,
        repository: &str,
    ) -> Result<Option<Credential>> {
        let keys = keys(host, repository);
        let ask = |helper: &str| {
            if trusted {
                helper::get(helper, server_of(host))
            } else {
                let why = format!(
                    "names the credential helper {}, and belongs to another user or can be written \
                 by others: no program is run for it",
                    excerpt(helper.as_bytes())
                );
                Err(bad(format!("{path:?}"), why))
            }
        };
        if let Some(helper) = keys.iter().find_map(|key| self.cred_helpers.get(key)) {
            return ask(helper);
        }
        let entries = keys.iter().filter_map(|key| self.auths.get(key)?.as_ref());
        for entry in entries {
            if let Some(found) = entry.credential(path, host)? {
                return Ok(Some(found));
            }
        }
        match &self.creds_store {
            Some(helper) if !helper.is_empty() => ask(helper),
            _ => Ok(None),
        }
    }
}

impl Entry {
    fn credential(&self, path: &Path, host: &str) -> Result<Option<Credential>> {
        if let Some(token) = self.identitytoken.as_ref().filter(|t| !t.is_empty()) {
            return Ok(Some(Credential::Identity(token.clone())));
        }
        if let (Some(user), Some(password)) = (&self.username, &self.password) {
            return Ok(Some(Credential::Password {
                user: user.clone(),
                password: password.clone(),
            }));
        }
        // The entry is empty if a helper has the credential.
        let Some(auth) = self.auth.as_ref().filter(|auth| !auth.is_empty()) else {
            return Ok(None);
        };
        let decoded = STANDARD.decode(auth);
        let decoded = decoded.or_else(|_| STANDARD_NO_PAD.decode(auth)).ok();
        let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = text.as_deref().and_then(|text| text.split_once(':'));
        let (user, password) = pair.ok_or_else(|| {
            let why = format!("\"auth\" of {host} is not base64 of user:password; log in again");
            bad(format!("{path:?}"), why)
        })?;
        Ok(Some(Credential::Password {
            user: user.to_owned(),
            // Old versions of Docker padded the password.
            password: password.trim_end_matches('\0').to_owned(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(text: &str) -> (tempfile::TempDir, CredentialFiles) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        let paths = vec![dir.path().join("absent.json"), path];
        let given = None;
        (dir, CredentialFiles { paths, given })
    }

    fn password(user: &str, password: &str) -> Option<Credential> {
        Some(Credential::Password {
            user: user.to_owned(),
            password: password.to_owned(),
        })
    }

    #[test]
    fn the_nearest_entry_is_taken() {
        // a:b, c:d:e
        let (_dir, files) = files(
            r#"{"auths":{
                "r.example:5000":{"auth":"YTpi"},
                "r.example:5000/team":{"auth":"YzpkOmU="},
                "https://index.docker.io/v1/":{"identitytoken":"T"},
                "http://other.example/v1/":{"username":"u","password":"p","auth":"!"},
                "empty.example":{},"null.example":null}}"#,
        );
        let find = |host, repository| files.find(host, repository).unwrap();
        assert_eq!(find("r.example:5000", "app"), password("a", "b"));
        assert_eq!(find("r.example:5000", "team/x/app"), password("c", "d:e"));
        assert_eq!(find("r.example:5000", "teams"), password("a", "b"));
        assert_eq!(
            find("docker.io", "library/app"),
            Some(Credential::Identity("T".into()))
        );
        assert_eq!(find("other.example", "app"), password("u", "p"));
        for host in ["r.example", "empty.example", "null.example", "x"] {
            assert_eq!(find(host, "app"), None, "{host}");
        }
    }

    #[test]
    fn no_message_has_a_secret() {
        for text in [
            r#"{"auths":{"h":{"auth":"c2VjcmV0"}}}"#,
            r#"{"auths":{"h":"secret"}}"#,
            r#"{"auths":{"h":{"auth":["secret"]}}}"#,
            r#"{"credsStore":"secret-that-is-not-installed"}"#,
            r#"{"credsStore":"../x"}"#,
        ] {
            let (_dir, files) = files(text);
            let error = files.find("h", "app").unwrap_err().to_string();
            assert!(!error.contains("secret\""), "{error}");
            assert!(
                error.contains("config.json")
                    || error.contains("docker-credential-")
                    || error.contains("credential helper"),
                "{error}"
            );
        }
        let debug = format!("{:?}", password("u", "hidden"));
        assert!(!debug.contains("hidden"), "{debug}");
    }
}
