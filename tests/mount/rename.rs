//! Renaming: files, merged directories, flags; the old name is gone, the new one is complete.

use testkit::fixture::Fixture;
use testkit::tree::{self, Mask};
use testkit::without::{self, Lack};
use testkit::{need, need_mounts};

const PLAIN: &str = "\"plain\\x20file,\\x20lower\\x20only\\x0a\"";

#[test]
fn files() {
    need_mounts!();
    let mut f = Fixture::standard();
    f.expect(&[
        ("rename plain.txt a", ""),
        ("rename a both.txt", ""),
        ("rename merged/bottom removed.txt", ""),
        ("rename no x", "ENOENT"),
        ("rename top.txt merged", "EISDIR"),
        ("rename top.txt top.txt", ""),
        ("rename empty top.txt", "ENOTDIR"),
        ("rename fifo opaque/old", ""),
    ]);
    let check = [
        ("stat plain.txt", "ENOENT"),
        ("stat a", "ENOENT"),
        ("read both.txt", PLAIN),
        ("read removed.txt", "\"merged\\x20bottom\\x0a\""),
        ("readdir merged", "h3:f middle:f over:f sub:d top:f"),
        ("readdir opaque", "new:f old:p"),
    ];
    f.expect(&check);
    f.remount();
    f.expect(&check);
}

/// A merged directory keeps all its content, at every depth, wherever it is moved.
#[test]
fn merged_directories() {
    need_mounts!();
    let mut f = Fixture::standard();
    let before = tree::list(&f.at("merged"));
    f.ok("rename merged moved\nrename moved deep/a/b/m\nrename deep/a elsewhere");
    for _ in 0..2 {
        let after = tree::list(&f.at("elsewhere/b/m"));
        tree::assert_same("the moved tree", &before, &after, &Mask::ALL);
        f.expect(&[
            ("stat merged", "ENOENT"),
            ("readdir deep", ""),
            ("readdir elsewhere/b", "c:d m:d"),
        ]);
        f.remount();
    }
    f.ok("mkdir merged 755\nwrite elsewhere/b/m/bottom 0 X\nrename elsewhere/b/m empty");
    f.remount();
    f.expect(&[
        ("readdir merged", ""),
        ("readdir empty", "bottom:f h3:f middle:f over:f sub:d top:f"),
        ("read empty/bottom", "\"Xerged\\x20bottom\\x0a\""),
    ]);
}

#[test]
fn directory_over_directory() {
    need_mounts!();
    let mut f = Fixture::standard();
    f.expect(&[
        ("rename empty merged", "ENOTEMPTY"),
        ("rename deep deep/a/x", "EINVAL"),
        ("rename merged empty", ""),
        ("mkdir n 755", ""),
        ("rename n removed-dir", ""),
    ]);
    let check = [
        ("readdir empty", "bottom:f h3:f middle:f over:f sub:d top:f"),
        ("readdir removed-dir", ""),
        ("stat merged", "ENOENT"),
    ];
    f.expect(&check);
    f.remount();
    f.expect(&check);
}

#[test]
fn flags() {
    need_mounts!();
    need!(without::has(&[Lack::RenameFlags]));
    let mut f = Fixture::standard();
    f.expect(&[
        ("rename plain.txt both.txt noreplace", "EEXIST"),
        ("rename plain.txt removed.txt noreplace", ""),
        ("rename merged removed.txt exchange", ""),
        ("rename top.txt no exchange", "ENOENT"),
        ("rename top.txt x whiteout", "EINVAL"),
    ]);
    let check = [
        ("read merged", PLAIN),
        (
            "readdir removed.txt",
            "bottom:f h3:f middle:f over:f sub:d top:f",
        ),
        ("stat plain.txt", "ENOENT"),
    ];
    f.expect(&check);
    f.remount();
    f.expect(&check);
}
