//! The runtime directory: for each mount one JSON record (`<id>.json`) and one control socket
//! (`<id>.sock`, see [`super::stats`]), and lock files of root's uppers and work directories (see
//! `union::upper_lock`).
//!
//! It is the first usable of these directories: `$UNIONFS_RUNTIME_DIR` (alone if set),
//! `/run/unionfs` for root, `$XDG_RUNTIME_DIR/unionfs`, `/tmp/unionfs-<uid>`. It must belong to
//! this user, no other user may write to it, and no symlink that another user controls may lead to
//! it (`directory`). It is made with mode 0700.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::config::{IoPolicy, Transport};
use super::error::{Error, Result};
use super::mountinfo::{self, MountEntry};
use super::mountpoint::Mountpoint;
use super::own_mount::{self, MountId, OwnMount};
use super::unmount::Mount;
use crate::layer::StackSpec;
use crate::sandbox::InForce;
use crate::sys::schedule::stat;

use directory::Directory;

/// A description of the mounted object for people, which `unionfs ps` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Description {
    /// The name of the image, if an image is mounted.
    pub image: Option<String>,
    /// The name of the read-write layer, if it has one.
    #[serde(default, rename = "layer", skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The ID of that image, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_id: Option<String>,
    /// The lower layers, top first.
    #[serde(with = "path_text::list")]
    pub lowers: Vec<PathBuf>,
    /// The upper directory of a writable mount.
    #[serde(with = "path_text::option")]
    pub upper: Option<PathBuf>,
    /// The work directory of a writable mount.
    #[serde(with = "path_text::option")]
    pub work: Option<PathBuf>,
    /// The mount options, as the user gave them.
    pub options: Vec<String>,
}

impl Description {
    /// Describes a stack. Its image and options are not known.
    pub fn of(stack: &StackSpec) -> Self {
        let upper = stack.upper.as_ref();
        let lowers = stack.lowers.iter();
        Self {
            lowers: lowers.map(|layer| layer.path().to_owned()).collect(),
            upper: upper.map(|upper| upper.layer.path().to_owned()),
            work: upper.map(|upper| upper.work.path().to_owned()),
            ..Self::default()
        }
    }
}

/// The record of one mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MountRecord {
    /// The name of the record: `<id>.json` and `<id>.sock` in the runtime directory.
    pub id: String,
    /// The process ID of the server, in its own pid namespace.
    pub pid: u32,
    /// The start time of that process, in clock ticks since boot (proc_pid_stat(5), field 22). It
    /// distinguishes the process from a later one with the same ID.
    pub pid_start: u64,
    /// The inode number of the server's pid namespace.
    pub pid_ns: u64,
    /// The mountpoint, absolute and without symlinks. In JSON, bytes that are not UTF-8, control
    /// characters and `%` are written as `%XX`.
    #[serde(with = "path_text")]
    pub mountpoint: PathBuf,
    /// The identity of the mount. Records of older versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_id: Option<MountId>,
    /// The inode number of the mount namespace in which it was made.
    #[serde(default)]
    pub mount_ns: u64,
    /// The source shown in /proc/mounts.
    pub source: String,
    /// Whether the mount is read-only.
    pub read_only: bool,
    /// The transport of requests from the kernel.
    #[serde(default)]
    pub transport: Transport,
    /// The path of file data to programs: cached or passthrough.
    #[serde(default)]
    pub io: IoPolicy,
    /// The sandbox of the server; `None` if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<InForce>,
    /// The time of the mount, in seconds since 1970.
    pub since: u64,
    /// A description of the mounted object.
    #[serde(flatten)]
    pub description: Description,
    /// The lock files of the mount, in the same directory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locks: Vec<String>,
    /// The runtime directory that contains the record.
    #[serde(skip)]
    pub dir: PathBuf,
}

/// The state of a recorded mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MountState {
    /// It is mounted, and its server runs.
    Live,
    /// Its server runs but it is no longer on its mountpoint (lazily unmounted and still in
    /// use, or mounted in another mount namespace).
    Detached,
    /// It is still on its mountpoint, but its server is gone: every access gives ENOTCONN.
    Dead,
}

/// The order in which mounts were made.
type Rank = (Option<u64>, u64, u64);

