//! The life of a mount: attach, handshake, serve, end.
//!
//! It ends when the file system is unmounted, or by a signal. A signal detaches the mount, waits
//! [`GRACE`] for programs that still use it, then aborts the connection. At the end pending
//! copy-ups and fsyncs are finished, the runtime files are removed and the union is dropped.

use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::adapter::{Acls, Adapter, MAX_IO, Told, Wishes, wanted};
use super::busy;
use super::config::{IoPolicy, MountConfig};
use super::counters::Counters;
use super::error::{Error, Result};
use super::keeper::{Afterwards, Keeper, MountEnd};
use super::mount::{self as attach, Attachment};
use super::own_mount::{Connectedness, OwnMount};
use super::passthrough::{self, Opens};
use super::pool::Pool;
use super::runtime::MountRecord;
use super::stats;
use super::transport::{self, Agreed, Connection, Devices};
use super::unmount::Mount;
use super::wire;
use crate::sandbox::InForce;
use crate::union::Union;

use services::Late;

/// How long a signal waits for programs that use the detached mount before they are disconnected.
const GRACE: Duration = Duration::from_secs(5);
/// The time for a mount to answer. After it, work that should wait for the answer starts anyway.
const SETTLE: Duration = Duration::from_millis(20);
/// The time for an aborted connection to end.
const ABORT_TIME: Duration = Duration::from_secs(2);

/// An attached mount after the handshake with the kernel. Requests wait until it is served.
/// Dropping it without serving unmounts it.
#[must_use = "a mount that is not served is unmounted"]
pub struct Mounted {
    connection: Connection,
    attachment: Attachment,
    core: Core,
    threads: usize,
    told: Told,
    signals: Option<Signals>,
    record: Option<MountRecord>,
    /// The files of a server in a sandbox; `Some(None)` if they could not be opened.
    files: Option<Option<services::Files>>,
}

/// Objects that live until the end of the mount.
struct Core {
    union: Arc<Union>,
    counters: Arc<Counters>,
    pool: Pool,
    /// The open files, under the policy `passthrough`.
    opens: Option<Arc<Opens>>,
}

enum Event {
    Ready(io::Result<()>),
    Signal(i32),
    Ended(io::Result<()>),
}

/// A function that enters a sandbox that fits the union.
pub type Enter<'a> = Box<dyn FnOnce(&Union) -> io::Result<InForce> + 'a>;

/// The sandbox of a server.
#[non_exhaustive]
pub struct Sandboxed<'a> {
    /// Enters the sandbox. It is called when everything is open, before there is a second thread
    /// and before anything from the kernel is read.
    pub enter: Enter<'a>,
    /// Cleans up outside of the sandbox when the mount has ended. It runs in another process; if that was killed, it does not run.
    pub afterwards: Afterwards,
}

impl<'a> Sandboxed<'a> {
    /// Returns a server that calls `enter`, and at the end `afterwards`.
    #[must_use]
    pub fn new(enter: Enter<'a>, afterwards: Afterwards) -> Self {
        Self { enter, afterwards }
    }
}

/// Mounts `union`. If the process is to be a daemon, fork first, and call this before threads are
/// started.
///
/// # Errors
/// See [`Error`]. After an error nothing stays mounted.
pub fn mount(union: Union, config: &MountConfig) -> Result<Mounted> {
    mount_in(union, config, None)
}

/// As [`mount`], in a sandbox. The process must have one thread.
///
/// # Errors
/// See [`Error`]. After an error nothing stays mounted.
pub fn mount_sandboxed(
    union: Union,
    config: &MountConfig,
    sandbox: Sandboxed<'_>,
) -> Result<Mounted> {
    mount_in(union, config, Some(sandbox))
}

