//! What a mount costs while it is there: memory and descriptors of its server after a walk
//! of everything. Used by `main`; kernel overlayfs and the plain directory have no server.

use crate::Workload;
use crate::bed::{Bed, MANY_NAME, NOTHING};
use crate::report::{Sample, Unit};

pub(crate) const ALL: &[Workload] = &[
    Workload {
        name: "server's memory after a walk",
        run: memory,
    },
    Workload {
        name: "server's descriptors after a walk",
        run: descriptors,
    },
];

fn walk_all(bed: &Bed<'_>) -> Result<(), String> {
    let many = std::fs::read_dir(bed.path().join(MANY_NAME)).map_err(|e| e.to_string())?;
    for entry in many {
        entry
            .and_then(|e| e.metadata())
            .map_err(|e| e.to_string())?;
    }
    crate::metadata::files(bed, "", usize::MAX).map(drop)
}

fn memory(bed: &mut Bed<'_>) -> Result<Sample, String> {
    bed.remount();
    walk_all(bed)?;
    let mut bytes = 0.0;
    for pid in bed.servers() {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
        let status = status.map_err(|e| e.to_string())?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        let kib = line.and_then(|l| l.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
        bytes += kib.unwrap_or(0.0) * 1024.0;
    }
    amount(bed, bytes, Unit::Bytes)
}

fn descriptors(bed: &mut Bed<'_>) -> Result<Sample, String> {
    let mut count = 0;
    for pid in bed.servers() {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd"));
        count += open.map_err(|e| e.to_string())?.count();
    }
    amount(bed, count as f64, Unit::Count)
}

fn amount(bed: &Bed<'_>, value: f64, unit: Unit) -> Result<Sample, String> {
    if bed.servers().is_empty() {
        return Err(NOTHING.into());
    }
    Ok(Sample {
        value,
        unit,
        bytes: None,
    })
}
