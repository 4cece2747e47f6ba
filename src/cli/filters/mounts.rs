//! Conditions on the rows of `unionfs ps`.

use super::Condition;

/// A condition on a mount, or on a read-write layer.
#[derive(Clone, Debug)]
pub(in crate::cli) enum MountFilter {
    /// The name of a state.
    Status(&'static str),
    Name(String),
    Image(String),
    Mountpoint(String),
}

/// The states, and what Docker and podman call two of them.
const STATES: [(&str, &str); 6] = [
    ("live", "live"),
    ("running", "live"),
    ("detached", "detached"),
    ("dead", "dead"),
    ("stopped", "stopped"),
    ("exited", "stopped"),
];

impl Condition for MountFilter {
    const KEYS: &'static [&'static [&'static str]] = &[&["status", "name", "image", "mountpoint"]];

    fn of(key: &str, value: &str) -> Option<Result<Self, String>> {
        let text = value.to_owned();
        Some(Ok(match key {
            "status" | "state" => match STATES.iter().find(|(name, _)| *name == value) {
                Some((_, state)) => Self::Status(state),
                None => return Some(Err("status is live, detached, dead or stopped".to_owned())),
            },
            "name" => Self::Name(text),
            "image" | "ancestor" => Self::Image(text),
            "mountpoint" => Self::Mountpoint(text),
            _ => return None,
        }))
    }
}
