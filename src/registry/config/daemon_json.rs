//! Docker's daemon.json: the mirrors of Docker Hub, and the registries that are not secure.
//!
//! Format: dockerd(8), `registry-mirrors` and `insecure-registries`. Docker uses the mirrors for
//! docker.io only. All other keys are for dockerd.

use std::net::IpAddr;
use std::path::Path;

use serde::Deserialize;

use super::super::endpoint::without_port;
use super::super::error::Result;
use super::bad;
use super::registries_conf::{Mirror, Table};

/// The keys that count here.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    registry_mirrors: Vec<String>,
    #[serde(default)]
    insecure_registries: Vec<String>,
}

/// What the file says, in the terms of registries.conf.
#[derive(Debug, Default)]
pub(super) struct Docker {
    pub(super) tables: Vec<Table>,
    pub(super) insecure: Vec<Network>,
}

/// Addresses of registries that are not secure (`10.0.0.0/8`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Network {
    address: IpAddr,
    /// The number of bits that count.
    bits: u8,
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/')?;
        let (address, bits): (IpAddr, u8) = (address.parse().ok()?, bits.parse().ok()?);
        let most = if address.is_ipv4() { 32 } else { 128 };
        (bits <= most).then_some(Self { address, bits })
    }

    /// Whether a registry is there. A registry with the name of a host is not: whoever forges an answer
    /// of DNS could turn the check of certificates off.
    pub(super) fn has(&self, domain: &str) -> bool {
        let Ok(host) = without_port(domain).parse::<IpAddr>() else {
            return false;
        };
        let shifted = |bytes: &[u8]| {
            let mut number = [0; 16];
            number[..bytes.len()].copy_from_slice(bytes);
            u128::from_be_bytes(number)
                .checked_shr(128 - u32::from(self.bits))
                .unwrap_or(0)
        };
        match (self.address, host) {
            (IpAddr::V4(a), IpAddr::V4(b)) => shifted(&a.octets()) == shifted(&b.octets()),
            (IpAddr::V6(a), IpAddr::V6(b)) => shifted(&a.octets()) == shifted(&b.octets()),
            _ => false,
        }
    }
}

/// Parses the file.
pub(super) fn parse(path: &Path, text: &str) -> Result<Docker> {
    // An empty file is one of an empty object to dockerd.
    if text.trim().is_empty() {
        return Ok(Docker::default());
    }
    let file: File = serde_json::from_str(text).map_err(|error| bad(path, error.to_string()))?;
    let mut hub = Table::of("docker.io");
    for url in &file.registry_mirrors {
        let mirror = mirror(url).ok_or_else(|| {
            let why = format!(
                "registry-mirrors has {url:?}: dockerd takes http://HOST[:PORT] and \
                 https://HOST[:PORT] without a path"
            );
            bad(path, why)
        })?;
        hub.mirror.push(mirror);
    }
    let mut docker = Docker::default();
    let mut hosts = Vec::new();
    for text in &file.insecure_registries {
        // dockerd drops a scheme, with a warning.
        let host = text.trim_start_matches("http://");
        let host = host.trim_start_matches("https://").trim_end_matches('/');
        match Network::parse(host) {
            Some(network) => docker.insecure.push(network),
            None if host.is_empty() || host.contains('/') => {
                let why = format!(
                    "insecure-registries has {text:?}: dockerd takes HOST[:PORT] and networks such as \
                     10.0.0.0/8"
                );
                return Err(bad(path, why));
            }
            None if host == "docker.io" => hub.insecure = true,
            None => hosts.push(host.to_owned()),
        }
    }
    for mirror in &mut hub.mirror {
        let is_named = hosts.contains(&mirror.location);
        mirror.insecure |= is_named || docker.insecure.iter().any(|n| n.has(&mirror.location));
    }
    if !hub.mirror.is_empty() || hub.insecure {
        docker.tables.push(hub);
    }
    docker.tables.extend(hosts.iter().map(|host| {
        let mut table = Table::of(host);
        table.insecure = true;
        table
    }));
    Ok(docker)
}

fn mirror(url: &str) -> Option<Mirror> {
    let (insecure, rest) = match url.split_once("://")? {
        ("http", rest) => (true, rest),
        ("https", rest) => (false, rest),
        _ => return None,
    };
    let host = rest.strip_suffix('/').unwrap_or(rest);
    let is_host = !host.is_empty() && !host.contains(['/', '?', '#', '@']);
    is_host.then(|| Mirror {
        location: host.to_owned(),
        insecure,
        pull_from_mirror: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_have_addresses_and_no_names() {
        let has = |network: &str, domain: &str| Network::parse(network).unwrap().has(domain);
        assert!(has("10.0.0.0/8", "10.1.2.3:5000") && has("10.0.0.0/8", "10.1.2.3"));
        assert!(!has("10.0.0.0/8", "11.1.2.3") && !has("10.0.0.0/8", "registry.example"));
        assert!(has("0.0.0.0/0", "1.2.3.4") && !has("0.0.0.0/0", "[::1]:5000"));
        assert!(has("fd00::/8", "[fd00::1]:5000") && !has("fd00::/8", "[fe00::1]"));
        for bad in ["10.0.0.0/33", "10.0.0.0", "x/8", "::/129", "10.0.0.0/-1"] {
            assert!(Network::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn what_dockerd_refuses_is_refused() {
        let parsed = |text: &str| parse(Path::new("daemon.json"), text);
        for (text, expected) in [
            (
                r#"{"registry-mirrors":["mirror.example"]}"#,
                "mirror.example",
            ),
            (
                r#"{"registry-mirrors":["https://m.example/path"]}"#,
                "without a path",
            ),
            (r#"{"registry-mirrors":["ftp://m.example"]}"#, "ftp://"),
            (
                r#"{"insecure-registries":["a.example/path"]}"#,
                "HOST[:PORT]",
            ),
            (r#"{"insecure-registries":[""]}"#, "HOST[:PORT]"),
            (r#"{"insecure-registries":{}}"#, "daemon.json"),
            ("{", "daemon.json"),
        ] {
            let error = parsed(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(parsed(" \n").unwrap().tables.is_empty());
        let other = parsed(r#"{"data-root":"/x","log-opts":{"a":"b"}}"#).unwrap();
        assert!(other.tables.is_empty() && other.insecure.is_empty());
    }
}
