//! The control socket of a mount: each client gets one JSON document and the end of the stream.
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

/// The time for a client to make progress. After it, the connection is closed.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum length of an answer in bytes.
const MAX_ANSWER: u64 = 16 << 20;

/// The counters of a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// The number of requests from the kernel since the mount, by FUSE operation. Operations
    /// without any are absent.
    pub requests: BTreeMap<String, u64>,
    /// The counters of the union.
    pub union: union::Counters,
    /// The record of the mount.
    pub mount: MountRecord,
}

impl Stats {
    /// Returns the number of requests of one operation (`LOOKUP`, `READDIRPLUS`, ...).
    pub fn requests_of(&self, operation: &str) -> u64 {
        self.requests.get(operation).copied().unwrap_or(0)
    }

    /// Returns the number of all requests.
    pub fn total_requests(&self) -> u64 {
        self.requests.values().sum()
    }
}

/// Asks the server of a mount for its counters.
///
/// # Errors
/// [`Error::Silent`] if the server does not answer in time; [`Error::Runtime`] with the path of the
/// socket if it cannot be asked.
pub fn query(record: &MountRecord) -> Result<Stats> {
    connect(record)?.answer()
}

/// A connection to the server of a mount. The server reads nothing from it.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    path: PathBuf,
    mountpoint: PathBuf,
}

/// Connects to the server of a mount. [`Connection::answer`] may be called in another process.
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
    /// Returns the answer of the server.
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

/// Connects without waiting while other clients wait for the server.
fn connect_to(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Calls `act` with a short path of the socket. The runtime directory was checked: no other user
/// can have put the socket there.
fn with_short_path<T>(path: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = Directory::open(dir)?;
    act(&dir.path_to(name))
}

/// The control socket of a mount. It is not served yet.
pub(super) struct Socket(UnixListener);

impl Socket {
    /// Listens on `path` (0600).
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        let bind = |short: &Path| {
            // A socket of that name was left by an earlier process with this ID.
            let _ = std::fs::remove_file(short);
            let listener = UnixListener::bind(short)?;
            // No other user can write to the directory meanwhile.
            std::fs::set_permissions(short, std::fs::Permissions::from_mode(0o600))?;
            Ok(Self(listener))
        };
        with_short_path(path, bind)
    }

    /// Starts answering: each client gets the value that `answer` returns at that time.
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
        // The shutdown makes accept(2) return EINVAL.
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
                // After an error like EMFILE the loop must not spin.
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