fn mount_in(union: Union, config: &MountConfig, sandbox: Option<Sandboxed<'_>>) -> Result<Mounted> {
    transport::check(config)?;
    // From here on signals are handled, so that none can leave a dead mount.
    let signals = config
        .handle_signals
        .then(|| Signals::new([SIGTERM, SIGINT, SIGHUP]))
        .transpose()
        .map_err(|source| session_error(&config.mountpoint, source))?;
    let mut core = Core {
        union: Arc::new(union),
        counters: Arc::default(),
        pool: Pool::new(),
        opens: None,
    };
    let passes = match config.io {
        IoPolicy::Passthrough | IoPolicy::Shared => true,
        IoPolicy::Cached => false,
        IoPolicy::Auto => transport::passes(config) && passthrough::pays(&core.union, config),
    };
    let stack_depth = if passes {
        1 + u32::from(core.union.is_stacked())
    } else {
        0
    };
    let (fd, mut attachment) = attach::attach(config)?;
    // In a sandbox, the keeper also removes the lock files that the record names.
    let mut record = (config.register || sandbox.is_some()).then(|| {
        MountRecord::new(
            attachment.own(),
            &config.fsname.to_string_lossy(),
            config.is_read_only(),
            IoPolicy::Cached,
            config.description.clone(),
        )
        .locking(core.union.leave_lock_files())
    });
    let mut prepared = None;
    if let Some(sandbox) = sandbox {
        prepared = Some(prepare(
            &mut attachment,
            &mut record,
            config,
            sandbox,
            &core.union,
        )?);
    }
    // All forks are done, and this has started no thread yet.
    reserve_descriptors(&fd);
    if !config.register {
        record = None;
    }
    // The kernel does not support both together.
    let writeback = config.writeback && stack_depth == 0;
    let told = Told {
        births: config.births,
        xattrs: config.xattrs,
        acls: if config.connection.is_some() && config.is_checked() {
            Acls::Forced
        } else {
            Acls::AsInLayers
        },
    };
    let has_acl = told.xattrs && core.union.has_acl();
    let mut limits = wanted(Wishes {
        acl: has_acl || told.acls == Acls::Forced,
        writeback,
        idmappable: config.idmappable && config.is_checked(),
        stack_depth,
    });
    limits.transport = config.transport;
    let devices = if prepared.is_none() {
        Devices::OnePerThread
    } else {
        Devices::Shared
    };
    let mut connection =
        Connection::open(fd, &limits, config.threads, devices).map_err(|source| {
            session_error(attachment.mountpoint(), or_unmounted(&attachment, source))
        })?;
    let mut files = None;
    if let Some(prepared) = prepared {
        connection = connection.with_spares(prepared.spares);
        files = Some(prepared.files);
    }
    if passes {
        let opens = connection.pass_through(&core.union, attachment.mountpoint(), config.io)?;
        core.opens = opens.map(Arc::new);
    }
    let io = match core.opens {
        Some(_) if config.io == IoPolicy::Shared => IoPolicy::Shared,
        Some(_) => IoPolicy::Passthrough,
        None => IoPolicy::Cached,
    };
    if let Some(record) = &mut record {
        record.io = io;
        record.transport = connection.transport();
    }
    Ok(Mounted {
        connection,
        attachment,
        core,
        threads: config.threads,
        told,
        signals,
        record,
        files,
    })
}

/// The files that a server in a sandbox has opened before it entered.
struct Prepared {
    spares: Vec<OwnedFd>,
    files: Option<services::Files>,
}

/// Opens the needed files, starts the keeper and enters the sandbox.
fn prepare(
    attachment: &mut Attachment,
    record: &mut Option<MountRecord>,
    config: &MountConfig,
    sandbox: Sandboxed<'_>,
    union: &Union,
) -> Result<Prepared> {
    let failed = |path: &Path, source| Error::Sandbox {
        path: path.to_owned(),
        source,
    };
    let spares = attach::spare_devices(config.threads.saturating_sub(1));
    let files = config
        .register
        .then(|| services::Files::open(record))
        .flatten();
    wire::Connection::look_around();
    let places = union.file_systems();
    let own = attachment.own();
    let made = attachment.control().open_files();
    let catalog = union.take_catalog();
    let keeper = Keeper::start(own, record.as_ref(), &places, catalog, sandbox.afterwards);
    // The keeper has it too, and closes it meanwhile.
    drop(made);
    let keeper = Arc::new(keeper.map_err(|error| failed(attachment.mountpoint(), error))?);
    let finder = Arc::clone(&keeper);
    union.find_origins_by(Box::new(move |dev, origin| finder.find_origin(dev, origin)));
    let remover = Arc::clone(&keeper);
    union.when_catalog_is_wrong(move || remover.remove_catalog());
    attachment.prepare_sandbox(keeper);
    let in_force = (sandbox.enter)(union).map_err(|e| failed(attachment.mountpoint(), e))?;
    if let Some(record) = record {
        record.sandbox = Some(in_force);
    }
    Ok(Prepared { spares, files })
}

