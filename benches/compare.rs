//! unionfs beside kernel overlayfs and fuse-overlayfs over the same layers, in one run
//! and interleaved, so that the ratios mean something on a busy machine.
//!
//! `cargo bench --bench compare` (root). `PEER=/path/to/fuse-overlayfs` names the peer,
//! else `fuse-overlayfs` is taken from PATH, else there is none. `LAYERS=a:b` gives real
//! layers, top first; else a tree is made. `ROUNDS=n` (default 5). Prints medians and
//! their ratio to kernel overlayfs; asserts nothing.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::mount::{Fs, KERNEL, Scratch, Stack, UNIONFS};

/// Files and bytes of the tree that is made when no layers are given.
const MADE: (usize, usize) = (4000, 4096);
/// Size of the file whose copy-up runs beside a lookup.
const LARGE: u64 = 512 << 20;

type Workload = fn(&Path) -> Duration;

const WORKLOADS: &[(&str, Workload)] = &[
    ("warm walk with stat", walk_warm),
    ("open+read+close of a tree, warm", read_warm),
    ("20000 negative lookups", negative),
    ("3000 create+write+close", create),
    ("3000 unlink", unlink),
    ("copy-up of 512 MiB by chmod", copy_up),
    ("  slowest lookup meanwhile", lookup_meanwhile),
    ("rm -rf of the lower tree", rm_rf),
];

fn main() {
    // `cargo test --benches` runs this too: nothing to test here.
    if !std::env::args().any(|a| a == "--bench") {
        return;
    }
    if let Some(reason) = common::missing_privilege() {
        return common::skip(&reason);
    }
    let scratch = Scratch::disk();
    let lowers = lowers(&scratch);
    let rounds = std::env::var("ROUNDS").map_or(5, |n| n.parse().unwrap());
    let mut subjects = vec![("kernel", KERNEL), ("unionfs", UNIONFS)];
    if let Some(peer) = peer() {
        subjects.push(("peer", Fs::Program(peer)));
    }
    let mut times = vec![vec![Vec::new(); WORKLOADS.len()]; subjects.len()];
    for round in 0..rounds {
        for (s, (name, fs)) in subjects.iter().enumerate() {
            let stack = Stack {
                lowers: lowers.clone(),
                upper: Some((
                    scratch.dir(&format!("upper-{name}-{round}")),
                    scratch.dir(&format!("work-{name}-{round}")),
                )),
                mnt: scratch.dir(&format!("mnt-{name}")),
            };
            let mounted = fs.mount(&stack);
            for (w, (_, run)) in WORKLOADS.iter().enumerate() {
                times[s][w].push(run(mounted.path()));
            }
            mounted.unmount();
            let (upper, work) = stack.upper.unwrap();
            fs::remove_dir_all(upper).unwrap();
            fs::remove_dir_all(work).unwrap();
        }
        eprintln!("round {} of {rounds}", round + 1);
    }
    print_table(&subjects, &mut times);
}

fn print_table(subjects: &[(&str, Fs)], times: &mut [Vec<Vec<Duration>>]) {
    let mut median = |s: usize, w: usize| {
        let runs = &mut times[s][w];
        runs.sort();
        runs[runs.len() / 2].as_secs_f64() * 1000.0
    };
    print!("{:34}", "median of the runs, ms");
    for (name, _) in subjects {
        print!("{name:>12}{:>9}", "ratio");
    }
    println!();
    for (w, (name, _)) in WORKLOADS.iter().enumerate() {
        let kernel = median(0, w);
        print!("{name:34}");
        for s in 0..subjects.len() {
            let ms = median(s, w);
            print!("{ms:12.2}{:8.1}x", ms / kernel);
        }
        println!();
    }
}

fn peer() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("PEER") {
        return Some(path.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join("fuse-overlayfs"))
        .find(|p| p.exists())
}

