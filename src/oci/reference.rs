//! Image references as Docker writes them: `name[:tag][@digest]` with familiar names, image IDs and
//! ID prefixes.
//!
//! Grammar (documentation of distribution's package "reference"): the part before the first `/` is
//! a host if it contains a `.`, a `:` or an upper-case letter, or is `localhost`. Without a host,
//! it is `docker.io`, where a name of one component means `library/<name>`. repositories.json has
//! the familiar (short) form.
//! `library/<name>`. repositories.json keeps the familiar (short) form.

use super::{Error, Result};

/// The possible meanings of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// A full image ID, `sha256:<64 hex>` or only the 64 digits. It is never a name.
    Id(super::Digest),
    /// A name, or, if no image has it, the beginning of an ID.
    Name {
        /// The text as a name, if it can be one.
        reference: Reference,
        /// The text as the beginning of an ID, if it is lower-case hex.
        prefix: Option<String>,
    },
}

impl Query {
    /// Parses an image reference or ID.
    ///
    /// # Errors
    /// [`Error::BadReference`] with the reason.
    pub fn parse(text: &str) -> Result<Self> {
        let digest = super::Digest::from_hex(text).or_else(|| super::Digest::parse(text));
        if let Some(id) = digest {
            return Ok(Self::Id(id));
        }
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let is_prefix = !hex.is_empty()
            && hex.len() < 64
            && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        Ok(Self::Name {
            reference: Reference::parse(text)?,
            prefix: is_prefix.then(|| hex.to_owned()),
        })
    }
}

/// A normalised image name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Reference {
    /// Parses `name[:tag][@digest]`.
    ///
    /// # Errors
    /// [`Error::BadReference`] with the reason.
    pub fn parse(text: &str) -> Result<Self> {
        parse(text).map_err(|reason| Error::BadReference {
            text: text.chars().take(300).collect(),
            reason,
        })
    }

    /// Whether a name begins with the host of a registry. If it does not, its host is `docker.io`, unless
    /// a configuration says otherwise.
    pub fn has_host(text: &str) -> bool {
        let mut parts = text.splitn(2, '/');
        let first = parts.next().unwrap_or_default();
        parts.next().is_some() && is_host(first)
    }

    /// Returns the name in the form of repositories.json: `busybox`, `user/app`, `host:5000/app`.
    pub fn familiar_name(&self) -> String {
        if self.domain != "docker.io" {
            return format!("{}/{}", self.domain, self.path);
        }
        match self.path.strip_prefix("library/") {
            Some(name) if !name.contains('/') => name.to_owned(),
            _ => self.path.clone(),
        }
    }

    /// Returns the key in repositories.json. A digest has precedence over a tag; no tag means
    /// `latest`.
    pub fn key(&self) -> String {
        let name = self.familiar_name();
        match (&self.digest, &self.tag) {
            (Some(digest), _) => format!("{name}@{digest}"),
            (None, Some(tag)) => format!("{name}:{tag}"),
            (None, None) => format!("{name}:latest"),
        }
    }

    /// For a text that is a name without a host, returns the name under `localhost/`, where podman stores
    /// the images that it builds. A name with a host, also `docker.io`, means no other.
    pub(crate) fn local(text: &str) -> Option<Self> {
        let local = format!("localhost/{text}");
        (!Self::has_host(text))
            .then(|| Self::parse(&local).ok())
            .flatten()
    }

    /// Returns the host of the registry, `docker.io` unless another was given.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Returns the name on that host: `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the tag, if one was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest, if one was given: `sha256:<64 hex>`.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }
}

