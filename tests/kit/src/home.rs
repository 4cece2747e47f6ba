//! A home directory for one test: it has directories, a runtime directory and a store, and the
//! program runs in it. All mounts below it are unmounted on drop.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::{program, strace};

/// The result of a run of the program.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        assert_eq!(self.stderr, "", "a success is silent on stderr");
        self.stdout
    }

    /// Requires exit code 0. stderr may show progress.
    pub fn ok_with_progress(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    /// Requires exit code `code`, and one line on stderr that contains each of `words`.
    #[track_caller]
    pub fn failed(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "one line: {self:?}");
        assert!(self.stderr.starts_with("unionfs: "), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in {self:?}");
        }
    }
}

impl Outcome {
    /// Requires exit code 1 and each of `words` on stderr, after other operands were processed.
    #[track_caller]
    pub fn failed_with_output(&self, words: &[&str]) {
        assert_eq!(self.code, Some(1), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in {self:?}");
        }
    }
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

pub struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("ucli").tempdir().unwrap();
        let home = Self { dir };
        // Processes of other users take part in some tests.
        std::fs::set_permissions(home.path(""), std::fs::Permissions::from_mode(0o755)).unwrap();
        home.dirs(&["run", "own"]);
        std::fs::set_permissions(home.path("run"), std::fs::Permissions::from_mode(0o700)).unwrap();
        home
    }

    /// Creates a home with the directories of a writable mount: lower (with `file`), upper, work,
    /// mnt.
    pub fn with_layers() -> Self {
        let home = Self::new();
        home.dirs(&["lower", "upper", "work", "mnt"]);
        std::fs::write(home.path("lower/file"), "lower\n").unwrap();
        home
    }

    pub fn dirs(&self, names: &[&str]) {
        for name in names {
            std::fs::create_dir_all(self.path(name)).unwrap();
        }
    }

    /// Returns the path of a name in this home, absolute and without symlinks.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Returns a command that runs `program` in this home's directory, with its runtime directory
    /// and own store.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.path(""))
            .env("UNIONFS_RUNTIME_DIR", self.path("run"))
            .env("UNIONFS_ROOT", self.path("own"))
            .env_remove("UNIONFS_STORE")
            .env_remove("UNIONFS_LOG")
            .stdin(Stdio::null());
        command
    }

    /// As [`Home::command`], with the default effect of signals. Tests may run in the background or
    /// under nohup(1), whose children ignore some signals.
    pub fn signalled(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.command("env");
        command.arg("--default-signal=INT,TERM,HUP").arg(program);
        command
    }

    pub fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Outcome {
        self.command(program()).args(args).output().unwrap().into()
    }

    /// Runs a script of sh, in which `unionfs` is the program.
    pub fn run_script(&self, script: &str) -> Outcome {
        let dir = Path::new(program())
            .parent()
            .unwrap()
            .as_os_str()
            .to_owned();
        let mut path = dir;
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let mut command = self.command("sh");
        command.args(["-e", "-c", script]).env("PATH", path);
        command.output().unwrap().into()
    }

    /// Runs a command that must be refused. Nothing may be mounted or written.
    #[track_caller]
    pub fn refused<A: AsRef<OsStr>>(
        &self,
        code: i32,
        args: impl IntoIterator<Item = A>,
        words: &[&str],
    ) {
        let before = self.snapshot();
        self.run(args).failed(code, words);
        assert_eq!(self.snapshot(), before, "something was written");
        assert_eq!(self.mounts(), Vec::<String>::new());
    }

    /// Lists every file below, with the attributes that a write changes.
    pub fn snapshot(&self) -> String {
        let mut text = String::new();
        let mut todo = vec![self.path("")];
        while let Some(dir) = todo.pop() {
            let mut entries: Vec<PathBuf> = std::fs::read_dir(&dir)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            entries.sort();
            for path in entries {
                let meta = path.symlink_metadata().unwrap();
                let times = (meta.mtime(), meta.mtime_nsec(), meta.ctime_nsec());
                writeln!(text, "{path:?} {:o} {times:?}", meta.mode()).unwrap();
                if meta.is_dir() {
                    todo.push(path);
                }
            }
        }
        text
    }

    /// Returns the lines of /proc/thread-self/mounts below this home.
    pub fn mounts(&self) -> Vec<String> {
        let below = self.text("");
        let all = std::fs::read_to_string("/proc/thread-self/mounts").unwrap();
        all.lines()
            .filter(|line| line.contains(&below))
            .map(str::to_owned)
            .collect()
    }

    /// Returns the daemon of the only mount, as `unionfs ps` shows it.
    pub fn daemon(&self) -> i32 {
        let rows = self.json(["ps", "--json"]);
        let rows = rows.as_array().unwrap();
        assert_eq!(rows.len(), 1, "{rows:?}");
        i32::try_from(rows[0]["pid"].as_u64().unwrap()).unwrap()
    }

    pub fn json<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> serde_json::Value {
        serde_json::from_str(&self.run(args).ok()).unwrap()
    }

    /// Returns the names of all images, sorted.
    pub fn names(&self) -> Vec<String> {
        let images = self.json(["images", "--json"]);
        let images = images.as_array().unwrap().iter();
        let names = images.flat_map(|image| image["names"].as_array().unwrap());
        let mut names: Vec<String> = names.map(|n| n.as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    /// Makes the usual writable mount on `mnt`.
    pub fn mount(&self) {
        assert_eq!(self.run(LAYERS).ok(), "");
    }
}

pub const LAYERS: [&str; 3] = ["-o", "lowerdir=lower,upperdir=upper,workdir=work", "mnt"];

impl Drop for Home {
    fn drop(&mut self) {
        for line in self.mounts().iter().rev() {
            let target = line.split(' ').nth(1).unwrap_or_default();
            let target = OsString::from(target.replace("\\040", " "));
            let _ = rustix::mount::unmount(Path::new(&target), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Polls `done` until it returns true, which must happen within ten seconds.
#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "not within 10 s: {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn is_running(pid: i32) -> bool {
    // A zombie does not run any more. It is a child of another process here.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .starts_with(" Z")
    })
}

pub fn kill(pid: i32, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Mounts on `mnt` and unmounts under strace, which follows all processes and has further
/// arguments. Returns its output.
pub fn traced_mount(home: &Home, strace: &[&str], mount: &[&str]) -> String {
    let trace = home.path("trace");
    let mut command = home.command("strace");
    let mut child = command
        .arg("-f")
        .args(strace)
        .arg("-o")
        .arg(&trace)
        .args([program(), "mount"])
        .args(mount)
        .arg("mnt")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("it is mounted", || {
        home.run(["stats", "mnt"]).code == Some(0)
    });
    home.run(["umount", "mnt"]).ok();
    assert!(child.wait().unwrap().success());
    strace::text(&trace)
}