/// The given layers or a tree made here, below a layer with the large file.
fn lowers(scratch: &Scratch) -> Vec<PathBuf> {
    let large = scratch.dir("large");
    let file = fs::File::create(large.join("large.bin")).unwrap();
    let block = vec![0x5a; 1 << 20];
    for n in 0..LARGE >> 20 {
        std::os::unix::fs::FileExt::write_all_at(&file, &block, n << 20).unwrap();
    }
    let mut lowers = vec![large];
    if let Ok(given) = std::env::var("LAYERS") {
        lowers.extend(given.split(':').map(PathBuf::from));
        return lowers;
    }
    let data = vec![b'x'; MADE.1];
    for half in 0..2 {
        let layer = scratch.dir(&format!("made{half}"));
        for n in (half..MADE.0).step_by(2) {
            let dir = layer.join(format!("tree/d{}/e{}", n % 20, n % 100));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(format!("f{n}")), &data).unwrap();
        }
        lowers.push(layer);
    }
    lowers
}

fn timed(action: impl FnOnce()) -> Duration {
    let start = Instant::now();
    action();
    start.elapsed()
}

/// Calls `visit` for everything below `dir` but the large file.
fn walk(dir: &Path, visit: &mut impl FnMut(&Path, &fs::Metadata)) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = path.symlink_metadata().unwrap();
        visit(&path, &meta);
        if meta.is_dir() {
            walk(&path, visit);
        }
    }
}

fn walk_warm(mnt: &Path) -> Duration {
    walk(mnt, &mut |_, _| {});
    timed(|| walk(mnt, &mut |_, _| {}))
}

fn read_warm(mnt: &Path) -> Duration {
    let mut files = Vec::new();
    walk(mnt, &mut |path, meta| {
        if meta.is_file() && meta.len() < LARGE {
            files.push(path.to_path_buf());
        }
    });
    let read = || files.iter().for_each(|f| drop(fs::read(f).unwrap()));
    // Twice: after the first READ of a file the kernel asks once more for its attributes
    // (docs/SEMANTICS.md, "Requests"); then the caches are warm.
    read();
    read();
    timed(read)
}

fn negative(mnt: &Path) -> Duration {
    let path = mnt.join("no-such-name");
    timed(|| {
        for _ in 0..20_000 {
            assert!(path.symlink_metadata().is_err());
        }
    })
}

fn create(mnt: &Path) -> Duration {
    let dir = mnt.join("created");
    fs::create_dir(&dir).unwrap();
    timed(|| {
        for n in 0..3000 {
            fs::write(dir.join(format!("f{n}")), b"0123456789").unwrap();
        }
    })
}

fn unlink(mnt: &Path) -> Duration {
    let dir = mnt.join("created");
    let time = timed(|| {
        for n in 0..3000 {
            fs::remove_file(dir.join(format!("f{n}"))).unwrap();
        }
    });
    fs::remove_dir(dir).unwrap();
    time
}

/// What [`copy_up`] measured on the side, for the row after it.
static MEANWHILE: parking_lot::Mutex<Duration> = parking_lot::Mutex::new(Duration::ZERO);

fn copy_up(mnt: &Path) -> Duration {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut slowest = Duration::ZERO;
            // Each name is new: no cache answers.
            for n in 0.. {
                let path = mnt.join(format!("unrelated-{n}"));
                slowest = slowest.max(timed(|| assert!(path.symlink_metadata().is_err())));
                if done.load(Ordering::Relaxed) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            *MEANWHILE.lock() = slowest;
        });
        let time = timed(|| common::mount::chmod(&mnt.join("large.bin"), 0o600));
        done.store(true, Ordering::Relaxed);
        time
    })
}

fn lookup_meanwhile(_: &Path) -> Duration {
    *MEANWHILE.lock()
}

fn rm_rf(mnt: &Path) -> Duration {
    let mut names: Vec<_> = fs::read_dir(mnt)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    names.retain(|p| p.symlink_metadata().unwrap().is_dir());
    timed(|| {
        for name in &names {
            fs::remove_dir_all(name).unwrap();
        }
    })
}
