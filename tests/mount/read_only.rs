//! A union without an upper: all reads work, and no change does.

use testkit::fixture::Fixture;
use testkit::mount::KERNEL;
use testkit::tree::{self, Mask};
use testkit::{layers, need, need_mounts, without};

#[test]
fn reads_as_the_kernels() {
    need_mounts!();
    need!(without::lists_trusted());
    let layers = layers::standard();
    let oracle = Fixture::with(&KERNEL, &layers, layers::Form::Kernel, false).tree();
    let union = Fixture::read_only(&layers).tree();
    tree::assert_same("read-only trees", &oracle, &union, &Mask::ALL);
}

#[test]
fn every_change_is_refused() {
    need_mounts!();
    Fixture::read_only(&layers::standard()).expect(&[
        ("create new 644", "EROFS"),
        ("write plain.txt 0 X", "EROFS"),
        ("truncate plain.txt 0", "EROFS"),
        ("mkdir d 755", "EROFS"),
        ("rmdir empty", "EROFS"),
        ("unlink plain.txt", "EROFS"),
        ("rename plain.txt x", "EROFS"),
        ("link plain.txt x", "EROFS"),
        ("symlink x y", "EROFS"),
        ("mknod p 10644 0 0", "EROFS"),
        ("chmod plain.txt 600", "EROFS"),
        ("chown plain.txt 1 1", "EROFS"),
        ("touch plain.txt", "EROFS"),
        ("setxattr plain.txt user.x 1", "EROFS"),
        ("removexattr tagged user.colour", "EROFS"),
        (
            "read plain.txt",
            "\"plain\\x20file,\\x20lower\\x20only\\x0a\"",
        ),
    ]);
}
