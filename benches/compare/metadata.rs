//! Workloads on names and attributes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Stat, lstat};

use crate::figures::report::{EMPTY, Group, Sample};
use crate::layers::{FIO_SIZE, MANY, MANY_NAME, SOME, SOME_NAME};
use crate::subjects::Bed;
use crate::{Workload, aside, busy, messages, row};

pub(crate) const ALL: &[Workload] = &[
    row(Group::Mounts, "mount", mount),
    row(Group::Walks, "cold walk after drop_caches", walk_cold_disk),
    row(Group::Walks, "cold walk after mount", walk_cold),
    row(Group::Walks, "cold walk that asks for births", walk_births),
    row(Group::Walks, "warm walk with stat", walk_warm),
    row(Group::Walks, "20000 stat of one file", stat_loop),
    row(Group::Walks, "20000 negative lookups", negative),
    row(Group::Walks, "listing of 20000 names, cold", list_cold),
    row(Group::Walks, "listing of 20000 names, warm", list_warm),
    aside(
        Group::Walks,
        "listing of 100000 names, cold",
        list_many_cold,
    ),
    row(Group::Walks, "reading a tree cold", read_cold),
    row(Group::Walks, "warm open+read+close of a tree", read_warm),
    row(Group::Walks, "20000 open+close of one file", open_loop),
    aside(Group::Walks, EMPTY, messages::empty),
    row(Group::Metadata, "3000 create+write+close", create),
    row(Group::Metadata, "3000 rename", rename),
    row(Group::Metadata, "3000 unlink", unlink),
    row(Group::Metadata, "2000 mkdir+rmdir", mkdir_rmdir),
    row(Group::Metadata, "1000 chmod of lower files", chmod),
    aside(Group::Metadata, "chown of 5000 lower files", chown),
    row(
        Group::Metadata,
        "4 processes: create, stat, unlink",
        |bed| busy::parallel(bed, 4),
    ),
];

/// This runs after all that need the tree, for the sake of the ordinary directory.
pub(crate) const LAST: &[Workload] = &[row(Group::Metadata, "rm -rf of a lower tree", rm_rf)];

/// These run also on other numbers of layers.
pub(crate) const DEPTH: &[Workload] = &[
    aside(Group::Mounts, "mount", mount),
    aside(Group::Walks, "cold walk after mount", walk_cold),
    aside(Group::Walks, "warm walk with stat", walk_warm),
];

type Outcome = Result<Sample, String>;

/// The number of mounts in the row "mount".
const MOUNTS: u32 = 5;

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

pub(crate) fn timed(action: impl FnOnce() -> std::io::Result<()>) -> Outcome {
    messages::counted(|| {
        let start = Instant::now();
        action().map_err(text)?;
        Ok(Sample::time(start.elapsed()))
    })
}

/// Whether a walk leaves a directory out: those for listings would outweigh the tree.
fn is_left_out(name: &std::ffi::OsStr) -> bool {
    name == MANY_NAME || name == SOME_NAME
}

