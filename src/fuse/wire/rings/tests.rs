//! What needs no kernel that offers it; mounts over io_uring are in `tests/mount/uring.rs`.

use super::*;

#[test]
fn cpus_are_counted() {
    assert_eq!(count("0"), Some(1));
    assert_eq!(count("0-3"), Some(4));
    assert_eq!(count("0-3,8,10-11"), Some(7));
    for wrong in ["", "a", "3-0", "0-", "0-70000", "-1", "0,,1"] {
        assert_eq!(count(wrong), None, "{wrong}");
    }
    assert!(possible_cpus().unwrap() >= 1);
}
