//! fallocate(2): size, punched holes, zeroed ranges.

use std::os::unix::fs::MetadataExt;

use testkit::fixture::Fixture;
use testkit::layers::big_data;
use testkit::need_mounts;

#[test]
fn allocate_and_keep_size() {
    need_mounts!();
    let f = Fixture::standard();
    f.ok("create a 644\nfallocate a 0 0 100000\nfallocate plain.txt 1 0 100000");
    let a = f.at("a").metadata().unwrap();
    assert_eq!(a.len(), 100_000);
    assert!(a.blocks() * 512 >= 100_000, "{} blocks", a.blocks());
    assert_eq!(f.at("plain.txt").metadata().unwrap().len(), 23);
    f.expect(&[
        ("fallocate merged 0 0 1", "EISDIR"),
        ("fallocate a 0 0 0", "EINVAL"),
        (
            "read plain.txt",
            "\"plain\\x20file,\\x20lower\\x20only\\x0a\"",
        ),
    ]);
}

/// The kernel's FUSE client refuses calls that move data before it asks the server.
#[test]
fn ranges_cannot_be_collapsed_or_inserted() {
    need_mounts!();
    let f = Fixture::standard();
    f.expect(&[
        ("fallocate big.bin 8 0 4096", "EOPNOTSUPP"),
        ("fallocate big.bin 32 0 4096", "EOPNOTSUPP"),
    ]);
    assert!(std::fs::read(f.at("big.bin")).unwrap() == big_data());
}

#[test]
fn punch_a_hole_in_a_lower_file() {
    need_mounts!();
    let f = Fixture::standard();
    // Read first: the page cache must be updated.
    assert!(std::fs::read(f.at("big.bin")).unwrap() == big_data());
    f.ok("fallocate big.bin 3 4096 8192");
    let mut expected = big_data();
    expected[4096..12288].fill(0);
    assert!(std::fs::read(f.at("big.bin")).unwrap() == expected);
    assert!(std::fs::read(f.upper("big.bin")).unwrap() == expected);
}
