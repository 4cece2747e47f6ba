//! Copy-up of a large file on the disk and on other file systems, and its effect on other requests.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use testkit::mount::Stack;

use crate::figures::report::{Group, NOTHING, Sample};
use crate::layers::{LARGE, LARGE_NAME, fill};
use crate::metadata::{percentile, timed};
use crate::subjects::{Bed, sh};
use crate::{Workload, aside, row};

pub(crate) const ALL: &[Workload] = &[
    row(Group::Data, "copy-up of 1 GiB by chmod", copy_up),
    aside(
        Group::Data,
        "unrelated lookup during the copy-up, p50",
        |_| meanwhile(0.5),
    ),
    aside(
        Group::Data,
        "unrelated lookup during the copy-up, p99",
        |_| meanwhile(0.99),
    ),
    aside(
        Group::Data,
        "unrelated lookup during the copy-up, max",
        |_| meanwhile(1.0),
    ),
    row(
        Group::Data,
        "copy-up of 20 files of 1 GiB on xfs with reflink",
        copy_up_xfs,
    ),
    aside(Group::Data, "copy-up of 1 GiB on tmpfs", copy_up_tmpfs),
];

/// Values that [`copy_up`] has measured for later rows, sorted.
static MEANWHILE: Mutex<Vec<Duration>> = Mutex::new(Vec::new());

fn copy_up(bed: &mut Bed<'_>) -> Result<Sample, String> {
    MEANWHILE.lock().unwrap().clear();
    bed.need_mount()?;
    let file = bed.path().join(LARGE_NAME);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let lookups = scope.spawn(|| {
            let mut times = Vec::new();
            // Each name is new, so no cache answers.
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

/// There are several: one of them takes less than a millisecond.
const CLONES: usize = 20;

fn copy_up_xfs(bed: &mut Bed<'_>) -> Result<Sample, String> {
    let image = bed.outside().join("xfs.img");
    let make = r#"truncate -s 4G "$1"; mkfs.xfs -q -m reflink=1 "$1"; mount -o loop "$1" "$2""#;
    copy_up_on(bed, &image, make, CLONES)
}

fn copy_up_tmpfs(bed: &mut Bed<'_>) -> Result<Sample, String> {
    let none = bed.outside().join("none");
    let make = r#"mount -t tmpfs -o size=3g bench "$2""#;
    copy_up_on(bed, &none, make, 1)
}

/// A new file system, which is unmounted when this is dropped.
struct Elsewhere(PathBuf);

impl Drop for Elsewhere {
    fn drop(&mut self) {
        if let Err(e) = unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("unmount {}: {e}", self.0.display());
        }
    }
}

/// Copies up `count` clones of a file. Layer and upper are on a file system that `make` mounts at
/// `$2`.
fn copy_up_on(bed: &Bed<'_>, image: &Path, make: &str, count: usize) -> Result<Sample, String> {
    bed.need_mount()?;
    let place = bed.outside().join("elsewhere");
    fs::create_dir_all(&place).map_err(|e| e.to_string())?;
    sh(make, &[image, &place])?;
    let mounted = Elsewhere(place.clone());
    let [lower, upper, work, mnt] = ["lower", "upper", "work", "mnt"].map(|d| place.join(d));
    for dir in [&lower, &upper, &work, &mnt] {
        fs::create_dir(dir).map_err(|e| e.to_string())?;
    }
    let name = |n: usize| format!("{LARGE_NAME}-{n}");
    fill(&lower.join(name(0)), LARGE);
    for n in 1..count {
        let (from, to) = (lower.join(name(0)), lower.join(name(n)));
        sh("cp --reflink=always \"$1\" \"$2\"", &[&from, &to])?;
    }
    rustix::fs::sync();
    let overlay = bed.subject.mount_directories(&Stack {
        lowers: vec![lower],
        upper: Some((upper, work)),
        mnt: mnt.clone(),
    })?;
    let mode = fs::Permissions::from_mode(0o600);
    let time = timed(|| {
        (0..count).try_for_each(|n| fs::set_permissions(mnt.join(name(n)), mode.clone()))
    })?;
    overlay.unmount();
    drop(mounted);
    if image.exists() {
        fs::remove_file(image).map_err(|e| e.to_string())?;
    }
    Ok(Sample {
        bytes: Some((count as u64 * LARGE) as f64),
        ..time
    })
}

fn meanwhile(share: f64) -> Result<Sample, String> {
    let times = MEANWHILE.lock().unwrap();
    if times.is_empty() {
        return Err(NOTHING.into());
    }
    Ok(Sample::time(percentile(&times, share)))
}
