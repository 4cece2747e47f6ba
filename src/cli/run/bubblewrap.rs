//! The arguments for bubblewrap, where no OCI runtime is installed.
//!
//! bubblewrap keeps one user: for a plain user the user of the image, for root root. It gives the
//! command no capability, no new privileges and no further user namespace, and the same filter of
//! system calls as an OCI runtime. It cannot give calls to a listener; a filter that it is started with
//! does that, also for the command.

use std::io::{Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use rustix::io::FdFlags;

use super::directory::Bundle;
use super::seccomp::OfOtherUsers;
use super::{Container, Network, Rights, Terminal, apt, seccomp, spec};

/// Adds the arguments. bwrap writes to `about` what it has started.
pub(super) fn arguments(
    command: &mut Command,
    container: &Container,
    rights: Rights,
    bundle: &Bundle,
    about: &OwnedFd,
    filter: Option<&OwnedFd>,
) -> anyhow::Result<()> {
    if container.has_limits() {
        bail!("bwrap cannot limit memory, processes and processors: install crun or runc");
    }
    let rootfs = bundle.rootfs();
    let wanted = &container.wanted;
    command.args([
        "--unshare-pid",
        "--unshare-ipc",
        "--unshare-uts",
        "--as-pid-1",
    ]);
    command.args(["--cap-drop", "ALL", "--die-with-parent", "--clearenv"]);
    match rights {
        Rights::Root if wanted.uid != 0 => {
            bail!("bwrap cannot run as another user of the image: install crun or runc");
        }
        Rights::Root => {}
        Rights::User { .. } => {
            command.args(["--unshare-user", "--disable-userns"]);
            command.args(["--uid", &wanted.uid.to_string()]);
            command.args(["--gid", &wanted.gid.to_string()]);
        }
    }
    if container.network == Network::None {
        command.arg("--unshare-net");
    }
    if container.terminal == Terminal::None {
        // The command could write to the terminal of the user, as if the user typed it.
        command.arg("--new-session");
    }
    command.args(["--hostname", &container.hostname]);
    command.arg("--bind").arg(&rootfs).arg("/");
    command.args(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/dev/shm"]);
    command.args(["--ro-bind", "/sys", "/sys"]);
    for file in spec::READ_ONLY {
        command.args(["--ro-bind-try", file, file]);
    }
    for place in spec::MASKED {
        match std::fs::symlink_metadata(place) {
            Ok(found) if found.is_dir() => command.args(["--tmpfs", place]),
            Ok(_) => command.args(["--ro-bind", "/dev/null", place]),
            Err(_) => command,
        };
    }
    if container.network == Network::Host {
        for file in spec::OF_NETWORK {
            if spec::is_file_in(&rootfs, file) {
                command.args(["--ro-bind-try", file, file]);
            }
        }
    }
    if container.tells_apt {
        command.arg("--ro-bind").arg(bundle.path().join(apt::FILE));
        command.arg(apt::PLACE);
    }
    for volume in &container.volumes {
        let how = if volume.read_only {
            "--ro-bind"
        } else {
            "--bind"
        };
        command.arg(how).arg(&volume.source).arg(&volume.target);
    }
    if container.read_only {
        command.args(["--remount-ro", "/"]);
    }
    for line in &container.settings.environment {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        command.args(["--setenv", name, value]);
    }
    command.args(["--chdir", &container.settings.directory]);
    match filter {
        Some(filter) => {
            rustix::io::fcntl_setfd(filter, FdFlags::empty())?;
            command.args(["--seccomp", &filter.as_raw_fd().to_string()]);
        }
        None => crate::cli::warn("bwrap gets no filter of system calls on this architecture"),
    }
    rustix::io::fcntl_setfd(about, FdFlags::empty())?;
    command.args(["--info-fd", &about.as_raw_fd().to_string(), "--"]);
    command.args(&container.settings.arguments);
    Ok(())
}

/// Whether the program runs with the rights of its owner, which it does not get behind a filter of its
/// caller.
pub(super) fn is_set_id(program: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    program
        .metadata()
        .is_ok_and(|file| file.mode() & 0o4000 != 0)
}

/// Returns the filter of system calls in a file without a name, from its beginning.
pub(super) fn filter(others: OfOtherUsers) -> anyhow::Result<Option<OwnedFd>> {
    let Some(program) = seccomp::program(others) else {
        return Ok(None);
    };
    let mut file = tempfile::tempfile().context("cannot make a file for the filter")?;
    file.write_all(&program)?;
    file.rewind()?;
    Ok(Some(file.into()))
}
