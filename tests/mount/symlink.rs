//! Symbolic links: unchanged targets, in every layer, resolved by the kernel alone.

use testkit::fixture::Fixture;
use testkit::need_mounts;

#[test]
fn targets_are_kept() {
    need_mounts!();
    let mut f = Fixture::standard();
    let long = "t/".repeat(2000);
    f.expect(&[
        ("symlink plain.txt s", ""),
        ("symlink \\xff/../x s2", ""),
        (&format!("symlink {long} s3"), ""),
        ("symlink x s", "EEXIST"),
        ("symlink x removed.txt", ""),
        ("symlink x no/s", "ENOENT"),
        ("readlink plain.txt", "EINVAL"),
        ("rename link-dangling merged/ld", ""),
        ("chown link-rel 1 1", ""),
    ]);
    let check = [
        ("readlink s", "plain.txt"),
        ("readlink s2", "\\xff/../x"),
        ("readlink s3", &*long),
        ("readlink removed.txt", "x"),
        ("readlink merged/ld", "no/such/file"),
        ("readlink link-rel", "plain.txt"),
        (
            "read link-rel",
            "\"plain\\x20file,\\x20lower\\x20only\\x0a\"",
        ),
        ("stat s", "mode 120777 owner 0:0 size 9 nlink 1 rdev 0"),
    ];
    f.expect(&check);
    f.remount();
    f.expect(&check);
}
