//! SEEK_DATA and SEEK_HOLE, before and after copy-up: a sparse file stays sparse.

use std::os::unix::fs::MetadataExt;

use crate::common::fixture::Fixture;
use crate::common::need_mounts;

const TABLE: [(&str, &str); 6] = [
    ("seekdata sparse.bin 0", "1048576"),
    ("seekdata sparse.bin 1048576", "1048576"),
    ("seekhole sparse.bin 1048576", "1052672"),
    ("seekhole sparse.bin 0", "0"),
    ("seekdata sparse.bin 4194304", "ENXIO"),
    ("seekhole plain.txt 0", "23"),
];

#[test]
fn holes_show_and_survive_copy_up() {
    need_mounts!();
    let mut f = Fixture::standard();
    let lower = f.stack.lowers[2].join("sparse.bin").metadata().unwrap();
    f.expect(&TABLE);
    f.ok("chmod sparse.bin 600");
    f.expect(&TABLE);
    f.remount();
    f.expect(&TABLE);
    let upper = f.upper("sparse.bin").metadata().unwrap();
    assert_eq!(upper.blocks(), lower.blocks(), "copied-up holes");
}
