//! The ways to a repository: the mirrors that are configured, and the registry itself.
//!
//! All files are read here, before a sandbox is entered: configuration, certificates, credentials.
//! Invariant: credentials belong to the host that they are stored for. A mirror gets those of its own
//! name only.

use ureq::http::header::{HeaderName, HeaderValue};

use super::access::{Access, TlsVerify};
use super::certificates::Certificates;
use super::config::hosts_toml::{self, Host};
use super::config::registries_conf::{Place, Registries};
use super::credentials::Credential;
use super::endpoint::{host_of, is_loopback};
use super::error::{Error, Result};
use crate::oci::Reference;

/// What a way is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// Reading images: the mirrors are asked first.
    Pull,
    /// Changing the registry. Mirrors are not used.
    Push,
}

/// The check of a server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verify {
    Yes,
    /// The user has configured the registry as insecure.
    No,
}

/// One way.
#[derive(Clone, Debug)]
pub(super) struct Route {
    /// The schemes that are tried.
    pub(super) schemes: &'static [&'static str],
    /// The host, with its port.
    pub(super) authority: String,
    /// The beginning of all paths: `/v2`.
    pub(super) base: String,
    /// The repository on that host.
    pub(super) repository: String,
    /// The host as the user writes it.
    pub(super) domain: String,
    /// The registry that a mirror is asked for, as a parameter of each request.
    pub(super) namespace: Option<String>,
    /// Headers of each request to the host. They may be secret.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) credential: Option<Credential>,
    pub(super) certificates: Certificates,
    pub(super) verify: Verify,
    /// Whether credentials may be sent over http, because the registry is configured as insecure.
    pub(super) secrets_over_http: bool,
    /// Whether the host may say what a tag means.
    pub(super) resolves: bool,
    pub(super) is_mirror: bool,
}

/// Returns the ways to the repository of a name, in the order in which they are tried.
pub(super) fn routes(access: &Access, name: &Reference, purpose: Purpose) -> Result<Vec<Route>> {
    let registries = access.configuration.registries()?;
    registries.refuse_blocked(name)?;
    let finder = Finder {
        access,
        name,
        registries,
    };
    let configured = finder.registries.places(name)?;
    let hosts = match &configured {
        Some(_) => None,
        None => {
            let dirs = &access.configuration.hosts;
            hosts_toml::find(dirs, name.domain(), host_of(name.domain()))?
        }
    };
    match (purpose, configured, hosts) {
        (Purpose::Push, _, None) => Ok(vec![finder.own()?]),
        (Purpose::Push, _, Some(hosts)) => {
            let server = hosts.iter().find(|host| host.is_registry && host.pushes);
            let refused = || Error::Blocked {
                what: name.to_string(),
                prefix: name.domain().to_owned(),
                path: "hosts.toml".into(),
            };
            Ok(vec![finder.host(server.ok_or_else(refused)?)?])
        }
        (Purpose::Pull, None, None) => Ok(vec![finder.own()?]),
        (Purpose::Pull, Some(places), _) => places.iter().map(|p| finder.place(p)).collect(),
        (Purpose::Pull, None, Some(hosts)) => {
            let pulling = hosts.iter().filter(|host| host.pulls);
            pulling.map(|host| finder.host(host)).collect()
        }
    }
}

struct Finder<'a> {
    access: &'a Access,
    name: &'a Reference,
    registries: Registries,
}

impl Finder<'_> {
    /// Returns the way to the registry itself.
    fn own(&self) -> Result<Route> {
        self.place(&Place {
            name: self.name.clone(),
            insecure: self.registries.is_insecure(self.name),
            is_mirror: false,
        })
    }

    fn place(&self, place: &Place) -> Result<Route> {
        let name = &place.name;
        let authority = host_of(name.domain());
        // The options are about the registry that the user names.
        let option = if place.is_mirror {
            TlsVerify::Configured
        } else {
            self.access.tls_verify
        };
        let insecure = match option {
            TlsVerify::Configured => place.insecure,
            TlsVerify::Always => false,
            TlsVerify::Never => true,
        };
        let http_only = self.access.plain_http && !place.is_mirror;
        let schemes: &[&str] = match (http_only, option) {
            (true, _) => &["http"],
            (false, TlsVerify::Always) => &["https"],
            (false, _) if insecure || is_loopback(authority) => &["https", "http"],
            (false, _) => &["https"],
        };
        Ok(Route {
            schemes,
            authority: authority.to_owned(),
            base: "/v2".to_owned(),
            repository: name.path().to_owned(),
            domain: name.domain().to_owned(),
            namespace: None,
            headers: Vec::new(),
            credential: self.credential(name.domain(), name.path())?,
            certificates: self.access.certificates.find(authority)?,
            verify: if insecure { Verify::No } else { Verify::Yes },
            secrets_over_http: insecure,
            resolves: true,
            is_mirror: place.is_mirror,
        })
    }

    fn host(&self, host: &Host) -> Result<Route> {
        let option = if host.is_registry {
            self.access.tls_verify
        } else {
            TlsVerify::Configured
        };
        let insecure = match option {
            TlsVerify::Configured => host.skip_verify,
            TlsVerify::Always => false,
            TlsVerify::Never => true,
        };
        let http = host.scheme == "http" || (host.is_registry && self.access.plain_http);
        let schemes: &[&str] = match (http, insecure) {
            (true, _) => &["http"],
            (false, true) => &["https", "http"],
            (false, false) => &["https"],
        };
        let domain = match host.authority.as_str() {
            "registry-1.docker.io" => "docker.io",
            other => other,
        };
        let mut certificates = self.access.certificates.find(&host.authority)?;
        certificates.add_files(&host.authorities, host.client.as_ref())?;
        let headers = host.headers.iter().map(|(name, value)| {
            let bad = || Error::malformed(name.as_str(), "is not a header for HTTP (hosts.toml)");
            let header: HeaderName = name.parse().map_err(|_| bad())?;
            let mut value: HeaderValue = value.parse().map_err(|_| bad())?;
            // Its Debug output has no value then.
            value.set_sensitive(true);
            Ok((header, value))
        });
        Ok(Route {
            schemes,
            authority: host.authority.clone(),
            base: host.base.clone(),
            repository: self.name.path().to_owned(),
            domain: domain.to_owned(),
            namespace: (!host.is_registry).then(|| self.name.domain().to_owned()),
            headers: headers.collect::<Result<_>>()?,
            credential: self.credential(domain, self.name.path())?,
            certificates,
            verify: if insecure { Verify::No } else { Verify::Yes },
            // The administrator has written http://.
            secrets_over_http: insecure || host.scheme == "http",
            resolves: host.resolves,
            is_mirror: !host.is_registry,
        })
    }

    fn credential(&self, domain: &str, repository: &str) -> Result<Option<Credential>> {
        let credentials = &self.access.credentials;
        // What the user gives on the command line is for the registry that he names.
        if domain == self.name.domain()
            && let Some(given) = credentials.given()
        {
            return Ok(Some(given.clone()));
        }
        credentials.find_with(self.registries.helpers.as_deref(), domain, repository)
    }
}
