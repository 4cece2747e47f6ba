//! Starts the container by an OCI runtime or by bubblewrap, passes signals on, and waits.

use std::io::{IsTerminal as _, Read as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use super::directory::Bundle;
use super::own_terminal::OwnTerminal;
use super::recorder::{self, Recorder, Source, Users};
use super::seccomp::{self, OfOtherUsers};
use super::watched_calls::Watched;
use super::{Container, NOT_STARTED, Rights, Terminal, bubblewrap, program, spec};
use unionfs::sys::notify;

/// The program that starts containers.
pub(super) enum Runtime {
    Oci { program: PathBuf, is_crun: bool },
    Bubblewrap(PathBuf),
}

/// Returns the runtimes, in the order in which they are searched. crun refuses a machine with both
/// versions of cgroups.
fn known() -> [&'static str; 3] {
    if Path::new("/sys/fs/cgroup/unified").exists() {
        ["runc", "bwrap", "crun"]
    } else {
        ["crun", "runc", "bwrap"]
    }
}

/// Takes the signals that are passed on, from now on.
pub(super) fn signals() -> anyhow::Result<Signals> {
    let all = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM];
    Signals::new(all).context("cannot watch for signals")
}

impl Runtime {
    /// Finds the program.
    pub(super) fn choose(asked: Option<&Path>) -> anyhow::Result<Self> {
        let found = match asked {
            Some(path) if path.components().count() > 1 => Some(std::path::absolute(path)?),
            Some(name) => name.to_str().and_then(program),
            None => known().iter().find_map(|name| program(name)),
        };
        let missing = match asked {
            Some(name) => format!("there is no runtime {name:?}: install it, or name another one"),
            None => "neither crun, runc nor bwrap is installed: install one, or name another one \
                     with --runtime"
                .to_owned(),
        };
        let program = found.filter(|file| file.is_file()).context(missing)?;
        if name_is(&program, "bwrap") {
            return Ok(Self::Bubblewrap(program));
        }
        let is_crun = name_is(&program, "crun");
        Ok(Self::Oci { program, is_crun })
    }

    /// Runs the container; returns its exit code.
    pub(super) fn run(
        &self,
        container: &Container,
        rights: Rights,
        bundle: &Bundle,
        signals: Signals,
    ) -> anyhow::Result<u8> {
        match self {
            Self::Oci { program, is_crun } => {
                if name_is(program, "runc") && rights != Rights::Root && container.wanted.uid != 0 {
                    bail!(
                        "runc cannot run as another user of the image than root without root: \
                         install crun or bwrap, or give -u 0"
                    );
                }
                let mut recording = recording(container, rights)?;
                let mut socket = None;
                if let Some((_, watched)) = recording {
                    match recorder::socket(bundle.path()) {
                        Ok(made) => socket = Some(made),
                        Err(error) => {
                            not_recorded(watched, error)?;
                            recording = None;
                        }
                    }
                }
                let others = of_others(container, rights, recording);
                let listener = socket.as_ref().map(|(_, path)| path.as_path());
                let rootfs = bundle.rootfs();
                let mut spec = spec::of(container, rights, &rootfs, others, listener);
                if rights != Rights::Root && container.has_limits() {
                    let cgroup = container.delegated_cgroup(name_of(bundle)?)?;
                    spec["linux"]["cgroupsPath"] = cgroup.to_str().into();
                }
                bundle.write_config(&spec)?;
                let source = socket.map(|(socket, _)| Source::Runtime(socket));
                let recorder = start_recorder(recording, source, &rootfs)?;
                let pid_file = bundle.path().join("pid");
                let mut command = Command::new(program);
                command.arg("--root").arg(bundle.path().join("state"));
                if *is_crun && !container.has_limits() {
                    command.arg("--cgroup-manager=disabled");
                }
                command.arg("run").arg("--bundle").arg(bundle.path());
                command.arg("--pid-file").arg(&pid_file);
                command.arg(name_of(bundle)?);
                let child = start(&mut command)?;
                let target = Pid::from_child(&child);
                let status = wait(child, target, signals);
                if let Some(recorder) = recorder {
                    recorder.stop();
                }
                let status = status?;
                if pid_file.exists() {
                    Ok(code(status))
                } else {
                    // The runtime has said why.
                    Ok(NOT_STARTED)
                }
            }
            Self::Bubblewrap(program) => {
                let (read, write) = rustix::pipe::pipe()?;
                let mut command = Command::new(program);
                let mut recording = recording(container, rights)?;
                if let (Some((_, watched)), true) = (recording, bubblewrap::is_set_id(program)) {
                    not_recorded(
                        watched,
                        "bwrap has more rights than its caller (set-user-ID)",
                    )?;
                    recording = None;
                }
                let filter = bubblewrap::filter(of_others(container, rights, recording))?;
                let filter = filter.as_ref();
                bubblewrap::arguments(&mut command, container, rights, bundle, &write, filter)?;
                let terminal = match container.terminal {
                    Terminal::None => None,
                    Terminal::Given => {
                        let end = unionfs::sys::terminal::give(&mut command);
                        Some(end.context("cannot make a terminal")?)
                    }
                };
                let watched = recording.map(|(_, watched)| seccomp::watching(watched));
                let source = watched.map(|answers| notify::watch(&mut command, &answers));
                let source = source.transpose().context("cannot record owners")?;
                let source = source.map(Source::Program);
                let recorder = start_recorder(recording, source, &bundle.rootfs())?;
                let child = start(&mut command)?;
                // What it was given is closed here.
                drop(command);
                drop(write);
                let terminal = terminal.map(OwnTerminal::connect).transpose()?;
                let mut about = String::new();
                std::fs::File::from(read)
                    .take(4096)
                    .read_to_string(&mut about)
                    .context("cannot hear from bwrap")?;
                let about: serde_json::Value = serde_json::from_str(&about).unwrap_or_default();
                let pid = about["child-pid"].as_i64();
                let pid = pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
                let target = pid.unwrap_or(Pid::from_child(&child));
                let status = wait(child, target, signals);
                if let Some(recorder) = recorder {
                    recorder.stop();
                }
                let status = status?;
                drop(terminal);
                Ok(match pid {
                    Some(_) => code(status),
                    None => NOT_STARTED,
                })
            }
        }
    }
}

