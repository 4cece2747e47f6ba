//! SHA-256 digests: image IDs, diff IDs, chain IDs. A [`Digest`] can only be made from bytes or
//! from text of the exact form, so it is safe in a path.
//!
//! Form: `sha256:` and 64 lower-case hexadecimal digits (OCI image specification,
//! descriptor.md, "Digests").

use std::fmt;
use std::io;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// The number of bytes that are read at a time.
const CHUNK: usize = 256 << 10;

/// A SHA-256 digest. Displays as `sha256:<64 hex>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Returns the digest of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Returns the digest of all bytes that were hashed.
    pub(crate) fn from_hash(hash: Sha256) -> Self {
        Self(hash.finalize().into())
    }

    /// Returns the digest of all bytes of a reader. `passed` gets the number of further bytes that were
    /// read, and can end it; `failed` makes the error of a read.
    pub(crate) fn of_reader<E>(
        mut reader: impl io::Read,
        mut passed: impl FnMut(u64) -> Result<(), E>,
        failed: impl FnOnce(io::Error) -> E,
    ) -> Result<Self, E> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; CHUNK];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(Self::from_hash(hash)),
                Ok(got) => {
                    hash.update(&buffer[..got]);
                    passed(got as u64)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Parses `sha256:<64 hex>`; `None` for any other form.
    pub fn parse(text: &str) -> Option<Self> {
        Self::from_hex(text.strip_prefix("sha256:")?)
    }

    /// Parses 64 lower-case hexadecimal digits; `None` for any other form.
    pub fn from_hex(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        if text.len() != 64 {
            return None;
        }
        let mut out = [0u8; 32];
        for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
            *byte = match pair {
                [high, low] => nibble(*high)? << 4 | nibble(*low)?,
                _ => return None,
            };
        }
        Some(Self(out))
    }

    /// Returns the bytes.
    pub fn bytes(&self) -> [u8; 32] {
        self.0
    }

    /// Makes a digest from its bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the 64 hexadecimal digits, as used in file names.
    pub fn hex(&self) -> String {
        let mut out = String::with_capacity(64);
        let halves = self.0.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        out.extend(halves.filter_map(|half| char::from_digit(half.into(), 16)));
        out
    }

    /// Returns the 12 digits that Docker prints.
    pub fn short(&self) -> String {
        let mut hex = self.hex();
        hex.truncate(12);
        hex
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            serde::de::Error::custom(format_args!(
                "{} is not a digest (sha256: and 64 hexadecimal digits)",
                super::text::excerpt(text.as_bytes())
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_form_is_a_digest() {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let digest = Digest::of(b"");
        assert_eq!(Digest::parse(&format!("sha256:{hex}")), Some(digest));
        assert_eq!(Digest::from_hex(hex), Some(digest));
        assert_eq!(digest.to_string(), format!("sha256:{hex}"));
        assert_eq!(digest.short(), &hex[..12]);
        for bad in [
            "",
            "sha256:",
            hex,
            &format!("sha512:{hex}"),
            &format!("sha256:{}", hex.to_uppercase()),
            &format!("sha256:{hex}0"),
            &format!("sha256:{}", &hex[1..]),
            &format!("sha256:{hex}\n"),
            &format!("sha256:../{}", &hex[3..]),
            &format!("sha256:é{}", &hex[2..]),
        ] {
            assert_eq!(Digest::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_digest_survives_json_and_a_bad_one_does_not_get_in() {
        let digest = Digest::of(b"x");
        let text = serde_json::to_string(&digest).unwrap();
        assert_eq!(serde_json::from_str::<Digest>(&text).unwrap(), digest);
        let error = serde_json::from_str::<Digest>("\"sha256:..\"").unwrap_err();
        assert!(error.to_string().contains("is not a digest"), "{error}");
    }
}
