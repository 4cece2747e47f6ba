//! One scenario with an upper on each file system that can be had: answers, the union, and the union
//! after a remount are those of an upper on the disk of this machine. File systems without xattrs
//! cannot keep what needs a marker with a value, and the scenario names those answers.

use std::path::{Path, PathBuf};

use testkit::disk::Disk;
use testkit::fixture::Fixture;
use testkit::layers::{self, Form};
use testkit::mount::{Fs, KERNEL, Mounted, Scratch, Stack, UNIONFS};
use testkit::need::Needed;
use testkit::tree::{self, Mask};
use testkit::{need, need_mounts, without};

/// What every upper can do: new files, copy-ups, whiteouts, opaque directories, and names that come
/// back over whiteouts.
const ANYWHERE: &str = "\
create new 644
write new 0 text
rename new moved
link moved linked
symlink target sym
mknod fifo 10600 0 0
write both.txt 0 changed
chmod plain.txt 600
truncate top.txt 2
rename moved both.txt
unlink both.txt
create both.txt 600
unlink plain.txt
mkdir plain.txt 755
create plain.txt/in 644
mkdir made 755
rename made made2
rmdir made2
create gone 644
unlink gone
unlink top.txt
rename plain.txt/in plain.txt/in2
rmdir merged
rmdir empty
mkdir empty 700
create empty/x 644
mkdir removed.txt 700
rmdir removed.txt
chmod merged 711
create merged/own 644
rename no x";

/// What needs xattrs in the upper.
const WITH_XATTRS: &str = "\
setxattr both.txt user.note value
setxattr merged user.note value
rename merged merged2
mkdir merged 755
create merged/new 644
rename deep deep2";

/// A file system for the upper, mounted until dropped.
struct Place {
    dir: PathBuf,
    // In this order.
    _mounted: Option<Mounted>,
    _disk: Option<Disk>,
    _scratch: Vec<Scratch>,
}

impl Place {
    fn of(dir: PathBuf, scratch: Scratch) -> Self {
        Self {
            dir,
            _mounted: None,
            _disk: None,
            _scratch: vec![scratch],
        }
    }
}

/// A file system on an image.
fn image(make: impl FnOnce(&Path) -> Result<Disk, String>) -> Needed<Place> {
    let scratch = Scratch::disk();
    let disk = make(scratch.path())?;
    let mut place = Place::of(disk.path().to_owned(), scratch);
    place._disk = Some(disk);
    Ok(place)
}

/// A union or an overlay.
fn stacked(fs: &Fs) -> Needed<Place> {
    let scratch = Scratch::tmpfs();
    let lower = scratch.dir("lower");
    let stack = Stack::writable(&scratch, vec![lower]);
    let mounted = fs.try_mount(&stack)?;
    let mut place = Place::of(stack.mnt, scratch);
    place._mounted = Some(mounted);
    Ok(place)
}

fn fixture(dir: &Path) -> Fixture {
    let scratch = Scratch::disk();
    let of = |name: &str| {
        let path = dir.join(name);
        std::fs::create_dir(&path).unwrap();
        testkit::mount::chmod(&path, 0o755);
        path
    };
    let stack = Stack {
        lowers: layers::write_all(&layers::standard(), scratch.path(), Form::Kernel),
        upper: Some((of("upper"), of("work"))),
        mnt: scratch.dir("mnt"),
    };
    Fixture::over(&UNIONFS, scratch, stack)
}

fn as_on_disk(place: &Place, scripts: &[&str]) {
    let disk = Scratch::disk();
    let (mut usual, mut other) = (fixture(disk.path()), fixture(&place.dir));
    let mask = Mask::from_now();
    for line in scripts.iter().flat_map(|script| script.lines()) {
        assert_eq!(other.run(line), usual.run(line), "{line}");
    }
    tree::assert_same("the union", &usual.tree(), &other.tree(), &mask);
    usual.remount();
    other.remount();
    tree::assert_same("the union later", &usual.tree(), &other.tree(), &mask);
}

#[test]
fn tmpfs() {
    need_mounts!();
    let scratch = Scratch::tmpfs();
    let dir = scratch.path().to_owned();
    as_on_disk(&Place::of(dir, scratch), &[ANYWHERE, WITH_XATTRS]);
}

#[test]
fn ext4() {
    need_mounts!();
    let place = need!(image(|dir| Disk::new(dir, "ext4", 32, "rw")));
    as_on_disk(&place, &[ANYWHERE, WITH_XATTRS]);
}

#[test]
fn ext4_without_xattrs() {
    need_mounts!();
    let without = ["-O", "^ext_attr"];
    let place = need!(image(|dir| Disk::made_with(
        "ext4", dir, "ext4", 32, &without
    )));
    as_on_disk(&place, &[ANYWHERE]);
}

#[test]
fn xfs() {
    need_mounts!();
    let place = need!(image(|dir| Disk::xfs(dir, "xfs")));
    as_on_disk(&place, &[ANYWHERE, WITH_XATTRS]);
}

#[test]
fn btrfs() {
    need_mounts!();
    let place = need!(image(|dir| Disk::made_with(
        "btrfs",
        dir,
        "btrfs",
        256,
        &[]
    )));
    as_on_disk(&place, &[ANYWHERE, WITH_XATTRS]);
}

#[test]
fn kernel_overlayfs() {
    need_mounts!();
    as_on_disk(&need!(stacked(&KERNEL)), &[ANYWHERE, WITH_XATTRS]);
}

#[test]
fn unionfs() {
    need_mounts!();
    need!(without::lists_trusted());
    as_on_disk(&need!(stacked(&UNIONFS)), &[ANYWHERE, WITH_XATTRS]);
}

/// ext4 by a server instead of the kernel. libfuse renames a removed file that is open to
/// `.fuse_hidden…` until it is closed, so the union is compared when nothing is open any more. fuse2fs
/// 1.47 forgets the nanoseconds of a file's times when it gets an xattr.
#[test]
fn fuse2fs() {
    need_mounts!();
    let place = need!(image(|dir| Disk::fuse2fs(dir, "ext4")));
    let disk = Scratch::disk();
    let (mut usual, mut other) = (fixture(disk.path()), fixture(&place.dir));
    let mask = Mask::from_now();
    for line in [ANYWHERE, WITH_XATTRS]
        .iter()
        .flat_map(|script| script.lines())
    {
        assert_eq!(other.run(line), usual.run(line), "{line}");
    }
    for f in [&mut usual, &mut other] {
        f.remount();
    }
    let seconds = |mut tree: tree::Tree| {
        tree.values_mut().for_each(|entry| entry.mtime.1 = 0);
        tree
    };
    let (usual, other) = (seconds(usual.tree()), seconds(other.tree()));
    tree::assert_same("the union later", &usual, &other, &mask);
}