/// Returns whose owners are recorded, and which calls that needs, if this machine can do it.
///
/// # Errors
/// If it cannot, and they were to be shown.
fn recording(container: &Container, rights: Rights) -> anyhow::Result<Option<(Users, Watched)>> {
    let Some((users, watched)) = container.recorded_users(rights) else {
        return Ok(None);
    };
    match recorder::obstacle(watched) {
        None => Ok(Some((users, watched))),
        Some(why) => not_recorded(watched, why).map(|()| None),
    }
}

/// Says once that owners are not recorded.
///
/// # Errors
/// If they were to be shown.
fn not_recorded(watched: Watched, why: impl std::fmt::Display) -> anyhow::Result<()> {
    match watched {
        Watched::Changes => {
            crate::cli::warn(format_args!(
                "owners that root of the container gives are not recorded: {why}"
            ));
            Ok(())
        }
        Watched::ChangesAndQuestions => bail!("--other-users=show is not possible here: {why}"),
    }
}

fn of_others(
    container: &Container,
    rights: Rights,
    recording: Option<(Users, Watched)>,
) -> OfOtherUsers {
    match recording {
        Some((_, watched)) => OfOtherUsers::Recorded(watched),
        None => container.without_records(rights),
    }
}

fn start_recorder(
    recording: Option<(Users, Watched)>,
    source: Option<Source>,
    rootfs: &Path,
) -> anyhow::Result<Option<Recorder>> {
    match (recording, source) {
        (Some((users, watched)), Some(source)) => {
            Recorder::start(source, rootfs, users, watched).map(Some)
        }
        _ => Ok(None),
    }
}

fn name_is(program: &Path, name: &str) -> bool {
    program.file_name().is_some_and(|file| file == name)
}

/// Returns the name of the container: that of its directory, which no other one has.
fn name_of(bundle: &Bundle) -> anyhow::Result<&str> {
    let name = bundle.path().file_name().and_then(std::ffi::OsStr::to_str);
    match name {
        Some(name) => Ok(name),
        None => bail!("{:?} has no name for a container", bundle.path()),
    }
}

fn start(command: &mut Command) -> anyhow::Result<Child> {
    let child = command.spawn();
    child.with_context(|| format!("cannot start {:?}", command.get_program()))
}

/// Passes signals on until the process ends.
fn wait(mut child: Child, target: Pid, mut signals: Signals) -> anyhow::Result<ExitStatus> {
    // The terminal sends its signals to the runtime itself, which is in the same process group.
    let by_terminal = std::io::stdin().is_terminal();
    let handle = signals.handle();
    let passing = std::thread::spawn(move || {
        for signal in signals.forever() {
            if by_terminal && matches!(signal, SIGINT | SIGQUIT) {
                continue;
            }
            if let Some(signal) = Signal::from_named_raw(signal) {
                let _ = kill_process(target, signal);
            }
        }
    });
    let status = child.wait();
    handle.close();
    let _ = passing.join();
    status.context("cannot wait for the container")
}

/// Returns the exit code of a process, as a shell has it.
fn code(status: ExitStatus) -> u8 {
    let signalled = || status.signal().map(|signal| 128 + signal);
    let code = status.code().or_else(signalled);
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(NOT_STARTED)
}
