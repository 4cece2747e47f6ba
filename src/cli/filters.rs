//! `--filter KEY=VALUE` and name patterns of commands that list or remove images.

use std::time::{Duration, SystemTime};

use glob::{MatchOptions, Pattern};

use super::error::Usage;
use super::times;
use unionfs::oci::Reference;
use unionfs::store::{Image, Listing, Name};

/// A condition on images.
#[derive(Clone, Debug)]
pub(super) enum Filter {
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

/// Whether something must be or must not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    Present,
    Absent,
}

/// The keys, for messages.
const KEYS: &str = "reference, label, label!, before, since, until, dangling, store";

impl Filter {
    /// Parses a filter.
    ///
    /// # Errors
    /// A message for an unknown key or a wrong value.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| format!("write KEY=VALUE; keys are {KEYS}"))?;
        Ok(match key {
            "reference" => Self::Reference(NamePattern::parse(value)?),
            "label" => Self::label(value, Presence::Present),
            "label!" => Self::label(value, Presence::Absent),
            "before" => Self::Before(value.to_owned()),
            "since" | "after" => Self::Since(value.to_owned()),
            "until" => Self::Until(moment(value)?),
            "dangling" => Self::Dangling(match value {
                "true" | "1" => Presence::Present,
                "false" | "0" => Presence::Absent,
                _ => return Err("dangling is true or false".to_owned()),
            }),
            "store" => Self::Store(value.to_owned()),
            _ => return Err(format!("unknown key; keys are {KEYS}")),
        })
    }

    /// As [`Filter::parse`], for commands that know times and labels only.
    pub(super) fn parse_for_prune(text: &str) -> Result<Self, String> {
        match Self::parse(text)? {
            filter @ (Self::Until(_) | Self::Label { .. }) => Ok(filter),
            _ => Err("prune has the keys until, label and label!".to_owned()),
        }
    }

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
    pub(super) fn resolve(&self, listing: &Listing) -> Result<Resolved<'_>, Usage> {
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
pub(super) enum Resolved<'f> {
    Before(SystemTime),
    After(SystemTime),
    Other(&'f Filter),
}

impl Resolved<'_> {
    /// Whether an image fits. Names are chosen by [`Resolved::fits_name`].
    pub(super) fn fits(&self, image: &Image) -> bool {
        let created = || image.config.created.as_deref().and_then(times::parse);
        match self {
            Self::Before(time) => created().is_some_and(|created| created < *time),
            Self::After(time) => created().is_some_and(|created| created > *time),
            Self::Other(Filter::Label { name, value, has }) => {
                let labels = image.config.config.as_ref().and_then(|c| c.get("Labels"));
                let found = labels.and_then(|labels| labels.get(name)?.as_str());
                let fits = found.is_some_and(|found| value.as_ref().is_none_or(|v| v == found));
                fits == (*has == Presence::Present)
            }
            Self::Other(Filter::Dangling(wanted)) => {
                image.names.is_empty() == (*wanted == Presence::Present)
            }
            Self::Other(Filter::Store(store)) => {
                image.engine == store || image.root.to_str() == Some(store)
            }
            Self::Other(Filter::Reference(pattern)) => {
                image.names.iter().any(|name| pattern.fits(name))
            }
            // They were resolved.
            Self::Other(Filter::Before(_) | Filter::Since(_) | Filter::Until(_)) => true,
        }
    }

    /// Whether a name of an image that fits is shown.
    pub(super) fn fits_name(&self, name: &Name) -> bool {
        match self {
            Self::Other(Filter::Reference(pattern)) => pattern.fits(name),
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

/// Parses a moment: a duration before now (`24h`, `7d`), a day, or RFC 3339.
fn moment(text: &str) -> Result<SystemTime, String> {
    let wrong =
        || "until is a duration (24h, 7days), a day (2026-01-31) or a time of RFC 3339".to_owned();
    if let Ok(before) = humantime::parse_duration(text) {
        return SystemTime::now().checked_sub(before).ok_or_else(wrong);
    }
    if let Ok(seconds) = text.parse::<u64>() {
        let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        return time.ok_or_else(wrong);
    }
    let day = || times::parse(&format!("{text}T00:00:00Z"));
    times::parse(text).or_else(day).ok_or_else(wrong)
}

/// A pattern of names: `debian`, `debian:12`, `deb*`, `*/team/app:2?`.
#[derive(Clone, Debug)]
pub(super) struct NamePattern(Pattern);

impl NamePattern {
    /// Parses a pattern. A plain name may be written in its long form (docker.io/library/debian).
    pub(super) fn parse(text: &str) -> Result<Self, String> {
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

    #[test]
    fn filters_are_checked() {
        for text in [
            "label=a=b",
            "until=24h",
            "until=2026-01-31",
            "dangling=true",
            "store=docker",
        ] {
            assert!(Filter::parse(text).is_ok(), "{text}");
        }
        for text in [
            "label",
            "colour=red",
            "dangling=maybe",
            "until=x",
            "until=99999999999999y",
        ] {
            assert!(Filter::parse(text).is_err(), "{text}");
        }
        assert!(Filter::parse_for_prune("until=24h").is_ok());
        assert!(Filter::parse_for_prune("store=docker").is_err());
    }
}
