//! The command line: one file per command.
//!
//! `mount` and `fuse_overlayfs_args` make a `launch::Request` from arguments. `mount_checks`
//! refuses requests that cannot work. `launch` forks the daemon and serves. Commands that change
//! the own store use `own_store`. All other commands only print.
//!
//! Exit codes: 0 for success, 1 for a failure, 2 for a wrong command line, 3 for a mount that does
//! not answer. A failure is one line on stderr that names the failed action, its object, and the
//! remedy.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;

use clap::{CommandFactory as _, FromArgMatches as _, Parser as _};
use fuse_overlayfs_args::Persona;
use policy_args::PolicyArgs;
use unionfs::store::discovery::Environment;

mod aliases;
mod archive_names;
mod archive_policy;
mod candidates;
mod cat;
mod catalog;
mod command_sandbox;
mod commit;
mod completions;
mod confined_queries;
mod copy;
mod copy_source;
mod copy_staged;
mod cp;
mod cp_target;
mod delete;
mod df;
mod diff;
mod diff_trees;
mod digest;
mod digest_names;
mod docker_inspect;
mod doctor;
mod doctor_facts;
mod error;
mod export;
mod facts;
mod filters;
mod fuse_overlayfs_args;
mod go_template;
mod help_text;
mod history;
mod images;
mod import;
mod info;
mod inspect;
mod inspect_remote;
mod interrupt;
mod launch;
mod layers;
mod live_mounts;
mod load;
mod logging;
mod login;
mod logout;
mod lookup_answer;
mod ls;
mod man;
mod mount;
mod mount_checks;
mod mount_lookup;
mod mount_upper;
mod named_layers;
mod named_tree;
mod options;
#[cfg(test)]
mod options_tests;
mod output;
mod output_file;
mod outside_helper;
mod own_store;
mod owner_options;
mod path_hints;
mod policy_args;
mod pool;
mod progress;
mod prune;
mod ps;
mod pull;
mod push;
mod registry_args;
mod remote_names;
mod remount;
mod rm;
mod rmi;
mod rows;
mod run;
mod sandbox_access;
mod save;
mod service_manager;
mod short_names;
mod squash;
mod stats;
mod sync;
mod system_log;
mod tag;
mod tags;
mod times;
mod umount;
mod verify;
mod version;
mod wrong_usage;

/// Mount container images and layered directories as union file systems in user space
#[derive(Debug, clap::Parser)]
#[command(
    name = "unionfs",
    version,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "\
Plain directories are mounted as with fuse-overlayfs:
  unionfs -o lowerdir=TOP:BOTTOM,upperdir=UPPER,workdir=WORK MOUNTPOINT
Called as fuse-overlayfs or mount.unionfs, unionfs takes their arguments.

Examples:
  unionfs images
  unionfs mount myapp:2 /mnt
  unionfs umount /mnt

Exit codes: 0 success, 1 failure (one line on stderr gives the reason), 2 wrong usage, 3 a mount does
not answer.
Environment: UNIONFS_STORE (the store that unionfs writes to, as --store; UNIONFS_ROOT is its older
name), UNIONFS_RUNTIME_DIR (records of mounts), UNIONFS_TIMEOUT (seconds to wait for a mount,
default 5), UNIONFS_LOG (log filter, such as debug), UNIONFS_SANDBOX (auto, strict or off, for commands with --sandbox)."
)]
struct Cli {
    /// Look for images only in the store at DIR; nothing is written there [default: the store of
    /// --store, then those of Docker, podman and containerd]
    #[arg(long, value_name = "DIR", global = true)]
    root: Option<PathBuf>,
    /// Search for containers of podman's transient stores in the run root DIR, which belongs to the store
    /// of --root [default: that of storage.conf, else podman's default]
    #[arg(long, value_name = "DIR", global = true)]
    runroot: Option<PathBuf>,
    /// Write to the store at DIR, and look there first [default: $UNIONFS_STORE, $UNIONFS_ROOT or
    /// /var/lib/unionfs; for a plain user ~/.local/share/unionfs]
    #[arg(long, value_name = "DIR", global = true)]
    store: Option<PathBuf>,
    /// Search only this namespace of containerd's stores [default: $CONTAINERD_NAMESPACE, else all]
    #[arg(long, value_name = "NAME", global = true)]
    namespace: Option<String>,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(subcommand)]
    command: Command,
}

