//! strace on a server: what it asks of the system. Used by the tests that count calls, look
//! for syncs, or make calls fail.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::fixture::Fixture;
use super::mount::poll;

/// Leaves the test with a printed skip (or a failure, see `skip`) where there is no strace.
macro_rules! need_strace {
    () => {
        if !$crate::common::strace::is_installed() {
            return $crate::common::skip("needs strace");
        }
    };
}
pub(crate) use need_strace;

/// Whether strace can be called.
pub fn is_installed() -> bool {
    Command::new("strace").arg("-V").output().is_ok()
}

/// strace, attached to all threads of a process.
pub struct Trace {
    strace: Child,
    file: PathBuf,
}

impl Trace {
    /// On the server of a fixture, with further arguments.
    pub fn of(f: &Fixture, args: &[&str]) -> Self {
        Self::attach(f.mounted().servers()[0], f.scratch.path(), args)
    }

    /// Returns when strace holds every thread. Its files go to `dir`.
    pub fn attach(process: u32, dir: &Path, args: &[&str]) -> Self {
        let (file, log) = (dir.join("trace"), dir.join("strace.err"));
        let strace = Command::new("strace")
            .arg("-f")
            .args(args)
            .args(["-p", &process.to_string(), "-o"])
            .arg(&file)
            .stderr(Stdio::from(File::create(&log).unwrap()))
            .spawn()
            .unwrap();
        let attached = || text(&log).contains("attached");
        assert!(poll(attached), "strace: {}", text(&log));
        Self { strace, file }
    }

    /// What it has written so far.
    pub fn text(&self) -> String {
        text(&self.file)
    }

    /// Detaches; the lines it has written.
    pub fn end(mut self) -> Vec<String> {
        kill_process(Pid::from_child(&self.strace), Signal::INT).unwrap();
        self.strace.wait().unwrap();
        self.text().lines().map(str::to_owned).collect()
    }
}

/// A file of strace's, which may quote any bytes; empty while there is none.
pub fn text(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}
