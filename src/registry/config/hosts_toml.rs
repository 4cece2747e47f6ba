//! containerd's `certs.d/HOST/hosts.toml`: the mirrors of a registry, and how each is reached.
//!
//! Format: containerd, docs/hosts.md. The hosts are tried in the order of the file, and last the
//! registry itself. A mirror learns from the parameter `ns` which registry is meant.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use ureq::http::Uri;

use super::super::error::Result;
use super::{bad, read};
use crate::oci::text::excerpt;

/// A server of the file.
#[derive(Clone)]
pub(in crate::registry) struct Host {
    /// `http` or `https`.
    pub(in crate::registry) scheme: &'static str,
    /// The host, with its port.
    pub(in crate::registry) authority: String,
    /// The beginning of all paths: `/v2`.
    pub(in crate::registry) base: String,
    /// Whether it may say what a tag means.
    pub(in crate::registry) resolves: bool,
    /// Whether images are pulled from it.
    pub(in crate::registry) pulls: bool,
    /// Whether images are pushed to it.
    pub(in crate::registry) pushes: bool,
    pub(in crate::registry) skip_verify: bool,
    /// Files with authorities.
    pub(in crate::registry) authorities: Vec<PathBuf>,
    /// The client's certificate, and its key, which may be in the same file.
    pub(in crate::registry) client: Option<(PathBuf, PathBuf)>,
    /// Headers of each request. They may be secret.
    pub(in crate::registry) headers: Vec<(String, String)>,
    /// Whether it is the registry itself, and not a mirror.
    pub(in crate::registry) is_registry: bool,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Headers may be secret.
        f.debug_tuple("Host").field(&self.authority).finish()
    }
}

#[derive(Deserialize)]
struct File {
    server: Option<String>,
    #[serde(flatten)]
    own: Table,
    host: Option<toml::Table>,
}

