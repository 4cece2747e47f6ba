//! The failures of commands: one line on stderr and an exit code.

use std::fmt;

use super::output::one_line;
use super::path_hints;
use unionfs::{fuse, store};

/// The exit code of a command that failed.
pub(super) const FAILURE: u8 = 1;
/// The exit code of a wrong command line.
pub(super) const USAGE: u8 = 2;
/// The exit code if a mount does not answer in time.
pub(super) const SILENT: u8 = 3;

/// A wrong command line: exit code 2.
#[derive(Debug)]
pub(super) struct Usage(pub(super) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

impl From<super::options::OptionError> for Usage {
    fn from(e: super::options::OptionError) -> Self {
        Self(e.message)
    }
}

/// A failure of another process, with its message.
#[derive(Debug)]
pub(super) struct Relayed {
    pub(super) message: String,
    pub(super) code: u8,
}

impl fmt::Display for Relayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Relayed {}

/// An image that containerd has pulled but not unpacked. Another process has found it.
#[derive(Debug)]
pub(super) struct NotUnpacked(pub(super) Relayed);

impl fmt::Display for NotUnpacked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for NotUnpacked {}

/// As [`NotUnpacked`], that no image has a name.
#[derive(Debug)]
pub(super) struct UnknownImage(pub(super) Relayed);

impl fmt::Display for UnknownImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for UnknownImage {}

/// Whether the error is that no image has a name.
pub(super) fn is_unknown_image(error: &anyhow::Error) -> bool {
    let of_store = error.downcast_ref::<store::Error>();
    matches!(
        of_store,
        Some(store::Error::UnknownImage { .. } | store::Error::NoRepositories { .. })
    ) || error.is::<UnknownImage>()
}

/// Whether the error is that an image is not unpacked.
pub(super) fn is_not_unpacked(error: &anyhow::Error) -> bool {
    let of_store = error.downcast_ref::<store::Error>();
    matches!(of_store, Some(store::Error::NotUnpacked { .. })) || error.is::<NotUnpacked>()
}

/// Returns the exit code for `error`.
pub(super) fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(relayed) = error.downcast_ref::<Relayed>() {
        return relayed.code;
    }
    let silent = matches!(error.downcast_ref(), Some(fuse::Error::Silent { .. }));
    match error.downcast_ref::<Usage>() {
        Some(_) => USAGE,
        None if silent => SILENT,
        None => FAILURE,
    }
}

/// Returns the exit code of mount(8) for `error`: 1 for wrong usage, 32 for a failed mount.
pub(super) fn exit_code_of_mount(error: &anyhow::Error) -> u8 {
    match exit_code(error) {
        USAGE => 1,
        _ => 32,
    }
}

/// The maximum number of characters of a message. Names in it may be hostile and megabytes long.
const LONGEST: usize = 4000;

/// Formats the whole chain of causes in one line of bounded length. A cause is left out if the
/// message before it quotes it already.
pub(super) fn line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    if let Some((end, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(end);
        text.push('…');
    }
    if let Some(hint) = path_hints::note(&text) {
        text = format!("{text}; {hint}");
    }
    one_line(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn one_line_with_every_cause_once() {
        let e = Err::<(), _>(anyhow!("disk full")).context("cannot write x: disk full; free some");
        assert_eq!(
            line(&e.unwrap_err()),
            "cannot write x: disk full; free some"
        );
        let e = Err::<(), _>(anyhow!("no such file\nor so"))
            .context("cannot open x: no such file\nor so")
            .context("cannot mount")
            .unwrap_err();
        assert_eq!(
            line(&e),
            "cannot mount: cannot open x: no such file\u{fffd}or so"
        );
        assert_eq!(exit_code(&e), FAILURE);
        assert_eq!(exit_code(&Usage("x".into()).into()), USAGE);
        let long = anyhow!("ä\n".repeat(10_000));
        assert_eq!(line(&long).chars().count(), LONGEST + 1);
        let relayed = Relayed {
            message: String::new(),
            code: 7,
        };
        assert_eq!(exit_code(&anyhow::Error::from(relayed).context("y")), 7);
    }
}
