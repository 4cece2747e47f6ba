//! `unionfs run` runs a command in an image, and `unionfs bundle` writes the OCI bundle for other
//! programs.
//!
//! ```text
//!  inspect ─► id, settings of the image      (process in a sandbox)
//!  mount   ─► DIR/rootfs                     (its daemon has a sandbox)
//!  look_up ─► user, command in the rootfs    (process in a sandbox)
//!  spec    ─► DIR/config.json ─► crun, runc  or arguments ─► bwrap
//!  wait    ─► umount, remove DIR, exit with the status of the command
//! ```
//! DIR is private to the user. The settings of the image give the command, its environment, user and
//! directory, and nothing else: mounts, namespaces, capabilities and filters are ours.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::candidates;
use super::command_sandbox::SandboxArgs;
use super::error::{Relayed, Usage};
use super::output::print;
use directory::Bundle;
use image::{ImageToRun, Own};
use look_up::{Executable, Wanted};
use runtime::Runtime;
use seccomp::OfOtherUsers;
use settings::Settings;
use volume::Volume;
use watched_calls::Watched;

mod apt;
mod bubblewrap;
mod callers_path;
mod directory;
mod image;
mod limits;
mod look_up;
mod old_calls;
mod own_terminal;
mod recorder;
mod runtime;
mod seccomp;
mod settings;
mod spec;
mod volume;
mod watched_calls;

/// The exit code if the container could not be started.
const NOT_STARTED: u8 = 125;
/// The exit code if the command cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// The exit code if there is no such command.
const NOT_FOUND: u8 = 127;

/// Run a command in an image
///
/// The image is mounted, a process is started in namespaces of its own (mount, pid, ipc, uts, for
/// plain users also user), and everything is removed when it ends. crun or runc starts it, else
/// bwrap. No daemon and no engine is needed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs run debian:12 cat /etc/os-release
  unionfs run -it debian:12 bash
  unionfs run --name work -v $PWD:/src -w /src debian:12 make
  unionfs diff work
  unionfs commit work myapp:3

IMAGE may be a read-write layer of mount --name or run --name; the command then goes on with its
files. Without --name, changes are discarded. A plain user is root inside, or the user of the image,
and has no other users there. If root changes owners, they are recorded for commit. If root becomes
another user, nothing happens, and the program is told that it worked, so that dpkg, apt, rpm and tar
work (apt is told to stay root); see --other-users.

Exit codes: that of the command, 128 and the number of the signal that killed it, 125 if nothing could
be started, 126 if the command cannot be executed, 127 if there is none, 2 wrong usage.")]
pub(super) struct Args {
    /// The image (name, ID or ID prefix) or a read-write layer; the command and its arguments
    /// [default: those of the image]
    #[arg(
        value_name = "IMAGE [COMMAND]",
        add = candidates::trees(),
        num_args = 1..,
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    operands: Vec<String>,
    #[command(flatten)]
    container: ContainerArgs,
    /// Discard the changes at the end; the default without --name
    #[arg(long, conflicts_with = "name")]
    rm: bool,
    /// Keep the standard input open (it is always kept open)
    #[arg(long, short = 'i')]
    interactive: bool,
    /// Give the command a terminal
    #[arg(long, short = 't')]
    tty: bool,
    /// The program that starts the container: crun, runc, bwrap, or the path of an OCI runtime
    #[arg(long, value_name = "PROGRAM")]
    runtime: Option<PathBuf>,
}

/// Write an OCI bundle of an image
///
/// DIR gets config.json, and the mounted image in rootfs. OCI runtimes can run it. Remove the mount
/// with unionfs umount DIR/rootfs.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs bundle myapp:2 bundle
  unionfs bundle myapp:2 bundle2 /bin/sh -c 'id'
  crun run --bundle bundle myapp
  unionfs umount bundle/rootfs")]
pub(super) struct BundleArgs {
    /// The image (name, ID or ID prefix) or a read-write layer; the directory, a new or an empty
    /// one; the command and its arguments [default: those of the image]
    #[arg(
        value_name = "IMAGE DIR [COMMAND]",
        add = candidates::image_and_directory(),
        num_args = 2..,
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    operands: Vec<String>,
    #[command(flatten)]
    container: ContainerArgs,
    /// Give the command a terminal
    #[arg(long, short = 't')]
    tty: bool,
}

