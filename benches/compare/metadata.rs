//! Workloads on names and attributes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Stat, lstat};

use crate::layers::{FIO_SIZE, MANY, MANY_NAME};
use crate::report::Sample;
use crate::subjects::Bed;
use crate::{Run, Workload, row};

/// These run in this order on one mount.
pub(crate) const ALL: &[Workload] = &[
    row("mount", mount),
    row("cold walk after drop_caches", walk_cold_disk),
    row("cold walk after mount", walk_cold),
    row("cold walk that asks for births", walk_births),
    row("warm walk with stat", walk_warm),
    row("20000 stat of one file", stat_loop),
    row("warm open+read+close of a tree", read_warm),
    row("20000 open+close of one file", open_loop),
    row("20000 negative lookups", negative),
    row("readdir of 100000 entries, cold", readdir_cold),
    row("readdir of 100000 entries, warm", readdir_warm),
    row("3000 create+write+close", create),
    row("3000 rename", rename),
    row("3000 unlink", unlink),
    row("2000 mkdir+rmdir", mkdir_rmdir),
    row("1000 chmod of lower files", chmod),
    row("4 threads: create, stat, unlink", parallel),
];

/// These run after all that need the tree.
pub(crate) const LAST: &[Workload] = &[
    row("rm -rf of a lower tree", rm_rf),
    row("chown of all files of an image", chown),
];

/// These run also on other numbers of layers.
pub(crate) const DEPTH: &[(&str, Run)] = &[
    ("mount", mount),
    ("cold walk after mount", walk_cold),
    ("warm walk with stat", walk_warm),
];

type Outcome = Result<Sample, String>;

/// The number of mounts in the row "mount".
const MOUNTS: u32 = 5;

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

pub(crate) fn timed(action: impl FnOnce() -> std::io::Result<()>) -> Outcome {
    let start = Instant::now();
    action().map_err(text)?;
    Ok(Sample::time(start.elapsed()))
}

/// Calls `visit` for everything below `dir` except the directory with many entries. It calls
/// stat(2), because the standard library also asks for times of birth, which find, tar, git and ls
/// do not.
pub(crate) fn walk(dir: &Path, visit: &mut impl FnMut(PathBuf, &Stat)) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name() == MANY_NAME {
            continue;
        }
        let path = entry.path();
        let stat = lstat(&path)?;
        if FileType::from_raw_mode(stat.st_mode).is_dir() {
            walk(&path, visit)?;
        }
        visit(path, &stat);
    }
    Ok(())
}

/// Returns regular files below the mount, at most `most` of them, in order of name.
pub(crate) fn files(bed: &Bed<'_>, below: &str, most: usize) -> Result<Vec<PathBuf>, String> {
    let mut files = Vec::new();
    walk(&bed.path().join(below), &mut |path, stat| {
        let is_file = FileType::from_raw_mode(stat.st_mode).is_file();
        if is_file && stat.st_size.cast_unsigned() < FIO_SIZE {
            files.push(path);
        }
    })
    .map_err(text)?;
    files.sort();
    files.truncate(most);
    Ok(files)
}

/// Returns the mean of several: a single one is shorter than the noise of the scheduler.
fn mount(bed: &mut Bed<'_>) -> Outcome {
    bed.need_mount()?;
    let total: Duration = (0..MOUNTS).map(|_| bed.remount()).sum();
    Ok(Sample::time(total / MOUNTS))
}

fn walk_cold(bed: &mut Bed<'_>) -> Outcome {
    bed.remount();
    timed(|| walk(bed.path(), &mut |_, _| {}))
}

/// Walks with stat calls as programs in Node.js and Rust make them: FUSE has another message for
/// times of birth.
fn walk_births(bed: &mut Bed<'_>) -> Outcome {
    fn walk(dir: &Path) -> std::io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_name() != MANY_NAME && entry.path().symlink_metadata()?.is_dir() {
                walk(&entry.path())?;
            }
        }
        Ok(())
    }
    bed.remount();
    timed(|| walk(bed.path()))
}

fn walk_cold_disk(bed: &mut Bed<'_>) -> Outcome {
    bed.drop_caches();
    timed(|| walk(bed.path(), &mut |_, _| {}))
}

fn walk_warm(bed: &mut Bed<'_>) -> Outcome {
    walk(bed.path(), &mut |_, _| {}).map_err(text)?;
    timed(|| walk(bed.path(), &mut |_, _| {}))
}

fn one_file(bed: &Bed<'_>) -> Result<PathBuf, String> {
    files(bed, "usr", 1)?.pop().ok_or("no file".into())
}

fn stat_loop(bed: &mut Bed<'_>) -> Outcome {
    let path = one_file(bed)?;
    timed(|| (0..20_000).try_for_each(|_| path.symlink_metadata().map(drop)))
}

fn open_loop(bed: &mut Bed<'_>) -> Outcome {
    let path = one_file(bed)?;
    timed(|| (0..20_000).try_for_each(|_| fs::File::open(&path).map(drop)))
}

