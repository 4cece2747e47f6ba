//! The runtime directory: one JSON record (`<id>.json`) and one control socket
//! (`<id>.sock`, see [`super::stats`]) per mount, and lock files of root's uppers and work directories
//! (see `union::upper_lock`). Written by `session`, read by `unionfs ps`, `umount` and `stats`.
//!
//! Directory, the first that can be used: `$UNIONFS_RUNTIME_DIR` (alone when set),
//! `/run/unionfs` for root, `$XDG_RUNTIME_DIR/unionfs`, `/tmp/unionfs-<uid>`. It must
//! belong to this user and be writable by nobody else, and no symlink that another user decides
//! on may lead there (`directory`); it is made with mode 0700.

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
use super::own_mount::{MountId, OwnMount};
use super::unmount::Mount;
use crate::layer::StackSpec;
use crate::sandbox::InForce;
use crate::sys::schedule::stat;

use directory::Directory;

/// What is mounted, for people: given by whoever mounts, shown by `unionfs ps`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Description {
    /// The image's name, when an image is mounted.
    pub image: Option<String>,
    /// That image's ID, where it is known.
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
    /// Mount options as the user gave them.
    pub options: Vec<String>,
}

impl Description {
    /// Describes a stack; its image and options are not known.
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
    /// Name of the record: `<id>.json` and `<id>.sock` in the runtime directory.
    pub id: String,
    /// The server's process id, in its own pid namespace.
    pub pid: u32,
    /// When that process started, in clock ticks since boot (proc_pid_stat(5), field 22):
    /// tells it from a later process with the same id.
    pub pid_start: u64,
    /// Inode number of the server's pid namespace.
    pub pid_ns: u64,
    /// Where it is mounted: absolute, without symlinks. In JSON, bytes that are not
    /// UTF-8, control characters and `%` are written as `%XX`.
    #[serde(with = "path_text")]
    pub mountpoint: PathBuf,
    /// What tells it from other mounts; absent in records of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_id: Option<MountId>,
    /// Inode number of the mount namespace that it was made in.
    #[serde(default)]
    pub mount_ns: u64,
    /// The source shown in /proc/mounts.
    pub source: String,
    /// Whether the mount is read-only.
    pub read_only: bool,
    /// How requests come from the kernel.
    #[serde(default)]
    pub transport: Transport,
    /// How the data of files gets to programs: cached or passthrough.
    #[serde(default)]
    pub io: IoPolicy,
    /// What keeps the server from doing anything else; `None`: nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<InForce>,
    /// When it was mounted, seconds since 1970.
    pub since: u64,
    /// What is mounted.
    #[serde(flatten)]
    pub description: Description,
    /// Lock files of the mount, in the same directory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locks: Vec<String>,
    /// The runtime directory the record lies in.
    #[serde(skip)]
    pub dir: PathBuf,
}

/// How a recorded mount is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MountState {
    /// Mounted and its server runs.
    Live,
    /// Its server runs but it is no longer on its mountpoint (lazily unmounted and still in
    /// use, or mounted in another mount namespace).
    Detached,
    /// Still on its mountpoint, but its server is gone: every access answers ENOTCONN.
    Dead,
}

impl MountRecord {
    /// A record of a mount served by this process, not yet written.
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

    /// The same, of a mount that holds these lock files.
    #[must_use]
    pub fn locking(mut self, locks: &[String]) -> Self {
        self.locks = locks.to_vec();
        self
    }

    /// The same, of a mount over `transport`.
    #[must_use]
    pub fn over(mut self, transport: Transport) -> Self {
        self.transport = transport;
        self
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join(format!("{}.sock", self.id))
    }

    /// The record's file.
    pub fn file(&self) -> PathBuf {
        self.dir.join(format!("{}.json", self.id))
    }

    /// Whether the server runs; a server in another pid namespace cannot be judged and
    /// counts as running.
    pub fn is_running(&self) -> bool {
        if Some(self.pid_ns) != pid_namespace() {
            return true;
        }
        start_of(self.pid) == Some(self.pid_start)
    }

    /// How the mount is doing; `None`: server and mount are both gone.
    pub fn state(&self) -> Option<MountState> {
        self.state_among(&mountinfo::list().unwrap_or_default())
    }

    fn state_among(&self, mounts: &[MountEntry]) -> Option<MountState> {
        match (self.is_running(), self.entry_among(mounts).is_some()) {
            (true, true) => Some(MountState::Live),
            (true, false) => Some(MountState::Detached),
            (false, true) => Some(MountState::Dead),
            (false, false) => None,
        }
    }

