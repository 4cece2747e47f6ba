//! POSIX ACLs: enforced, inherited, and in step with the mode.

use testkit::fixture::Fixture;
use testkit::{layers, need_mounts, tree};

#[test]
fn a_named_user_is_let_in() {
    need_mounts!();
    Fixture::standard().expect(&[
        ("as 1000 5", ""),
        ("read acl.txt", "\"acl\\x0a\""),
        ("write acl.txt 0 X", "1"),
        ("as 1001 5", ""),
        ("read acl.txt", "EACCES"),
    ]);
}

#[test]
fn new_entries_inherit() {
    need_mounts!();
    let mut f = Fixture::standard();
    f.ok("umask 77\ncreate acl-dir/f 666\nmkdir acl-dir/d 777\ncreate acl-dir/d/g 660");
    for _ in 0..2 {
        // A default ACL replaces the umask.
        let file = tree::xattr(&f.at("acl-dir/f"), b"system.posix_acl_access").unwrap();
        assert_eq!(file, layers::acl(6, &[(1000, 7)], 5, 6, 0));
        let dir = tree::xattr(&f.at("acl-dir/d"), b"system.posix_acl_default").unwrap();
        assert_eq!(dir, layers::acl(7, &[(1000, 7)], 5, 7, 0));
        f.expect(&[
            (
                "stat acl-dir/f",
                "mode 100660 owner 0:0 size 0 nlink 1 rdev 0",
            ),
            ("stat acl-dir/d", "mode 40770 owner 0:0"),
            (
                "stat acl-dir/d/g",
                "mode 100660 owner 0:0 size 0 nlink 1 rdev 0",
            ),
        ]);
        f.remount();
    }
}

#[test]
fn acl_and_mode_stay_in_step() {
    need_mounts!();
    let f = Fixture::standard();
    f.expect(&[
        ("setacl plain.txt access 1000 4", ""),
        (
            "stat plain.txt",
            "mode 100770 owner 1000:1001 size 23 nlink 1 rdev 0",
        ),
        ("chmod plain.txt 640", ""),
        ("setacl plain.txt default 1000 4", "EACCES"),
    ]);
    let acl = tree::xattr(&f.at("plain.txt"), b"system.posix_acl_access").unwrap();
    assert_eq!(acl, layers::acl(6, &[(1000, 4)], 5, 4, 0));
}