/// Returns the full form: `docker.io/library/busybox:latest`.
impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        match (&self.tag, &self.digest) {
            (None, None) => f.write_str(":latest")?,
            (Some(tag), _) => write!(f, ":{tag}")?,
            (None, Some(_)) => (),
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

type Parsed<T> = std::result::Result<T, &'static str>;

fn parse(text: &str) -> Parsed<Reference> {
    if text.is_empty() {
        return Err("it is empty");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(checked_digest(digest)?)),
        None => (text, None),
    };
    // A colon after the last slash starts the tag. One before it belongs to a port.
    let start = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[start..].find(':') {
        Some(colon) => (
            &rest[..start + colon],
            Some(checked_tag(&rest[start + colon + 1..])?),
        ),
        None => (rest, None),
    };
    let (domain, path) = split_domain(name);
    if path.is_empty() {
        return Err("the name is missing");
    }
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("the name must be lower case");
    }
    if !is_domain(domain) {
        return Err("the registry host is malformed");
    }
    let path = if domain == "docker.io" && !path.contains('/') {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    if domain.len() + 1 + path.len() > 255 {
        return Err("the name is longer than 255 bytes");
    }
    if !path.split('/').all(is_component) {
        return Err("the name is malformed");
    }
    // The short form, which would be stored, is another name or no name.
    if domain == "docker.io" && path.split('/').next().is_some_and(is_host) {
        return Err("a name on docker.io cannot begin with a host");
    }
    Ok(Reference {
        domain: domain.to_owned(),
        path,
        tag: tag.map(str::to_owned),
        digest: digest.map(str::to_owned),
    })
}

/// Whether the part before the first slash is a host.
fn is_host(first: &str) -> bool {
    first.contains(['.', ':'])
        || first == "localhost"
        || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn split_domain(name: &str) -> (&str, &str) {
    let (domain, path) = match name.split_once('/') {
        Some((first, rest)) if is_host(first) => (first, rest),
        _ => ("docker.io", name),
    };
    match domain {
        "index.docker.io" => ("docker.io", path),
        _ => (domain, path),
    }
}

fn checked_tag(tag: &str) -> Parsed<&str> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    match tag.as_bytes() {
        [] => Err("the tag is empty"),
        [first, rest @ ..]
            if word(*first)
                && rest.len() < 128
                && rest.iter().all(|b| word(*b) || matches!(b, b'.' | b'-')) =>
        {
            Ok(tag)
        }
        _ => Err("the tag is malformed"),
    }
}

fn checked_digest(digest: &str) -> Parsed<&str> {
    let length = match digest.split_once(':') {
        Some(("sha256", _)) => 64,
        Some(("sha384", _)) => 96,
        Some(("sha512", _)) => 128,
        _ => return Err("the digest must start with sha256:"),
    };
    let hex = &digest.as_bytes()[7..];
    if hex.len() == length && hex.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        Ok(digest)
    } else {
        Err("the digest has not the right number of lower-case hexadecimal digits")
    }
}

/// Whether the text is `host`, `host.name` or `[::1]`, each with an optional `:port`.
fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.rfind(':') {
        Some(colon) if !domain.ends_with(']') => (&domain[..colon], Some(&domain[colon + 1..])),
        _ => (domain, None),
    };
    if port.is_some_and(|p| p.is_empty() || !p.bytes().all(|b| b.is_ascii_digit())) {
        return false;
    }
    if let Some(address) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        return !address.is_empty() && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
    }
    host.split('.').all(|part| {
        !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    })
}

