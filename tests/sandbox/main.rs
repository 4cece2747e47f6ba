//! Operations that a compromised server in its sandbox can still do; `commands` has those of
//! commands. Each attempt runs in a process of its own, which has real layers and has entered the
//! sandbox as a daemon does. Its end is compared with the expected one.
#![allow(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking; clippy.toml exempts only functions marked #[test]"
)]

mod attempts;
mod chroot;
mod commands;

use std::ffi::OsStr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use attempts::{Attempt, Held, WITH_RINGS};
use testkit::need_mounts;
use unionfs::layer::private::AccessTimes;
use unionfs::layer::{Dialect, LayerSpec, StackSpec, UpperSpec};
use unionfs::sandbox::daemon::Daemon;
use unionfs::sandbox::{Mode, layers};
use unionfs::sys::handle::name_to_handle;
use unionfs::sys::namespace::Prepared;
use unionfs::union::{Options, Union};

/// The required end of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The filter of system calls kills the process.
    Killed,
    /// It fails with one of these errors.
    Fails(&'static [i32]),
    /// It works, because a mount needs it.
    Works,
}

/// The variable with the attempt, in the process that makes it.
const ASKED: &str = "UNIONFS_TEST_ATTEMPT";
/// The variable with the place of the layers, in that process.
const PLACE: &str = "UNIONFS_TEST_PLACE";
/// The variable that is set if another process makes the namespace of that process, as for a daemon.
const PREPARED: &str = "UNIONFS_TEST_PREPARED";
/// An exit code that is no error number.
const BROKEN: i32 = 255;

