//! Workloads on data: fio with the jobs of `benches/fio`.

use std::path::Path;

use crate::layers::FIO_SIZE;
use crate::report::Sample;
use crate::subjects::{Bed, sh};
use crate::{Workload, row};

macro_rules! fio_rows {
    ($($section:literal),* $(,)?) => {
        &[
            $(row(concat!("fio ", $section), |bed| fio(bed, $section)),)*
            row("fio seqread-128k-lower, cold disk", cold_read),
        ]
    };
}

pub(crate) const ALL: &[Workload] = fio_rows![
    "seqread-4k-lower",
    "seqread-128k-lower",
    "seqread-1m-lower",
    "randread-4k-lower",
    "mmap-randread-4k-lower",
    "randread-4k-4jobs-lower",
    "seqread-1m-direct-upper",
    "randread-4k-direct-upper",
    "randread-4k-uring-direct-upper",
    "seqwrite-4k-new",
    "seqwrite-128k-new",
    "seqwrite-1m-new",
    "seqwrite-128k-uring-new",
    "randwrite-4k-upper",
    "randwrite-4k-4jobs-upper",
    "mmap-randwrite-4k-upper",
    "seqwrite-1m-direct-upper",
    "randwrite-4k-direct-upper",
    "randwrite-4k-fsync-upper",
];

/// The file that is already in the upper. `lower.bin` is a file of a layer. Its pages are read
/// again from the layer itself, because their size depends on the first reader, and the cost of
/// reading them again depends on their size.
fn prepare(bed: &Bed<'_>) -> Result<(), String> {
    let upper = bed.path().join("upper.bin");
    if upper.metadata().is_ok_and(|m| m.len() == FIO_SIZE) {
        return Ok(());
    }
    let read = "dd if=\"$1\" iflag=nocache count=0 status=none && dd if=\"$1\" of=/dev/null bs=128k status=none";
    sh(read, &[&bed.below("lower.bin")])?;
    sh(
        "dd if=\"$1\" of=\"$2\" bs=1M status=none && sync \"$2\"",
        &[&bed.path().join("lower.bin"), &upper],
    )
    .map(drop)
}

fn fio(bed: &mut Bed<'_>, section: &str) -> Result<Sample, String> {
    prepare(bed)?;
    let jobs = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/fio/data.fio");
    let script =
        format!("DIR=\"$1\" fio --output-format=json --section={section} \"$2\" 2>/dev/null");
    let out = sh(&script, &[bed.path(), &jobs])?;
    // A warning line may come before the object.
    let json = &out[out.find('{').ok_or("fio printed no JSON")?..];
    let json: serde_json::Value = serde_json::from_str(json).map_err(|e| format!("fio: {e}"))?;
    let job = &json["jobs"][0];
    let number = |way: &str, field: &str| job[way][field].as_f64().unwrap_or(0.0);
    let bytes = number("read", "io_bytes") + number("write", "io_bytes");
    let rate = number("read", "bw_bytes").max(number("write", "bw_bytes"));
    if bytes == 0.0 || rate == 0.0 {
        return Err(format!("fio moved nothing: {}", job["error"]));
    }
    Ok(Sample {
        bytes: Some(bytes),
        ..Sample::seconds(bytes / rate)
    })
}

fn cold_read(bed: &mut Bed<'_>) -> Result<Sample, String> {
    prepare(bed)?;
    bed.drop_caches();
    fio(bed, "seqread-128k-cold-lower")
}