/// Whether the text is lower-case letters and digits, with single `.` or `_`, `__` or any number of
/// `-` between them.
fn is_component(part: &str) -> bool {
    let alnum = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends = bytes.first().is_some_and(alnum) && bytes.last().is_some_and(alnum);
    ends && bytes
        .split(alnum)
        .filter(|separator| !separator.is_empty())
        .all(|s| matches!(s, b"." | b"_" | b"__") || s.iter().all(|b| *b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// Text, familiar name, key, full form.
    #[test]
    fn names_are_normalised_as_docker_does() {
        let by_digest = format!("app@sha256:{HEX}");
        let both = format!("app:1@sha256:{HEX}");
        let full = format!("docker.io/library/app@sha256:{HEX}");
        let full_both = format!("docker.io/library/app:1@sha256:{HEX}");
        for (text, name, key, display) in [
            (
                "busybox",
                "busybox",
                "busybox:latest",
                "docker.io/library/busybox:latest",
            ),
            (
                "busybox:1.36",
                "busybox",
                "busybox:1.36",
                "docker.io/library/busybox:1.36",
            ),
            (
                "docker.io/busybox",
                "busybox",
                "busybox:latest",
                "docker.io/library/busybox:latest",
            ),
            (
                "index.docker.io/library/busybox",
                "busybox",
                "busybox:latest",
                "docker.io/library/busybox:latest",
            ),
            (
                "library/busybox",
                "busybox",
                "busybox:latest",
                "docker.io/library/busybox:latest",
            ),
            (
                "user/app:x",
                "user/app",
                "user/app:x",
                "docker.io/user/app:x",
            ),
            (
                "library/a/b",
                "library/a/b",
                "library/a/b:latest",
                "docker.io/library/a/b:latest",
            ),
            (
                "localhost/app",
                "localhost/app",
                "localhost/app:latest",
                "localhost/app:latest",
            ),
            (
                "localhost:5000/app",
                "localhost:5000/app",
                "localhost:5000/app:latest",
                "localhost:5000/app:latest",
            ),
            ("Host/app", "Host/app", "Host/app:latest", "Host/app:latest"),
            (
                "r.example:5000/a/b:t",
                "r.example:5000/a/b",
                "r.example:5000/a/b:t",
                "r.example:5000/a/b:t",
            ),
            (
                "[::1]:5000/app",
                "[::1]:5000/app",
                "[::1]:5000/app:latest",
                "[::1]:5000/app:latest",
            ),
            (
                "a__b-c--d.e_f",
                "a__b-c--d.e_f",
                "a__b-c--d.e_f:latest",
                "docker.io/library/a__b-c--d.e_f:latest",
            ),
            (by_digest.as_str(), "app", by_digest.as_str(), full.as_str()),
            // Docker ignores the tag where there is a digest.
            (both.as_str(), "app", by_digest.as_str(), full_both.as_str()),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(reference.familiar_name(), name, "{text}");
            assert_eq!(reference.key(), key, "{text}");
            assert_eq!(reference.to_string(), display, "{text}");
        }
    }

    #[test]
    fn texts_that_no_image_can_be_called_are_refused() {
        let long_tag = format!("a:{}", "t".repeat(129));
        let long_name = "n".repeat(256);
        for text in [
            // The short forms are names of another registry, or no names.
            "docker.io/a.b/c",
            "docker.io/localhost/c",
            "index.docker.io/a_b.c/d:1",
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a:",
            "a:.x",
            "a:-x",
            "a b",
            "a\0b",
            "../a",
            "a/..",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a:t:u",
            "a@",
            "a@sha256:",
            "a@sha256:abc",
            "a@md5:abc",
            "a@é",
            "é",
            "host:port/a",
            "h-.x/a",
            "[::1/a",
            "[]/a",
            ":/a",
            "a.:/x",
            "a/B",
            "\u{202e}",
            &long_tag,
            &long_name,
            &format!("a@sha256:{}", HEX.to_uppercase()),
        ] {
            let error = Reference::parse(text).unwrap_err();
            assert!(matches!(error, Error::BadReference { .. }), "{text:?}");
            assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn ids_and_their_prefixes_are_told_from_names() {
        let id = crate::oci::Digest::from_hex(HEX).unwrap();
        assert_eq!(Query::parse(HEX).unwrap(), Query::Id(id));
        assert_eq!(
            Query::parse(&format!("sha256:{HEX}")).unwrap(),
            Query::Id(id)
        );
        for (text, expected) in [
            ("beef", Some("beef")),
            ("sha256:1f0c", Some("1f0c")),
            ("beer", None),
            ("beef:1", None),
            ("user/beef", None),
        ] {
            match Query::parse(text).unwrap() {
                Query::Name { prefix, .. } => assert_eq!(prefix.as_deref(), expected, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        assert!(Query::parse("BEEF").is_err());
    }
}