/// Layers, and a file beside them that must be out of reach.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["lower/dir", "layer/upper", "layer/work", "outside"] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        for name in ["lower/file", "layer/upper/file", "outside/secret"] {
            std::fs::write(dir.path().join(name), "content").unwrap();
        }
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(dir.path().join("outside/secret"), private).unwrap();
        Self { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the state of all that an attempt could change and must not.
    fn untouchable(&self) -> Vec<String> {
        let of = |name: &str| {
            let path = self.dir.path().join(name);
            let meta = path.symlink_metadata().unwrap();
            let mut names = [0; 1024];
            let size = rustix::fs::llistxattr(&path, &mut names[..]).unwrap();
            let kept = (
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.mtime(),
                meta.ctime_nsec(),
            );
            let content = std::fs::read(&path).ok();
            let listed = std::fs::read_dir(&path).ok().map(Iterator::count);
            format!(
                "{name} {kept:?} {:?} {content:?} {listed:?}",
                &names[..size]
            )
        };
        [
            "lower",
            "lower/file",
            "lower/dir",
            "outside",
            "outside/secret",
        ]
        .map(of)
        .to_vec()
    }

    fn try_it(&self, attempt: &Attempt, prepared: bool) -> End {
        let mut command = Command::new(std::env::current_exe().unwrap());
        if prepared {
            command.env(PREPARED, "1");
        }
        let status = command
            .args([
                "--exact",
                "every_attempt_ends_as_expected",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(ASKED, attempt.name)
            .env(PLACE, self.dir.path())
            .output()
            .unwrap();
        match (status.status.signal(), status.status.code()) {
            (Some(libc::SIGSYS), _) => End::Killed,
            (None, Some(0)) => End::Works,
            // Leaked, so that it is `'static`: a few numbers.
            (None, Some(errno)) if errno != BROKEN => End::Fails(Box::leak(Box::new([errno]))),
            other => panic!("{}: {other:?} {status:?}", attempt.name),
        }
    }

    /// Makes all attempts, in a namespace that the process makes itself and in a prepared one. They
    /// leave files, so each time in other layers.
    fn check(attempts: &[Attempt]) {
        for prepared in [false, true] {
            Self::new().check_in(attempts, prepared);
        }
    }

    fn check_in(&self, attempts: &[Attempt], prepared: bool) {
        let before = self.untouchable();
        let mut wrong = Vec::new();
        for attempt in attempts {
            let end = self.try_it(attempt, prepared);
            let fits = match (attempt.end, end) {
                (End::Fails(expected), End::Fails(seen)) => {
                    seen.iter().all(|errno| expected.contains(errno))
                }
                (expected, end) => expected == end,
            };
            if !fits {
                let wanted = attempt.end;
                wrong.push(format!(
                    "{}, prepared {prepared}: {end:?}, not {wanted:?}",
                    attempt.name
                ));
            }
            assert_eq!(
                self.untouchable(),
                before,
                "{} changed something",
                attempt.name
            );
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

#[test]
fn every_attempt_ends_as_expected() {
    if let (Some(name), Some(place)) = (std::env::var_os(ASKED), std::env::var_os(PLACE)) {
        be_an_attempt(&name, &PathBuf::from(place));
    }
    need_mounts!();
    Place::check(&attempts::all());
}

#[test]
fn requests_over_io_uring_reach_no_more() {
    need_mounts!();
    Place::check(WITH_RINGS);
}

/// Runs the test as a process of its own, which [`Place::try_it`] starts.
fn be_an_attempt(name: &OsStr, place: &Path) -> ! {
    let known = attempts::all()
        .into_iter()
        .chain(WITH_RINGS.iter().copied());
    let attempt = known
        .into_iter()
        .find(|attempt| name == attempt.name)
        .unwrap();
    if std::env::var_os(PREPARED).is_none() {
        std::process::exit(make(&attempt, place).unwrap_or(BROKEN));
    }
    // Another process is started by one with one thread only, and the harness has one too.
    // SAFETY: the other thread is the harness's, which holds no lock while it waits for this one.
    match unsafe { libc::fork() } {
        0 => std::process::exit(make(&attempt, place).unwrap_or(BROKEN)),
        child => {
            let child = rustix::process::Pid::from_raw(child);
            let ended = rustix::process::waitpid(child, rustix::process::WaitOptions::empty());
            let (_, status) = ended.unwrap().unwrap();
            if status.terminating_signal() == Some(libc::SIGSYS) {
                // SAFETY: ends this process.
                unsafe { libc::raise(libc::SIGSYS) };
            }
            std::process::exit(status.exit_status().unwrap_or(BROKEN));
        }
    }
}

/// Enters the sandbox and makes the attempt; returns its error number.
fn make(attempt: &Attempt, place: &Path) -> Option<i32> {
    let prepares = std::env::var_os(PREPARED).is_some();
    let namespace = prepares.then(|| Prepared::start().ok().flatten().unwrap());
    let open = |name: &str| LayerSpec::open(place.join(name), Dialect::ALL).ok();
    let mut stack = StackSpec {
        lowers: vec![open("lower")?],
        data_only: Vec::new(),
        upper: Some(UpperSpec {
            layer: open("layer/upper")?,
            work: open("layer/work")?.dir,
        }),
    };
    let secret = std::fs::File::open(place.join("outside/secret")).ok()?;
    let handle = name_to_handle(&secret, c"").ok()?;
    drop(secret);
    let private_layers = layers::enclose(Mode::Strict, &mut stack, AccessTimes::Inherited).ok()?;
    let union = Union::new(&stack, Options::default()).ok()?;
    let (read, write) = union.places();
    let mut daemon = Daemon::new(Mode::Strict, read, write);
    daemon.private_layers = private_layers;
    daemon.rings = attempt.rings;
    daemon.namespace = namespace;
    let in_force = daemon.enter().inspect_err(|error| eprintln!("{error}"));
    let in_force = in_force.ok()?;
    assert!(in_force.seccomp && in_force.private_layers, "{in_force}");
    let upper = stack.upper.as_ref()?;
    let held = Held {
        lower: stack.lowers.first()?.dir.as_fd(),
        upper: upper.layer.dir.as_fd(),
        work: upper.work.as_fd(),
        outside: place.join("outside/secret"),
        handle,
    };
    match (attempt.make)(&held) {
        Ok(()) => Some(0),
        Err(error) => error.raw_os_error(),
    }
}
