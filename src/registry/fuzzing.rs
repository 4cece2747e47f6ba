//! Entry points of the parsers of configuration files, for fuzzing (feature `fuzzing`): they take a text
//! and a name, and return what was refused. A panic is a finding.

use std::path::Path;

use super::config::registries_conf::Registries;
use super::config::{hosts_toml, policy};
use super::error::Error;
use crate::oci::Reference;

/// A path for messages.
fn path() -> &'static Path {
    Path::new("/fuzzing")
}

fn asked(all: &Registries, text: &str) -> Vec<Error> {
    let mut refused = Vec::new();
    for name in all.meanings(text) {
        refused.extend(all.places(&name).err());
    }
    let names = match all.candidates(text) {
        Ok(names) => names,
        Err(error) => {
            refused.push(error);
            Vec::new()
        }
    };
    for name in names {
        all.is_insecure(&name);
        match all.places(&name) {
            Err(error) => refused.push(error),
            Ok(places) => {
                // The registry itself comes last.
                let last = places.as_ref().and_then(|places| places.last());
                debug_assert!(last.is_none_or(|place| !place.is_mirror));
            }
        }
    }
    refused
}

/// Reads a registries.conf, and looks a name up in it.
pub fn registries_conf(text: &str, name: &str) -> Vec<Error> {
    let mut all = Registries::default();
    match all.add(path(), text) {
        Err(error) => vec![error],
        Ok(()) => asked(&all, name),
    }
}

/// Reads a daemon.json of Docker, and looks a name up in it.
pub fn daemon_json(text: &str, name: &str) -> Vec<Error> {
    let mut all = Registries::default();
    match all.add_docker(path(), text) {
        Err(error) => vec![error],
        Ok(()) => asked(&all, name),
    }
}

/// Reads a hosts.toml of containerd.
pub fn hosts_toml(text: &str) -> Vec<Error> {
    match hosts_toml::parse(path(), text, "registry.example") {
        Err(error) => vec![error],
        Ok(hosts) => {
            debug_assert!(hosts.last().is_some_and(|host| host.is_registry));
            Vec::new()
        }
    }
}

/// Reads a policy.json for a name. Files with keys must not be named.
pub fn policy(text: &str, name: &str) -> Vec<Error> {
    let Ok(name) = Reference::parse(name) else {
        return Vec::new();
    };
    policy::fuzzed(path(), text, &name)
        .err()
        .into_iter()
        .collect()
}
