//! The fsx crate: random reads, writes, mapped reads and writes, truncations, holes, copies and
//! syncs on one file, checked against its own model after each. The file starts in a lower; the
//! result of fsx is compared with the upper and with a remount. `exerciser` tests O_DIRECT, and
//! files whose first content is the lower's.
//!
//! `UNIONFS_FSX_OPERATIONS` sets the number of operations of each test (`just fsx N`).

use std::path::Path;
use std::process::Command;

use testkit::fixture::Fixture;
use testkit::layers::{Layer, big_data};
use testkit::mount::{Scratch, subject};
use testkit::{need, need_mounts};

use super::support::{output_of, stack_in, tool};

/// Every operation of fsx; sizes up to its default of 64 KiB.
const WEIGHTS: &str = "
[weights]
close_open = 1
read = 10
write = 10
mapread = 10
mapwrite = 10
invalidate = 1
truncate = 10
fsync = 0.2
fdatasync = 0.2
posix_fallocate = 3
punch_hole = 5
sendfile = 3
posix_fadvise = 2
copy_file_range = 5
";

/// The same without operations that change the size, on a file that is not truncated at the start.
const BLOCKMODE: &str = "
blockmode = true
[weights]
close_open = 0
truncate = 0
posix_fallocate = 0
read = 10
write = 10
mapread = 10
mapwrite = 10
invalidate = 1
fsync = 0.2
fdatasync = 0.2
punch_hole = 5
sendfile = 3
posix_fadvise = 2
copy_file_range = 5
";

/// Returns the number of operations. CI runs each test once for each I/O policy, and once over
/// io_uring.
fn operations() -> u32 {
    let set = std::env::var("UNIONFS_FSX_OPERATIONS").ok();
    set.map_or(60_000, |n| n.parse().unwrap())
}

fn exercise(program: &Path, config: &str, seed: u32) {
    let operations = operations();
    // On a tmpfs: fsx syncs after every mapped write, which would take minutes on a disk.
    let scratch = Scratch::tmpfs();
    let stack = stack_in(&scratch, &[Layer::new().file("f", big_data())]);
    let mut f = Fixture::over(&subject(), scratch, stack);
    let conf = f.scratch.path().join("fsx.toml");
    std::fs::write(&conf, config).unwrap();
    output_of(
        Command::new(program)
            .arg("-f")
            .arg(&conf)
            .args(["-N", &operations.to_string(), "-S", &seed.to_string()])
            .arg("-P")
            .arg(f.scratch.path())
            .arg(f.at("f")),
    );
    let left = std::fs::read(f.at("f")).unwrap();
    assert!(left != big_data(), "fsx changed nothing");
    f.unmount();
    assert!(std::fs::read(f.upper("f")).unwrap() == left, "in the upper");
    f.remount();
    assert!(std::fs::read(f.at("f")).unwrap() == left, "after a remount");
}

#[test]
fn every_operation_on_a_file_of_a_lower() {
    need_mounts!();
    let program = need!(tool("fsx"));
    exercise(&program, WEIGHTS, 1);
}

#[test]
fn in_place_on_a_file_of_a_lower() {
    need_mounts!();
    let program = need!(tool("fsx"));
    exercise(&program, BLOCKMODE, 2);
}
