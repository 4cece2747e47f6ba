//! Files and directories of this machine that a container shows. Each source is opened once: what is
//! shown is what was opened.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::fs::{FileType, Mode, OFlags};

use crate::cli::error::Usage;

/// A source and its place.
#[derive(Debug)]
pub(super) struct Volume {
    /// The path by which the runtime mounts it.
    pub(super) source: PathBuf,
    pub(super) target: String,
    pub(super) read_only: bool,
    pub(super) kind: FileType,
    pub(super) opened: OwnedFd,
}

/// Opens the sources.
pub(super) fn all(texts: &[String]) -> anyhow::Result<Vec<Volume>> {
    texts.iter().map(|text| one(text)).collect()
}

fn one(text: &str) -> anyhow::Result<Volume> {
    let wrong = |what: &str| Usage(format!("-v {text:?}: {what}; write SOURCE:TARGET[:ro]"));
    let mut parts = text.split(':');
    let (source, target) = (parts.next(), parts.next());
    let (Some(source), Some(target)) = (source, target) else {
        return Err(wrong("it has no target").into());
    };
    let read_only = match (parts.next(), parts.next()) {
        (None | Some("rw"), None) => false,
        (Some("ro"), None) => true,
        _ => return Err(wrong("its option is not known").into()),
    };
    let is_plain = |part: &str| !matches!(part, "." | "..");
    if !target.starts_with('/') || target == "/" || !target.split('/').all(is_plain) {
        return Err(wrong("its target is no absolute path below /").into());
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let failed = || format!("-v: cannot open {source:?}");
    let opened = rustix::fs::open(source, flags, Mode::empty()).with_context(failed)?;
    let stat = rustix::fs::fstat(&opened).with_context(failed)?;
    let found =
        Path::new("/proc/self/fd").join(std::os::fd::AsRawFd::as_raw_fd(&opened).to_string());
    let source = std::fs::read_link(found).with_context(failed)?;
    Ok(Volume {
        source,
        target: target.to_owned(),
        read_only,
        kind: FileType::from_raw_mode(stat.st_mode),
        opened,
    })
}
