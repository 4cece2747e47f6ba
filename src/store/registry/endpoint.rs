//! Where a registry is and how it is talked to: hosts, schemes, certificates, time limits.
//! Called by `client`.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ureq::Agent;
use ureq::http::Uri;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};

use super::error::RegistryError;
use crate::store::error::Result;

/// No byte for so long: the connection is dead.
const SILENCE: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(30);
/// Registries think a while after a large upload.
const ANSWER: Duration = Duration::from_secs(300);
/// Where certificates for single registries are, as Docker and podman have them.
const CERTS: &str = "/etc/docker/certs.d";

/// Docker Hub's registry has another name than its images.
pub(super) fn host_of(domain: &str) -> &str {
    match domain {
        "docker.io" => "registry-1.docker.io",
        other => other,
    }
}

/// Whether a host, with or without port, is this machine.
pub(super) fn is_loopback(authority: &str) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Whether two addresses are of one server, over one protocol.
pub(super) fn same_origin(a: &Uri, b: &Uri) -> bool {
    a.scheme() == b.scheme() && a.authority() == b.authority()
}

/// Whether what is secret may go there.
pub(super) fn is_private(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https")
        || uri
            .authority()
            .is_some_and(|a| is_loopback(without_user(a.as_str())))
}

fn without_user(authority: &str) -> &str {
    authority.rsplit_once('@').map_or(authority, |(_, a)| a)
}

/// Where a Location leads that came from `base`.
pub(super) fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let absolute = location.starts_with("https://") || location.starts_with("http://");
    let text = if absolute {
        location.to_owned()
    } else {
        let scheme = base.scheme_str()?;
        let authority = base.authority()?;
        if let Some(rest) = location.strip_prefix("//") {
            format!("{scheme}://{rest}")
        } else if location.starts_with('/') {
            format!("{scheme}://{authority}{location}")
        } else {
            let dir = base.path().rsplit_once('/').map_or("", |(dir, _)| dir);
            format!("{scheme}://{authority}{dir}/{location}")
        }
    };
    let uri: Uri = text.parse().ok()?;
    uri.authority().is_some().then_some(uri)
}

/// An address for messages: without what may be secret.
pub(super) fn shown(uri: &Uri) -> String {
    let scheme = uri.scheme_str().unwrap_or("http");
    let authority = uri.authority().map_or("", |a| without_user(a.as_str()));
    format!("{scheme}://{authority}{}", uri.path())
}

/// What makes the connections; `host` may have certificates of its own.
pub(super) fn agent(host: &str) -> Result<Agent> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::from(certificates(host, Path::new(CERTS))?))
        .unversioned_rustls_crypto_provider(provider)
        .build();
    let mut config = Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        // Followed by `client`, which knows where credentials may go.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(Some(ANSWER))
        .timeout_per_read(Some(SILENCE))
        .timeout_per_write(Some(SILENCE))
        .user_agent(concat!("unionfs/", env!("CARGO_PKG_VERSION")));
    if is_loopback(host) {
        config = config.proxy(None);
    }
    Ok(config.build().into())
}

