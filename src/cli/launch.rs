//! From a request to a live mount: this module makes checks, then starts a daemon (with `-f`, it
//! uses this process) that builds the union, mounts it and serves it.
//!
//! ```text
//! caller ─ unionfs ─ checks ─ fork ┬─ daemon: union, mount, serve ── unmounted ─ exit
//!                                  │     └── pipe: "live" or the error
//!                                  └─ waits for the pipe, asks the mount, exit code
//! ```

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use anyhow::Context;
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::process::{Pid, WaitOptions};

use super::error::{self, Relayed, Usage};
use super::logging::{self, Verbosity};
use super::mount_checks::{self, Place, Target};
use super::mount_upper::Fresh;
use super::options::MountOptions;
use super::owner_options::OwnersOf;
use super::service_manager::ServiceManager;
use unionfs::catalog::CatalogFile;
use unionfs::fuse::{self, IoPolicy, MountConfig, MountEnd, Permissions, Sandboxed, Transport};
use unionfs::image_mounts::{BackgroundBuild, MountCatalog};
use unionfs::layer::private::AccessTimes;
use unionfs::layer::recorded::Form;
use unionfs::layer::{Records, StackSpec};
use unionfs::oci::Digest;
use unionfs::sandbox::{self, Mode};
use unionfs::sys::daemon::{Side, daemonize};
use unionfs::sys::namespace::Prepared;
use unionfs::sys::process::{in_initial_user_namespace, is_root_of_machine};
use unionfs::union::{self, Union};

/// A requested mount. All paths are resolved, and the mountpoint is checked.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) stack: StackSpec,
    pub(super) target: Target,
    pub(super) read_only: bool,
    /// The source shown in /proc/mounts.
    pub(super) source: OsString,
    /// The image or container, for `unionfs ps`.
    pub(super) image: Option<String>,
    /// The ID of the image, if it is known.
    pub(super) image_id: Option<Digest>,
    /// Locks that keep the layers from being removed until the mount is live. They are dropped
    /// before `fresh`, which may need them.
    pub(super) held: Vec<File>,
    /// An upper that was made for this mount.
    pub(super) fresh: Option<Fresh>,
    /// The name of the read-write layer, if it has one.
    pub(super) name: Option<String>,
    /// Whether the mountpoint was made for this mount. It is then printed.
    pub(super) mountpoint: MountpointIs,
    pub(super) foreground: bool,
    pub(super) verbosity: Verbosity,
    /// The `-o` arguments as given, for `unionfs ps`.
    pub(super) option_texts: Vec<OsString>,
    pub(super) options: MountOptions,
    /// The catalog of the lowers.
    pub(super) catalog: Option<MountCatalog>,
    /// The namespace of the server, if another process makes it.
    pub(super) namespace: Option<Prepared>,
}

/// Starts a process that makes the namespace of a daemon in a sandbox. Call it as early as possible. A
/// server in the foreground makes its own: this process must end soon, as it does not wait for the
/// other.
pub(super) fn prepare_namespace(mode: Mode, ends_soon: bool) -> Option<Prepared> {
    if mode == Mode::Off || !ends_soon {
        return None;
    }
    let started = Prepared::start();
    let told = started.inspect_err(|error| tracing::debug!(%error, "no namespace is prepared"));
    told.ok().flatten()
}

/// The origin of a mountpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MountpointIs {
    Given,
    /// It was made for this mount.
    Made,
}

impl Request {
    /// Returns the message for the user when the mount is live.
    fn announcement(&self) -> Option<String> {
        match self.mountpoint {
            MountpointIs::Made => Some(format!("{}\n", self.target.path.display())),
            MountpointIs::Given => self.fresh.as_ref().and_then(Fresh::announcement),
        }
    }
}

/// Checks the request without mounting.
pub(super) fn check(request: Request) -> anyhow::Result<()> {
    mount_checks::stack(&request.stack, &request.target)
}

/// Mounts. Returns when the mount answers; in the foreground and in the daemon, after the unmount.
pub(super) fn run(request: Request) -> anyhow::Result<()> {
    let made = (request.mountpoint == MountpointIs::Made).then(|| request.target.path.clone());
    let outcome = mount(request);
    if let Some(mountpoint) = made {
        // After a failure, or after the unmount where this process may do it. It fails while the
        // mount is there.
        let _ = fuse::runtime::remove_mountpoint(&mountpoint);
    }
    outcome
}