/// The mount table of this mount namespace, and the recorded mounts by their device numbers.
#[derive(Debug, Default)]
struct Mounts {
    table: Vec<MountEntry>,
    latest: OnceCell<HashMap<(u32, u32), Rank>>,
}

impl Mounts {
    fn now() -> io::Result<Self> {
        Ok(Self {
            table: mountinfo::list()?,
            latest: OnceCell::new(),
        })
    }

    /// Returns the last recorded mount with this device number whose server runs.
    fn latest(&self, device: (u32, u32)) -> Option<Rank> {
        let latest = self.latest.get_or_init(|| {
            let mut latest = HashMap::new();
            for record in recorded().iter().filter(|record| record.is_running()) {
                if let Some(id) = record.mount_id {
                    let known = latest.entry(id.device).or_insert_with(|| record.rank());
                    *known = record.rank().max(*known);
                }
            }
            latest
        });
        latest.get(&device).copied()
    }
}

impl MountRecord {
    /// Makes the record of a mount that this process serves. It is not written yet.
    pub fn new(
        mount: &OwnMount,
        source: &str,
        read_only: bool,
        io: IoPolicy,
        description: Description,
    ) -> Self {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let pid = std::process::id();
        Self {
            id: format!("{pid}-{}", SERIAL.fetch_add(1, Ordering::Relaxed)),
            pid,
            pid_start: start_of(pid).unwrap_or_default(),
            pid_ns: pid_namespace().unwrap_or_default(),
            mountpoint: mount.mountpoint().to_owned(),
            mount_id: Some(mount.id()),
            mount_ns: mount_namespace().unwrap_or_default(),
            source: source.to_owned(),
            read_only,
            transport: Transport::default(),
            io,
            sandbox: None,
            since: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_secs()),
            description,
            locks: Vec::new(),
            dir: PathBuf::new(),
        }
    }

    /// Adds the lock files that the mount holds.
    #[must_use]
    pub fn locking(mut self, locks: &[String]) -> Self {
        self.locks = locks.to_vec();
        self
    }

    /// Sets the transport of the mount.
    #[must_use]
    pub fn over(mut self, transport: Transport) -> Self {
        self.transport = transport;
        self
    }

    /// Returns the path of the control socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join(format!("{}.sock", self.id))
    }

    /// Returns the path of the record.
    pub fn file(&self) -> PathBuf {
        self.dir.join(format!("{}.json", self.id))
    }

    /// Whether the server runs. A server in another pid namespace cannot be checked and counts as
    /// running.
    pub fn is_running(&self) -> bool {
        if Some(self.pid_ns) != pid_namespace() {
            return true;
        }
        start_of(self.pid) == Some(self.pid_start)
    }

    /// Returns the state of the mount; `None` if server and mount are both gone.
    pub fn state(&self) -> Option<MountState> {
        self.state_among(&Mounts::now().unwrap_or_default())
    }

    fn state_among(&self, mounts: &Mounts) -> Option<MountState> {
        match (self.is_running(), self.entry_among(mounts).is_some()) {
            (true, true) => Some(MountState::Live),
            (true, false) => Some(MountState::Detached),
            (false, true) => Some(MountState::Dead),
            (false, false) => None,
        }
    }

    /// Returns the line of the mount in `mounts`, the mount table of this mount namespace. A copy
    /// with another number counts: mount(8) makes one to map owners, and another namespace than that
    /// of the creation has its own. If a later mount has the device number, this one is gone, although
    /// its server may still run.
    fn entry_among<'a>(&self, mounts: &'a Mounts) -> Option<&'a MountEntry> {
        let table = &mounts.table;
        let Some(id) = self.mount_id else {
            return own_mount::topmost_on(table, &self.mountpoint);
        };
        let here = self.is_of_this_namespace();
        match here.then(|| id.entry(table)).flatten() {
            // Without a server it is not known whether the device number is still that of this mount.
            None if here && !self.is_running() => None,
            None => id.copy_on(table, &self.mountpoint).filter(|_| {
                let latest = mounts.latest(id.device);
                latest.is_none_or(|latest| latest <= self.rank())
            }),
            entry => entry,
        }
    }

    /// Later mounts have the larger ones.
    fn rank(&self) -> Rank {
        let unique = self.mount_id.and_then(|id| id.unique);
        (unique, self.since, self.pid_start)
    }

    /// Opens the mount where it is now: its directory may have been moved, and its path may lead to
    /// another directory. `None` if it is not mounted in this mount namespace.
    ///
    /// # Errors
    /// Those of reading the mount table; those of [`Mount::at`]; [`Error::Mountpoint`] with ESTALE
    /// if it is moved meanwhile.
    pub fn open_mount(&self) -> Result<Option<Mount>> {
        let failed = |path: &Path, source| Error::Mountpoint {
            path: path.to_owned(),
            source,
        };
        let mounts = Mounts::now().map_err(|source| failed(&self.mountpoint, source))?;
        let Some(entry) = self.entry_among(&mounts) else {
            return Ok(None);
        };
        let mount = Mount::at(&entry.mountpoint)?;
        if (mount.entry().id, mount.entry().device) == (entry.id, entry.device) {
            Ok(Some(mount))
        } else {
            Err(failed(&entry.mountpoint, Errno::STALE.into()))
        }
    }

    fn is_of_this_namespace(&self) -> bool {
        mount_namespace() == Some(self.mount_ns)
    }

    /// Waits until the server has finished pending work, has closed the layers and has ended.
    /// Returns `false` if it still runs after `timeout`.
    pub fn wait_end(&self, timeout: Duration) -> bool {
        let start = Instant::now();
        while self.file().exists() && self.is_running() {
            if start.elapsed() >= timeout {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Writes the record into the runtime directory, atomically, and stores its path.
    ///
    /// # Errors
    /// An error if no runtime directory can be used or the file cannot be written.
    pub fn write(&mut self) -> Result<()> {
        let mut staged = self.stage()?;
        self.fill(&mut staged)?;
        self.publish()
    }

    /// Chooses the directory and makes the file that [`Self::fill`] writes and [`Self::publish`]
    /// renames.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub(super) fn stage(&mut self) -> Result<fs::File> {
        let (dir, path) = usable_dir()?;
        self.dir = path;
        // Older records belong to servers that were killed. This mount has replaced their mount.
        for old in recorded() {
            if old.mountpoint == self.mountpoint && !old.is_running() {
                old.remove();
            }
        }
        let path = self.staged();
        dir.create(name_of(&path))
            .map_err(|source| Error::Runtime { path, source })
    }

    /// Writes the record in its present state.
    ///
    /// # Errors
    /// [`Error::Runtime`].
    pub(super) fn fill(&self, staged: &mut fs::File) -> Result<()> {
        serde_json::to_vec_pretty(self)
            .map_err(io::Error::from)
            .and_then(|text| staged.write_all(&text))
            .map_err(|source| Error::Runtime {
                path: self.staged(),
                source,
            })
    }

    /// Gives the staged record its name.
    ///
    /// # Errors
    /// [`Error::Runtime`].
    pub(super) fn publish(&self) -> Result<()> {
        let (from, path) = (self.staged(), self.file());
        Directory::open(&self.dir)
            .and_then(|dir| dir.rename(name_of(&from), name_of(&path)))
            .map_err(|source| Error::Runtime { path, source })
    }

    fn staged(&self) -> PathBuf {
        self.dir.join(format!("{}.tmp", self.id))
    }

    /// Removes the record, the socket, and lock files that no mount holds. It is no error if they
    /// do not exist.
    pub fn remove(&self) {
        let told = |path: &Path, error: io::Error| {
            tracing::warn!(path = %path.display(), %error, "cannot remove runtime file");
        };
        let dir = match Directory::open(&self.dir) {
            Ok(dir) => dir,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return told(&self.dir, error),
        };
        for path in [self.file(), self.socket(), self.staged()] {
            if let Err(error) = dir.remove(name_of(&path)) {
                told(&path, error);
            }
        }
        for name in &self.locks {
            if let Err(error) = dir.remove_lock(name) {
                told(&self.dir.join(name), error);
            }
        }
    }
}

/// Returns the last component of a path of the runtime directory.
fn name_of(path: &Path) -> &OsStr {
    path.file_name().unwrap_or_default()
}

/// Returns all recorded mounts of this user, oldest first. Removes records whose server and mount
/// are both gone.
pub fn list() -> Vec<MountRecord> {
    let mut records = recorded();
    let mounts = Mounts::now().unwrap_or_default();
    records.retain(|record: &MountRecord| {
        let keep = record.state_among(&mounts).is_some();
        if !keep {
            record.remove();
        }
        keep
    });
    records.sort_by(|a, b| (a.since, &a.id).cmp(&(b.since, &b.id)));
    records
}

/// Returns all records of this user.
fn recorded() -> Vec<MountRecord> {
    let mut records = Vec::new();
    for dir in candidates() {
        if let Ok(open) = Directory::open(&dir) {
            read_dir(&open, &dir, &mut records);
        }
    }
    records
}

/// Returns the record of the mount on `mountpoint`, which may be relative or lead through symlinks.
/// If no mount of ours is there, returns that of the newest mount that was detached from it.
///
/// # Errors
/// An error if the mountpoint cannot be opened.
pub fn find(mountpoint: &Path) -> Result<Option<MountRecord>> {
    Ok(match Mountpoint::open(mountpoint)?.mount()? {
        Ok(mount) if mount.entry().is_unionfs() => of_mount(mount.entry()),
        Ok(mount) => detached(mount.path()),
        Err(place) => detached(place.path()),
    })
}

/// Returns the record of the open mount with this line in the mount table.
pub fn of_mount(mount: &MountEntry) -> Option<MountRecord> {
    let mounts = Mounts::now().unwrap_or_default();
    let is = |record: &MountRecord| {
        let entry = record.entry_among(&mounts);
        entry.is_some_and(|entry| entry.id == mount.id)
    };
    list().into_iter().rev().find(is)
}

fn detached(path: &Path) -> Option<MountRecord> {
    let is = |record: &MountRecord| {
        record.mountpoint == path && record.state() == Some(MountState::Detached)
    };
    list().into_iter().rev().find(is)
}

/// Adds the records in `dir`, whose path is `path`.
fn read_dir(dir: &Directory, path: &Path, records: &mut Vec<MountRecord>) {
    for name in dir.names() {
        if name.extension() != Some("json".as_ref()) {
            continue;
        }
        let bytes = dir.read(name.as_os_str());
        let record = bytes.and_then(|bytes| Ok(serde_json::from_slice::<MountRecord>(&bytes)?));
        match record {
            // The name decides which files are removed with the record.
            Ok(mut record) if name.file_stem() == Some(record.id.as_ref()) => {
                record.dir = path.to_owned();
                records.push(record);
            }
            Ok(_) => tracing::debug!(name = %name.display(), "record under a foreign name"),
            Err(error) => tracing::debug!(name = %name.display(), %error, "unreadable record"),
        }
    }
}

/// Opens the log file of this process, `<pid>.log` in the runtime directory (mode 0600). An older
/// one is replaced. It stays when the process ends.
///
/// # Errors
/// An error if no runtime directory can be used or the file cannot be written.
pub fn log_file() -> Result<fs::File> {
    let (dir, path) = usable_dir()?;
    let path = path.join(format!("{}.log", std::process::id()));
    dir.create(name_of(&path))
        .map_err(|source| Error::Runtime { path, source })
}

/// Returns the candidates for the runtime directory, best first.
fn candidates() -> Vec<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(dir) = set("UNIONFS_RUNTIME_DIR") {
        return vec![PathBuf::from(dir)];
    }
    let uid = rustix::process::geteuid();
    let mut dirs = Vec::new();
    if uid.is_root() {
        dirs.push(PathBuf::from("/run/unionfs"));
    }
    if let Some(dir) = set("XDG_RUNTIME_DIR") {
        dirs.push(PathBuf::from(dir).join("unionfs"));
    }
    dirs.push(PathBuf::from(format!("/tmp/unionfs-{}", uid.as_raw())));
    dirs
}

