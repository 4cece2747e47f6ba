//! Workloads on data: fio with the jobs of `benches/fio`.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use crate::figures::report::{Group, Sample};
use crate::metadata::timed;
use crate::subjects::{Bed, sh};
use crate::{Workload, aside, messages, row};

macro_rules! fio_rows {
    ($kind:ident: $($section:literal),* $(,)?) => {
        &[$($kind(Group::Data, concat!("fio ", $section), |bed| fio(bed, $section))),*]
    };
}

/// One row for each way of reading and writing.
pub(crate) const COUNTED: &[Workload] = fio_rows![row:
    "seqread-128k-lower",
    "randread-4k-lower",
    "mmap-randread-4k-lower",
    "randread-4k-direct-upper",
    "seqwrite-128k-new",
    "randwrite-4k-upper",
    "mmap-randwrite-4k-upper",
    "randwrite-4k-direct-upper",
    "randwrite-4k-fsync-upper",
];

/// Other sizes of requests, more jobs, another engine.
pub(crate) const ASIDE: &[Workload] = fio_rows![aside:
    "seqread-4k-lower",
    "seqread-1m-lower",
    "randread-4k-4jobs-lower",
    "seqread-1m-direct-upper",
    "randread-4k-uring-direct-upper",
    "seqwrite-4k-new",
    "seqwrite-1m-new",
    "seqwrite-128k-uring-new",
    "randwrite-4k-4jobs-upper",
    "seqwrite-1m-direct-upper",
];

/// Rows without fio.
pub(crate) const OTHERS: &[Workload] = &[
    row(Group::Data, "fio seqread-128k-lower, cold disk", cold_read),
    row(Group::Data, "20000 writes of 100 bytes", small_writes),
    row(Group::Data, "20000 appends of 100 bytes", appends),
];

/// Makes a file of 128 MiB in the upper, if the section needs one. `lower.bin` is a file of a layer. Its pages
/// are read again from the layer itself, because their size depends on the first reader, and the
/// cost of reading them again depends on their size.
fn prepare(bed: &Bed<'_>, section: &str) -> Result<(), String> {
    let read = "dd if=\"$1\" iflag=nocache count=0 status=none && dd if=\"$1\" of=/dev/null bs=128k status=none";
    sh(read, &[&bed.below("lower.bin")])?;
    let upper = bed.path().join("upper.bin");
    if !section.ends_with("-upper") {
        return Ok(());
    }
    sh(
        "dd if=\"$1\" of=\"$2\" bs=1M count=128 status=none && sync \"$2\"",
        &[&bed.path().join("lower.bin"), &upper],
    )
    .map(drop)
}

fn fio(bed: &mut Bed<'_>, section: &str) -> Result<Sample, String> {
    prepare(bed, section)?;
    messages::counted(|| measure(bed, section))
}

fn measure(bed: &Bed<'_>, section: &str) -> Result<Sample, String> {
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
    bed.drop_caches();
    messages::counted(|| measure(bed, "seqread-128k-cold-lower"))
}

/// The number of small writes, and their size in bytes.
const WRITES: usize = 20_000;
const BLOCK: [u8; 100] = [b'x'; 100];

fn small_writes(bed: &mut Bed<'_>) -> Result<Sample, String> {
    let path = bed.path().join("small-writes");
    timed(|| write(&mut File::create(path)?))
}

/// Appends as a log does: each write goes to the end, wherever that is.
fn appends(bed: &mut Bed<'_>) -> Result<Sample, String> {
    let path = bed.path().join("appends");
    timed(|| {
        write(
            OpenOptions::new()
                .append(true)
                .create(true)
                .open(path)?
                .by_ref(),
        )
    })
}

fn write(file: &mut File) -> std::io::Result<()> {
    (0..WRITES).try_for_each(|_| file.write_all(&BLOCK))
}
