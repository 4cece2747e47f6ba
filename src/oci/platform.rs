//! The platform of an image: `os/architecture[/variant]`.
//!
//! Sources: OCI image specification, image-index.md ("platform"), for the words; containerd,
//! platforms package, for the meaning of a missing variant and the variants that a machine runs.

use std::fmt;

use serde::Deserialize;

use super::derived_config::architecture;

/// A platform, in the words of Go.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Platform {
    /// "linux". No other system is mounted here.
    pub os: String,
    /// "amd64", "arm64", "arm" …
    pub architecture: String,
    /// "v7" of arm, "v3" of amd64 …. It is often missing.
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platform {
    /// Returns the platform of this machine.
    pub fn host() -> Self {
        let machine = rustix::system::uname();
        let machine = machine.machine().to_bytes();
        let variant = match architecture() {
            // The names of the kernel: armv6l, armv7l, armv8l, aarch64.
            "arm" => Some(match machine {
                [b'a', b'r', b'm', b'v', version @ b'5'..=b'8', ..] => {
                    format!("v{}", char::from(*version))
                }
                b"aarch64" => "v8".to_owned(),
                _ => "v7".to_owned(),
            }),
            _ => None,
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture().to_owned(),
            variant,
        }
    }

    /// Parses `os/architecture[/variant]`, or only the architecture with its variant.
    pub fn parse(text: &str) -> Option<Self> {
        let valid = |word: &&str| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            !word.is_empty() && word.len() <= 64 && word.bytes().all(plain)
        };
        let words: Vec<&str> = text.split('/').collect();
        if !words.iter().all(valid) {
            return None;
        }
        let (architecture, variant) = match words.as_slice() {
            ["linux"] => return None,
            ["linux", architecture] | [architecture] => (*architecture, None),
            ["linux", architecture, variant] | [architecture, variant] => {
                (*architecture, Some((*variant).to_owned()))
            }
            _ => return None,
        };
        // The names of the kernel.
        let (architecture, implied) = match architecture {
            "x86_64" | "x86-64" => ("amd64", None),
            "aarch64" => ("arm64", None),
            "armhf" => ("arm", Some("v7")),
            "armel" => ("arm", Some("v6")),
            "i386" | "i686" => ("386", None),
            other => (other, None),
        };
        let platform = Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.or(implied.map(str::to_owned)),
        };
        platform.level().map(|_| platform)
    }

    /// Returns how well an image for `other` runs on this platform; a higher number is better.
    /// `None`: it does not run.
    ///
    /// An arm machine runs its own variant and older ones, the newest first. Without a variant it
    /// is v7. On other machines a missing variant is the baseline (v1 of amd64, v8 of arm64), which
    /// comes first, as in Docker. A variant that was asked for must be equal.
    pub fn suits(&self, other: &Self) -> Option<u32> {
        if (&self.os, &self.architecture) != (&other.os, &other.architecture) {
            return None;
        }
        let (wanted, given) = (self.level()?, other.level()?);
        match (self.architecture.as_str(), &self.variant) {
            ("arm", _) => (given <= wanted).then_some(given),
            (_, Some(_)) => (given == wanted).then_some(0),
            (_, None) => Some(100_u32.saturating_sub(given)),
        }
    }

    /// Returns the number of the variant; `None` for an unknown one.
    fn level(&self) -> Option<u32> {
        let default = match self.architecture.as_str() {
            "arm" => "v7",
            "arm64" => "v8",
            _ => "v1",
        };
        let variant = self
            .variant
            .as_deref()
            .filter(|variant| !variant.is_empty());
        let variant = variant.unwrap_or(default);
        // arm64 has v8.1 and so on, which are v8 with additions.
        let number = variant.strip_prefix('v')?;
        let (major, minor) = number.split_once('.').unwrap_or((number, "0"));
        let number = |text: &str| text.parse::<u8>().ok().map(u32::from);
        Some(number(major)? * 10 + number(minor)?.min(9))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn best<'a>(host: &str, offered: &[&'a str]) -> Option<&'a str> {
        let host = Platform::parse(host).unwrap();
        let suits = |text: &str| host.suits(&Platform::parse(text).unwrap());
        let offered = offered.iter().filter(|text| suits(text).is_some());
        offered.max_by_key(|text| suits(text)).copied()
    }

    #[test]
    fn an_arm_takes_its_variant_and_older_ones() {
        let all = [
            "linux/arm/v5",
            "linux/arm/v6",
            "linux/arm",
            "linux/arm64",
            "linux/amd64",
        ];
        assert_eq!(best("linux/arm/v7", &all), Some("linux/arm"));
        assert_eq!(best("arm/v6", &all), Some("linux/arm/v6"));
        assert_eq!(best("arm/v8", &all), Some("linux/arm"));
        assert_eq!(best("armel", &all), Some("linux/arm/v6"));
        assert_eq!(best("arm/v5", &["arm/v6", "arm/v7"]), None);
    }

    #[test]
    fn elsewhere_the_baseline_comes_first() {
        assert_eq!(
            best("amd64", &["amd64/v3", "amd64", "amd64/v2"]),
            Some("amd64")
        );
        assert_eq!(best("amd64", &["amd64/v3", "amd64/v2"]), Some("amd64/v2"));
        assert_eq!(best("x86_64/v3", &["amd64", "amd64/v3"]), Some("amd64/v3"));
        assert_eq!(best("arm64/v8", &["arm64/v9", "arm64"]), Some("arm64"));
        assert_eq!(best("amd64", &["386", "linux/arm64/v8"]), None);
        let odd = Platform {
            variant: Some("é".into()),
            ..Platform::host()
        };
        assert_eq!(Platform::host().suits(&odd), None);
    }

    #[test]
    fn words_are_plain_and_few() {
        for bad in [
            "",
            "linux",
            "a/b/c/d",
            "linux//v7",
            "linux/arm/v7/x",
            "a b",
            "windows/amd64",
        ] {
            assert_eq!(Platform::parse(bad), None, "{bad}");
        }
        assert_eq!(
            Platform::parse("arm/v7").unwrap().to_string(),
            "linux/arm/v7"
        );
    }
}