fn read_warm(bed: &mut Bed<'_>) -> Outcome {
    let files = files(bed, "usr", 10_000)?;
    let read = || files.iter().try_for_each(|f| fs::read(f).map(drop));
    // The file is read twice: after the first READ of a file the kernel asks once more for its
    // attributes (docs/SEMANTICS.md, "Requests"). Then the caches are warm.
    read().and_then(|()| read()).map_err(text)?;
    timed(read)
}

fn negative(bed: &mut Bed<'_>) -> Outcome {
    let path = bed.path().join("no-such-name");
    timed(|| {
        for _ in 0..20_000 {
            assert!(path.symlink_metadata().is_err());
        }
        Ok(())
    })
}

fn count_many(bed: &Bed<'_>) -> std::io::Result<()> {
    let count = fs::read_dir(bed.path().join(MANY_NAME))?.count();
    if count == MANY {
        return Ok(());
    }
    Err(std::io::Error::other(format!("{count} entries")))
}

fn readdir_cold(bed: &mut Bed<'_>) -> Outcome {
    bed.remount();
    timed(|| count_many(bed))
}

fn readdir_warm(bed: &mut Bed<'_>) -> Outcome {
    count_many(bed).map_err(text)?;
    timed(|| count_many(bed))
}

fn made(bed: &Bed<'_>) -> PathBuf {
    bed.path().join("made-by-bench")
}

/// Creates the directory for new files. `create`, `rename` and `unlink` each create their own
/// files, so that each can run alone.
fn filled(bed: &Bed<'_>, prefix: &str) -> Result<PathBuf, String> {
    let dir = made(bed);
    if !dir.exists() {
        fs::create_dir(&dir).map_err(text)?;
    }
    for n in 0..3000 {
        let path = dir.join(format!("{prefix}{n}"));
        if !path.exists() {
            fs::write(path, b"0123456789").map_err(text)?;
        }
    }
    Ok(dir)
}

fn create(bed: &mut Bed<'_>) -> Outcome {
    let dir = made(bed);
    fs::create_dir(&dir).map_err(text)?;
    timed(|| (0..3000).try_for_each(|n| fs::write(dir.join(format!("f{n}")), b"0123456789")))
}

fn rename(bed: &mut Bed<'_>) -> Outcome {
    let dir = filled(bed, "f")?;
    timed(|| {
        (0..3000).try_for_each(|n| fs::rename(dir.join(format!("f{n}")), dir.join(format!("g{n}"))))
    })
}

fn unlink(bed: &mut Bed<'_>) -> Outcome {
    let dir = filled(bed, "g")?;
    timed(|| (0..3000).try_for_each(|n| fs::remove_file(dir.join(format!("g{n}")))))
}

fn mkdir_rmdir(bed: &mut Bed<'_>) -> Outcome {
    let dir = bed.path().join("made-dirs");
    fs::create_dir(&dir).map_err(text)?;
    timed(|| {
        for n in 0..2000 {
            fs::create_dir(dir.join(format!("d{n}")))?;
        }
        (0..2000).try_for_each(|n| fs::remove_dir(dir.join(format!("d{n}"))))
    })
}

fn chmod(bed: &mut Bed<'_>) -> Outcome {
    let files = files(bed, "usr", 1000)?;
    timed(|| {
        files
            .iter()
            .try_for_each(|f| fs::set_permissions(f, fs::Permissions::from_mode(0o700)))
    })
}

fn parallel(bed: &mut Bed<'_>) -> Outcome {
    let base = bed.path().join("parallel");
    fs::create_dir(&base).map_err(text)?;
    let one = |n: usize| -> std::io::Result<()> {
        let dir = base.join(n.to_string());
        fs::create_dir(&dir)?;
        for n in 0..1000 {
            let path = dir.join(n.to_string());
            fs::write(&path, b"x")?;
            path.symlink_metadata()?;
        }
        (0..1000).try_for_each(|n| fs::remove_file(dir.join(n.to_string())))
    };
    let start = Instant::now();
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..4).map(|n| scope.spawn(move || one(n))).collect();
        running
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap())
    })
    .map_err(text)?;
    Ok(Sample::time(start.elapsed()))
}

fn rm_rf(bed: &mut Bed<'_>) -> Outcome {
    let dir = ["usr/lib", "usr/d1"]
        .map(|d| bed.path().join(d))
        .into_iter()
        .find(|d| d.exists())
        .ok_or("nothing to remove")?;
    timed(|| fs::remove_dir_all(dir))
}

/// Changes the owner of all files below the image's directories, as `chown -R` does.
fn chown(bed: &mut Bed<'_>) -> Outcome {
    let files = files(bed, "", usize::MAX)?;
    bed.remount();
    timed(|| {
        let owner = |file: &PathBuf| std::os::unix::fs::lchown(file, Some(1), Some(1));
        files.iter().try_for_each(owner)
    })
}

/// Returns the milliseconds at the given share of a sorted list.
pub(crate) fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let last = sorted.len().saturating_sub(1);
    sorted
        .get((last as f64 * share).round() as usize)
        .copied()
        .unwrap_or_default()
}