#[derive(Deserialize)]
struct Table {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<toml::Value>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    header: Option<toml::Table>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

/// Returns the servers of a registry in the order in which they are asked; `None` if no file has any.
/// `host` is the host of the registry itself.
pub(in crate::registry) fn find(
    dirs: &[PathBuf],
    domain: &str,
    host: &str,
) -> Result<Option<Vec<Host>>> {
    // A port is written with `_` where a colon is not allowed in names of files.
    let underscored = domain
        .rsplit_once(':')
        .map(|(host, port)| format!("{host}_{port}_"));
    let names = [
        Some(domain.to_owned()),
        underscored,
        Some("_default".into()),
    ];
    for dir in dirs {
        for name in names.iter().flatten() {
            let path = dir.join(name).join("hosts.toml");
            if let Some(text) = read(&path)? {
                return parse(&path, &text, host).map(Some);
            }
        }
    }
    Ok(None)
}

pub(in crate::registry) fn parse(path: &Path, text: &str, own: &str) -> Result<Vec<Host>> {
    let fault = |error: toml::de::Error| bad(path, error.message());
    let file: File = toml::from_str(text).map_err(fault)?;
    let mut hosts = Vec::new();
    for (url, table) in file.host.unwrap_or_default() {
        let table: Table = table.try_into().map_err(fault)?;
        hosts.push(host(path, &url, table)?);
    }
    let server = file.server.unwrap_or_else(|| format!("https://{own}"));
    let mut server = host(path, &server, file.own)?;
    server.is_registry = true;
    hosts.push(server);
    Ok(hosts)
}

fn host(path: &Path, url: &str, table: Table) -> Result<Host> {
    let fault = || {
        bad(
            path,
            format!("{} is not a URL of a host", excerpt(url.as_bytes())),
        )
    };
    let full = if url.contains("://") {
        url.to_owned()
    } else {
        format!("https://{url}")
    };
    let uri: Uri = full.parse().map_err(|_| fault())?;
    let scheme = match uri.scheme_str() {
        Some("http") => "http",
        Some("https") => "https",
        _ => return Err(fault()),
    };
    let authority = uri.authority().ok_or_else(fault)?.as_str().to_owned();
    if authority.contains('@') {
        return Err(bad(
            path,
            "a URL has a user: log in instead (unionfs login)",
        ));
    }
    let given = uri.path().trim_end_matches('/');
    let base = if table.override_path || given.ends_with("/v2") {
        given.to_owned()
    } else {
        format!("{given}/v2")
    };
    let can = |name: &str| {
        let capabilities = table.capabilities.as_ref();
        capabilities.is_none_or(|all| all.iter().any(|one| one == name))
    };
    let beside = |file: &Path| path.parent().unwrap_or(path).join(file);
    let authorities = match &table.ca {
        None => Vec::new(),
        Some(OneOrMany::One(file)) => vec![beside(file)],
        Some(OneOrMany::Many(files)) => files.iter().map(|file| beside(file)).collect(),
    };
    Ok(Host {
        scheme,
        authority,
        base,
        resolves: can("resolve"),
        pulls: can("pull"),
        pushes: can("push"),
        skip_verify: table.skip_verify,
        authorities,
        client: match &table.client {
            None => None,
            Some(value) => {
                Some(client(path, value).map(|(cert, key)| (beside(&cert), beside(&key)))?)
            }
        },
        headers: headers(path, table.header.unwrap_or_default())?,
        is_registry: false,
    })
}

/// Returns the first client certificate: a file, a list of files, or a list of pairs.
fn client(path: &Path, value: &toml::Value) -> Result<(PathBuf, PathBuf)> {
    let texts: Vec<&str> = match value {
        toml::Value::String(file) => vec![file],
        toml::Value::Array(all) => match all.first() {
            Some(toml::Value::String(file)) => vec![file],
            Some(toml::Value::Array(pair)) => pair.iter().filter_map(toml::Value::as_str).collect(),
            _ => Vec::new(),
        },
        _ => Vec::new(),
    };
    match texts[..] {
        [both] => Ok((both.into(), both.into())),
        [cert, key] if !key.is_empty() => Ok((cert.into(), key.into())),
        [both, _] => Ok((both.into(), both.into())),
        _ => Err(bad(
            path,
            "client: write [[\"client.cert\", \"client.key\"]]",
        )),
    }
}

fn headers(path: &Path, table: toml::Table) -> Result<Vec<(String, String)>> {
    let mut headers = Vec::new();
    for (name, value) in table {
        let values = match value {
            toml::Value::String(one) => vec![one],
            toml::Value::Array(all) => all
                .into_iter()
                .filter_map(|value| value.as_str().map(str::to_owned))
                .collect(),
            _ => return Err(bad(path, format!("the header {name:?} is not text"))),
        };
        headers.extend(values.into_iter().map(|value| (name.clone(), value)));
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_asked_in_the_order_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().to_owned()];
        let of = |domain: &str| find(&dirs, domain, domain).unwrap();
        assert!(of("r.example:5000").is_none());
        std::fs::create_dir(dir.path().join("r.example_5000_")).unwrap();
        let text = r#"
            server = "https://up.example"
            [host."http://z.example:30020"]
            capabilities = ["pull", "resolve"]
            [host."https://a.example/v2/proxy"]
            capabilities = ["pull"]
            override_path = true
            ca = ["ca.pem", "/etc/other.pem"]
            client = [["c.pem", "c.key"]]
            [host."https://a.example/v2/proxy".header]
            x-token = "t"
            [host."b.example/path"]
            skip_verify = true
        "#;
        std::fs::write(dir.path().join("r.example_5000_/hosts.toml"), text).unwrap();
        let hosts = of("r.example:5000").unwrap();
        let all: Vec<String> = hosts
            .iter()
            .map(|host| format!("{}://{}{}", host.scheme, host.authority, host.base))
            .collect();
        assert_eq!(
            all,
            [
                "http://z.example:30020/v2",
                "https://a.example/v2/proxy",
                "https://b.example/path/v2",
                "https://up.example/v2"
            ]
        );
        assert!(hosts[0].resolves && !hosts[0].pushes && !hosts[1].resolves && hosts[1].pulls);
        assert!(hosts[2].skip_verify && hosts[3].is_registry && !hosts[2].is_registry);
        let beside = dir.path().join("r.example_5000_");
        assert_eq!(
            hosts[1].authorities,
            [beside.join("ca.pem"), "/etc/other.pem".into()]
        );
        assert_eq!(
            hosts[1].client,
            Some((beside.join("c.pem"), beside.join("c.key")))
        );
        assert_eq!(hosts[1].headers, [("x-token".into(), "t".into())]);
        std::fs::create_dir(dir.path().join("_default")).unwrap();
        std::fs::write(dir.path().join("_default/hosts.toml"), "").unwrap();
        assert_eq!(of("other.example").unwrap()[0].authority, "other.example");
    }

    #[test]
    fn faults_are_named() {
        for text in [
            "[host.\"ftp://x\"]",
            "[host.\"https://u:p@x\"]",
            "server = 1",
            "client = 1",
            "[header]\nx = 1",
        ] {
            let error = parse(Path::new("hosts.toml"), text, "r.example").unwrap_err();
            let error = error.to_string();
            assert!(
                error.contains("hosts.toml") && !error.contains("u:p"),
                "{error}"
            );
        }
    }
}
