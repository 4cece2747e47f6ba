//! Threads of a server as the kernel shows and schedules them. Used by the tests of how requests
//! are served, and by `strace`.

use std::fs;

use rustix::thread::{CpuSet, sched_setaffinity};
use unionfs::sys::schedule::stat;

/// A thread.
#[derive(Debug, PartialEq)]
pub struct Task {
    pub id: String,
    pub name: String,
    /// Its `SCHED_`.
    pub policy: i32,
    /// Those it may use, as a list.
    pub cpus: String,
}

/// All of a process.
pub fn tasks(process: u32) -> Vec<Task> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let task = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.ok()?.path();
        let id = path.file_name()?.to_str()?;
        let stat = stat(format_args!("{process}/task/{id}"))?;
        let status = fs::read_to_string(path.join("status")).ok()?;
        let of = |key: &str| Some(status.lines().find_map(|l| l.strip_prefix(key))?.trim());
        Some(Task {
            id: id.to_owned(),
            name: of("Name:")?.to_owned(),
            policy: stat.field(41)?.parse().unwrap(),
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
