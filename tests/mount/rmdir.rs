//! Removing directories: a directory that is empty in the union can be removed, whatever the layers
//! hold.

use testkit::fixture::Fixture;
use testkit::{need, need_mounts, without};

#[test]
fn only_empty_directories_go() {
    need_mounts!();
    let mut f = Fixture::standard();
    f.expect(&[
        ("rmdir merged", "ENOTEMPTY"),
        ("rmdir deep", "ENOTEMPTY"),
        ("rmdir plain.txt", "ENOTDIR"),
        ("rmdir no", "ENOENT"),
        ("rmdir removed-dir", "ENOENT"),
        ("rmdir empty", ""),
        ("unlink opaque/new", ""),
        ("rmdir opaque", ""),
        ("unlink deep/a/b/c/leaf", ""),
        ("rmdir deep/a/b/c", ""),
        ("rmdir deep/a/b", ""),
        ("mkdir merged/new 755", ""),
        ("create merged/new/f 644", ""),
        ("rmdir merged/new", "ENOTEMPTY"),
    ]);
    let check = [
        ("stat empty", "ENOENT"),
        ("stat opaque", "ENOENT"),
        ("readdir deep/a", ""),
    ];
    f.expect(&check);
    f.remount();
    f.expect(&check);
}

#[test]
fn rm_r_of_everything() {
    need_mounts!();
    need!(without::has_file_handles());
    let mut f = Fixture::standard();
    for entry in std::fs::read_dir(f.root()).unwrap() {
        let path = entry.unwrap().path();
        if path.symlink_metadata().unwrap().is_dir() {
            std::fs::remove_dir_all(path).unwrap();
        } else {
            std::fs::remove_file(path).unwrap();
        }
    }
    for _ in 0..2 {
        assert_eq!(std::fs::read_dir(f.root()).unwrap().count(), 0);
        f.remount();
    }
}
