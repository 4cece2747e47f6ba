//! Threads of a server as the kernel shows and schedules them.

use std::fs;

use rustix::thread::{CpuSet, sched_setaffinity};

/// A thread.
#[derive(Debug, PartialEq)]
pub struct Task {
    pub id: String,
    pub name: String,
    /// The scheduling policy (`SCHED_`).
    pub policy: i32,
    /// The CPUs that it may use, as a list.
    pub cpus: String,
}

/// Returns all threads of a process.
pub fn tasks(process: u32) -> Vec<Task> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let task = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.ok()?.path();
        let id = path.file_name()?.to_str()?;
        let stat = fs::read(path.join("stat")).ok()?;
        // proc_pid_stat(5): field 2, the name, may contain any byte. Fields are counted from the
        // last ')', which field 3 follows.
        let after = stat.rsplit(|&b| b == b')').next()?;
        let policy = std::str::from_utf8(after)
            .ok()?
            .split_ascii_whitespace()
            .nth(41 - 3)?;
        let status = fs::read_to_string(path.join("status")).ok()?;
        let of = |key: &str| Some(status.lines().find_map(|l| l.strip_prefix(key))?.trim());
        Some(Task {
            id: id.to_owned(),
            name: of("Name:")?.to_owned(),
            policy: policy.parse().unwrap(),
            cpus: of("Cpus_allowed_list:")?.to_owned(),
        })
    };
    tasks.filter_map(task).collect()
}

/// Binds the calling thread to a CPU.
pub fn bind(cpu: usize) {
    let mut one = CpuSet::new();
    one.set(cpu);
    sched_setaffinity(None, &one).unwrap();
}
