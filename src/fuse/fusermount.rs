//! The setuid helper fusermount3, which mounts and unmounts for plain users.
//!
//! Protocol (libfuse, util/fusermount.c): the environment variable `_FUSE_COMMFD` names an
//! inherited Unix socket; the helper mounts and sends one byte with the open /dev/fuse in
//! SCM_RIGHTS. On failure it closes the socket without a message and explains on stderr.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::config::{self, MountConfig};
use super::error::{Error, Result};
use crate::sys::passing;

/// Finds fusermount3, or its predecessor, in PATH or the usual places.
pub(super) fn find_helper() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = std::env::split_paths(&path)
        .chain(["/usr/bin", "/bin"].map(PathBuf::from))
        .collect();
    ["fusermount3", "fusermount"]
        .iter()
        .flat_map(|name| dirs.iter().map(move |dir| dir.join(name)))
        .find(|file| {
            file.is_absolute() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
        })
}

/// Mounts through the helper. The returned descriptor is the connection.
pub(super) fn mount(config: &MountConfig, mountpoint: &Path) -> Result<OwnedFd> {
    let helper = find_helper().ok_or_else(|| Error::NoFusermount {
        path: mountpoint.to_owned(),
    })?;
    let failed = |text: String| Error::Fusermount {
        path: mountpoint.to_owned(),
        text,
    };
    let (ours, theirs) = UnixStream::pair().map_err(|e| failed(e.to_string()))?;
    // The helper inherits the socket as its stdin, so no other descriptor loses CLOEXEC. The
    // command is a temporary value: it holds the other end, which must be closed before this
    // process waits.
    let child = Command::new(&helper)
        .arg("-o")
        .arg(options(config))
        .arg("--")
        .arg(mountpoint)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(format!("{}: {e}", helper.display())))?;
    let received = passing::receive(&ours);
    let output = child
        .wait_with_output()
        .map_err(|e| failed(e.to_string()))?;
    match received {
        Ok(Some(fd)) => Ok(fd),
        Ok(None) => Err(failed(message(&output.stderr))),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Returns the output of the helper as one line.
pub(super) fn message(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    if lines.is_empty() {
        "fusermount3 failed without a message".into()
    } else {
        lines.join("; ")
    }
}

fn options(config: &MountConfig) -> OsString {
    let mut out = b"subtype=unionfs,".to_vec();
    if config.is_checked() {
        out.extend_from_slice(b"default_permissions,");
    }
    out.extend_from_slice(b"fsname=");
    for &byte in config.fsname.as_bytes() {
        if matches!(byte, b',' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    if config.allow_other {
        out.extend_from_slice(b",allow_other");
    }
    for name in config::flag_names(config.flags) {
        out.push(b',');
        out.extend_from_slice(name.as_bytes());
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mount::MountFlags;

    #[test]
    fn options_escape_the_source() {
        let mut config = MountConfig::new("/mnt");
        config.fsname = "a,b\\c".into();
        config.allow_other = false;
        config.flags = MountFlags::RDONLY | MountFlags::NOEXEC;
        assert_eq!(
            options(&config),
            r"subtype=unionfs,default_permissions,fsname=a\,b\\c,ro,noexec"
        );
    }

    #[test]
    fn messages_become_one_line() {
        assert_eq!(message(b"fusermount3: a\n\n b\n"), "fusermount3: a; b");
        assert!(!message(b"").is_empty());
    }
}