/// Opens the directory for records, which is made if absent; also returns its path.
fn usable_dir() -> Result<(Directory, PathBuf)> {
    let mut reasons = Vec::new();
    for path in candidates() {
        match Directory::make(&path) {
            Ok(dir) => return Ok((dir, path)),
            Err(error) => reasons.push(format!("{}: {error}", path.display())),
        }
    }
    Err(Error::NoRuntimeDir {
        reasons: reasons.join("; "),
    })
}

/// Opens root's runtime directory for lock files ([`crate::union::Options::locks`]), and makes it
/// if it does not exist. `None` for a plain user, who has no directory that is the same in each
/// session: two mounts must use the same one.
///
/// # Errors
/// Those of openat(2); EACCES with the reason for a directory that other users could have changed.
pub fn lock_directory() -> Result<Option<OwnedFd>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let first = candidates().into_iter().next();
    first
        .map(|path| match Directory::make(&path) {
            Ok(dir) => Ok(dir.into()),
            Err(source) => Err(Error::Runtime { path, source }),
        })
        .transpose()
}

/// Returns the start time of a process in clock ticks since boot; `None` if there is no such
/// process.
fn start_of(pid: u32) -> Option<u64> {
    let stat = stat(pid)?;
    if matches!(stat.field(3)?, "Z" | "X") {
        return None;
    }
    stat.field(22)?.parse().ok()
}

