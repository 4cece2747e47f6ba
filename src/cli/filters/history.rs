//! Conditions on the rows of `unionfs history`.

use std::time::SystemTime;

use super::{Condition, Presence, moment};
use crate::cli::times;
use unionfs::store::HistoryRow;

/// A condition on a build step.
#[derive(Clone, Debug)]
pub(in crate::cli) enum StepFilter {
    /// It made no layer.
    Empty(Presence),
    /// The command has this text.
    CreatedBy(String),
    /// The comment has this text.
    Comment(String),
    /// It is newer.
    Since(SystemTime),
    /// It is older.
    Until(SystemTime),
}

impl Condition for StepFilter {
    const KEYS: &'static [&'static [&'static str]] =
        &[&["created-by", "comment", "empty", "since", "until"]];

    fn of(key: &str, value: &str) -> Option<Result<Self, String>> {
        Some(match key {
            "created-by" => Ok(Self::CreatedBy(value.to_owned())),
            "comment" => Ok(Self::Comment(value.to_owned())),
            "empty" => Presence::parse(key, value).map(Self::Empty),
            "since" | "after" => moment(key, value).map(Self::Since),
            "until" | "before" => moment(key, value).map(Self::Until),
            _ => return None,
        })
    }
}

impl StepFilter {
    pub(in crate::cli) fn fits(&self, row: &HistoryRow) -> bool {
        let has = |text: &Option<String>, part: &str| {
            text.as_deref().is_some_and(|text| text.contains(part))
        };
        let created = || row.step.created.as_deref().and_then(times::parse);
        match self {
            Self::Empty(wanted) => wanted.fits(row.chain_id.is_none()),
            Self::CreatedBy(part) => has(&row.step.created_by, part),
            Self::Comment(part) => has(&row.step.comment, part),
            Self::Since(time) => created().is_some_and(|created| created > *time),
            Self::Until(time) => created().is_some_and(|created| created < *time),
        }
    }
}
