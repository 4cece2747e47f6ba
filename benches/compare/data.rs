//! Workloads on data: fio with the jobs of `benches/fio`, and copy-up. Used by `main`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::Workload;
use crate::bed::{Bed, FIO_SIZE, LARGE, LARGE_NAME, NOTHING, sh};
use crate::metadata::{percentile, timed};
use crate::report::Sample;

macro_rules! fio_rows {
    ($($section:literal),* $(,)?) => {
        &[
            $(Workload { name: concat!("fio ", $section), run: |bed| fio(bed, $section) },)*
            Workload { name: "copy-up of 1 GiB by chmod", run: copy_up },
            Workload { name: "  unrelated lookup meanwhile, p50", run: |_| meanwhile(0.5) },
            Workload { name: "  unrelated lookup meanwhile, p99", run: |_| meanwhile(0.99) },
            Workload { name: "  unrelated lookup meanwhile, max", run: |_| meanwhile(1.0) },
        ]
    };
}

pub(crate) const ALL: &[Workload] = fio_rows![
    "seqread-128k-lower",
    "randread-4k-lower",
    "mmap-randread-4k-lower",
    "randread-4k-4jobs-lower",
    "seqread-1m-direct-upper",
    "randread-4k-direct-upper",
    "randread-4k-uring-direct-upper",
    "seqwrite-128k-new",
    "seqwrite-1m-new",
    "randwrite-4k-upper",
    "mmap-randwrite-4k-upper",
    "seqwrite-1m-direct-upper",
    "randwrite-4k-fsync-upper",
];

/// The file that is in the upper already; `lower.bin` is one of the layers'.
fn prepare(bed: &Bed<'_>) -> Result<(), String> {
    let upper = bed.path().join("upper.bin");
    if upper.metadata().is_ok_and(|m| m.len() == FIO_SIZE) {
        return Ok(());
    }
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

/// What [`copy_up`] measured on the side, for the rows after it; sorted.
static MEANWHILE: Mutex<Vec<Duration>> = Mutex::new(Vec::new());

fn copy_up(bed: &mut Bed<'_>) -> Result<Sample, String> {
    MEANWHILE.lock().unwrap().clear();
    bed.need_mount()?;
    let file = bed.path().join(LARGE_NAME);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let lookups = scope.spawn(|| {
            let mut times = Vec::new();
            // Each name is new: no cache answers.
            while !done.load(Ordering::Relaxed) {
                let path = bed.path().join(format!("unrelated-{}", times.len()));
                let start = Instant::now();
                assert!(path.symlink_metadata().is_err());
                times.push(start.elapsed());
                std::thread::sleep(Duration::from_millis(1));
            }
            times.sort();
            times
        });
        let time = timed(|| fs::set_permissions(&file, fs::Permissions::from_mode(0o600)));
        done.store(true, Ordering::Relaxed);
        *MEANWHILE.lock().unwrap() = lookups.join().unwrap();
        Ok(Sample {
            bytes: Some(LARGE as f64),
            ..time?
        })
    })
}

fn meanwhile(share: f64) -> Result<Sample, String> {
    let times = MEANWHILE.lock().unwrap();
    if times.is_empty() {
        return Err(NOTHING.into());
    }
    Ok(Sample::time(percentile(&times, share)))
}
