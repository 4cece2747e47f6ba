//! Logins: checked at the registry, and stored where Docker, podman and skopeo look for them.
//!
//! Formats: as in [`super::credentials`]. Other entries and fields of a file stay as they are.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::Show;
use super::access::Access;
use super::client::Client;
use super::credential_helper as helper;
use super::credentials::{Credential, bad, keys, server_of};
use super::error::{Error, Result};
use super::login_file::{LoginFile, Missing};
use super::route::Purpose;
use crate::oci::Reference;

/// A registry to log in to, or a namespace of one.
#[derive(Clone, Debug)]
pub struct LoginTarget {
    /// `docker.io`, `r.example:5000`, `r.example/team`.
    key: String,
    name: Reference,
}

impl LoginTarget {
    /// Parses what the user writes: a host with its port, perhaps with a namespace.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is no host.
    pub fn parse(text: &str) -> Result<Self> {
        let given = text
            .strip_prefix("https://")
            .or(text.strip_prefix("http://"));
        let key = match given {
            // Docker's own spelling of Docker Hub, and URLs.
            Some(rest) => rest.split('/').next().unwrap_or_default(),
            None => text.trim_end_matches('/'),
        };
        let key = match key {
            "index.docker.io" | "registry-1.docker.io" => "docker.io",
            key => key,
        };
        let bad = || {
            Error::malformed(
                text,
                "is not a registry: write host[:port], such as quay.io",
            )
        };
        let full = format!("{key}/login");
        let name = Reference::parse(&full).map_err(|_| bad())?;
        if !Reference::has_host(&full) || name.tag().is_some() || name.digest().is_some() {
            return Err(bad());
        }
        let key = key.to_owned();
        Ok(Self { key, name })
    }

    /// Returns the name of the registry or namespace.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns a name in it, for [`Access::look_up`].
    pub fn name(&self) -> &Reference {
        &self.name
    }

    /// Returns the key in files. Docker has one of its own for Docker Hub, which podman reads too.
    fn file_key(&self) -> &str {
        server_of(&self.key)
    }
}

/// Checks at the registry that the credentials of `access` are right.
///
/// # Errors
/// [`Error::Unauthorized`] if the registry refuses them; those of the connection.
pub fn check_login(target: &LoginTarget, access: &Access, show: Show<'_>) -> Result<()> {
    let mut last = None;
    for mut route in access.routes(&target.name, Purpose::Push)? {
        // The token is for no repository.
        route.repository = String::new();
        match Client::reach(&target.name, &route, access, show) {
            Ok(_) => return Ok(()),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| Error::malformed(target.key.as_str(), "has no address")))
}

/// Where a login is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoginPlace {
    /// In a file.
    File(PathBuf),
    /// A helper has it.
    Helper(String),
}

impl Access {
    /// Stores a login.
    ///
    /// # Errors
    /// [`Error::Credentials`] if the file or helper cannot be used; [`Error::Configuration`].
    pub fn store_login(
        &self,
        target: &LoginTarget,
        user: &str,
        password: &str,
    ) -> Result<LoginPlace> {
        if user.is_empty() || user.contains(':') {
            return Err(bad(
                "the user",
                "is empty or has a colon, which no login may have",
            ));
        }
        let (server, key) = (target.file_key(), target.file_key().to_owned());
        let helpers = self.configuration.registries()?.helpers;
        let first = helpers.as_ref().and_then(|all| all.first());
        if let Some(name) = first.filter(|name| *name != super::config::registries_conf::AUTH_FILES)
        {
            helper::store(name, server, user, password)?;
            return Ok(LoginPlace::Helper(name.clone()));
        }
        let none = || {
            bad(
                "no file for logins",
                "is known: set HOME, or give --authfile",
            )
        };
        let path = self.credentials.to_write().ok_or_else(none)?;
        let file = LoginFile::open(path, Missing::Make)?.ok_or_else(none)?;
        let mut content = file.read()?;
        let by_helper = helper_of(&content, &target.key);
        let entry = match &by_helper {
            Some(name) => {
                helper::store(name, server, user, password)?;
                Value::Object(Map::new())
            }
            None => {
                let auth = STANDARD.encode(format!("{user}:{password}"));
                serde_json::json!({ "auth": auth })
            }
        };
        let auths = content.entry("auths").or_insert_with(|| Map::new().into());
        let auths = auths
            .as_object_mut()
            .ok_or_else(|| bad(format!("{path:?}"), "\"auths\" is not an object"))?;
        // Other spellings of the same registry would be found first.
        if !target.key.contains('/') {
            for other in keys(&target.key, "") {
                auths.remove(&other);
            }
        }
        auths.insert(key, entry);
        file.replace(&content)?;
        Ok(match by_helper {
            Some(name) => LoginPlace::Helper(name),
            None => LoginPlace::File(path.to_owned()),
        })
    }

    /// Returns the user who is logged in; `None` if nobody is.
    ///
    /// # Errors
    /// [`Error::Credentials`], [`Error::Configuration`].
    pub fn logged_in(&self, target: &LoginTarget) -> Result<Option<String>> {
        let helpers = self.configuration.registries()?.helpers;
        let namespace = target.key.split_once('/').map_or("", |(_, path)| path);
        let domain = target.name.domain();
        let found = self
            .credentials
            .find_with(helpers.as_deref(), domain, namespace)?;
        Ok(found.map(|credential| match credential {
            Credential::Password { user, .. } => user,
            Credential::Identity(_) => "<token>".to_owned(),
        }))
    }