/// The part of [`Cli`] that a mount needs. Setting all other commands up takes longer than
/// mounting.
#[derive(Debug, clap::Parser)]
#[command(name = "unionfs")]
struct OnlyMount {
    #[arg(long, value_name = "DIR", global = true)]
    root: Option<PathBuf>,
    #[arg(long, value_name = "DIR", global = true)]
    runroot: Option<PathBuf>,
    #[arg(long, value_name = "DIR", global = true)]
    store: Option<PathBuf>,
    #[arg(long, value_name = "NAME", global = true)]
    namespace: Option<String>,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(subcommand)]
    command: MountCommand,
}

#[derive(Debug, clap::Subcommand)]
enum MountCommand {
    Mount(mount::Args),
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Mount(mount::Args),
    Umount(umount::Args),
    Run(run::Args),
    Bundle(run::BundleArgs),
    Images(images::Args),
    Inspect(inspect::Args),
    History(history::Args),
    Layers(layers::Args),
    Verify(verify::Args),
    Ps(ps::Args),
    Diff(diff::Args),
    Commit(commit::Args),
    Squash(squash::Args),
    Export(export::Args),
    Ls(ls::Args),
    Cat(cat::Args),
    Cp(cp::Args),
    Load(load::Args),
    Import(import::Args),
    Save(save::Args),
    Pull(pull::Args),
    Push(push::Args),
    Login(login::Args),
    Logout(logout::Args),
    Tags(tags::Args),
    Digest(digest::Args),
    Copy(copy::Args),
    Delete(delete::Args),
    Stats(stats::Args),
    Sync(sync::Args),
    Tag(tag::Args),
    Rmi(rmi::Args),
    Rm(rm::Args),
    Prune(prune::Args),
    Df(df::Args),
    Catalog(catalog::Args),
    Info(info::Args),
    Doctor(doctor::Args),
    Version(version::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// The command that must be fast.
const MOUNT: &str = "mount";

/// Parses the arguments, runs the command and reports errors on stderr.
pub fn main() -> ExitCode {
    // Each layer that was found holds a descriptor.
    unionfs::fuse::raise_nofile_limit();
    if completions::complete() {
        return ExitCode::SUCCESS;
    }
    let args = aliases::expand(std::env::args_os().collect());
    let persona = fuse_overlayfs_args::recognise(&args, is_command);
    let outcome = match persona {
        Some(persona) => fuse_overlayfs_args::run(persona, &args),
        None => match parse(&args) {
            Ok(cli) => run(cli),
            Err(e) => {
                // Help and version go to stdout, mistakes to stderr. Either may be closed.
                let e = wrong_usage::better_tip(e);
                let _ = e.print();
                return ExitCode::from(if e.use_stderr() { error::USAGE } else { 0 });
            }
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            if let Some(signal) = unionfs::sys::interrupt::signal() {
                interrupt::end(signal);
            }
            warn(interrupt::with_note(&error::line(&e)));
            ExitCode::from(match persona {
                Some(Persona::MountHelper) => error::exit_code_of_mount(&e),
                _ => error::exit_code(&e),
            })
        }
    }
}

fn parse(args: &[OsString]) -> Result<Cli, clap::Error> {
    if args.get(1).is_some_and(|first| first == MOUNT)
        && let Ok(only) = OnlyMount::try_parse_from(args)
    {
        let MountCommand::Mount(args) = only.command;
        return Ok(Cli {
            root: only.root,
            runroot: only.runroot,
            store: only.store,
            namespace: only.namespace,
            policy: only.policy,
            command: Command::Mount(args),
        });
    }
    // Help and mistakes need the whole command line.
    let mut command = help_text::flowing(aliases::with_groups(Cli::command()));
    let matches = command.try_get_matches_from_mut(args)?;
    Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut command))
}

fn is_command(name: &OsStr) -> bool {
    name == "help"
        || name == MOUNT
        || aliases::is_first_word(name)
        || Cli::command().find_subcommand(name).is_some()
}

/// The value of `--namespace`.
static NAMESPACE: OnceLock<String> = OnceLock::new();

/// The value of `--store`.
static STORE: OnceLock<PathBuf> = OnceLock::new();

/// The value of `--runroot`.
static RUN_ROOT: OnceLock<PathBuf> = OnceLock::new();

/// Returns the environment of this process, with what the options say of it.
fn environment() -> Environment {
    let mut environment = Environment::current();
    if let Some(store) = STORE.get() {
        environment.unionfs_root = Some(store.into());
    }
    environment.run_root = RUN_ROOT.get().cloned();
    environment.short_names = short_names::all();
    if let Some(name) = NAMESPACE.get() {
        environment.containerd_namespace = Some(name.into());
    }
    environment
}

