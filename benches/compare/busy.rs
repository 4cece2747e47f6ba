//! Callers beside other processes that use the CPUs, many callers, and fewer CPUs.
//!
//! Beside processes that spin, a caller changes the mode of a file of the upper: densely, or every
//! [`PAUSE`]. Before, it does so densely for [`DENSE`], so that the threads of unionfs give way
//! (`src/fuse/wire/idle_priority.rs`) as they do after any work.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::figures::report::{Group, Sample};
use crate::metadata::{percentile, timed};
use crate::subjects::Bed;
use crate::{Workload, aside};

type Outcome = Result<Sample, String>;

macro_rules! latencies {
    ($(($spinners:literal, $way:ident, $name:literal)),* $(,)?) => {
        &[$(
            aside(Group::Busy, concat!($name, ", p50"), |bed| latency(bed, $spinners, Way::$way, 50)),
            aside(Group::Busy, concat!($name, ", p99"), |bed| latency(bed, $spinners, Way::$way, 99)),
            aside(Group::Busy, concat!($name, ", max"), |bed| latency(bed, $spinners, Way::$way, 100)),
        )*]
    };
}

/// Rows on the latency of one caller.
pub(crate) const LATENCIES: &[Workload] = latencies![
    (2, Sparse, "chmod every 2 ms beside 2 spinning processes"),
    (4, Sparse, "chmod every 2 ms beside 4 spinning processes"),
    (2, Dense, "dense chmod beside 2 spinning processes"),
    (4, Dense, "dense chmod beside 4 spinning processes"),
];

/// Rows on the time of several callers.
pub(crate) const CALLERS: &[Workload] = &[
    aside(Group::Busy, "8 processes: create, stat, unlink", |bed| {
        parallel(bed, 8)
    }),
    aside(Group::Busy, "32 processes: create, stat, unlink", |bed| {
        parallel(bed, 32)
    }),
    aside(
        Group::Busy,
        "4 processes: create, stat, unlink, all on 1 CPU",
        on_one_cpu,
    ),
];

/// How the caller calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Every [`PAUSE`].
    Sparse,
    /// One call after the other.
    Dense,
}

impl Way {
    /// How long it is measured.
    fn time(self) -> Duration {
        match self {
            Self::Sparse => Duration::from_millis(1500),
            Self::Dense => Duration::from_millis(600),
        }
    }
}

const DENSE: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_millis(2);

/// A process that uses a CPU until this is dropped.
struct Spinner(Child);

impl Spinner {
    fn start() -> std::io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        // It ends, too, when the benchmark is killed: see `spin`.
        command.args(["--bench", "--spin"]).stdin(Stdio::piped());
        command.spawn().map(Self)
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        // It has ended already, or ends now.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Uses a CPU until the standard input of the process is closed.
pub(crate) fn spin() -> ! {
    std::thread::spawn(|| {
        for n in 0_u64.. {
            std::hint::black_box(n);
        }
    });
    // The end of the input, or an error, which ends it too.
    let _ = std::io::stdin().read(&mut [0]);
    std::process::exit(0)
}

/// The last measurement, of which several rows get a percentile each.
struct Measured {
    spinners: usize,
    way: Way,
    /// Sorted.
    times: Vec<Duration>,
    /// The percentiles that rows have got.
    given: Vec<u32>,
}

static LAST: Mutex<Option<Measured>> = Mutex::new(None);

/// Measures, unless the last measurement was of the same and this percentile of it was not given yet.
fn latency(bed: &Bed<'_>, spinners: usize, way: Way, percent: u32) -> Outcome {
    let mut last = LAST
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let known = last.take().filter(|last| {
        (last.spinners, last.way) == (spinners, way) && !last.given.contains(&percent)
    });
    let measured = match known {
        Some(known) => known,
        None => Measured {
            spinners,
            way,
            times: measure(bed, spinners, way).map_err(|e| e.to_string())?,
            given: Vec::new(),
        },
    };
    let measured = last.insert(measured);
    measured.given.push(percent);
    Ok(Sample::time(percentile(
        &measured.times,
        f64::from(percent) / 100.0,
    )))
}

fn measure(bed: &Bed<'_>, spinners: usize, way: Way) -> std::io::Result<Vec<Duration>> {
    let file = bed.path().join("chmod");
    fs::write(&file, b"x")?;
    let _running: Vec<_> = (0..spinners)
        .map(|_| Spinner::start())
        .collect::<std::io::Result<_>>()?;
    let mut count = 0;
    let mut change = || {
        count += 1;
        let start = Instant::now();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600 | count & 0o177))?;
        std::io::Result::Ok(start.elapsed())
    };
    let start = Instant::now();
    while start.elapsed() < DENSE {
        change()?;
    }
    let mut times = Vec::new();
    let start = Instant::now();
    while start.elapsed() < way.time() {
        times.push(change()?);
        if way == Way::Sparse {
            std::thread::sleep(PAUSE);
        }
    }
    times.sort();
    Ok(times)
}

/// Files that all processes of [`parallel`] create together.
const FILES: usize = 4000;

/// Runs processes that create and remove [`FILES`] files together, each in a directory of its own.
pub(crate) fn parallel(bed: &Bed<'_>, processes: usize) -> Outcome {
    parallel_within(bed, processes, &[])
}

/// The command before a command that keeps it on one CPU.
const ONE_CPU: &[&str] = &["taskset", "-c", "0"];

/// As [`parallel`], with all processes and the server on one CPU.
fn on_one_cpu(bed: &mut Bed<'_>) -> Outcome {
    bed.remount_within(ONE_CPU);
    parallel_within(bed, 4, ONE_CPU)
}

/// Starts this program several times, and measures from the moment when all are ready.
fn parallel_within(bed: &Bed<'_>, processes: usize, before: &[&str]) -> Outcome {
    let base = bed.path().join("parallel");
    fs::create_dir(&base).map_err(|e| e.to_string())?;
    let start = |n: usize| {
        let mut command = Command::new("env");
        command
            .args(before)
            .arg(std::env::current_exe()?)
            .args(["--bench", "--create-and-remove"])
            .arg(base.join(n.to_string()))
            .arg((FILES / processes).to_string());
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        process.stdout.as_mut().unwrap().read_exact(&mut [0])?;
        Ok(process)
    };
    let mut running: Vec<_> = (0..processes)
        .map(start)
        .collect::<std::io::Result<_>>()
        .map_err(|e| e.to_string())?;
    let time = timed(|| {
        for process in &mut running {
            process.stdin.as_mut().unwrap().write_all(b"g")?;
        }
        running.iter_mut().try_for_each(|process| {
            if process.wait()?.success() {
                Ok(())
            } else {
                Err(std::io::Error::other("a process failed"))
            }
        })
    })?;
    // The ordinary directory is that of the next row too.
    fs::remove_dir_all(&base).map_err(|e| e.to_string())?;
    Ok(time)
}

/// What each process of [`parallel`] does: it says that it is ready, waits, and works in `dir`.
pub(crate) fn create_and_remove(dir: &Path, files: usize) -> std::io::Result<()> {
    std::io::stdout().write_all(b"r")?;
    std::io::stdout().flush()?;
    std::io::stdin().read_exact(&mut [0])?;
    fs::create_dir(dir)?;
    for n in 0..files {
        let path = dir.join(n.to_string());
        fs::write(&path, b"x")?;
        path.symlink_metadata()?;
    }
    (0..files).try_for_each(|n| fs::remove_file(dir.join(n.to_string())))
}
