//! Open files survive unlink, rename and replacement: all operations still work on the descriptor.

use testkit::fixture::Fixture;
use testkit::layers::Layer;
use testkit::need_mounts;

fn everything_on_a_descriptor(f: &Fixture, path: &str, end: &str) {
    f.ok(&format!("write {path} 0 0123456789 t"));
    f.expect(&[
        (&format!("open 1 {path} b"), ""),
        (end, ""),
        ("hread 1 0 10", "\"0123456789\""),
        ("hwrite 1 2 XY", "2"),
        ("htruncate 1 5", ""),
        ("hchmod 1 611", ""),
        ("hread 1 0 10", "\"01XY4\""),
        ("close 1", ""),
    ]);
}

#[test]
fn unlinked() {
    need_mounts!();
    let f = Fixture::standard();
    f.ok("create new 644");
    for path in ["new", "both.txt", "merged/bottom", "deep/a/b/c/leaf"] {
        everything_on_a_descriptor(&f, path, &format!("unlink {path}"));
        f.expect(&[(&format!("stat {path}"), "ENOENT")]);
    }
}

#[test]
fn replaced_by_rename() {
    need_mounts!();
    let f = Fixture::standard();
    everything_on_a_descriptor(&f, "both.txt", "rename top.txt both.txt");
    f.expect(&[("read both.txt", "\"top\\x0a\"")]);
}

#[test]
fn renamed() {
    need_mounts!();
    let f = Fixture::standard();
    everything_on_a_descriptor(&f, "merged/bottom", "rename merged elsewhere");
    f.expect(&[
        ("read elsewhere/bottom", "\"01XY4\""),
        (
            "stat elsewhere/bottom",
            "mode 100611 owner 0:0 size 5 nlink 1 rdev 0",
        ),
    ]);
}

/// A file that was never copied up is unlinked, then changed through the descriptor.
#[test]
fn a_lower_file_unlinked_before_its_first_write() {
    need_mounts!();
    let f = Fixture::standard();
    f.expect(&[
        ("open 1 plain.txt b", ""),
        ("unlink plain.txt", ""),
        ("hread 1 0 5", "\"plain\""),
        ("hwrite 1 0 X", "1"),
        ("hread 1 0 5", "\"Xlain\""),
        (
            "hstat 1",
            "mode 100640 owner 1000:1001 size 23 nlink 0 rdev 0",
        ),
        ("close 1", ""),
        ("stat plain.txt", "ENOENT"),
        ("open 2 big.bin r", ""),
        ("unlink big.bin", ""),
        ("create big.bin 644", ""),
        ("hread 2 300000 5", "\"\""),
        ("read big.bin", "\"\""),
    ]);
}

#[test]
fn a_removed_directory_lists_empty() {
    need_mounts!();
    let f = Fixture::standard();
    let dir = std::fs::File::open(f.at("empty")).unwrap();
    f.ok("rmdir empty\nmkdir empty 755\ncreate empty/other 644");
    let entries = rustix::fs::Dir::read_from(&dir).unwrap();
    // The kernel may answer ENOENT for a removed directory; an entry would be wrong.
    let names: Vec<_> = entries
        .flatten()
        .map(|e| e.file_name().to_owned())
        .collect();
    assert!(!names.iter().any(|n| n.to_bytes() == b"other"), "{names:?}");
}

/// An object that was removed while open does not reappear after a change through the descriptor,
/// as special files do on the kernel's overlay. A directory's attributes are then ENOENT, where the
/// kernel answers ENOTDIR.
#[test]
fn what_was_removed_stays_removed() {
    need_mounts!();
    let layer = Layer::new().fifo("pipe").char_dev("null", 1, 3).dir("d");
    let mut f = Fixture::new(&[layer]);
    f.expect(&[
        ("open 0 null r 0", ""),
        ("open 1 d d 0", ""),
        ("unlink null", ""),
        ("rmdir d", ""),
        ("htouch 0", ""),
        ("hchmod 0 600", ""),
        ("hchmod 1 700", "ENOENT"),
        ("stat null", "ENOENT"),
        ("stat d", "ENOENT"),
        ("readdir .", "pipe:p"),
    ]);
    f.remount();
    f.expect(&[("stat null", "ENOENT"), ("readdir .", "pipe:p")]);
}
