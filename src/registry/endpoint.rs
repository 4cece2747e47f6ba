//! The address of a registry and the parameters of connections: hosts, schemes, time limits.

use std::net::IpAddr;
use std::sync::Arc;
use ureq::Agent;
use ureq::http::Uri;
use ureq::tls::{RootCerts, TlsConfig};

use super::pace::Patience;
use super::route::{Route, Verify};

/// Returns the host of a registry. Docker Hub's differs from the domain of its images.
pub(super) fn host_of(domain: &str) -> &str {
    match domain {
        "docker.io" => "registry-1.docker.io",
        other => other,
    }
}

/// Returns a host without its port, and without the brackets of an address of IPv6.
pub(super) fn without_port(authority: &str) -> &str {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Whether a host, with or without port, is this machine.
pub(super) fn is_loopback(authority: &str) -> bool {
    let host = without_port(authority);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Whether two addresses have the same server and protocol.
pub(super) fn same_origin(a: &Uri, b: &Uri) -> bool {
    a.scheme() == b.scheme() && a.authority() == b.authority()
}

/// Whether secrets may be sent to the address.
pub(super) fn is_private(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https")
        || uri
            .authority()
            .is_some_and(|a| is_loopback(without_user(a.as_str())))
}

fn without_user(authority: &str) -> &str {
    authority.rsplit_once('@').map_or(authority, |(_, a)| a)
}

/// Resolves a Location header of a response from `base`.
pub(super) fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let absolute = location.starts_with("https://") || location.starts_with("http://");
    let text = if absolute {
        location.to_owned()
    } else {
        let scheme = base.scheme_str()?;
        let authority = base.authority()?;
        if let Some(rest) = location.strip_prefix("//") {
            format!("{scheme}://{rest}")
        } else {
            let location = location.split('#').next().unwrap_or_default();
            let (path, query) = match location.split_once('?') {
                Some((path, query)) => (path, Some(query)),
                None => (location, None),
            };
            let dir = base.path().rsplit_once('/').map_or("", |(dir, _)| dir);
            let path = match path {
                "" => base.path().to_owned(),
                path if path.starts_with('/') => without_dots(path),
                path => without_dots(&format!("{dir}/{path}")),
            };
            let query = query.map_or(String::new(), |query| format!("?{query}"));
            format!("{scheme}://{authority}{path}{query}")
        }
    };
    let uri: Uri = text.parse().ok()?;
    uri.authority().is_some().then_some(uri)
}

/// Removes the `.` and `..` segments of a path (RFC 3986, section 5.2.4).
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let last = path.rsplit('/').next();
    for part in path.split('/').skip(1) {
        match part {
            "." => (),
            ".." => drop(kept.pop()),
            part => kept.push(part),
        }
    }
    let end = matches!(last, Some("." | "..")).then_some("/");
    let end = end.filter(|_| !kept.is_empty()).unwrap_or_default();
    format!("/{}{end}", kept.join("/"))
}

/// Returns an address for messages, without parts that may be secret.
pub(super) fn shown(uri: &Uri) -> String {
    let scheme = uri.scheme_str().unwrap_or("http");
    let authority = uri.authority().map_or("", |a| without_user(a.as_str()));
    format!("{scheme}://{authority}{}", uri.path())
}

/// Returns the HTTP agent for a way to a registry.
pub(super) fn agent(route: &Route, patience: Patience) -> Agent {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certificates = route.certificates.clone();
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::from(certificates.authorities))
        .client_cert(certificates.client)
        .disable_verification(route.verify == Verify::No)
        .unversioned_rustls_crypto_provider(provider)
        .build();
    let mut config = Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        // `client` follows redirects: it knows which addresses may get credentials.
        .max_redirects(0)
        .max_redirects_will_error(false)
        // The limit of the whole connection set-up, including TLS, so that a slow server cannot
        // prolong it.
        .timeout_connect(Some(patience.connect))
        .timeout_send_request(Some(patience.connect))
        .timeout_recv_response(Some(patience.answer))
        .timeout_per_read(Some(patience.silence))
        .timeout_per_write(Some(patience.silence))
        .user_agent(concat!("unionfs/", env!("CARGO_PKG_VERSION")));
    if is_loopback(&route.authority) {
        config = config.proxy(None);
    }
    config.build().into()
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
        // RFC 3986, section 5.4, with the base of this test.
        let of = |path: &str| format!("https://r.example:1/v2/app{path}");
        for (location, expected) in [
            ("../uploads/u?_state=a/../b", of("/uploads/u?_state=a/../b")),
            ("./y", of("/blobs/y")),
            (".", of("/blobs/")),
            ("..", of("/")),
            ("../..", "https://r.example:1/v2/".to_owned()),
            ("../../../../y", "https://r.example:1/y".to_owned()),
            ("/a/./b/../c", "https://r.example:1/a/c".to_owned()),
            ("y/../z/..x", of("/blobs/z/..x")),
            ("?q", of("/blobs/x?q")),
            ("y#part", of("/blobs/y")),
        ] {
            assert_eq!(to(location).unwrap(), expected, "{location}");
        }
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
}
