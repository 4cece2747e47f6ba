//! Making hard links. `hardlinks.rs` tests links across copy-up.

use testkit::fixture::Fixture;
use testkit::need_mounts;

#[test]
fn links_to_files_of_every_layer() {
    need_mounts!();
    let mut f = Fixture::standard();
    f.expect(&[
        ("link plain.txt l1", ""),
        ("link top.txt merged/l2", ""),
        ("create new 600", ""),
        ("link new removed.txt", ""),
        ("link fifo l3", ""),
        ("link link-rel l4", ""),
        ("link merged l5", "EPERM"),
        ("link plain.txt both.txt", "EEXIST"),
        ("link no l6", "ENOENT"),
        ("write l1 0 PLAIN", "5"),
        ("write removed.txt 0 data", "4"),
    ]);
    let check = [
        (
            "read plain.txt",
            "\"PLAIN\\x20file,\\x20lower\\x20only\\x0a\"",
        ),
        ("read new", "\"data\""),
        ("readlink l4", "plain.txt"),
        (
            "stat plain.txt",
            "mode 100640 owner 1000:1001 size 23 nlink 2 rdev 0",
        ),
        ("stat l3", "mode 10644 owner 0:0 size 0 nlink 2 rdev 0"),
        (
            "stat removed.txt",
            "mode 100600 owner 0:0 size 4 nlink 2 rdev 0",
        ),
    ];
    f.expect(&check);
    f.remount();
    f.expect(&check);
}
