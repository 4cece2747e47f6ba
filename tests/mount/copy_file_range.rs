//! copy_file_range(2) between files of every layer.

use testkit::fixture::Fixture;
use testkit::layers::big_data;
use testkit::need_mounts;

#[test]
fn from_lower_to_lower_and_new() {
    need_mounts!();
    let f = Fixture::standard();
    f.expect(&[
        ("create new 644", ""),
        ("copyrange plain.txt 6 new 2 4", "4"),
        ("read new", "\"\\x00\\x00file\""),
        ("copyrange top.txt 0 both.txt 5 3", "3"),
        ("read both.txt", "\"from\\x20top\\x20top\\x20layer\\x0a\""),
        ("copyrange plain.txt 100 new 0 10", "0"),
        ("copyrange no 0 new 0 10", "ENOENT"),
    ]);
}

#[test]
fn a_large_range() {
    need_mounts!();
    let f = Fixture::standard();
    f.ok("create new 644");
    let mut done = 0u64;
    while done < 300_000 {
        let left = 300_000 - done;
        let n = f.ok(&format!("copyrange big.bin {done} new {done} {left}"));
        let n: u64 = n[0].parse().unwrap();
        assert!(n > 0, "stopped after {done} bytes");
        done += n;
    }
    assert!(std::fs::read(f.at("new")).unwrap() == big_data());
}
