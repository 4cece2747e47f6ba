//! SEEK_DATA and SEEK_HOLE, before and after copy-up: a sparse file stays sparse.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use testkit::fixture::Fixture;
use testkit::layers::{Form, Layer, standard};
use testkit::mount::{Fs, KERNEL, UNIONFS};
use testkit::need_mounts;

const WRITEBACK: Fs = Fs::Unionfs("io=cached,writeback");

const TABLE: [(&str, &str); 5] = [
    ("seekdata sparse.bin 0", "1048576"),
    ("seekdata sparse.bin 1048576", "1048576"),
    ("seekhole sparse.bin 0", "0"),
    ("seekdata sparse.bin 4194304", "ENXIO"),
    ("seekhole plain.txt 0", "23"),
];

#[test]
fn holes_show_and_survive_copy_up() {
    need_mounts!();
    let mut f = Fixture::standard();
    f.expect(&TABLE);
    f.ok("chmod sparse.bin 600");
    f.expect(&TABLE);
    f.remount();
    f.expect(&TABLE);
    // Blocks are allocated at the latest here. Two data ranges in four megabytes.
    let upper = File::open(f.upper("sparse.bin")).unwrap();
    upper.sync_all().unwrap();
    let bytes = upper.metadata().unwrap().blocks() * 512;
    assert!((1..1 << 20).contains(&bytes), "{bytes} bytes allocated");
}

/// Written data that the server does not have yet is data for lseek, in every policy.
#[test]
fn what_was_just_written_is_data() {
    need_mounts!();
    for fs in [KERNEL, UNIONFS, Fs::Unionfs("io=cached"), WRITEBACK] {
        let f = Fixture::with(&fs, &[Layer::new()], Form::Kernel, true);
        let file = File::create(f.at("new")).unwrap();
        file.write_all_at(&[1; 8192], 0).unwrap();
        let seek = |to| rustix::fs::seek(&file, to);
        assert_eq!(seek(SeekFrom::Data(4096)), Ok(4096), "{fs:?}");
        assert_eq!(seek(SeekFrom::Hole(0)), Ok(8192), "{fs:?}");
        assert_eq!(seek(SeekFrom::Data(8192)), Err(Errno::NXIO), "{fs:?}");
        assert_eq!(seek(SeekFrom::Hole(8192)), Err(Errno::NXIO), "{fs:?}");
    }
}

/// With `writeback` the server does not know which pages are dirty, so the whole file counts as
/// data.
#[test]
fn writeback_tells_no_holes() {
    need_mounts!();
    let f = Fixture::with(&WRITEBACK, &standard(), Form::Kernel, true);
    f.expect(&[
        ("seekdata sparse.bin 0", "0"),
        ("seekdata sparse.bin 4194304", "ENXIO"),
    ]);
}