fn mount(mut request: Request) -> anyhow::Result<()> {
    mount_checks::stack(&request.stack, &request.target)?;
    if request.foreground {
        logging::to_stderr(request.verbosity);
        let text = request.announcement();
        let manager = ServiceManager::of_environment();
        return serve(request, || {
            if let Some(manager) = manager {
                manager.tell_ready();
            }
            text.map_or(Ok(()), |text| super::output::print(&text))
        });
    }
    // There must be no other thread: see `daemonize`.
    let dirs = request.stack.dirs().map(|dir| dir.as_fd());
    let keep = dirs.chain(request.target.place.connection().map(|fd| fd.as_fd()));
    let keep = keep.chain(request.namespace.as_ref().map(|made| made.as_fd()));
    match daemonize(&keep.collect::<Vec<_>>()).context("cannot start the daemon")? {
        Side::Parent { daemon, reply } => {
            // After a failure the daemon has ended, and dropping the request removes its upper.
            await_daemon(daemon, reply)?;
            // These may be hundreds of descriptors, which the end of this process closes at once.
            let text = request.announcement();
            std::mem::forget(request.stack);
            if let Some(fresh) = request.fresh {
                fresh.release();
            }
            text.map_or(Ok(()), |text| super::output::print(&text))
        }
        Side::Daemon { reply } => {
            // These descriptors lead to /dev/null here. The other process holds them until the
            // mount is live.
            request.held.clear();
            if let Some(fresh) = &mut request.fresh {
                fresh.leave_named();
            }
            daemon(request, File::from(reply))
        }
    }
}

/// Runs the daemon. Errors before the mount is live go to the waiting parent, later errors to the
/// log.
fn daemon(request: Request, reply: File) -> anyhow::Result<()> {
    let mut reply = Some(reply);
    let outcome = (|| {
        if logging::is_wanted(request.verbosity) {
            let file = fuse::runtime::log_file().context("cannot open a log file")?;
            logging::to_file(request.verbosity, file);
        } else {
            logging::to_system();
        }
        serve(request, || {
            // If the parent was killed, there is no reader, and the mount is not wanted.
            let mut reply = reply.take().context("started twice")?;
            reply
                .write_all(&[LIVE])
                .context("the process that asked for the mount is gone")
        })
    })();
    if let Err(e) = &outcome {
        tracing::error!("{}", error::line(e));
        if let Some(mut reply) = reply {
            let message = [&[error::exit_code(e)], error::line(e).as_bytes()].concat();
            let _ = reply.write_all(&message);
        }
    }
    outcome
}

/// The byte that a daemon writes when it serves. Any other byte is the exit code of its failure,
/// and the message follows.
const LIVE: u8 = 0;

fn await_daemon(daemon: Pid, reply: OwnedFd) -> anyhow::Result<()> {
    let mut answer = Vec::new();
    File::from(reply)
        .read_to_end(&mut answer)
        .context("cannot hear from the daemon")?;
    if answer == [LIVE] {
        return Ok(());
    }
    // The daemon is about to end. It must have cleaned up before this process returns.
    let status = rustix::process::waitpid(Some(daemon), WaitOptions::empty());
    let relayed = match answer.split_first() {
        Some((&code, message)) => Relayed {
            code: code.max(error::FAILURE),
            message: String::from_utf8_lossy(message).into_owned(),
        },
        None => Relayed {
            code: error::FAILURE,
            message: match status {
                Ok(Some((_, status))) if status.terminating_signal().is_some() => format!(
                    "the daemon was killed by signal {} before the mount was live",
                    status.terminating_signal().unwrap_or_default()
                ),
                _ => "the daemon ended before the mount was live".into(),
            },
        },
    };
    Err(relayed.into())
}