    /// Removes a login from all files and helpers that have it.
    ///
    /// # Errors
    /// [`Error::Credentials`] if a file cannot be read or replaced, or a helper fails.
    pub fn remove_login(&self, target: &LoginTarget) -> Result<Vec<LoginPlace>> {
        let mut removed = Vec::new();
        let registries = self.configuration.registries()?;
        for name in registries.helpers.iter().flatten() {
            if name != super::config::registries_conf::AUTH_FILES
                && helper::erase(name, target.file_key())?
            {
                removed.push(LoginPlace::Helper(name.clone()));
            }
        }
        for path in &self.credentials.paths {
            let Some(file) = LoginFile::open(path, Missing::Leave)? else {
                continue;
            };
            let mut content = file.read()?;
            if let Some(name) = helper_of(&content, &target.key)
                && helper::erase(&name, target.file_key())?
            {
                removed.push(LoginPlace::Helper(name));
            }
            let names = if target.key.contains('/') {
                vec![target.key.clone()]
            } else {
                keys(&target.key, "")
            };
            let auths = content.get_mut("auths").and_then(Value::as_object_mut);
            let Some(auths) = auths else { continue };
            let before = auths.len();
            auths.retain(|key, _| !names.contains(key));
            if auths.len() < before {
                file.replace(&content)?;
                removed.push(LoginPlace::File(path.clone()));
            }
        }
        Ok(removed)
    }

    /// Removes all logins from the files; those of helpers stay.
    ///
    /// # Errors
    /// [`Error::Credentials`] if a file cannot be read or replaced.
    pub fn remove_all_logins(&self) -> Result<Vec<LoginPlace>> {
        let mut removed = Vec::new();
        for path in &self.credentials.paths {
            let Some(file) = LoginFile::open(path, Missing::Leave)? else {
                continue;
            };
            let mut content = file.read()?;
            if content.remove("auths").is_some() {
                file.replace(&content)?;
                removed.push(LoginPlace::File(path.clone()));
            }
        }
        Ok(removed)
    }
}

/// Returns the helper that a file names for a registry.
fn helper_of(content: &Map<String, Value>, key: &str) -> Option<String> {
    let of_host = content.get("credHelpers").and_then(|all| all.get(key));
    let name = of_host.or_else(|| content.get("credsStore"))?.as_str()?;
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::super::credentials::{CredentialFiles, HUB};
    use super::*;

    fn access(dir: &Path) -> Access {
        let mut access = Access::default();
        access.configuration = super::super::ConfigurationFiles::default();
        access.credentials = CredentialFiles::of_file(&dir.join("new/config.json"));
        access
    }

    #[test]
    fn logins_are_kept_beside_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let access = access(dir.path());
        let target = |text: &str| LoginTarget::parse(text).unwrap();
        let path = dir.path().join("new/config.json");
        let place = access.store_login(&target("r.example:5000"), "ali", "open: sesame");
        assert_eq!(place.unwrap(), LoginPlace::File(path.clone()));
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let text = std::fs::read_to_string(&path).unwrap();
        let mut json: Value = serde_json::from_str(&text).unwrap();
        json["HttpHeaders"] = "kept".into();
        json["auths"]["https://docker.io"] = serde_json::json!({"auth": "eDp5"});
        std::fs::write(&path, json.to_string()).unwrap();
        access
            .store_login(&target("https://index.docker.io/v1/"), "bo", "x")
            .unwrap();
        access
            .store_login(&target("r.example:5000/team"), "cy", "y")
            .unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.contains("kept") && text.contains(HUB) && !text.contains("eDp5"),
            "{text}"
        );
        let user = |text: &str| access.logged_in(&target(text)).unwrap();
        assert_eq!(user("docker.io").as_deref(), Some("bo"));
        assert_eq!(user("r.example:5000").as_deref(), Some("ali"));
        assert_eq!(user("r.example:5000/team").as_deref(), Some("cy"));
        assert_eq!(
            access
                .remove_login(&target("r.example:5000"))
                .unwrap()
                .len(),
            1
        );
        assert_eq!(user("r.example:5000"), None);
        assert_eq!(user("r.example:5000/team").as_deref(), Some("cy"));
        assert!(
            access
                .remove_login(&target("r.example:5000"))
                .unwrap()
                .is_empty()
        );
        access.remove_all_logins().unwrap();
        assert_eq!(user("docker.io"), None);
        // Only the file itself is left.
        assert_eq!(
            std::fs::read_dir(dir.path().join("new")).unwrap().count(),
            1
        );
    }

    #[test]
    fn a_link_to_the_file_stays_one() {
        let dir = tempfile::tempdir().unwrap();
        let access = access(dir.path());
        std::fs::create_dir_all(dir.path().join("new")).unwrap();
        std::fs::create_dir_all(dir.path().join("dotfiles")).unwrap();
        let link = dir.path().join("new/config.json");
        std::os::unix::fs::symlink("../dotfiles/docker.json", &link).unwrap();
        let target = LoginTarget::parse("r.example").unwrap();
        access.store_login(&target, "ali", "x").unwrap();
        assert!(link.is_symlink() && dir.path().join("dotfiles/docker.json").is_file());
    }

    #[test]
    fn what_is_no_registry_is_refused() {
        for text in [
            "",
            "registry",
            "a b",
            "r.example:x",
            "r.example/team:tag",
            "/",
        ] {
            assert!(LoginTarget::parse(text).is_err(), "{text}");
        }
        for (text, key) in [
            ("docker.io", "docker.io"),
            ("https://r.example:5000/v2/", "r.example:5000"),
            ("localhost:5000/", "localhost:5000"),
        ] {
            assert_eq!(LoginTarget::parse(text).unwrap().key(), key);
        }
    }
}