/// The container.
#[derive(Debug, clap::Args)]
struct ContainerArgs {
    /// Keep changes in the read-write layer NAME; it is created if it does not exist
    #[arg(long, value_name = "NAME", conflicts_with = "read_only")]
    name: Option<String>,
    /// Set an environment variable; without a value, that of this process
    #[arg(long, short = 'e', value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// The working directory
    #[arg(long, short = 'w', value_name = "DIR")]
    workdir: Option<String>,
    /// The user, by name or ID, and the group
    #[arg(long, short = 'u', value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// The program to run instead of the image's entrypoint; empty for none
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Show a file or directory of this machine in the container
    #[arg(long, short = 'v', value_name = "SOURCE:TARGET[:ro]")]
    volume: Vec<String>,
    /// The root file system cannot be changed
    #[arg(long)]
    read_only: bool,
    /// The name of the machine inside
    #[arg(long, value_name = "NAME", default_value = "unionfs")]
    hostname: String,
    /// The network: that of this machine, or none
    #[arg(long, value_enum, default_value = "host")]
    net: Network,
    /// What a plain user's container does if a program changes owners or becomes another user, which
    /// package managers do: record the owners for commit and pretend the rest; show the recorded
    /// owners too; pretend that all of it worked; or refuse
    #[arg(long, value_enum, default_value = "record")]
    other_users: OtherUsers,
    /// Limit the memory, in bytes or as 512m or 2g (needs a cgroup that this user may change)
    #[arg(long, value_name = "BYTES", value_parser = limits::memory)]
    memory: Option<i64>,
    /// Limit the number of processes (needs a cgroup)
    #[arg(long, value_name = "NUMBER", value_parser = limits::processes)]
    pids_limit: Option<i64>,
    /// Limit the processors, such as 1.5 (needs a cgroup)
    #[arg(long, value_name = "NUMBER", value_parser = limits::processors)]
    cpus: Option<f64>,
}

/// What happens where a program gives a file to another user, or becomes another user, and the
/// container has only one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum OtherUsers {
    /// Owners of files are recorded; the other calls succeed and change nothing
    Record,
    /// As record, and programs see the recorded owners, at the cost of slower calls of stat
    Show,
    /// The calls succeed and change nothing
    Pretend,
    /// The calls fail
    Refuse,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Network {
    Host,
    None,
}

/// What is run.
struct Program<'a> {
    image: &'a str,
    /// The command that was given, and its arguments.
    command: &'a [String],
}

/// Returns the first operand, which is no option, and those behind it.
fn first(operands: &[String]) -> Result<(&str, &[String]), Usage> {
    match operands.split_first() {
        Some((first, others)) if !first.starts_with('-') => Ok((first, others)),
        Some((option, _)) => Err(Usage(format!("unknown option {option}"))),
        None => Err(Usage("no image is given".into())),
    }
}

/// Whether the command has a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Terminal {
    Given,
    None,
}

impl Terminal {
    fn of(tty: bool) -> Self {
        if tty { Self::Given } else { Self::None }
    }
}

/// The rights with which the container is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rights {
    Root,
    /// A plain user, who needs a user namespace.
    User {
        uid: u32,
        gid: u32,
    },
}

impl Rights {
    fn current() -> Self {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        if uid.is_root() {
            return Self::Root;
        }
        Self::User {
            uid: uid.as_raw(),
            gid: gid.as_raw(),
        }
    }
}

/// All that is known of the container before it is started.
struct Container {
    settings: Settings,
    wanted: Wanted,
    hostname: String,
    network: Network,
    terminal: Terminal,
    read_only: bool,
    volumes: Vec<Volume>,
    memory: Option<i64>,
    pids: Option<i64>,
    cpus: Option<f64>,
    other_users: OtherUsers,
    /// Whether apt is told that there is no other user.
    tells_apt: bool,
}

impl Container {
    /// Returns what happens to calls that concern other users where nobody records owners. Only root
    /// of the container uses them.
    fn without_records(&self, rights: Rights) -> OfOtherUsers {
        let pretends = self.other_users != OtherUsers::Refuse;
        if rights != Rights::Root && pretends && self.wanted.uid == 0 {
            OfOtherUsers::Pretended
        } else {
            OfOtherUsers::Kernel
        }
    }

    /// Returns the users of a container whose owners are to be recorded, and which calls that needs.
    fn recorded_users(&self, rights: Rights) -> Option<(recorder::Users, Watched)> {
        let watched = match self.other_users {
            OtherUsers::Record => Watched::Changes,
            OtherUsers::Show => Watched::ChangesAndQuestions,
            OtherUsers::Pretend | OtherUsers::Refuse => return None,
        };
        let Rights::User { uid, gid } = rights else {
            return None;
        };
        let users = recorder::Users {
            inside: (self.wanted.uid, self.wanted.gid),
            outside: (uid, gid),
        };
        (self.wanted.uid == 0).then_some((users, watched))
    }

    fn has_limits(&self) -> bool {
        self.memory.is_some() || self.pids.is_some() || self.cpus.is_some()
    }
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let terminal = Terminal::of(args.tty);
    if terminal == Terminal::Given && !std::io::stdin().is_terminal() {
        return Err(Usage("-t: the standard input is no terminal".into()).into());
    }
    let code = not_started(run_in(args, terminal, root))?;
    std::process::exit(code.into());
}

/// Gives failures the exit code that engines give them, unless they have one.
fn not_started<T>(result: anyhow::Result<T>) -> anyhow::Result<T> {
    result.map_err(|error| {
        let code = error.downcast_ref().map(|relayed: &Relayed| relayed.code);
        if error.is::<Usage>() || code.is_some_and(|code| code >= NOT_STARTED) {
            return error;
        }
        let message = super::error::line(&error);
        let code = NOT_STARTED;
        Relayed { message, code }.into()
    })
}

