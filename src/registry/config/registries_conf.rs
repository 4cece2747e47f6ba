//! registries.conf: search registries, aliases of short names, and for each prefix of names where the
//! images are, by which mirrors, and whether at all.
//!
//! Format: containers-registries.conf(5), version 2, with the files of registries.conf.d. Later files
//! replace what earlier ones say of a prefix or alias.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::super::error::{Error, Result};
use super::daemon_json::{self, Network};
use super::{ConfigurationFiles, bad, read, read_if_allowed};
use crate::oci::Reference;

/// The limit of files of one directory.
const MAX_FILES: usize = 1000;

/// What is configured of registries.
#[derive(Clone, Debug, Default)]
pub(in crate::registry) struct Registries {
    tables: BTreeMap<String, Table>,
    aliases: BTreeMap<String, String>,
    search: Option<Vec<String>>,
    mode: Option<String>,
    /// Where registries are not secure, besides the tables.
    insecure: Vec<Network>,
    /// Where logins are looked for: names of helpers, or [`AUTH_FILES`].
    pub(in crate::registry) helpers: Option<Vec<String>>,
    /// The file that was read last, for messages.
    last: PathBuf,
}

/// The helper that stands for the files with logins.
pub(in crate::registry) const AUTH_FILES: &str = "containers-auth.json";

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    unqualified_search_registries: Option<Vec<String>>,
    short_name_mode: Option<String>,
    credential_helpers: Option<Vec<String>>,
    #[serde(default)]
    registry: Vec<Table>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
    /// The tables of version 1.
    registries: Option<toml::Value>,
}

/// A table `[[registry]]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Table {
    prefix: Option<String>,
    location: Option<String>,
    #[serde(default)]
    pub(super) insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    pub(super) mirror: Vec<Mirror>,
}

/// A table `[[registry.mirror]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Mirror {
    pub(super) location: String,
    #[serde(default)]
    pub(super) insecure: bool,
    pub(super) pull_from_mirror: Option<String>,
}

/// A place where an image may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::registry) struct Place {
    pub(in crate::registry) name: Reference,
    pub(in crate::registry) insecure: bool,
    pub(in crate::registry) is_mirror: bool,
}

/// Reads all files.
pub(super) fn read_all(files: &ConfigurationFiles) -> Result<Registries> {
    let mut all = Registries::default();
    let mut has_main = false;
    for path in &files.registries {
        if let Some(text) = read(path)? {
            all.add(path, &text)?;
            has_main = true;
            break;
        }
    }
    // A host of Docker without the tools of podman.
    for path in files.daemons.iter().filter(|_| !has_main) {
        // It may have secrets, and is then root's alone.
        if let Some(text) = read_if_allowed(path)? {
            all.add_docker(path, &text)?;
            break;
        }
    }
    for dir in &files.drop_ins {
        for path in drop_ins(dir)? {
            if let Some(text) = read(&path)? {
                all.add(&path, &text)?;
            }
        }
    }
    for path in &files.aliases {
        if let Some(text) = read(path)? {
            all.add(path, &text)?;
        }
    }
    Ok(all)
}

