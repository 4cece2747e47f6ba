//! Conditions on images, and patterns of their names.

use std::time::SystemTime;

use glob::{MatchOptions, Pattern};

use super::{Condition, Presence, moment};
use crate::cli::error::Usage;
use crate::cli::times;
use unionfs::oci::Reference;
use unionfs::store::{Image, Listing, Name};

/// A condition on images.
#[derive(Clone, Debug)]
pub(in crate::cli) enum ImageFilter {
    Reference(NamePattern),
    /// A label, and its value if that matters.
    Label {
        name: String,
        value: Option<String>,
        has: Presence,
    },
    /// An image by name or ID.
    Before(String),
    Since(String),
    Until(SystemTime),
    Dangling(Presence),
    /// An engine, or a root.
    Store(String),
}

/// The keys of conditions on images.
pub(super) const IMAGE_KEYS: &[&str] = &[
    "reference",
    "label",
    "label!",
    "before",
    "since",
    "until",
    "dangling",
    "store",
];

impl Condition for ImageFilter {
    const KEYS: &'static [&'static [&'static str]] = &[IMAGE_KEYS];

    fn of(key: &str, value: &str) -> Option<Result<Self, String>> {
        Some(match key {
            "reference" => NamePattern::parse(value).map(Self::Reference),
            "label" => Ok(Self::label(value, Presence::Present)),
            "label!" => Ok(Self::label(value, Presence::Absent)),
            "before" => Ok(Self::Before(value.to_owned())),
            "since" | "after" => Ok(Self::Since(value.to_owned())),
            "until" => moment(key, value).map(Self::Until),
            "dangling" => Presence::parse(key, value).map(Self::Dangling),
            "store" => Ok(Self::Store(value.to_owned())),
            _ => return None,
        })
    }
}

/// A condition on images that `unionfs prune` may remove.
#[derive(Clone, Debug)]
pub(in crate::cli) struct ForPrune(pub(in crate::cli) ImageFilter);

impl Condition for ForPrune {
    const KEYS: &'static [&'static [&'static str]] = &[&["until", "label", "label!"]];

    fn of(key: &str, value: &str) -> Option<Result<Self, String>> {
        if !Self::KEYS.concat().contains(&key) {
            return None;
        }
        Some(ImageFilter::of(key, value)?.map(Self))
    }
}

impl ImageFilter {
    fn label(text: &str, has: Presence) -> Self {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        Self::Label {
            name: name.to_owned(),
            value,
            has,
        }
    }

    /// Replaces the images of `before` and `since` by their times.
    ///
    /// # Errors
    /// [`Usage`] if there is no such image, or its time is not known.
    pub(in crate::cli) fn resolve(&self, listing: &Listing) -> Result<Resolved<'_>, Usage> {
        Ok(match self {
            Self::Before(image) => Resolved::Before(time_of(image, listing)?),
            Self::Since(image) => Resolved::After(time_of(image, listing)?),
            Self::Until(time) => Resolved::Before(*time),
            other => Resolved::Other(other),
        })
    }
}

/// A filter whose images were found.
#[derive(Debug)]
pub(in crate::cli) enum Resolved<'f> {
    Before(SystemTime),
    After(SystemTime),
    Other(&'f ImageFilter),
}

impl Resolved<'_> {
    /// Whether an image fits. Names are chosen by [`Resolved::fits_name`].
    pub(in crate::cli) fn fits(&self, image: &Image) -> bool {
        let created = || image.config.created.as_deref().and_then(times::parse);
        match self {
            Self::Before(time) => created().is_some_and(|created| created < *time),
            Self::After(time) => created().is_some_and(|created| created > *time),
            Self::Other(ImageFilter::Label { name, value, has }) => {
                let labels = image.config.config.as_ref().and_then(|c| c.get("Labels"));
                let found = labels.and_then(|labels| labels.get(name)?.as_str());
                let fits = found.is_some_and(|found| value.as_ref().is_none_or(|v| v == found));
                has.fits(fits)
            }
            Self::Other(ImageFilter::Dangling(wanted)) => wanted.fits(image.names.is_empty()),
            Self::Other(ImageFilter::Store(store)) => {
                image.engine == store || image.root.to_str() == Some(store)
            }
            Self::Other(ImageFilter::Reference(pattern)) => {
                image.names.iter().any(|name| pattern.fits(name))
            }
            // They were resolved.
            Self::Other(ImageFilter::Before(_) | ImageFilter::Since(_) | ImageFilter::Until(_)) => {
                true
            }
        }
    }