/// Runs the command and removes everything; returns the exit code.
fn run_in(args: &Args, terminal: Terminal, root: Option<&Path>) -> anyhow::Result<u8> {
    let rights = Rights::current();
    let runtime = Runtime::choose(args.runtime.as_deref())?;
    // Signals wait until the command runs, and then go to it.
    let signals = runtime::signals()?;
    let own = Own::new(root)?;
    let (image, command) = first(&args.operands)?;
    let program = Program { image, command };
    let image = ImageToRun::find(&own, image)?;
    let mut bundle = Bundle::temporary()?;
    let settings = Settings::of(&args.container, &program, &image.config)?;
    let container = prepare(
        &args.container,
        settings,
        &own,
        &image,
        &mut bundle,
        terminal,
    )?;
    let status = runtime.run(&container, rights, &bundle, signals);
    // The changes are in the layer, or gone, when this returns.
    bundle.remove(&own)?;
    status
}

/// Mounts the image in the bundle, and finds the command and its user there.
fn prepare(
    args: &ContainerArgs,
    mut settings: Settings,
    own: &Own<'_>,
    image: &ImageToRun,
    bundle: &mut Bundle,
    terminal: Terminal,
) -> anyhow::Result<Container> {
    let volumes = volume::all(&args.volume)?;
    let mode = SandboxArgs::default().mode()?;
    // A plain user is one user of the image, for most images root. The mount shows that one's files
    // as the user's, which the container then shows as they are in the image.
    let user = match Rights::current() {
        Rights::Root => None,
        Rights::User { .. } => Some((0, 0)),
    };
    bundle.mount(own, image, args, user)?;
    let wanted = look_up::in_rootfs(&bundle.rootfs(), &settings, mode)?;
    let wanted_user = user.map(|_| (wanted.uid, wanted.gid));
    if wanted_user != user {
        bundle.unmount(own)?;
        bundle.mount(own, image, args, wanted_user)?;
    }
    let command = settings.arguments.first().map_or("", String::as_str);
    let (what, code) = match wanted.executable {
        Executable::Found => ("", 0),
        Executable::Missing => ("there is no such program in the image", NOT_FOUND),
        Executable::Forbidden => ("it is no program that can be executed", NOT_EXECUTABLE),
    };
    if code != 0 {
        let message = format!("cannot run {command:?}: {what}");
        return Err(Relayed { message, code }.into());
    }
    let pretends = args.other_users != OtherUsers::Refuse;
    let tells_apt = user.is_some() && pretends && wanted.uid == 0 && wanted.has_apt;
    if tells_apt {
        bundle.write(apt::FILE, apt::CONTENT.as_bytes())?;
    }
    let more = tells_apt.then_some((apt::VARIABLE, apt::PLACE));
    settings.complete(&wanted, &args.hostname, terminal, more);
    Ok(Container {
        settings,
        wanted,
        hostname: args.hostname.clone(),
        network: args.net,
        terminal,
        read_only: args.read_only,
        volumes: bundle.hold(volumes)?,
        memory: args.memory,
        pids: args.pids_limit,
        cpus: args.cpus,
        other_users: args.other_users,
        tells_apt,
    })
}

/// `unionfs bundle`.
pub(super) fn bundle(args: &BundleArgs, root: Option<&Path>) -> anyhow::Result<()> {
    let own = Own::new(root)?;
    let (image, others) = first(&args.operands)?;
    let (directory, command) = first(others)?;
    let program = Program { image, command };
    let image = ImageToRun::find(&own, image)?;
    let settings = Settings::of(&args.container, &program, &image.config)?;
    let mut bundle = Bundle::at(Path::new(directory))?;
    let terminal = Terminal::of(args.tty);
    let container = prepare(
        &args.container,
        settings,
        &own,
        &image,
        &mut bundle,
        terminal,
    )?;
    let rights = Rights::current();
    if container.recorded_users(rights).is_some() {
        super::warn(
            "the bundle records no owners: its root is told that they changed. unionfs run records \
             them; --other-users=pretend silences this",
        );
    }
    let others = container.without_records(rights);
    let spec = spec::of(&container, rights, &bundle.rootfs(), others, None);
    bundle.write_config(&spec)?;
    let text = format!("{}\n", bundle.path().display());
    bundle.keep();
    print(&text)
}

/// Returns the program of this name that a search of `$PATH` finds.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = |dir: PathBuf| {
        let file = dir.join(name);
        (dir.is_absolute() && file.is_file()).then_some(file)
    };
    std::env::split_paths(&path).find_map(found)
}

/// Returns the text of an argument that another program gets.
fn text(path: &Path) -> anyhow::Result<String> {
    let text = OsString::from(path).into_string().ok();
    text.with_context(|| format!("{path:?} is not UTF-8, which config.json cannot have"))
}