impl Core {
    fn adapter(&self, agreed: Agreed, workers: busy::Limits, told: Told) -> Adapter {
        let (union, counters) = (Arc::clone(&self.union), Arc::clone(&self.counters));
        Adapter::new(
            union,
            counters,
            self.pool.clone(),
            workers,
            agreed,
            told,
            self.opens.clone(),
        )
    }

    /// Returns the answer of the control socket.
    fn answer(&self, mount: MountRecord) -> Box<dyn Fn() -> Vec<u8> + Send> {
        let (union, counters) = (Arc::clone(&self.union), Arc::clone(&self.counters));
        Box::new(move || {
            let requests = counters.snapshot().into_iter();
            let stats = stats::Stats {
                requests: requests.map(|(k, v)| (k.to_owned(), v)).collect(),
                union: union.counters(),
                mount: mount.clone(),
            };
            serde_json::to_vec(&stats).unwrap_or_default()
        })
    }
}

impl Mounted {
    /// Returns the mountpoint, absolute and without symlinks.
    pub fn mountpoint(&self) -> &Path {
        self.attachment.mountpoint()
    }

    /// Serves until the file system is unmounted or a signal ends it.
    ///
    /// # Errors
    /// An error if the mount never answered, a worker failed, or a signal could not end it.
    pub fn serve(self) -> Result<()> {
        self.serve_with(|| ())
    }

    /// [`Mounted::serve`], calling `on_ready` once when the mount answers.
    ///
    /// # Errors
    /// As [`Mounted::serve`]; if the mount never answered, `on_ready` was not called.
    pub fn serve_with(mut self, on_ready: impl FnOnce()) -> Result<()> {
        let (sender, events) = mpsc::channel();
        let mountpoint = self.attachment.mountpoint().to_owned();
        let (settle, settled) = mpsc::channel();
        let workers = busy::Limits::of(self.threads);
        let agreed = self.connection.agreed();
        let adapter = self
            .core
            .adapter(agreed, workers, self.told)
            .with_keeper(self.attachment.keeper().cloned());
        let serve = {
            let (connection, threads) = (self.connection, self.threads);
            let control = Arc::clone(self.attachment.control());
            let abort = move || {
                if let Err(error) = control.abort() {
                    tracing::warn!(%error, "cannot abort the connection");
                }
            };
            let in_sandbox = self.attachment.keeper().is_some();
            let others = move || {
                // The answer may have come or not, and the receiver may be gone.
                let _ = settled.recv_timeout(SETTLE);
                in_sandbox || attach::can_reopen_device()
            };
            move || connection.serve(adapter, threads, others, abort)
        };
        let attachment = Arc::new(self.attachment);
        let started = start(serve, Arc::clone(&attachment), sender.clone());
        // The rest is done while the mount is asked for an answer. One large READ is cheaper than
        // eight small ones, even if half of the data is not needed.
        attachment.control().read_ahead(MAX_IO / 1024);
        let files = match (self.files.take(), attachment.keeper()) {
            (Some(files), Some(keeper)) => {
                files.and_then(|files| files.publish(&self.record, keeper))
            }
            _ => services::Files::write(&mut self.record),
        };
        let mut late = Late::new(files, &self.record, &self.core, self.signals.take(), sender);
        let mut result = MountEnd::NeverAnswered;
        let outcome = match started {
            Ok(()) => wait_for_end(
                &attachment,
                &events,
                || {
                    result = MountEnd::Served;
                    on_ready();
                    let _ = settle.send(());
                },
                &mut late,
            ),
            Err(error) => Err(session_error(&mountpoint, error)),
        };
        // A mount that never answered, or whose workers failed, is detached here.
        attachment.take_away();
        self.core.pool.drain();
        late.stop();
        // This is the last step: a process that waits for the end of the record may then use the
        // upper again.
        drop(self.core);
        match (attachment.keeper(), &self.record) {
            (Some(keeper), _) => keeper.finish(result),
            (None, Some(record)) => record.remove(),
            (None, None) => {}
        }
        outcome
    }

