//! SEEK_DATA and SEEK_HOLE, before and after copy-up: a sparse file stays sparse.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use crate::common::fixture::Fixture;
use crate::common::need_mounts;

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
    // Blocks are allocated at the latest here. Two islands in four megabytes.
    let upper = File::open(f.upper("sparse.bin")).unwrap();
    upper.sync_all().unwrap();
    let bytes = upper.metadata().unwrap().blocks() * 512;
    assert!((1..1 << 20).contains(&bytes), "{bytes} bytes allocated");
}