/// Returns the files `*.conf` of a directory, sorted.
fn drop_ins(dir: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error: std::io::Error| bad(dir, format!("cannot be read: {error}"));
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries.take(MAX_FILES) {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|end| end == "conf") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

impl Registries {
    /// Adds what Docker's daemon.json says.
    pub(in crate::registry) fn add_docker(&mut self, path: &Path, text: &str) -> Result<()> {
        let docker = daemon_json::parse(path, text)?;
        for mut table in docker.tables {
            let prefix = table.check().map_err(|why| bad(path, why))?;
            self.tables.insert(prefix, table);
        }
        self.insecure = docker.insecure;
        self.last = path.to_owned();
        Ok(())
    }

    pub(in crate::registry) fn add(&mut self, path: &Path, text: &str) -> Result<()> {
        let fault = |error: toml::de::Error| {
            let line = error.span().map_or(0, |span| {
                text[..span.start.min(text.len())].matches('\n').count() + 1
            });
            bad(path, format!("line {line}: {}", error.message()))
        };
        let file: File = toml::from_str(text).map_err(fault)?;
        if file.registries.is_some() {
            let why = "has the tables of version 1 ([registries.search] …): write version 2, as \
                       containers-registries.conf(5) describes it";
            return Err(bad(path, why));
        }
        for mut table in file.registry {
            let prefix = table.check().map_err(|why| bad(path, why))?;
            self.tables.insert(prefix, table);
        }
        self.aliases.extend(file.aliases);
        self.search = file.unqualified_search_registries.or(self.search.take());
        self.mode = file.short_name_mode.or(self.mode.take());
        self.helpers = file.credential_helpers.or(self.helpers.take());
        self.last = path.to_owned();
        Ok(())
    }

    /// Returns the names that a text may mean. A name without a host is an alias, or is looked for in
    /// the search registries; without such a configuration it is on Docker Hub.
    pub(in crate::registry) fn candidates(&self, text: &str) -> Result<Vec<Reference>> {
        let name = Reference::parse(text)?;
        if Reference::has_host(text) {
            return Ok(vec![name]);
        }
        let short = text.split(['@', ':']).next().unwrap_or_default();
        let rest = &text[short.len()..];
        // An empty alias takes an earlier one back.
        if let Some(full) = self.aliases.get(short).filter(|full| !full.is_empty()) {
            let full = full.trim_end_matches('/');
            return Ok(vec![Reference::parse(&format!("{full}{rest}"))?]);
        }
        let search = self.search.as_deref().unwrap_or_default();
        let in_registry = |registry: &String| {
            let registry = registry.trim_end_matches('/');
            Ok(Reference::parse(&format!("{registry}/{text}"))?)
        };
        let found: Vec<Reference> = search.iter().map(in_registry).collect::<Result<_>>()?;
        let tries_all = matches!(self.mode.as_deref(), Some("permissive" | "disabled"));
        match found.len() {
            0 => Ok(vec![name]),
            1 => Ok(found),
            _ if tries_all => Ok(found),
            _ => {
                let names: Vec<String> = found.iter().map(Reference::to_string).collect();
                let why = format!(
                    "{text:?} may be {}: write one of them, or add it to [aliases] \
                     (short-name-mode is enforcing)",
                    names.join(" or ")
                );
                Err(bad(&self.last, why))
            }
        }
    }

    /// Returns the places where an image is looked for, the mirrors first; `None` if nothing is
    /// configured for it.
    pub(in crate::registry) fn places(&self, name: &Reference) -> Result<Option<Vec<Place>>> {
        let Some((prefix, table)) = self.table(name) else {
            return Ok(None);
        };
        self.refuse_blocked(name)?;
        let by_digest = name.digest().is_some();
        let rewrite = |location: &str| rewritten(name, prefix, location);
        let mut places = Vec::new();
        for mirror in &table.mirror {
            let wanted = match mirror.pull_from_mirror.as_deref() {
                Some("digest-only") => by_digest,
                Some("tag-only") => !by_digest,
                _ => by_digest || !table.mirror_by_digest_only,
            };
            if wanted {
                places.push(Place {
                    name: rewrite(&mirror.location)?,
                    insecure: mirror.insecure,
                    is_mirror: true,
                });
            }
        }
        let name = match &table.location {
            Some(location) => rewrite(location)?,
            None => name.clone(),
        };
        places.push(Place {
            name,
            insecure: table.insecure,
            is_mirror: false,
        });
        Ok(Some(places))
    }

    /// Whether a registry is configured as insecure.
    pub(in crate::registry) fn is_insecure(&self, name: &Reference) -> bool {
        self.table(name).is_some_and(|(_, table)| table.insecure)
            || self
                .insecure
                .iter()
                .any(|network| network.has(name.domain()))
    }

    /// Returns the other names that a name without a host may have in a store: its alias, else its
    /// names in the search registries. Names that cannot be parsed are left out.
    pub(in crate::registry) fn meanings(&self, text: &str) -> Vec<Reference> {
        if Reference::has_host(text) {
            return Vec::new();
        }
        let short = text.split(['@', ':']).next().unwrap_or_default();
        let rest = &text[short.len()..];
        let names: Vec<String> = match self.aliases.get(short).filter(|full| !full.is_empty()) {
            Some(full) => vec![format!("{}{rest}", full.trim_end_matches('/'))],
            None => {
                let search = self.search.iter().flatten();
                let registries = search.map(|registry| registry.trim_end_matches('/'));
                registries
                    .map(|registry| format!("{registry}/{text}"))
                    .collect()
            }
        };
        let own = Reference::parse(text).ok();
        let parsed = names.iter().filter_map(|name| Reference::parse(name).ok());
        parsed.filter(|name| Some(name) != own.as_ref()).collect()
    }

    /// Fails if the configuration blocks an image.
    pub(in crate::registry) fn refuse_blocked(&self, name: &Reference) -> Result<()> {
        match self.table(name) {
            Some((prefix, table)) if table.blocked => Err(Error::Blocked {
                what: name.to_string(),
                prefix: prefix.to_owned(),
                path: self.last.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Returns the table with the longest prefix that fits.
    fn table(&self, name: &Reference) -> Option<(&str, &Table)> {
        let text = matched(name);
        let fitting = self.tables.iter();
        let fitting = fitting.filter(|(prefix, _)| match_length(&text, prefix).is_some());
        let best = fitting.max_by_key(|(prefix, _)| prefix.len());
        best.map(|(prefix, table)| (prefix.as_str(), table))
    }
}

impl Table {
    /// Returns an empty table for a registry.
    pub(super) fn of(location: &str) -> Self {
        Self {
            location: Some(location.to_owned()),
            ..Self::default()
        }
    }

    /// Checks the table, and returns its prefix.
    fn check(&mut self) -> std::result::Result<String, String> {
        let tidy = |text: &String| text.trim_end_matches('/').to_owned();
        let full = |text: &str| !text.is_empty();
        self.location = self.location.as_ref().map(tidy).filter(|text| full(text));
        let prefix = self.prefix.as_ref().map(tidy).filter(|text| full(text));
        let prefix = prefix.or(self.location.clone());
        let prefix = prefix.ok_or("a table [[registry]] has neither prefix nor location")?;
        if self.location.is_none() && !prefix.starts_with("*.") {
            self.location = Some(prefix.clone());
        }
        for mirror in &mut self.mirror {
            mirror.location = tidy(&mirror.location);
            if mirror.location.is_empty() {
                return Err(format!("a mirror of {prefix:?} has no location"));
            }
            match mirror.pull_from_mirror.as_deref() {
                None | Some("all" | "digest-only" | "tag-only" | "") => {}
                Some(other) => {
                    return Err(format!(
                        "pull-from-mirror = {other:?}: use all, digest-only or tag-only"
                    ));
                }
            }
            if self.mirror_by_digest_only && mirror.pull_from_mirror.is_some() {
                return Err(format!(
                    "{prefix:?} has mirror-by-digest-only, and its mirror pull-from-mirror: use one of \
                     them"
                ));
            }
        }
        let locations = self.mirror.iter().map(|mirror| &mirror.location);
        for text in locations.chain(&self.location).chain([&prefix]) {
            if text.contains("://") {
                return Err(format!("{text:?} has a scheme: write host[:port][/path]"));
            }
        }
        Ok(prefix)
    }
}

/// Returns the text of a name that prefixes are compared with.
fn matched(name: &Reference) -> String {
    let base = format!("{}/{}", name.domain(), name.path());
    match (name.digest(), name.tag()) {
        (Some(digest), _) => format!("{base}@{digest}"),
        (None, tag) => format!("{base}:{}", tag.unwrap_or("latest")),
    }
}

/// Returns how many bytes of a name a prefix stands for; `None` if it does not fit.
fn match_length(text: &str, prefix: &str) -> Option<usize> {
    let length = match prefix.strip_prefix('*') {
        // `*.example.com` stands for a subdomain; the host of the name ends before the first slash.
        Some(domain) if domain.starts_with('.') => {
            let at = text.find(domain).filter(|at| *at > 0)?;
            if text[..at].contains('/') {
                return None;
            }
            at + domain.len()
        }
        _ => text.starts_with(prefix).then_some(prefix.len())?,
    };
    let next = text.as_bytes().get(length);
    matches!(next, None | Some(b':' | b'/' | b'@')).then_some(length)
}

/// Returns the name with the location in place of the prefix.
fn rewritten(name: &Reference, prefix: &str, location: &str) -> Result<Reference> {
    let text = matched(name);
    let length = match_length(&text, prefix).unwrap_or_default();
    Ok(Reference::parse(&format!("{location}{}", &text[length..]))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(text: &str) -> Result<Registries> {
        let mut all = Registries::default();
        all.add(Path::new("registries.conf"), text)?;
        Ok(all)
    }

    fn places(conf: &Registries, name: &str) -> Vec<String> {
        let name = Reference::parse(name).unwrap();
        let places = conf.places(&name).unwrap().unwrap_or_default();
        places.iter().map(|place| place.name.to_string()).collect()
    }

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_longest_prefix_is_used_and_rewritten() {
        let conf = conf(
            r#"
            [[registry]]
            location = "r.example"
            [[registry.mirror]]
            location = "m.example/all"
            [[registry.mirror]]
            location = "d.example"
            pull-from-mirror = "digest-only"
            [[registry]]
            prefix = "r.example/team"
            location = "other.example/x/"
            [[registry]]
            prefix = "*.wild.example"
            location = "w.example"
            [[registry]]
            location = "r.example:5000"
            mirror-by-digest-only = true
            [[registry.mirror]]
            location = "m.example"
            "#,
        )
        .unwrap();
        let of = |name: &str| places(&conf, name);
        assert_eq!(
            of("r.example/app:1"),
            ["m.example/all/app:1", "r.example/app:1"]
        );
        let by_digest = of(&format!("r.example/app@{DIGEST}"));
        assert_eq!(by_digest.len(), 3);
        assert_eq!(by_digest[1], format!("d.example/app@{DIGEST}"));
        assert_eq!(of("r.example/team/app"), ["other.example/x/app:latest"]);
        assert_eq!(of("r.example/teams/app").len(), 2);
        assert_eq!(of("a.b.wild.example/app:2"), ["w.example/app:2"]);
        assert!(of("wild.example/app").is_empty() && of("r.examples/app").is_empty());
        assert_eq!(of("r.example:5000/app"), ["r.example:5000/app:latest"]);
        assert_eq!(of(&format!("r.example:5000/app@{DIGEST}")).len(), 2);
    }

    #[test]
    fn short_names_are_aliases_or_searched() {
        let search = |mode: &str, registries: &str| {
            let text = format!(
                "unqualified-search-registries = [{registries}]\n{mode}\n[aliases]\n\
                 tool = \"quay.example/tools/tool\"\nnone = \"\"\n"
            );
            let conf = conf(&text).unwrap();
            move |name: &str| {
                let names = conf.candidates(name)?;
                Ok::<_, Error>(names.iter().map(Reference::to_string).collect::<Vec<_>>())
            }
        };
        let one = search("", r#""s.example""#);
        assert_eq!(one("app:1").unwrap(), ["s.example/app:1"]);
        assert_eq!(one("none").unwrap(), ["s.example/none:latest"]);
        assert_eq!(one("tool:3").unwrap(), ["quay.example/tools/tool:3"]);
        assert_eq!(one("h.example/app").unwrap(), ["h.example/app:latest"]);
        assert_eq!(one("localhost/app").unwrap(), ["localhost/app:latest"]);
        let two = r#""s.example", "docker.io""#;
        let error = search("", two)("team/app").unwrap_err().to_string();
        assert!(error.contains("docker.io/team/app:latest"), "{error}");
        assert_eq!(error.lines().count(), 1);
        let all = search("short-name-mode = \"permissive\"", two);
        assert_eq!(all("app").unwrap().len(), 2);
        let nothing = conf("").unwrap().candidates("app").unwrap();
        assert_eq!(nothing[0].to_string(), "docker.io/library/app:latest");
    }

    #[test]
    fn a_short_name_in_a_store_is_its_alias_or_searched() {
        let conf = conf(
            "unqualified-search-registries = [\"s.example\", \"docker.io\"]\n[aliases]\n\
             tool = \"quay.example/tools/tool\"\n",
        )
        .unwrap();
        let of = |text: &str| {
            let names = conf.meanings(text);
            names.iter().map(Reference::to_string).collect::<Vec<_>>()
        };
        assert_eq!(of("tool:3"), ["quay.example/tools/tool:3"]);
        assert_eq!(of("tool"), ["quay.example/tools/tool:latest"]);
        // Docker Hub is where it is looked for anyway.
        assert_eq!(of("team/app:1"), ["s.example/team/app:1"]);
        assert_eq!(of("s.example/app"), [""; 0]);
        assert_eq!(of("BAD NAME"), [""; 0]);
    }

    #[test]
    fn docker_has_mirrors_of_its_hub_and_insecure_registries() {
        let mut all = Registries::default();
        let text = r#"{"registry-mirrors": ["https://m.example", "http://10.9.9.9:5000/"],
            "insecure-registries": ["r.example:5000", "10.0.0.0/8", "http://old.example"]}"#;
        all.add_docker(Path::new("daemon.json"), text).unwrap();
        assert_eq!(
            places(&all, "app:1"),
            [
                "m.example/library/app:1",
                "10.9.9.9:5000/library/app:1",
                "docker.io/library/app:1"
            ]
        );
        assert_eq!(places(&all, "quay.example/app"), [""; 0]);
        let insecure = |name: &str| all.is_insecure(&Reference::parse(name).unwrap());
        assert!(insecure("r.example:5000/app") && insecure("10.1.2.3:80/app"));
        assert!(insecure("old.example/app"));
        assert!(!insecure("r.example/app") && !insecure("11.1.2.3/app") && !insecure("app"));
        let hub = all.places(&Reference::parse("app").unwrap()).unwrap();
        let insecure: Vec<bool> = hub.unwrap().iter().map(|place| place.insecure).collect();
        assert_eq!(insecure, [false, true, false]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (text, expected) in [
            ("[[registry]]", "neither prefix nor location"),
            ("[[registry]]\nlocation = \"https://x\"", "has a scheme"),
            ("[registries.search]\nregistries = []", "version 1"),
            ("[[registry]]\nlocation = 1", "line 2"),
            (
                "[[registry]]\nlocation=\"a\"\n[[registry.mirror]]\nlocation=\"b\"\npull-from-mirror=\"x\"",
                "pull-from-mirror",
            ),
        ] {
            let error = conf(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let blocked = conf("[[registry]]\nlocation = \"b.example\"\nblocked = true").unwrap();
        let name = Reference::parse("b.example/app").unwrap();
        let error = blocked.places(&name).unwrap_err().to_string();
        assert!(error.contains("blocked"), "{error}");
    }
}
