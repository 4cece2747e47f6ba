//! What a registry wants to know: challenges, and tokens for them. Called by `client`.
//!
//! Formats: RFC 9110, section 11 (WWW-Authenticate); distribution, "Token Authentication
//! Specification" and "OAuth2".

use serde::Deserialize;

/// The most that is read of a token's answer, in bytes.
pub(super) const MAX_TOKEN: u64 = 1 << 20;

/// How to get in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer {
        /// Where tokens are given out.
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// From the headers of an answer, Bearer before Basic; `None`: nothing known.
    pub(super) fn of<'h>(headers: impl Iterator<Item = &'h str>) -> Option<Self> {
        let mut basic = None;
        for header in headers {
            for (scheme, parameters) in split(header) {
                let get = |name: &str| {
                    let found = parameters
                        .iter()
                        .find(|(n, _)| n.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.clone())
                };
                if scheme.eq_ignore_ascii_case("bearer") {
                    if let Some(realm) = get("realm") {
                        return Some(Self::Bearer {
                            realm,
                            service: get("service"),
                            scope: get("scope"),
                        });
                    }
                } else if scheme.eq_ignore_ascii_case("basic") {
                    basic = Some(Self::Basic);
                }
            }
        }
        basic
    }
}

type Parameters = Vec<(String, String)>;

/// Takes a header apart: schemes with their parameters.
fn split(header: &str) -> Vec<(String, Parameters)> {
    let mut found: Vec<(String, Parameters)> = Vec::new();
    let mut rest = header.trim_start_matches([' ', ',']);
    while !rest.is_empty() {
        let end = rest.find([' ', '=', ',']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        match (after.strip_prefix('='), found.last_mut()) {
            (Some(value), Some((_, parameters))) => {
                let (value, after) = value_of(value);
                parameters.push((word.to_owned(), value));
                rest = after;
            }
            (Some(value), None) => rest = value_of(value).1,
            (None, _) => {
                found.push((word.to_owned(), Vec::new()));
                rest = after;
            }
        }
        rest = rest.trim_start_matches([' ', ',']);
    }
    found
}

/// A token or quoted string, and what follows it.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

/// The token of an answer.
pub(super) fn token(bytes: &[u8]) -> Option<String> {
    let answer: Answer = serde_json::from_slice(bytes).ok()?;
    let token = answer.token.filter(|t| !t.is_empty());
    let token = token.or(answer.access_token.filter(|t| !t.is_empty()))?;
    // It becomes a header.
    token.bytes().all(|b| b.is_ascii_graphic()).then_some(token)
}

/// Text as part of a query or form (RFC 3986: unreserved as it is).
pub(super) fn escape(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            // Writing to a String cannot fail.
            other => {
                let _ = write!(out, "%{other:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let of = |header: &str| Challenge::of([header].into_iter());
        let bearer = of(
            "Bearer realm=\"https://auth.example/token\",service=\"r.example\", scope=\"repository:a/b:pull,push\"",
        );
        assert_eq!(
            bearer,
            Some(Challenge::Bearer {
                realm: "https://auth.example/token".into(),
                service: Some("r.example".into()),
                scope: Some("repository:a/b:pull,push".into()),
            })
        );
        assert_eq!(of("Basic realm=\"x, Bearer y\""), Some(Challenge::Basic));
        let both = of("basic realm=x, BEARER realm=\"a\\\"b\"");
        assert!(matches!(both, Some(Challenge::Bearer { realm, .. }) if realm == "a\"b"));
        for none in [
            "",
            "Negotiate",
            "Bearer",
            "realm=x",
            ",,=",
            "Bearer realm",
            "\"",
            "Digest a=\"é",
        ] {
            assert_eq!(of(none), None, "{none}");
        }
    }

    #[test]
    fn tokens_are_headers_or_nothing() {
        assert_eq!(token(br#"{"token":"","access_token":"b"}"#).unwrap(), "b");
        assert_eq!(token(br#"{"token":"a","access_token":"b"}"#).unwrap(), "a");
        for bad in ["", "{}", "[]", r#"{"token":"a\r\nX: y"}"#, r#"{"token":1}"#] {
            assert_eq!(token(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(
            escape("repository:a/b:pull ü"),
            "repository%3Aa%2Fb%3Apull%20%C3%BC"
        );
    }
}