fn mount_namespace() -> Option<u64> {
    fs::metadata("/proc/thread-self/ns/mnt")
        .ok()
        .map(|m| m.ino())
}

fn pid_namespace() -> Option<u64> {
    fs::metadata("/proc/self/ns/pid").ok().map(|m| m.ino())
}

mod own_mountpoints;

pub use own_mountpoints::{make_mountpoint, remove_mountpoint};

/// Paths in JSON: `%XX` for bytes that are not UTF-8, control characters and `%` itself.
mod path_text;

pub(super) mod directory;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    fn record() -> MountRecord {
        let odd = PathBuf::from(std::ffi::OsString::from_vec(b"/l\xff%\n".to_vec()));
        MountRecord::new(
            &OwnMount::unmounted(Path::new("/mnt/p\u{e4}th 100%")),
            "unionfs",
            true,
            IoPolicy::Passthrough,
            Description {
                image: Some("busybox:latest".into()),
                name: Some("work".into()),
                image_id: Some("sha256:0123".into()),
                lowers: vec![odd.clone(), "/b".into()],
                upper: Some(odd),
                work: None,
                options: vec!["volatile".into()],
            },
        )
    }

    #[test]
    fn record_survives_json() {
        let record = record();
        let json = serde_json::to_string(&record).unwrap();
        assert!(
            json.contains(r#""mountpoint":"/mnt/päth 100%25""#),
            "{json}"
        );
        assert!(json.contains(r#""upper":"/l%FF%25%0A""#), "{json}");
        assert_eq!(serde_json::from_str::<MountRecord>(&json).unwrap(), record);
    }

    #[test]
    fn bad_escapes_are_errors() {
        for text in ["/a%", "/a%4", "/a%zz", "/a%+1"] {
            let json = serde_json::to_string(&record())
                .unwrap()
                .replace("/mnt/päth 100%25", text);
            assert!(
                serde_json::from_str::<MountRecord>(&json).is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn this_process_runs_and_a_recycled_pid_does_not() {
        let mut record = record();
        assert!(record.is_running());
        assert_eq!(record.state(), Some(MountState::Detached));
        record.pid_start += 1;
        assert!(!record.is_running());
        assert_eq!(record.state(), None);
        record.pid_ns += 1;
        assert!(
            record.is_running(),
            "another pid namespace cannot be judged"
        );
    }

    #[test]
    fn dead_records_are_dropped_and_foreign_files_left() {
        let dir = tempfile::tempdir().unwrap();
        let write = |record: &MountRecord| {
            let path = dir.path().join(format!("{}.json", record.id));
            fs::write(&path, serde_json::to_vec(record).unwrap()).unwrap();
            path
        };
        let live = record();
        let mut renamed = record();
        renamed.id = "../outside".into();
        let live_file = write(&live);
        let text = serde_json::to_vec(&renamed).unwrap();
        fs::write(dir.path().join("other.json"), text).unwrap();
        fs::write(dir.path().join("broken.json"), b"{").unwrap();
        let mut records = Vec::new();
        let open = Directory::open(dir.path()).unwrap();
        read_dir(&open, dir.path(), &mut records);
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].id, live.id);
        assert_eq!(records[0].file(), live_file);
        records[0].remove();
        assert!(!live_file.exists());
        records[0].remove();
    }
}
