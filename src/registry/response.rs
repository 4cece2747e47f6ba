//! The meaning of a registry's responses: small bodies, the reasons of refusals, headers.

use std::io::Read as _;
use std::time::Duration;

use serde::Deserialize;
use ureq::Body;
use ureq::http::{self, header};

use super::error::{Error, said};
use super::pace::{Paced, Patience};
use super::retry::{Failure, Outcome};

/// The size limit of an error text, in bytes.
const MAX_MESSAGE: u64 = 64 << 10;

pub(super) type Response = http::Response<Body>;

/// Returns the content coding of a response, which was not requested (RFC 9110, section 8.4).
pub(super) fn coding(response: &Response) -> Option<String> {
    let value = response.headers().get(header::CONTENT_ENCODING)?;
    let value = value.to_str().unwrap_or("one that is not text").trim();
    let plain = value.is_empty() || value.eq_ignore_ascii_case("identity");
    (!plain).then(|| crate::oci::text::excerpt(value.as_bytes()))
}

pub(super) fn is_html(response: &Response) -> bool {
    let value = response.headers().get(header::CONTENT_TYPE);
    let value = value.and_then(|value| value.to_str().ok());
    value.is_some_and(|value| value.trim_start().to_lowercase().starts_with("text/html"))
}

/// Returns the Retry-After delay of a response (RFC 9110, section 10.2.3); dates are not supported.
pub(super) fn retry_after(response: &Response) -> Option<Duration> {
    let value = response.headers().get(header::RETRY_AFTER)?;
    value
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()
        .map(Duration::from_secs)
}

/// Reads a small response: text, which is decoded if the server has coded it.
pub(super) fn read_all(
    response: &mut Response,
    limit: u64,
    what: &str,
    patience: Patience,
) -> Outcome<Vec<u8>> {
    let coding = coding(response);
    let bytes = read_raw(response, limit, what, patience)?;
    match (coding, bytes.as_slice()) {
        (None, _) => Ok(bytes),
        (Some(_), [0x1f, 0x8b, ..]) => {
            let mut plain = Vec::new();
            let mut decoder = flate2::read::MultiGzDecoder::new(bytes.as_slice()).take(limit + 1);
            let read = decoder.read_to_end(&mut plain);
            match read {
                Ok(_) if plain.len() as u64 <= limit => Ok(plain),
                _ => Err(Error::malformed(what, "its gzip coding is damaged").into()),
            }
        }
        // The header names a coding, but the content is not coded.
        (Some(_), [b'{' | b'[', ..]) => Ok(bytes),
        (Some(coding), _) => {
            let why = format!(
                "the registry sends it with the content coding {coding}, which was not asked for"
            );
            Err(Error::malformed(what, why).into())
        }
    }
}

fn read_raw(
    response: &mut Response,
    limit: u64,
    what: &str,
    patience: Patience,
) -> Outcome<Vec<u8>> {
    let mut bytes = Vec::new();
    let body = response.body_mut().with_config().limit(u64::MAX).reader();
    let body = Paced::new(body, patience);
    match body.take(limit + 1).read_to_end(&mut bytes) {
        Err(error) => Err(Failure::Transient(Error::Unreachable {
            url: what.to_owned(),
            why: error.to_string(),
        })),
        Ok(_) if bytes.len() as u64 > limit => {
            let why = format!("the answer has more than {limit} bytes: refused");
            Err(Error::malformed(what, why).into())
        }
        Ok(_) => Ok(bytes),
    }
}

#[derive(Deserialize)]
struct Complaints {
    errors: Vec<Complaint>,
}

#[derive(Deserialize)]
struct Complaint {
    code: Option<String>,
    message: Option<String>,
}

/// A registry's description of a failure.
#[derive(Default)]
pub(super) struct Refusal {
    pub(super) code: String,
    /// The code and text, in parentheses.
    pub(super) message: String,
}

pub(super) fn refusal(response: &mut Response, patience: Patience) -> Refusal {
    let bytes = read_all(response, MAX_MESSAGE, "the answer", patience).unwrap_or_default();
    let complaints: Option<Complaints> = serde_json::from_slice(&bytes).ok();
    let first = complaints.and_then(|c| c.errors.into_iter().next());
    let Some(first) = first else {
        return Refusal::default();
    };
    let code = first.code.clone().unwrap_or_default();
    let parts: Vec<String> = [first.code, first.message].into_iter().flatten().collect();
    Refusal {
        code,
        message: said(&parts.join(": ")),
    }
}