/// Builds the union, mounts it and serves it. Calls `live` when the mount answers; if `live` fails,
/// the mount ends. Returns after the unmount.
fn serve(mut request: Request, live: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    // Files get exactly the modes that callers ask for: the kernel has applied their umask already.
    rustix::process::umask(rustix::fs::Mode::empty());
    // The working directory must not keep a file system busy. All paths are absolute by now.
    std::env::set_current_dir("/").context("cannot change to /")?;
    fuse::raise_nofile_limit();
    unionfs::sys::memory::limit_arenas();
    if let Err(error) = unionfs::sys::schedule::short_slices() {
        tracing::debug!(%error, "the threads have usual slices of the CPU");
    }
    let fresh = request.fresh.take();
    // This is declared after `fresh`, so it is dropped before.
    let mut held = std::mem::take(&mut request.held);
    // The answer is used for all decisions below, so that they agree.
    request.options.transport = transport(request.options.transport);
    let default = default_owners(&request);
    let recorded = request
        .options
        .owners
        .record_in(&mut request.stack, default);
    recorded.context("cannot record owners beside the files of the upper directory")?;
    let config = config(&request);
    let owners = request.options.owners.for_layers(&request.stack);
    let options = union::Options {
        noatime: config.flags.contains(MountFlags::NOATIME),
        volatile: request.options.volatile,
        redirect_dir: request.options.redirect_dir,
        metacopy: request.options.metacopy == Some(true),
        // The kernel may get files of a lower. `auto` never does that.
        sealed: request.options.io.is_some_and(IoPolicy::insists),
        names: request
            .catalog
            .as_ref()
            .map(|catalog| CatalogFile::source(catalog.path())),
        locks: locks(),
        owners: owners.map_err(Usage)?,
        ..union::Options::default()
    };
    let mode = request.options.sandbox;
    let times = if options.noatime {
        AccessTimes::Never
    } else {
        AccessTimes::Inherited
    };
    let private = sandbox::layers::enclose(mode, &mut request.stack, times)?;
    let union = Union::new(&request.stack, options).map_err(|e| explain(e, &request.stack))?;
    // A missing, stale or older catalog is built for the next mount.
    let wanted = request.catalog.take();
    // A catalog has the real owners.
    let wanted = wanted.filter(|_| !union.has_records());
    let wanted = wanted.filter(|catalog| catalog.is_outdated() || !union.is_catalogued());
    let building =
        wanted.and_then(|catalog| BackgroundBuild::prepare(catalog, &request.stack, mode));
    // A daemon leaves the process group of the caller only after it has mounted: see `daemonize`.
    let is_daemon = !request.foreground;
    let begin_session = || {
        if is_daemon {
            rustix::process::setsid()?;
        }
        Ok::<_, std::io::Error>(())
    };
    let (mounted, fresh) = match mode {
        Mode::Off => {
            let mounted = fuse::mount(union, &config)?;
            begin_session().context("cannot begin a session")?;
            (mounted, fresh)
        }
        _ => {
            let afterwards = Box::new(move |outcome| end_fresh(fresh, outcome));
            let namespace = request.namespace.take();
            let request = &request;
            let enter = Box::new(move |union: &Union| {
                begin_session()?;
                let mut daemon = in_sandbox(request, private, union);
                daemon.namespace = namespace;
                daemon.enter()
            });
            let sandbox = Sandboxed::new(enter, afterwards);
            (fuse::mount_sandboxed(union, &config, sandbox)?, None)
        }
    };
    let mut outcome = MountEnd::NeverAnswered;
    let served = mounted.serve_with(|| {
        outcome = MountEnd::Served;
        held.clear();
        match live() {
            Ok(()) => building.iter().for_each(BackgroundBuild::begin),
            Err(e) => {
                tracing::error!("{}", error::line(&e));
                // Every mount ends in this way: the handler unmounts.
                let _ = rustix::process::kill_process(
                    rustix::process::getpid(),
                    rustix::process::Signal::TERM,
                );
            }
        }
    });
    drop(building);
    end_fresh(fresh, outcome);
    Ok(served?)
}

/// Returns whose owners are shown if no option says it: those of the image in a plain user's own
/// mount. With `allow_other` the kernel checks permissions, also those of this user.
fn default_owners(request: &Request) -> OwnersOf {
    let others = request.options.other.iter().any(|o| o == "allow_other");
    if request.image.is_some() && !is_root_of_machine() && !others {
        OwnersOf::Image
    } else {
        OwnersOf::Mine
    }
}

