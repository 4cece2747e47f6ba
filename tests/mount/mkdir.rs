//! Creating directories; one over a whiteout must be empty.

use testkit::fixture::Fixture;
use testkit::need_mounts;

#[test]
fn new_directories() {
    need_mounts!();
    let mut f = Fixture::standard();
    f.expect(&[
        ("mkdir d 1711", ""),
        ("mkdir d 755", "EEXIST"),
        ("mkdir plain.txt 755", "EEXIST"),
        ("mkdir no/d 755", "ENOENT"),
        ("mkdir deep/a/b/new 700", ""),
        ("create deep/a/b/new/f 644", ""),
        ("as 1000 1000", ""),
        ("mkdir merged/d 755", "EACCES"),
        ("mkdir setgid/d 755", ""),
    ]);
    let check = [
        ("stat d", "mode 41711 owner 0:0"),
        ("readdir deep/a/b", "c:d new:d"),
        ("stat setgid/d", "mode 42755 owner 1000:1234"),
    ];
    f.expect(&check);
    f.remount();
    f.expect(&check);
}

#[test]
fn a_directory_over_a_whiteout_is_empty() {
    need_mounts!();
    let mut f = Fixture::standard();
    f.ok("mkdir removed-dir 755
          unlink deep/a/b/c/leaf
          rmdir deep/a/b/c
          mkdir deep/a/b/c 755
          unlink dir-to-file
          mkdir dir-to-file 755");
    let check = [
        ("readdir removed-dir", ""),
        ("stat removed-dir/f", "ENOENT"),
        ("readdir deep/a/b/c", ""),
        ("readdir dir-to-file", ""),
    ];
    f.expect(&check);
    f.remount();
    f.expect(&check);
}
