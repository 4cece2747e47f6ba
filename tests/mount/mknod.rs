//! Special files: types, device numbers, and that they work.

use std::io::Write;

use testkit::fixture::Fixture;
use testkit::need_mounts;

#[test]
fn every_type() {
    need_mounts!();
    let mut f = Fixture::standard();
    f.expect(&[
        ("mknod p 10640 0 0", ""),
        ("mknod c 20600 1 3", ""),
        ("mknod b 60600 7 201", ""),
        ("mknod s 140755 0 0", ""),
        ("mknod r 100600 0 0", ""),
        ("mknod p 10640 0 0", "EEXIST"),
        ("mknod removed.txt 10600 0 0", ""),
        ("as 1000 1000", ""),
        ("mknod sticky/c 20600 1 3", "EPERM"),
    ]);
    let check = [
        ("stat p", "mode 10640 owner 0:0 size 0 nlink 1 rdev 0"),
        ("stat c", "mode 20600 owner 0:0 size 0 nlink 1 rdev 259"),
        ("stat b", "mode 60600 owner 0:0 size 0 nlink 1 rdev 1993"),
        ("stat s", "mode 140755 owner 0:0 size 0 nlink 1 rdev 0"),
        ("stat r", "mode 100600 owner 0:0 size 0 nlink 1 rdev 0"),
        (
            "stat removed.txt",
            "mode 10600 owner 0:0 size 0 nlink 1 rdev 0",
        ),
    ];
    f.expect(&check);
    f.remount();
    f.expect(&check);
}

/// An object that the union would read back as a whiteout cannot be made.
#[test]
fn a_whiteout_cannot_be_forged() {
    need_mounts!();
    let mut f = Fixture::standard();
    let made = f.run("mknod w 20600 0 0").remove(0);
    assert!(made.is_err(), "{made:?}");
    f.remount();
    f.expect(&[("stat w", "ENOENT")]);
}

/// A privileged mount allows devices, as kernel overlayfs does.
#[test]
fn devices_work() {
    need_mounts!();
    let f = Fixture::standard();
    let mut null = std::fs::File::options()
        .read(true)
        .write(true)
        .open(f.at("null"))
        .unwrap();
    null.write_all(b"gone").unwrap();
    assert_eq!(std::fs::read(f.at("null")).unwrap(), b"");
}

#[test]
fn a_fifo_carries_data() {
    need_mounts!();
    let f = Fixture::standard();
    let path = f.at("fifo");
    std::thread::scope(|scope| {
        scope.spawn(|| std::fs::write(&path, "through").unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"through");
    });
}

#[test]
fn a_socket_carries_data() {
    use std::os::unix::net::{UnixListener, UnixStream};
    need_mounts!();
    let f = Fixture::standard();
    let listener = UnixListener::bind(f.at("sock")).unwrap();
    let mut out = UnixStream::connect(f.at("sock")).unwrap();
    out.write_all(b"hello").unwrap();
    drop(out);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut listener.accept().unwrap().0, &mut text).unwrap();
    assert_eq!(text, "hello");
}