    /// Serves on a new thread. Returns when the mount answers.
    ///
    /// # Errors
    /// As [`Mounted::serve`], if it fails before the mount answers.
    pub fn spawn(self) -> Result<Background> {
        let own = self.attachment.own().clone();
        let mountpoint = own.mountpoint().to_owned();
        let (sender, ready) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("unionfs-mount".into())
            .spawn(move || {
                self.serve_with(move || {
                    let _ = sender.send(());
                })
            })
            .map_err(|source| session_error(&mountpoint, source))?;
        let background = Background {
            own,
            thread: Some(thread),
        };
        if ready.recv().is_ok() {
            return Ok(background);
        }
        background.join()?;
        // The mount was unmounted before it was asked.
        Err(Error::NotReady {
            path: mountpoint,
            source: io::ErrorKind::NotConnected.into(),
        })
    }
}

/// Starts the workers, and asks the mount for an answer.
fn start(
    serve: impl FnOnce() -> io::Result<()> + Send + 'static,
    attachment: Arc<Attachment>,
    sender: Sender<Event>,
) -> io::Result<()> {
    let ended = sender.clone();
    std::thread::Builder::new()
        .name("unionfs-session".into())
        .spawn(move || {
            let _ = ended.send(Event::Ended(serve()));
        })?;
    // This blocks until a worker answers or the connection ends, so it needs another thread.
    std::thread::Builder::new()
        .name("unionfs-ready".into())
        .spawn(move || {
            let _ = sender.send(Event::Ready(attachment.answers()));
        })?;
    Ok(())
}

/// Waits until the session has ended.
fn wait_for_end(
    attachment: &Attachment,
    events: &Receiver<Event>,
    on_ready: impl FnOnce(),
    late: &mut Late,
) -> Result<()> {
    let path = attachment.mountpoint();
    let mut on_ready = Some(on_ready);
    let mut ending = Ending::default();
    let mut outcome = Ok(());
    let mut first = events.recv_timeout(SETTLE).ok();
    if first.is_none() {
        // This takes a while, during which signals must be handled.
        late.start();
    }
    loop {
        match first.take().map_or_else(|| ending.next(events), Ok) {
            Ok(Event::Ready(Ok(()))) => {
                if let Some(on_ready) = on_ready.take() {
                    on_ready();
                }
                late.start();
            }
            Ok(Event::Ready(Err(source))) => {
                outcome = Err(Error::NotReady {
                    path: path.to_owned(),
                    source,
                });
                ending.advance(attachment);
            }
            Ok(Event::Signal(signal)) if attachment.is_callers() => {
                // The connection ends with this process. The mount belongs to the caller.
                tracing::info!(signal, mountpoint = %path.display(), "ending");
                return outcome;
            }
            Ok(Event::Signal(signal)) => {
                tracing::info!(signal, mountpoint = %path.display(), "unmounting");
                ending.advance(attachment);
            }
            Ok(Event::Ended(result)) => {
                return outcome.and(result.map_err(|source| session_error(path, source)));
            }
            Err(RecvTimeoutError::Timeout) if ending.aborted => {
                let source = io::Error::other("requests did not end after the abort");
                return outcome.and(Err(session_error(path, source)));
            }
            Err(RecvTimeoutError::Timeout) => ending.advance(attachment),
            Err(RecvTimeoutError::Disconnected) => {
                let source = io::Error::other("the session thread is gone");
                return outcome.and(Err(session_error(path, source)));
            }
        }
    }
}

/// The steps that a signal causes: detach, then abort.
#[derive(Default)]
struct Ending {
    deadline: Option<Instant>,
    aborted: bool,
}