    /// Its line among `mounts`, those of this mount namespace. Elsewhere than where it was made it is
    /// a copy with a number of its own, known by place and device, as long as the server runs.
    fn entry_among<'a>(&self, mounts: &'a [MountEntry]) -> Option<&'a MountEntry> {
        match self.mount_id {
            Some(id) if self.is_of_this_namespace() => id.entry(mounts),
            _ => {
                let mut topmost = mounts.iter().rev();
                let topmost = topmost.find(|entry| entry.mountpoint == self.mountpoint)?;
                self.may_be(topmost).then_some(topmost)
            }
        }
    }

    /// The mount, opened where it is now: its directory may have been moved, and other things may
    /// have its path. `None` if it is not mounted in this mount namespace.
    ///
    /// # Errors
    /// When the mount table cannot be read; those of [`Mount::at`]; [`Error::Mountpoint`] with
    /// ESTALE if it is moved meanwhile.
    pub fn open_mount(&self) -> Result<Option<Mount>> {
        let failed = |path: &Path, source| Error::Mountpoint {
            path: path.to_owned(),
            source,
        };
        let mounts = mountinfo::list().map_err(|source| failed(&self.mountpoint, source))?;
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

    /// Whether a mount of another namespace may be this one.
    fn may_be(&self, entry: &MountEntry) -> bool {
        entry.is_unionfs() && self.mount_id.is_none_or(|id| id.device == entry.device)
    }

    fn is_of_this_namespace(&self) -> bool {
        mount_namespace() == Some(self.mount_ns)
    }

    /// Waits until the server has finished what was pending, let go of the layers and
    /// ended; `false`: it still runs after `timeout`.
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

    /// Writes the record into the runtime directory, atomically, and remembers where.
    ///
    /// # Errors
    /// When no runtime directory can be used or the file cannot be written.
    pub fn write(&mut self) -> Result<()> {
        let mut staged = self.stage()?;
        self.fill(&mut staged)?;
        self.publish()
    }

    /// Chooses the directory and makes the file that [`Self::fill`] writes to and
    /// [`Self::publish`] gives its name.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub(super) fn stage(&mut self) -> Result<fs::File> {
        let (dir, path) = usable_dir()?;
        self.dir = path;
        // Of servers that were killed: their mount was replaced by this one.
        for old in recorded() {
            if old.mountpoint == self.mountpoint && !old.is_running() {
                old.remove();
            }
        }
        let path = self.staged();
        dir.create(name_of(&path))
            .map_err(|source| Error::Runtime { path, source })
    }

    /// Writes the record as it is now.
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

    /// Removes the record, the socket, and lock files that no mount holds. What is already gone is no
    /// error.
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

/// The last name of a path of ours.
fn name_of(path: &Path) -> &OsStr {
    path.file_name().unwrap_or_default()
}

/// All recorded mounts of this user, oldest first. Records whose server and mount are
/// both gone are removed on the way.
pub fn list() -> Vec<MountRecord> {
    let mut records = recorded();
    let mounts = mountinfo::list().unwrap_or_default();
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

/// All records of this user as they are.
fn recorded() -> Vec<MountRecord> {
    let mut records = Vec::new();
    for dir in candidates() {
        if let Ok(open) = Directory::open(&dir) {
            read_dir(&open, &dir, &mut records);
        }
    }
    records
}

/// The record of what is mounted on `mountpoint`, which may be relative or lead through symlinks;
/// if nothing of ours is there, of the newest mount that was detached from it.
///
/// # Errors
/// When the mountpoint cannot be opened.
pub fn find(mountpoint: &Path) -> Result<Option<MountRecord>> {
    Ok(match Mountpoint::open(mountpoint)?.mount()? {
        Ok(mount) if mount.entry().is_unionfs() => of_mount(mount.id(), mount.entry()),
        Ok(mount) => detached(mount.path()),
        Err(place) => detached(place.path()),
    })
}

/// The record of this mount.
pub fn of_mount(id: MountId, entry: &MountEntry) -> Option<MountRecord> {
    let is = |record: &MountRecord| match record.mount_id {
        Some(theirs) if record.is_of_this_namespace() => theirs.is(&id),
        _ => record.mountpoint == entry.mountpoint && record.may_be(entry),
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

/// Opens the log file of this process, `<pid>.log` in the runtime directory (0600, made
/// anew). It stays when the process ends.
///
/// # Errors
/// When no runtime directory can be used or the file cannot be written.
pub fn log_file() -> Result<fs::File> {
    let (dir, path) = usable_dir()?;
    let path = path.join(format!("{}.log", std::process::id()));
    dir.create(name_of(&path))
        .map_err(|source| Error::Runtime { path, source })
}

/// The candidates for the runtime directory, best first.
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

/// The directory records are written to, made if absent, and its path.
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

/// Opens root's runtime directory, which is made if absent, for lock files
/// ([`crate::union::Options::locks`]). A plain user has none that is the same in each session, and two
/// mounts must look into the same: `None`.
///
/// # Errors
/// Those of openat(2); EACCES with the reason for a directory that others could have changed.
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

/// Start time of a process in clock ticks since boot; `None` when there is no such process.
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
