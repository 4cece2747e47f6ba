//! `--filter KEY=VALUE` of commands that list or remove something.
//!
//! Each command has a type of conditions on its rows, which says its keys ([`Condition`]). All
//! conditions must hold. A row that does not have what a key asks for does not fit.

mod df;
mod history;
mod images;
mod layers;
mod mounts;

use std::time::{Duration, SystemTime};

pub(super) use df::{DfFilter, Kind};
pub(super) use history::StepFilter;
pub(super) use images::{ForPrune, ImageFilter, NamePattern, Resolved};
pub(super) use layers::{FittingLayers, LayerFilter};
pub(super) use mounts::MountFilter;

use super::times;

/// A condition of `--filter` of one command.
pub(super) trait Condition: Sized {
    /// The keys, for messages, in groups.
    const KEYS: &'static [&'static [&'static str]];

    /// Returns the condition of a key. `None`: the command does not have the key.
    fn of(key: &str, value: &str) -> Option<Result<Self, String>>;

    /// Parses `KEY=VALUE`.
    ///
    /// # Errors
    /// A message for an unknown key or a wrong value. It lists the keys of the command.
    fn parse(text: &str) -> Result<Self, String> {
        let known = || Self::KEYS.concat().join(", ");
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| format!("write KEY=VALUE; keys are {}", known()))?;
        Self::of(key, value)
            .unwrap_or_else(|| Err(format!("there is no key {key:?}; keys are {}", known())))
    }
}

/// Whether something must be or must not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    Present,
    Absent,
}

impl Presence {
    /// Parses the value of a key that asks for true or false.
    fn parse(key: &str, value: &str) -> Result<Self, String> {
        match value {
            "true" | "1" => Ok(Self::Present),
            "false" | "0" => Ok(Self::Absent),
            _ => Err(format!("{key} is true or false")),
        }
    }

    /// Whether it is as it must be.
    fn fits(self, is_there: bool) -> bool {
        is_there == (self == Self::Present)
    }
}

/// Parses a moment: a duration before now (`24h`, `7d`), a day, or RFC 3339.
fn moment(key: &str, text: &str) -> Result<SystemTime, String> {
    let wrong =
        || format!("{key} is a duration (24h, 7days), a day (2026-01-31) or a time of RFC 3339");
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

#[cfg(test)]
mod tests {
    use super::*;

    fn check<C: Condition>(good: &[&str], bad: &[&str]) {
        for text in good {
            assert!(C::parse(text).is_ok(), "{text}");
        }
        for text in bad {
            assert!(C::parse(text).is_err(), "{text}");
        }
        // Each key that a message names exists.
        for key in C::KEYS.concat() {
            assert!(C::of(key, "x").is_some(), "{key}");
        }
        let Err(message) = C::parse("colour=red") else {
            panic!("colour is no key");
        };
        assert!(message.contains(C::KEYS[0][0]), "{message}");
    }

    #[test]
    fn filters_are_checked() {
        check::<ImageFilter>(
            &[
                "label=a=b",
                "until=24h",
                "until=2026-01-31",
                "dangling=true",
                "store=docker",
            ],
            &[
                "label",
                "dangling=maybe",
                "until=x",
                "until=99999999999999y",
                "reference=a[",
            ],
        );
        check::<ForPrune>(&["until=24h", "label!=a"], &["store=docker", "until=x"]);
        check::<DfFilter>(
            &["kind=image", "kind=changes", "name=web", "label=a"],
            &["kind=x", "dangling=maybe"],
        );
        check::<LayerFilter>(
            &[
                "shared=true",
                "dangling=false",
                "store=docker",
                "reference=a",
            ],
            &["shared=x", "reference=a["],
        );
        check::<StepFilter>(
            &["empty=true", "since=24h", "created-by=RUN"],
            &["empty=x", "until=x"],
        );
        check::<MountFilter>(
            &["status=running", "name=web"],
            &["status", "status=flying"],
        );
    }
}
