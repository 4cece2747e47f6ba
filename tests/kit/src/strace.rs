//! strace on a server: its system calls.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::fixture::Fixture;
use super::mount::poll;
use super::task::tasks;

/// An strace that is attached to all threads of a process.
pub struct Trace {
    strace: Child,
    file: PathBuf,
    process: u32,
}

impl Trace {
    /// Attaches to the server of a fixture, with further arguments of strace.
    pub fn of(f: &Fixture, args: &[&str]) -> Self {
        Self::attach(f.mounted().servers()[0], f.scratch.path(), args)
    }

    /// Attaches to a process. Returns when strace traces every thread. Its files go to `dir`.
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
        Self {
            strace,
            file,
            process,
        }
    }

    /// Returns its output so far.
    pub fn text(&self) -> String {
        text(&self.file)
    }

    /// Detaches. Returns the lines of the output, without those of the thread that watches how the
    /// others are scheduled (`fuse/wire/idle_priority`): its calls depend on timing.
    pub fn end(mut self) -> Vec<String> {
        // The process may have ended by itself.
        let is_there = Path::new(&format!("/proc/{}", self.process)).exists();
        let mut watch = if is_there {
            tasks(self.process)
        } else {
            Vec::new()
        };
        watch.retain(|task| task.name == "unionfs-watch");
        kill_process(Pid::from_child(&self.strace), Signal::INT).unwrap();
        self.strace.wait().unwrap();
        let text = self.text();
        let is_its = |line: &str| watch.iter().any(|t| line.split(' ').next() == Some(&t.id));
        let lines = text.lines().filter(|line| !is_its(line));
        lines.map(str::to_owned).collect()
    }

    /// As [`Self::end`], but returns the names of the calls, in order.
    pub fn calls(self) -> Vec<String> {
        let name = |line: &String| {
            let (_, call) = line.split_once(' ')?;
            let (name, _) = call.trim_start().split_once('(')?;
            let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            is_name.then(|| name.to_owned())
        };
        self.end().iter().filter_map(name).collect()
    }
}

/// Returns the text of an output file of strace, which may quote any bytes; empty while there is
/// none. With `-f` strace splits a call into two lines if another task's call comes between. Here
/// they are joined into one line, at the place of the first.
pub fn text(path: &Path) -> String {
    whole_calls(&String::from_utf8_lossy(
        &std::fs::read(path).unwrap_or_default(),
    ))
}

fn whole_calls(text: &str) -> String {
    const CUT: &str = " <unfinished ...>";
    let mut lines: Vec<String> = Vec::new();
    let mut begun: HashMap<&str, usize> = HashMap::new();
    for line in text.lines() {
        let (task, call) = line.split_once(' ').unwrap_or((line, ""));
        let end = call.trim_start().strip_prefix("<... ");
        let end = end.and_then(|end| end.split_once(" resumed>"));
        if let Some(((_, end), at)) = end.zip(begun.remove(task)) {
            let whole = &mut lines[at];
            whole.truncate(whole.len() - CUT.len());
            whole.push_str(end);
            continue;
        }
        if line.ends_with(CUT) {
            begun.insert(task, lines.len());
        }
        lines.push(line.to_owned());
    }
    lines.push(String::new());
    lines.join("\n")
}