/// Calls `visit` for everything below `dir` except the directories for listings. It calls
/// stat(2), because the standard library also asks for times of birth, which find, tar, git and ls
/// do not.
pub(crate) fn walk(dir: &Path, visit: &mut impl FnMut(PathBuf, &Stat)) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if is_left_out(&entry.file_name()) {
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
            if !is_left_out(&entry.file_name()) && entry.path().symlink_metadata()?.is_dir() {
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

/// Returns a file below `usr`, found without a walk.
pub(crate) fn one_file(bed: &Bed<'_>) -> Result<PathBuf, String> {
    let mut at = bed.path().join("usr");
    loop {
        let mut entries: Vec<PathBuf> = fs::read_dir(&at)
            .and_then(|all| all.map(|e| Ok(e?.path())).collect())
            .map_err(text)?;
        entries.sort();
        let is = |kind: fn(&fs::FileType) -> bool| {
            let of = |path: &&PathBuf| path.symlink_metadata().is_ok_and(|m| kind(&m.file_type()));
            entries.iter().find(of).cloned()
        };
        match (is(fs::FileType::is_file), is(fs::FileType::is_dir)) {
            (Some(file), _) => return Ok(file),
            (None, Some(dir)) => at = dir,
            (None, None) => return Err(format!("no file in {}", at.display())),
        }
    }
}

fn stat_loop(bed: &mut Bed<'_>) -> Outcome {
    let path = one_file(bed)?;
    timed(|| (0..20_000).try_for_each(|_| path.symlink_metadata().map(drop)))
}

fn open_loop(bed: &mut Bed<'_>) -> Outcome {
    let path = one_file(bed)?;
    timed(|| (0..20_000).try_for_each(|_| fs::File::open(&path).map(drop)))
}

/// Files of the rows that read a tree.
const READ: usize = 4000;

fn read_warm(bed: &mut Bed<'_>) -> Outcome {
    let files = files(bed, "usr", READ)?;
    let read = || files.iter().try_for_each(|f| fs::read(f).map(drop));
    // The file is read twice: after the first READ of a file the kernel asks once more for its
    // attributes (docs/SEMANTICS.md, "Requests"). Then the caches are warm.
    read().and_then(|()| read()).map_err(text)?;
    timed(read)
}

/// Reads as `grep -r` and `tar -c` do, from the disk.
fn read_cold(bed: &mut Bed<'_>) -> Outcome {
    let files = files(bed, "usr", READ)?;
    bed.drop_caches();
    timed(|| {
        files.iter().try_for_each(|f| {
            lstat(f)?;
            fs::read(f).map(drop)
        })
    })
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

/// Lists a directory and compares the number of its names.
fn list(bed: &Bed<'_>, name: &str, expected: usize) -> std::io::Result<()> {
    let count = fs::read_dir(bed.path().join(name))?.count();
    if count == expected {
        return Ok(());
    }
    Err(std::io::Error::other(format!("{count} entries")))
}

fn list_cold(bed: &mut Bed<'_>) -> Outcome {
    bed.remount();
    timed(|| list(bed, SOME_NAME, SOME))
}

fn list_warm(bed: &mut Bed<'_>) -> Outcome {
    list(bed, SOME_NAME, SOME).map_err(text)?;
    timed(|| list(bed, SOME_NAME, SOME))
}

fn list_many_cold(bed: &mut Bed<'_>) -> Outcome {
    bed.remount();
    timed(|| list(bed, MANY_NAME, MANY))
}

/// Files of the rows that create, rename and remove.
const FILES: usize = 3000;

fn create_files(dir: &Path, prefix: &str) -> std::io::Result<()> {
    (0..FILES).try_for_each(|n| fs::write(dir.join(format!("{prefix}{n}")), b"0123456789"))
}

/// Makes the directory `name` with [`FILES`] files, whose names begin with `prefix`.
pub(crate) fn filled(bed: &Bed<'_>, name: &str, prefix: &str) -> Result<PathBuf, String> {
    let dir = bed.path().join(name);
    fs::create_dir(&dir).map_err(text)?;
    create_files(&dir, prefix).map_err(text)?;
    Ok(dir)
}

fn create(bed: &mut Bed<'_>) -> Outcome {
    let dir = bed.path().join("created");
    fs::create_dir(&dir).map_err(text)?;
    timed(|| create_files(&dir, "f"))
}

fn rename(bed: &mut Bed<'_>) -> Outcome {
    let dir = filled(bed, "renamed", "f")?;
    timed(|| {
        (0..FILES)
            .try_for_each(|n| fs::rename(dir.join(format!("f{n}")), dir.join(format!("g{n}"))))
    })
}

fn unlink(bed: &mut Bed<'_>) -> Outcome {
    let dir = filled(bed, "removed", "f")?;
    timed(|| (0..FILES).try_for_each(|n| fs::remove_file(dir.join(format!("f{n}")))))
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

fn rm_rf(bed: &mut Bed<'_>) -> Outcome {
    let dir = ["usr/lib", "usr/d1"]
        .map(|d| bed.path().join(d))
        .into_iter()
        .find(|d| d.exists())
        .ok_or("nothing to remove")?;
    timed(|| fs::remove_dir_all(dir))
}

/// Changes the owner of files of the image, as `chown -R` does.
fn chown(bed: &mut Bed<'_>) -> Outcome {
    let files = files(bed, "usr", 5000)?;
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
