//! Which of an index's images is meant. Called by `manifest` and the cli.
//!
//! Names are Go's (OCI image specification, image-index.md): `linux/arm64/v8`.

use std::fmt;
use std::str::FromStr;

use crate::store::derive::architecture;

/// An operating system and a processor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`.
    pub architecture: String,
    /// `v8`; `None`: any, the plainest first.
    pub variant: Option<String>,
}

impl Platform {
    /// This machine's.
    pub fn here() -> Self {
        Self {
            os: "linux".to_owned(),
            architecture: architecture().to_owned(),
            variant: None,
        }
    }

    /// How well what an index or configuration declares fits: the least number is best,
    /// `None`: not at all.
    pub(super) fn fits(&self, os: &str, arch: &str, variant: Option<&str>) -> Option<u32> {
        if self.os != os || self.architecture != arch {
            return None;
        }
        let variant = plain(arch, variant);
        match self.variant.as_deref() {
            Some(_) => (plain(arch, self.variant.as_deref()) == variant).then_some(0),
            // Without a wish, what runs everywhere: none, else the lowest.
            None => Some(variant.map_or(0, |v| {
                let number: String = v.chars().filter(char::is_ascii_digit).collect();
                number.parse::<u32>().map_or(u32::MAX, |n| n.max(1))
            })),
        }
    }
}

/// A variant, `None` for the one that every processor of that kind has.
fn plain<'v>(arch: &str, variant: Option<&'v str>) -> Option<&'v str> {
    match (arch, variant) {
        (_, Some("")) | ("arm64", Some("v8" | "8")) | ("amd64", Some("v1")) => None,
        (_, variant) => variant,
    }
}

impl FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("{text:?} is no platform: write os/arch or os/arch/variant");
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &&str| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
            !part.is_empty() && part.bytes().all(plain)
        };
        if !parts.iter().all(word) {
            return Err(refused());
        }
        match parts.as_slice() {
            [os, arch, rest @ ..] if rest.len() < 2 => Ok(Self {
                os: (*os).to_owned(),
                architecture: known_as(arch).to_owned(),
                variant: rest.first().map(|v| (*v).to_owned()),
            }),
            _ => Err(refused()),
        }
    }
}

/// What users call processors, as uname(1) does, in Go's words.
fn known_as(arch: &str) -> &str {
    match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
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

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn only_os_and_processor_make_a_platform() {
        assert_eq!(platform("linux/arm/v7").to_string(), "linux/arm/v7");
        assert_eq!(platform("linux/x86_64").to_string(), "linux/amd64");
        for bad in ["", "linux", "linux/", "/amd64", "a/b/c/d", "a/b/", "a/b c"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn variants_are_chosen_as_declared() {
        let any = platform("linux/arm");
        assert!(any.fits("linux", "arm", Some("v6")) < any.fits("linux", "arm", Some("v7")));
        assert_eq!(any.fits("linux", "arm64", None), None);
        assert_eq!(any.fits("windows", "arm", None), None);
        let seven = platform("linux/arm/v7");
        assert_eq!(seven.fits("linux", "arm", Some("v6")), None);
        assert_eq!(seven.fits("linux", "arm", None), None);
        assert_eq!(seven.fits("linux", "arm", Some("v7")), Some(0));
        let eight = platform("linux/arm64/v8");
        assert_eq!(eight.fits("linux", "arm64", None), Some(0));
        let plain = platform("linux/amd64");
        assert_eq!(plain.fits("linux", "amd64", Some("")), Some(0));
        assert!(plain.fits("linux", "amd64", Some("v3")) > Some(0));
    }
}