    /// Whether a name of an image that fits is shown.
    pub(in crate::cli) fn fits_name(&self, name: &Name) -> bool {
        match self {
            Self::Other(ImageFilter::Reference(pattern)) => pattern.fits(name),
            _ => true,
        }
    }
}

/// Finds the creation time of an image of a listing.
fn time_of(text: &str, listing: &Listing) -> Result<SystemTime, Usage> {
    let id = text.strip_prefix("sha256:").unwrap_or(text);
    let reference = Reference::parse(text).ok();
    let by_name = |image: &&Image| {
        let mut names = image.names.iter();
        names.any(|name| {
            reference
                .as_ref()
                .is_some_and(|reference| name.is(reference))
        })
    };
    let by_id = |image: &&Image| id.len() >= 4 && image.id.hex().starts_with(id);
    let mut images = listing.images.iter();
    let found = images
        .find(by_name)
        .or_else(|| listing.images.iter().find(by_id))
        .ok_or_else(|| {
            Usage(format!(
                "--filter: no image {text:?}; unionfs images lists all"
            ))
        })?;
    let created = found.config.created.as_deref().and_then(times::parse);
    created.ok_or_else(|| {
        Usage(format!(
            "--filter: the creation time of {text:?} is not known"
        ))
    })
}

/// A pattern of names: `debian`, `debian:12`, `deb*`, `*/team/app:2?`.
#[derive(Clone, Debug)]
pub(in crate::cli) struct NamePattern(Pattern);

impl NamePattern {
    /// Parses a pattern. A plain name may be written in its long form (docker.io/library/debian).
    pub(in crate::cli) fn parse(text: &str) -> Result<Self, String> {
        let is_plain = !text.contains(['*', '?', '[']);
        let familiar = Reference::parse(text)
            .ok()
            .filter(|_| is_plain)
            .map(|name| {
                let has_tag = text
                    .rsplit('/')
                    .next()
                    .is_some_and(|last| last.contains(':'));
                if has_tag || name.digest().is_some() {
                    name.key()
                } else {
                    name.familiar_name()
                }
            });
        let pattern = familiar.as_deref().unwrap_or(text);
        let parsed = Pattern::new(pattern).map_err(|error| format!("wrong pattern: {error}"))?;
        Ok(Self(parsed))
    }

    fn fits(&self, name: &Name) -> bool {
        self.matches(&name.to_string()) || self.matches(&name.repository)
    }

    fn matches(&self, text: &str) -> bool {
        // As Go's path.Match, with which Docker compares: a star ends at a slash.
        let options = MatchOptions {
            case_sensitive: true,
            require_literal_separator: true,
            require_literal_leading_dot: false,
        };
        self.0.matches_with(text, options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_docker() {
        for (pattern, expected) in [
            ("debian", [true, false]),
            ("debian:12", [true, false]),
            ("debian:11", [false, false]),
            ("docker.io/library/debian", [true, false]),
            ("docker.io/library/debian:12", [true, false]),
            ("deb*", [true, false]),
            ("*:12", [true, false]),
            ("*", [true, false]),
            ("*/*/app", [false, true]),
            ("example.org/team/app", [false, true]),
            ("example.org/team/a?p:[0-9]", [false, true]),
        ] {
            let parsed = NamePattern::parse(pattern).unwrap();
            let fits = |repository: &str, tag: &str| {
                parsed.matches(repository) || parsed.matches(&format!("{repository}:{tag}"))
            };
            let found = [fits("debian", "12"), fits("example.org/team/app", "2")];
            assert_eq!(found, expected, "{pattern}");
        }
        assert!(NamePattern::parse("a[").is_err());
    }
}