/// Returns the options that apply to all commands except `--root`, for another process of this program.
fn global_words() -> Vec<OsString> {
    let mut words = policy_args::words();
    let store = STORE.get().map(|path| ("--store", path.into()));
    let run_root = RUN_ROOT.get().map(|path| ("--runroot", path.into()));
    let namespace = NAMESPACE.get().map(|name| ("--namespace", name.into()));
    let given: [Option<(&str, OsString)>; 3] = [store, run_root, namespace];
    for (option, value) in given.into_iter().flatten() {
        words.extend([option.into(), value]);
    }
    words
}

fn run(cli: Cli) -> anyhow::Result<()> {
    if let Some(name) = cli.namespace {
        NAMESPACE.get_or_init(|| name);
    }
    if let Some(run_root) = cli.runroot {
        RUN_ROOT.get_or_init(|| std::path::absolute(&run_root).unwrap_or(run_root));
    }
    if let Some(store) = cli.store {
        STORE.get_or_init(|| std::path::absolute(&store).unwrap_or(store));
    }
    cli.policy.apply()?;
    let root = cli.root.as_deref();
    match cli.command {
        Command::Mount(args) => mount::run(args, root),
        Command::Umount(args) => umount::run(&args),
        Command::Run(args) => run::run(&args, root),
        Command::Bundle(args) => run::bundle(&args, root),
        Command::Images(args) => images::run(&args, root),
        Command::Inspect(args) => inspect::run(&args, root),
        Command::History(args) => history::run(&args, root),
        Command::Layers(args) => layers::run(&args, root),
        Command::Verify(args) => verify::run(&args, root),
        Command::Ps(args) => ps::run(&args, root),
        Command::Diff(args) => diff::run(&args, root),
        Command::Commit(args) => commit::run(&args, root),
        Command::Squash(args) => squash::run(&args, root),
        Command::Export(args) => export::run(&args, root),
        Command::Ls(args) => ls::run(&args, root),
        Command::Cat(args) => cat::run(&args, root),
        Command::Cp(args) => cp::run(&args, root),
        Command::Load(args) => load::run(&args, root),
        Command::Import(args) => import::run(&args, root),
        Command::Save(args) => save::run(&args, root),
        Command::Pull(args) => pull::run(&args, root),
        Command::Push(args) => push::run(&args, root),
        Command::Login(args) => login::run(&args),
        Command::Logout(args) => logout::run(&args),
        Command::Tags(args) => tags::run(&args),
        Command::Digest(args) => digest::run(&args),
        Command::Copy(args) => copy::run(&args, root),
        Command::Delete(args) => delete::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::Sync(args) => sync::run(&args),
        Command::Tag(args) => tag::run(&args, root),
        Command::Rmi(args) => rmi::run(&args, root),
        Command::Rm(args) => rm::run(&args, root),
        Command::Prune(args) => prune::run(&args, root),
        Command::Df(args) => df::run(&args, root),
        Command::Catalog(args) => catalog::run(&args, root),
        Command::Doctor(args) => doctor::run(&args),
        Command::Info(args) => info::run(&args, root),
        Command::Version(args) => version::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    }
}

/// Runs another command in place of the one that was given.
fn again(words: Vec<String>, root: Option<&std::path::Path>) -> anyhow::Result<()> {
    let mut args: Vec<OsString> = vec!["unionfs".into()];
    if let Some(root) = root {
        args.extend(["--root".into(), root.into()]);
    }
    args.extend(words.into_iter().map(OsString::from));
    run(parse(&args).map_err(|error| error::Usage(error.to_string()))?)
}

/// Writes one line to stderr. A failure to write does not matter.
fn warn(what: impl std::fmt::Display) {
    let line = output::one_line(&what.to_string());
    let _ = writeln!(std::io::stderr(), "unionfs: {line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_command_has_an_example() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        for sub in command
            .get_subcommands()
            .filter(|sub| sub.get_name() != "help")
        {
            let help = sub.get_after_help().map(ToString::to_string);
            assert!(
                help.is_some_and(|text| text.contains("Example")),
                "{}",
                sub.get_name()
            );
        }
    }

    #[test]
    fn commands_are_told_from_options() {
        assert!(is_command("mount".as_ref()) && is_command("help".as_ref()));
        assert!(!is_command("overlay".as_ref()) && !is_command("-o".as_ref()));
    }
}
