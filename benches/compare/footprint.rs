//! The cost of a live mount: memory and descriptors of its server, page cache of several mounts,
//! CPU time of operations. Kernel overlayfs and the ordinary directory have no server.

use std::fs;
use std::time::Duration;

use crate::figures::report::{Group, NOTHING, Sample, Unit};
use crate::layers::{FIO_SIZE, MANY_NAME};
use crate::metadata::{self, timed};
use crate::subjects::Bed;
use crate::{Workload, aside};

pub(crate) const ALL: &[Workload] = &[
    aside(
        Group::Costs,
        "server's memory after a walk",
        memory_after_walk,
    ),
    aside(
        Group::Costs,
        "server's descriptors after a walk",
        descriptors_after_walk,
    ),
    aside(
        Group::Costs,
        "server's memory when all is forgotten",
        memory_after_forgetting,
    ),
    aside(
        Group::Costs,
        "page cache of ten mounts reading a file",
        page_cache,
    ),
    aside(
        Group::Costs,
        "CPU time of 3000 create+write+close",
        cpu_of_create,
    ),
    aside(Group::Costs, "CPU time of 3000 unlink", cpu_of_unlink),
];

/// These run in this order, on an image of a million files.
pub(crate) const MILLION: &[Workload] = &[
    aside(Group::Walks, "cold walk of 1000000 files", walk_million),
    aside(Group::Costs, "server's memory after 1000000 files", memory),
    aside(
        Group::Costs,
        "server's descriptors after 1000000 files",
        descriptors,
    ),
    aside(
        Group::Costs,
        "server's memory, 1000000 forgotten",
        memory_forgotten,
    ),
];

type Outcome = Result<Sample, String>;

fn walk_all(bed: &Bed<'_>) -> Result<(), String> {
    let many = fs::read_dir(bed.path().join(MANY_NAME)).map_err(|e| e.to_string())?;
    for entry in many {
        entry
            .and_then(|e| e.metadata())
            .map_err(|e| e.to_string())?;
    }
    metadata::files(bed, "", usize::MAX).map(drop)
}

fn walk_million(bed: &mut Bed<'_>) -> Outcome {
    timed(|| metadata::walk(bed.path(), &mut |_, _| {}))
}

fn memory_after_walk(bed: &mut Bed<'_>) -> Outcome {
    walk_all(bed)?;
    memory(bed)
}

fn descriptors_after_walk(bed: &mut Bed<'_>) -> Outcome {
    walk_all(bed)?;
    descriptors(bed)
}

fn memory_after_forgetting(bed: &mut Bed<'_>) -> Outcome {
    walk_all(bed)?;
    memory_forgotten(bed)
}

/// Measures the memory after the kernel has dropped every unused entry and inode.
fn memory_forgotten(bed: &mut Bed<'_>) -> Outcome {
    fs::write("/proc/sys/vm/drop_caches", "2").map_err(|e| e.to_string())?;
    // The kernel sends the FORGET messages for them later.
    std::thread::sleep(Duration::from_secs(1));
    memory(bed)
}

fn memory(bed: &mut Bed<'_>) -> Outcome {
    let mut bytes = 0.0;
    for pid in bed.servers() {
        bytes += kib(&format!("/proc/{pid}/status"), "VmRSS:")? * 1024.0;
    }
    amount(bed, bytes, Unit::Bytes)
}

/// Returns a field of a file like /proc/meminfo.
fn kib(file: &str, field: &str) -> Result<f64, String> {
    let text = fs::read_to_string(file).map_err(|e| format!("{file}: {e}"))?;
    let line = text.lines().find_map(|l| l.strip_prefix(field));
    line.and_then(|l| l.trim().strip_suffix(" kB")?.trim().parse().ok())
        .ok_or_else(|| format!("{file} has no {field}"))
}

fn descriptors(bed: &mut Bed<'_>) -> Outcome {
    let mut count = 0;
    for pid in bed.servers() {
        let open = fs::read_dir(format!("/proc/{pid}/fd"));
        count += open.map_err(|e| e.to_string())?.count();
    }
    amount(bed, count as f64, Unit::Count)
}

fn amount(bed: &Bed<'_>, value: f64, unit: Unit) -> Outcome {
    if bed.servers().is_empty() {
        return Err(NOTHING.into());
    }
    Ok(Sample {
        value,
        unit,
        bytes: None,
        messages: None,
    })
}

/// Measures the memory of the pages of one lower file after ten read-only mounts of the image have
/// read it. One copy takes 256 MiB.
fn page_cache(bed: &mut Bed<'_>) -> Outcome {
    bed.need_mount()?;
    let mounts = bed.more(10);
    bed.drop_caches();
    let before = kib("/proc/meminfo", "Cached:")?;
    for mount in &mounts {
        let read = fs::read(mount.path().join("lower.bin")).map_err(|e| e.to_string())?;
        assert_eq!(read.len() as u64, FIO_SIZE);
    }
    let pages = kib("/proc/meminfo", "Cached:")? - before;
    Ok(Sample {
        value: pages * 1024.0,
        unit: Unit::Bytes,
        bytes: None,
        messages: None,
    })
}

/// Returns the CPU time of this process and of the servers, in user and kernel mode.
fn cpu(bed: &Bed<'_>) -> Result<Duration, String> {
    let mut total = cpu_of("self")?;
    for pid in bed.servers() {
        total += cpu_of(&pid.to_string())?;
    }
    Ok(total)
}

/// Returns the CPU time of a process: fields 14 and 15 of proc_pid_stat(5), in hundredths of a
/// second (USER_HZ).
fn cpu_of(process: &str) -> Result<Duration, String> {
    let file = format!("/proc/{process}/stat");
    let text = fs::read_to_string(&file).map_err(|e| format!("{file}: {e}"))?;
    let fields = text.rsplit(") ").next().unwrap_or_default();
    let ticks: u64 = fields
        .split(' ')
        .skip(11)
        .take(2)
        .filter_map(|f| f.parse::<u64>().ok())
        .sum();
    Ok(Duration::from_millis(ticks * 10))
}

fn cpu_of_create(bed: &mut Bed<'_>) -> Outcome {
    let dir = bed.path().join("cpu-create");
    fs::create_dir(&dir).map_err(|e| e.to_string())?;
    let before = cpu(bed)?;
    for n in 0..3000 {
        fs::write(dir.join(n.to_string()), b"0123456789").map_err(|e| e.to_string())?;
    }
    Ok(Sample::time(cpu(bed)? - before))
}

fn cpu_of_unlink(bed: &mut Bed<'_>) -> Outcome {
    let dir = metadata::filled(bed, "cpu-unlink", "f")?;
    let before = cpu(bed)?;
    for n in 0..3000 {
        fs::remove_file(dir.join(format!("f{n}"))).map_err(|e| e.to_string())?;
    }
    Ok(Sample::time(cpu(bed)? - before))
}
