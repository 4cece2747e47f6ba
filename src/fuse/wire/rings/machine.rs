//! Facts about the machine: its CPUs, and whether requests may take any time.

use std::io;
use std::sync::OnceLock;

use rustix::thread::{CpuSet, sched_setaffinity};

use super::super::idle_priority::only;

/// Pins the current thread to a CPU. This fails if the CPU is offline or not allowed; the scheduler
/// then chooses a CPU.
pub(super) fn pin(cpu: u16) {
    let cpu = usize::from(cpu);
    if cpu >= CpuSet::MAX_CPU {
        return;
    }
    if let Err(error) = sched_setaffinity(None, &only(cpu)) {
        tracing::debug!(%error, cpu, "thread not pinned");
    }
}

/// Reads all of these facts while the files in /proc and /sys can still be opened.
pub(in super::super) fn look_around() {
    // An error is reported later, to a user who asks for rings.
    let _ = possible_cpus();
    may_keep_requests();
}

/// Whether a request may stay unanswered forever. If the administrator has limited that (Linux
/// 6.16, Documentation/admin-guide/sysctl/fs.rst), the kernel would abort the connection.
pub(super) fn may_keep_requests() -> bool {
    static MAY: OnceLock<bool> = OnceLock::new();
    *MAY.get_or_init(|| {
        ["default", "max"].iter().all(|which| {
            let path = format!("/proc/sys/fs/fuse/{which}_request_timeout");
            std::fs::read_to_string(path).map_or(true, |text| text.trim() == "0")
        })
    })
}

/// Returns the number of CPUs in the kernel, which is the number of queues that it wants.
pub(super) fn possible_cpus() -> io::Result<u16> {
    static KNOWN: OnceLock<u16> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(*known);
    }
    let read = read_possible_cpus()?;
    Ok(*KNOWN.get_or_init(|| read))
}

fn read_possible_cpus() -> io::Result<u16> {
    const LIST: &str = "/sys/devices/system/cpu/possible";
    let list = std::fs::read_to_string(LIST)
        .map_err(|error| io::Error::new(error.kind(), format!("{LIST}: {error}")))?;
    count(list.trim()).ok_or_else(|| io::Error::other(format!("{LIST}: not a list: {list:?}")))
}

/// Counts a list like `0-3,8`.
pub(super) fn count(list: &str) -> Option<u16> {
    let mut count = 0u16;
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}
