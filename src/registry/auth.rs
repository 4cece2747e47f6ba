//! Authorization at a registry: challenges, and tokens for them.
//!
//! Formats: RFC 9110, section 11 (WWW-Authenticate); distribution, "Token Authentication
//! Specification" and "OAuth2".

use http_auth::parser::ChallengeParser;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

/// The size limit of a token response, in bytes.
pub(super) const MAX_TOKEN: u64 = 1 << 20;

/// The scheme that a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer {
        /// The URL of the token server.
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// Reads the headers of a response, Bearer before Basic; `None` if no scheme is known. The rest
    /// of a header after a syntax error is ignored.
    pub(super) fn of<'h>(headers: impl Iterator<Item = &'h str>) -> Option<Self> {
        let mut basic = None;
        for challenge in
            headers.flat_map(|header| ChallengeParser::new(header).map_while(Result::ok))
        {
            let get = |name: &str| {
                let found = challenge
                    .params
                    .iter()
                    .find(|(n, _)| n.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer") {
                if let Some(realm) = get("realm") {
                    return Some(Self::Bearer {
                        realm,
                        service: get("service"),
                        scope: get("scope"),
                    });
                }
            } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Self::Basic);
            }
        }
        basic
    }
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

/// Returns the token of a response.
pub(super) fn token(bytes: &[u8]) -> Option<String> {
    let answer: Answer = serde_json::from_slice(bytes).ok()?;
    let token = answer.token.filter(|t| !t.is_empty());
    let token = token.or(answer.access_token.filter(|t| !t.is_empty()))?;
    // The token becomes part of a header.
    token.bytes().all(|b| b.is_ascii_graphic()).then_some(token)
}

/// The characters that are escaped in a query or form: all but the unreserved ones (RFC 3986,
/// section 2.3).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Escapes a text for a query or form.
pub(super) fn escape(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
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