/// The system's, and those for this registry. None at all is an error only when one is
/// needed.
fn certificates(host: &str, dir: &Path) -> Result<Vec<Certificate<'static>>> {
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::debug!(%error, "a system certificate cannot be read");
    }
    let mut all: Vec<_> = system
        .certs
        .iter()
        .map(|der| Certificate::from_der(der.as_ref()).to_owned())
        .collect();
    let Ok(entries) = std::fs::read_dir(dir.join(host)) else {
        return Ok(all);
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|e| e != "crt") {
            continue;
        }
        let bad = |why: String| RegistryError::Credentials {
            what: format!("certificate {path:?}"),
            why,
        };
        let pem = std::fs::read(&path).map_err(|e| bad(format!("cannot be read: {e}")))?;
        for item in ureq::tls::parse_pem(&pem) {
            match item.map_err(|e| bad(format!("is not PEM: {e}")))? {
                PemItem::Certificate(certificate) => all.push(certificate),
                _ => return Err(bad("holds something else than certificates".into()).into()),
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        for here in [
            "localhost",
            "localhost:5000",
            "127.0.0.1",
            "127.8.9.1:1",
            "[::1]:5000",
            "[::1]",
        ] {
            assert!(is_loopback(here), "{here}");
        }
        for there in [
            "localhost.example",
            "128.0.0.1",
            "10.0.0.1:5000",
            "[::2]:1",
            "127.0.0.1.example",
            "",
        ] {
            assert!(!is_loopback(there), "{there}");
        }
    }

    #[test]
    fn locations_are_resolved_and_secrets_kept_where_they_belong() {
        let base: Uri = "https://r.example:1/v2/app/blobs/x".parse().unwrap();
        let to = |location: &str| resolve(&base, location).map(|uri| uri.to_string());
        assert_eq!(to("/a?b=c").unwrap(), "https://r.example:1/a?b=c");
        assert_eq!(to("y").unwrap(), "https://r.example:1/v2/app/blobs/y");
        assert_eq!(to("//h/y").unwrap(), "https://h/y");
        assert_eq!(to("http://h/y").unwrap(), "http://h/y");
        assert_eq!(to("http://"), None);
        let uri = |text: &str| text.parse::<Uri>().unwrap();
        assert!(same_origin(&base, &uri("https://r.example:1/")));
        for other in [
            "http://r.example:1/",
            "https://r.example/",
            "https://r.example:2/",
        ] {
            assert!(!same_origin(&base, &uri(other)), "{other}");
        }
        assert!(is_private(&base) && is_private(&uri("http://127.0.0.1:5000/")));
        assert!(!is_private(&uri("http://r.example/")));
        assert!(!is_private(&uri("http://localhost@r.example/")));
        let signed = uri("https://user:pw@cdn.example/blob?X-Signature=secret");
        assert_eq!(shown(&signed), "https://cdn.example/blob");
    }

    /// Any certificate (openssl req -x509 -newkey ec).
    const PEM: &str = "\
-----BEGIN CERTIFICATE-----
MIIBdTCCARugAwIBAgIUDh7jVOq3fl3/gKoLSxVoNrX7g3wwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjQxMjEyNDVaGA8yMTI2MTAzMTEyMTI0
NVowDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABDdK
b0/XZa5wN+YOAh0ho8k1R5FdL1wufj0QaBKvGOMhfmWAXSiWx0HZbeH8Lf9hORnw
ixgm9muPq2bTPYkROD2jUzBRMB0GA1UdDgQWBBSNQuXp3W8onB4AaINebnVyPHew
RzAfBgNVHSMEGDAWgBSNQuXp3W8onB4AaINebnVyPHewRzAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0gAMEUCIEJinEnPm0mq2YHgYzDyUoya2nwzjIJGlnM+
8pHAM1XjAiEAmUJyrQ9tdsreGoSxqqQUkmJMmKAzutQrcCLQaff30Us=
-----END CERTIFICATE-----
";

    #[test]
    fn a_registry_has_certificates_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let of = |host: &str| certificates(host, dir.path());
        let system = of("r.example:5000").unwrap().len();
        let own = dir.path().join("r.example:5000");
        std::fs::create_dir(&own).unwrap();
        std::fs::write(own.join("ca.crt"), PEM).unwrap();
        std::fs::write(own.join("client.cert"), "another kind").unwrap();
        assert_eq!(of("r.example:5000").unwrap().len(), system + 1);
        assert_eq!(of("r.example").unwrap().len(), system);
        std::fs::write(own.join("bad.crt"), &PEM[..100]).unwrap();
        let error = of("r.example:5000").unwrap_err().to_string();
        assert!(error.contains("bad.crt"), "{error}");
    }
}
