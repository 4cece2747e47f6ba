//! Unlinking: the lower file must not reappear, also after a remount.

use testkit::fixture::Fixture;
use testkit::need_mounts;

#[test]
fn unlinked_names_stay_away() {
    need_mounts!();
    let mut f = Fixture::standard();
    let names = [
        "plain.txt",
        "both.txt",
        "top.txt",
        "merged/over",
        "fifo",
        "link-rel",
        "null",
    ];
    for name in names {
        f.expect(&[
            (&format!("unlink {name}"), ""),
            (&format!("stat {name}"), "ENOENT"),
            (&format!("unlink {name}"), "ENOENT"),
        ]);
    }
    f.expect(&[
        ("unlink merged", "EISDIR"),
        ("unlink removed.txt", "ENOENT"),
        ("as 1000 1000", ""),
        ("unlink empty.txt", "EACCES"),
        ("unlink sticky/of-1001", "EPERM"),
        ("unlink sticky/of-1000", ""),
    ]);
    f.remount();
    for name in names {
        f.expect(&[(&format!("stat {name}"), "ENOENT")]);
    }
    f.expect(&[("readdir merged", "bottom:f h3:f middle:f sub:d top:f")]);
}

/// An object that exists in the upper alone leaves no whiteout.
#[test]
fn no_needless_whiteouts() {
    need_mounts!();
    let f = Fixture::standard();
    f.ok("create new 644\nunlink new\nmkdir d 755\nrmdir d\nunlink plain.txt");
    let names: Vec<_> = std::fs::read_dir(f.upper(""))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, ["plain.txt"]);
}