impl Ending {
    fn next(&self, events: &Receiver<Event>) -> std::result::Result<Event, RecvTimeoutError> {
        match self.deadline {
            Some(deadline) => {
                events.recv_timeout(deadline.saturating_duration_since(Instant::now()))
            }
            None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    /// Takes the next step. A second signal does not wait for the grace period of the first.
    fn advance(&mut self, attachment: &Attachment) {
        if self.deadline.is_none() {
            if let Err(error) = attachment.detach() {
                tracing::warn!(%error, "cannot detach");
            }
            self.deadline = Some(Instant::now() + GRACE);
        } else if !self.aborted {
            let path = attachment.mountpoint().display();
            tracing::warn!(mountpoint = %path, "still in use: aborting the connection");
            if let Err(error) = attachment.control().abort() {
                tracing::warn!(%error, "cannot abort the connection");
            }
            self.deadline = Some(Instant::now() + ABORT_TIME);
            self.aborted = true;
        }
    }
}

/// A mount that a thread of this process serves. Dropping it unmounts lazily.
#[must_use = "the mount is unmounted when this is dropped"]
pub struct Background {
    own: OwnMount,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Background {
    /// Returns the mountpoint, absolute and without symlinks.
    pub fn mountpoint(&self) -> &Path {
        self.own.mountpoint()
    }

    /// Unmounts and waits for the end of the server.
    ///
    /// # Errors
    /// An error if the mount is in use (it stays), or if the server failed.
    pub fn unmount(self) -> Result<()> {
        let mount = Mount::at(self.mountpoint())?;
        if !mount.id().is(&self.own.id()) {
            return Err(Error::Unmount {
                path: self.mountpoint().to_owned(),
                text: "something else is mounted there".into(),
            });
        }
        mount.unmount()?;
        self.join()
    }

    /// Waits until the file system is unmounted.
    ///
    /// # Errors
    /// As [`Mounted::serve`].
    pub fn join(mut self) -> Result<()> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        thread.join().unwrap_or_else(|_| {
            let source = io::Error::other("the serving thread panicked");
            Err(session_error(self.mountpoint(), source))
        })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if self.thread.as_ref().is_some_and(|t| !t.is_finished())
            && let Err(error) = self.own.detach(Connectedness::Likely)
        {
            tracing::warn!(%error, "mount left behind");
        }
    }
}

/// Waits until the mount on `mountpoint` answers.
///
/// # Errors
/// [`Error::NotReady`] if it cannot answer, or if no FUSE file system is mounted there.
pub fn wait_ready(mountpoint: &Path) -> Result<()> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(mountpoint, flags, Mode::empty());
    let answer = root.map_err(io::Error::from).and_then(attach::answers);
    answer.map_err(|source| Error::NotReady {
        path: mountpoint.to_owned(),
        source,
    })
}

/// The number of descriptors for which the table of the process has room from the start.
const ROOM: u64 = 1024;

/// Makes room for descriptors. The kernel makes the table larger when a descriptor does not fit, with
/// 64, 128, 256 and so on. In a process with several threads, the thread that needs the room then waits
/// until no CPU uses the old table (`expand_fdtable` in fs/file.c, synchronize_rcu): 10 to 20 ms, in
/// which a caller waits for its answer. The table never gets smaller.
fn reserve_descriptors(any: impl AsFd) {
    let limit = rustix::process::getrlimit(Resource::Nofile).current;
    let last = limit.map_or(ROOM, |limit| limit.clamp(1, ROOM)) - 1;
    // This fails if there is no descriptor left, or no memory. The table then grows when it must.
    let _ = rustix::io::fcntl_dupfd_cloexec(any, last as RawFd);
}

/// The limit is not raised beyond this: some programs close that many descriptors one by one at
/// their start.
const NOFILE: u64 = 1 << 20;

/// Raises the limit of open files as far as allowed; for root also the hard limit. Call it once at
/// the start: the union needs these descriptors.
pub fn raise_nofile_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let set = |maximum: Option<u64>| {
        let wanted = Rlimit {
            current: maximum,
            maximum,
        };
        limit == wanted || rustix::process::setrlimit(Resource::Nofile, wanted).is_ok()
    };
    if let Some(hard) = limit.maximum.filter(|hard| *hard < NOFILE)
        && rustix::process::geteuid().is_root()
    {
        // The maximum that the kernel allows any process; a greater limit is refused.
        let most = std::fs::read_to_string("/proc/sys/fs/nr_open");
        let most = most.ok().and_then(|most| most.trim().parse().ok());
        let most: u64 = most.map_or(hard, |most: u64| most.clamp(hard, NOFILE));
        if set(Some(most)) {
            return;
        }
    }
    if !set(limit.maximum) {
        tracing::debug!("the limit of open files stays");
    }
}

/// Explains what reading INIT from a descriptor of the caller says.
fn or_unmounted(attachment: &Attachment, error: io::Error) -> io::Error {
    if attachment.is_callers() && error.kind() == io::ErrorKind::PermissionDenied {
        return io::Error::other(
            "it is an open /dev/fuse that nobody has mounted (fd= of mount(2))",
        );
    }
    error
}

fn session_error(path: &Path, source: io::Error) -> Error {
    Error::Session {
        path: path.to_owned(),
        source,
    }
}

mod services;
#[cfg(test)]
mod tests;