/// Whether only this user can reach the mount, and owners are shown that are not those of the
/// files. The user may then do everything, whatever the shown owners are.
fn is_private_to_user(request: &Request) -> bool {
    let mut layers = request.stack.lowers.iter();
    let recorded = layers.any(|layer| layer.dialect.records != Records::Ignored);
    let others = request.options.other.iter().any(|o| o == "allow_other");
    let plain = in_initial_user_namespace() && !is_root_of_machine();
    plain && recorded && !others && request.options.owners.records.is_none()
}

/// Returns the directory of root's lock files. Without it, a mount has only the locks of its
/// directories.
fn locks() -> Option<Arc<OwnedFd>> {
    let opened = fuse::runtime::lock_directory();
    let warned = opened.inspect_err(|error| tracing::warn!(%error, "no lock files"));
    warned.ok().flatten().map(Arc::new)
}

/// What happens to an upper that was made for a mount, when the mount has ended.
fn end_fresh(fresh: Option<Fresh>, outcome: MountEnd) {
    match (fresh, outcome) {
        (Some(fresh), MountEnd::Served) => fresh.after_unmount(),
        (other, _) => drop(other),
    }
}

fn in_sandbox<'a>(
    request: &Request,
    private_layers: bool,
    union: &'a Union,
) -> sandbox::daemon::Daemon<'a> {
    let (read, write) = union.places();
    let mut daemon = sandbox::daemon::Daemon::new(request.options.sandbox, read, write);
    daemon.private_layers = private_layers;
    daemon.rings = matches!(request.options.transport, None | Some(Transport::Uring));
    daemon
}

/// Returns the transport to use. io_uring bypasses the filter of system calls, so the filter allows
/// it only if it will be used: not if the kernel does not offer it.
fn transport(asked: Option<Transport>) -> Option<Transport> {
    match asked {
        None if !fuse::offers_rings() => Some(Transport::Classic),
        asked => asked,
    }
}

fn explain(error: union::Error, stack: &StackSpec) -> anyhow::Error {
    match &stack.upper {
        Some(upper) if error.errno() == Errno::BUSY.raw_os_error() => anyhow::anyhow!(
            "upper directory {} or work directory {} is in use by another mount: unmount that \
             first (unionfs ps lists ours), or use other directories",
            upper.layer.path().display(),
            upper.work.path().display()
        ),
        _ => anyhow::Error::new(error).context("cannot stack the layers"),
    }
}

fn config(request: &Request) -> MountConfig {
    let mut config = MountConfig::new(&request.target.path);
    match &request.target.place {
        Place::Directory(id) => config.checked = Some(*id),
        Place::Connection(connection) => {
            config.connection = Some(Arc::clone(connection));
            // There is no path to the mount.
            config.register = false;
        }
    }
    config.idmappable = request.options.allow_idmap;
    config.writeback = request.options.writeback;
    config.births = !request.options.nobtime;
    config.xattrs = !request.options.noxattrs;
    config.io = request.options.io.unwrap_or_default();
    config.fsname.clone_from(&request.source);
    config.transport = request.options.transport;
    config.flags.set(MountFlags::RDONLY, request.read_only);
    // Files of an image are not trusted like files of this machine. `suid` and `dev` below trust
    // them.
    let restricted = MountFlags::NOSUID | MountFlags::NODEV;
    config.flags.set(restricted, request.image.is_some());
    if is_private_to_user(request) {
        config.permissions = Permissions::Unchecked;
    }
    // A program or device of one user would have the rights of another.
    if in_initial_user_namespace() {
        let owners = &request.options.owners;
        if owners.squashes() {
            config.flags.insert(MountFlags::NOSUID);
        }
        let image = owners.of == Some(OwnersOf::Image);
        if image || owners.records == Some(Form::Containers) {
            config.flags.insert(restricted);
        }
    }
    for option in &request.options.other {
        if !config.apply_option(option) {
            tracing::debug!(?option, "unknown option ignored");
        }
    }
    let mut description = fuse::Description::of(&request.stack);
    description.image.clone_from(&request.image);
    description.name.clone_from(&request.name);
    description.image_id = request.image_id.map(|id| id.to_string());
    let options = request.option_texts.iter();
    description.options = options
        .map(|text| text.to_string_lossy().into_owned())
        .collect();
    config.description = description;
    config
}
