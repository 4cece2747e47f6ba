//! The control socket of a mount: whoever connects gets one JSON document and the end of
//! the stream. Served by `session` on a thread of its own, read by `unionfs stats`.
//!
//! ```json
//! {"requests": {"LOOKUP": 12, ...}, "union": {"copy_ups": 0, ...}, "mount": {...}}
//! ```

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::runtime::MountRecord;
use super::runtime::directory::Directory;
use super::unmount::patience;
use crate::union;

/// A client that does not get on is left after this time.
const TIMEOUT: Duration = Duration::from_secs(5);
/// No answer is longer.
const MAX_ANSWER: u64 = 16 << 20;

/// The counters of a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// Requests received from the kernel since the mount, by FUSE operation; absent: none.
    pub requests: BTreeMap<String, u64>,
    /// The union's counters.
    pub union: union::Counters,
    /// The mount's record.
    pub mount: MountRecord,
}

impl Stats {
    /// Requests received of one operation (`LOOKUP`, `READDIRPLUS`, ...).
    pub fn requests_of(&self, operation: &str) -> u64 {
        self.requests.get(operation).copied().unwrap_or(0)
    }

    /// All requests received.
    pub fn total_requests(&self) -> u64 {
        self.requests.values().sum()
    }
}

/// Asks a mount's server for its counters.
///
/// # Errors
/// [`Error::Silent`] when the server does not answer in time, [`Error::Runtime`] with the socket's
/// path when it cannot be asked.
pub fn query(record: &MountRecord) -> Result<Stats> {
    connect(record)?.answer()
}

/// A connection to a mount's server, which has been sent nothing yet that is read.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    path: PathBuf,
    mountpoint: PathBuf,
}

/// Connects to a mount's server, for [`Connection::answer`] in another place.
///
/// # Errors
/// As [`query`].
pub fn connect(record: &MountRecord) -> Result<Connection> {
    let path = record.socket();
    let stream = with_short_path(&path, connect_to).and_then(|stream| {
        stream.set_read_timeout(Some(patience()))?;
        Ok(stream)
    });
    let mountpoint = record.mountpoint.clone();
    match stream {
        Ok(stream) => Ok(Connection {
            stream,
            path,
            mountpoint,
        }),
        Err(source) => Err(failed(source, path, mountpoint)),
    }
}

impl Connection {
    /// What the server says.
    ///
    /// # Errors
    /// As [`query`].
    pub fn answer(self) -> Result<Stats> {
        let mut answer = Vec::new();
        let stats = (&self.stream)
            .take(MAX_ANSWER)
            .read_to_end(&mut answer)
            .and_then(|_| Ok(serde_json::from_slice::<Stats>(&answer)?));
        match stats {
            Ok(mut stats) => {
                let dir = self.path.parent();
                stats.mount.dir = dir.map(Path::to_owned).unwrap_or_default();
                Ok(stats)
            }
            Err(source) => Err(failed(source, self.path, self.mountpoint)),
        }
    }
}

fn failed(source: io::Error, path: PathBuf, mountpoint: PathBuf) -> Error {
    match source.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Silent { path: mountpoint },
        _ => Error::Runtime { path, source },
    }
}

/// Does not wait where others wait for the server to let them in.
fn connect_to(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// In a runtime directory that is one: no other user can have put the socket there.
fn with_short_path<T>(path: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = Directory::open(dir)?;
    act(&dir.path_to(name))
}

/// The control socket of a mount that is not served yet.
pub(super) struct Socket(UnixListener);

impl Socket {
    /// Listens on `path` (0600).
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        let bind = |short: &Path| {
            // A leftover of an earlier process with this id.
            let _ = std::fs::remove_file(short);
            let listener = UnixListener::bind(short)?;
            // Nobody else could write to the directory meanwhile.
            std::fs::set_permissions(short, std::fs::Permissions::from_mode(0o600))?;
            Ok(Self(listener))
        };
        with_short_path(path, bind)
    }

    /// Answers from now on: each client gets what `answer` returns then.
    pub(super) fn serve(self, answer: impl Fn() -> Vec<u8> + Send + 'static) -> io::Result<Server> {
        let listener = Arc::new(self.0);
        let stopped = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new()
            .name("unionfs-stats".into())
            .spawn({
                let (listener, stopped) = (Arc::clone(&listener), Arc::clone(&stopped));
                move || serve(&listener, &stopped, answer)
            })?;
        Ok(Server {
            listener,
            stopped,
            thread,
        })
    }
}

/// The running control socket.
pub(super) struct Server {
    listener: Arc<UnixListener>,
    stopped: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Ends the thread and waits for it.
    pub(super) fn stop(self) {
        self.stopped.store(true, Ordering::Release);
        // Makes accept(2) answer EINVAL.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        let _ = self.thread.join();
    }
}

fn serve(listener: &UnixListener, stopped: &AtomicBool, answer: impl Fn() -> Vec<u8>) {
    loop {
        let accepted = listener.accept();
        if stopped.load(Ordering::Acquire) {
            return;
        }
        match accepted {
            Ok((stream, _)) => {
                if let Err(error) = send(stream, &answer()) {
                    tracing::debug!(%error, "statistics not delivered");
                }
            }
            Err(error) => {
                tracing::debug!(%error, "control socket");
                // EMFILE and the like: do not spin.
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

fn send(mut stream: UnixStream, answer: &[u8]) -> io::Result<()> {
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuse::{Description, IoPolicy, OwnMount};

    #[test]
    fn asks_and_answers_over_a_long_path() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let mut record = MountRecord::new(
            &OwnMount::unmounted(Path::new("/m")),
            "s",
            false,
            IoPolicy::Auto,
            Description::default(),
        );
        record.dir = deep;
        let stats = Stats {
            requests: [("LOOKUP".to_owned(), 3), ("READ".to_owned(), 4)].into(),
            union: union::Counters {
                copy_ups: 7,
                ..union::Counters::default()
            },
            mount: record.clone(),
        };
        let answer = serde_json::to_vec(&stats).unwrap();
        let server = Socket::bind(&record.socket())
            .and_then(|socket| socket.serve(move || answer.clone()))
            .unwrap();
        let mode = record.socket().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        for _ in 0..3 {
            assert_eq!(query(&record).unwrap(), stats);
        }
        assert_eq!(
            (stats.requests_of("READ"), stats.requests_of("WRITE")),
            (4, 0)
        );
        assert_eq!(stats.total_requests(), 7);
        server.stop();
        let error = query(&record).unwrap_err().to_string();
        assert!(error.contains(&record.id), "{error}");
    }

    #[test]
    fn a_silent_client_does_not_keep_the_server() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let server = Socket::bind(&path)
            .and_then(|socket| socket.serve(|| b"{}".to_vec()))
            .unwrap();
        let silent = UnixStream::connect(&path).unwrap();
        let mut other = UnixStream::connect(&path).unwrap();
        let mut text = String::new();
        other.read_to_string(&mut text).unwrap();
        assert_eq!(text, "{}");
        drop(silent);
        server.stop();
    }
}
