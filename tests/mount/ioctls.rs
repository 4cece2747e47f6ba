//! More on inode flags: who may change them, what no way of writing changes, which ioctls are not
//! answered, and catalogs.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::chown;
use std::process::Command;

use rustix::fs::{IFlags, OFlags, ioctl_getflags};
use testkit::fixture::Fixture;
use testkit::ioctl::{with_file, with_room};
use testkit::map::Map;
use testkit::mount::{Fs, KERNEL, Scratch, Stack};
use testkit::{need, need_mounts, without};

use super::inode_flags::{FLAGS, Unprotected, answer, fill, flags_of, open, protect, set};

/// A user may change the harmless flags of their own files and of no others. The two flags that
/// protect need privilege in the first user namespace.
#[test]
fn who_may_change_flags() {
    need_mounts!();
    let mut answers = Vec::new();
    for fs in [
        KERNEL,
        Fs::Unionfs("io=passthrough"),
        Fs::Unionfs("io=cached"),
    ] {
        let scratch = Scratch::disk();
        let lower = scratch.dir("lower");
        for (name, uid) in [("own", 1000), ("other", 1001), ("protected", 1000)] {
            fs::write(lower.join(name), "").unwrap();
            chown(lower.join(name), Some(uid), Some(uid)).unwrap();
        }
        let path = scratch.path().to_owned();
        let _unprotected = Unprotected(&path);
        set(&lower.join("protected"), IFlags::APPEND).unwrap();
        let stack = Stack::writable(&scratch, vec![lower]);
        let f = Fixture::over(&fs, scratch, stack);
        let mut all = Vec::new();
        let flags = ["+d", "+A", "+i", "+a", "-a", "-i", "-d"];
        for (name, flag) in ["own", "other", "protected"]
            .iter()
            .flat_map(|n| flags.map(|f| (*n, f)))
        {
            let at = f.at(name);
            let by = |program: &str, before: &[&str]| {
                let mut command = Command::new(program);
                std::os::unix::process::CommandExt::uid(&mut command, 1000);
                std::os::unix::process::CommandExt::gid(&mut command, 1000);
                let output = command.args(before).arg(flag).arg(&at).output().unwrap();
                let text = String::from_utf8(output.stderr).unwrap();
                let why = text
                    .lines()
                    .next()
                    .unwrap_or("done")
                    .replace(at.to_str().unwrap(), "");
                why.rsplit(": ")
                    .next()
                    .map(|why| why.split(" while").next().unwrap_or(why).to_owned())
                    .unwrap()
            };
            all.push((name, flag, by("chattr", &[])));
            all.push((name, flag, by("unshare", &["-Ur", "chattr"])));
        }
        let mut listed = Vec::new();
        flags_of(f.root(), &mut listed);
        drop(f);
        answers.push((all, listed));
    }
    let refused =
        |(_, flag, why): &&(&str, &str, String)| flag.contains(['i', 'a']) && *why != "done";
    assert!(
        answers[0].0.iter().filter(refused).count() >= 10,
        "{:#?}",
        answers[0]
    );
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0], answers[2]);
}

/// No mapping and no descriptor changes the data of an append-only file.
#[test]
fn append_only_files_keep_what_they_hold() {
    need_mounts!();
    need!(without::has_statx());
    for options in ["io=passthrough", "io=cached", "io=cached,writeback"] {
        let scratch = Scratch::disk();
        let path = scratch.path().to_owned();
        let _unprotected = Unprotected(&path);
        let lower = scratch.dir("lower");
        for name in ["log", "early"] {
            fs::write(lower.join(name), "the first line\n").unwrap();
        }
        set(&lower.join("log"), IFlags::APPEND).unwrap();
        let stack = Stack::writable(&scratch, vec![lower]);
        let mut f = Fixture::over(&Fs::Unionfs(options), scratch, stack);
        let reader = File::open(f.at("early")).unwrap();
        set(&f.at("early"), IFlags::APPEND).unwrap();
        for name in ["log", "early"] {
            let path = f.at(name);
            let flags = OFlags::RDWR | OFlags::APPEND;
            // The open is refused, or data written through it is not kept.
            if let Ok(file) = open(&path, flags)
                && let Ok(map) = Map::shared(&file, true)
            {
                // The write may fail, but need not.
                let _ = map.write(0, b"XXX");
            }
            let mut file = open(&path, OFlags::WRONLY | OFlags::APPEND).unwrap();
            let wrote = file.write_all(b"the second\n");
            assert!(wrote.is_ok(), "{options} {name}: {wrote:?}");
            file.sync_all().unwrap();
        }
        drop(reader);
        f.remount();
        for name in ["log", "early"] {
            let content = fs::read_to_string(f.at(name)).unwrap();
            assert_eq!(content, "the first line\nthe second\n", "{options} {name}");
        }
        drop(f);
    }
}

/// Ioctls with other numbers and sizes, and those that FUSE does not carry.
#[test]
fn other_ioctls_are_refused() {
    need_mounts!();
    for options in ["io=passthrough", "io=cached"] {
        let scratch = Scratch::disk();
        let lower = scratch.dir("lower");
        fs::write(lower.join("file"), "data").unwrap();
        let stack = Stack::writable(&scratch, vec![lower]);
        let f = Fixture::over(&Fs::Unionfs(options), scratch, stack);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(f.at("file"))
            .unwrap();
        let source = File::open(f.at("file")).unwrap();
        let dir = File::open(f.root()).unwrap();
        let ioctl = |file: &File, number: u32, room: &mut [u64; 2048]| {
            answer(with_room(file, number, room))
        };
        let mut room = [0u64; 2048];
        // Flags in 32 bits, other sizes of the four, unknown ones, one of the largest size.
        for number in [
            0x8004_6601,
            0x4004_6602,
            0x8010_6601,
            0x4010_6602,
            0x8020_581f,
            0x4020_5820,
            0x1234,
            0xc008_6601,
            0xffff_ffff,
        ] {
            for file in [&file, &dir] {
                room[0] = 0x10;
                assert_eq!(
                    ioctl(file, number, &mut room),
                    "ENOTTY",
                    "{options} {number:x}"
                );
            }
        }
        // FIEMAP, FICLONE, FICLONERANGE, FIDEDUPERANGE.
        assert_eq!(ioctl(&file, 0xc020_660b, &mut [0; 2048]), "EOPNOTSUPP");
        let cloned = answer(with_file(&file, 0x4004_9409, &source));
        assert_eq!(cloned, "EOPNOTSUPP");
        let mut range = [0; 2048];
        range[0] = source.as_raw_fd() as u64;
        assert_eq!(ioctl(&file, 0x4020_940d, &mut range), "EOPNOTSUPP");
        let mut dedupe = [0; 2048];
        (dedupe[1], dedupe[2], dedupe[3]) = (4, 1, source.as_raw_fd() as u64);
        assert_eq!(ioctl(&file, 0xc018_9436, &mut dedupe), "EOPNOTSUPP");
        assert_eq!(fs::read(f.at("file")).unwrap(), b"data");
        assert!(ioctl_getflags(&file).is_ok());
    }
}

/// A catalog has no flags: the flags are read from the layer.
#[test]
fn catalogs_leave_protected_files_out() {
    need_mounts!();
    need!(without::has_statx());
    let scratch = Scratch::disk();
    let path = scratch.path().to_owned();
    let _unprotected = Unprotected(&path);
    let lower = scratch.dir("lower");
    fill(&lower, "lower");
    fs::write(lower.join("free"), "").unwrap();
    protect(&lower, "lower");
    let stack = Stack::writable(&scratch, vec![lower]);
    let f = Fixture::over(&Fs::Catalogued("io=cached"), scratch, stack);
    for (name, flags) in FLAGS {
        let (file, dir) = (
            f.at(format!("lower-file-{name}")),
            f.at(format!("lower-dir-{name}")),
        );
        assert_eq!(answer(fs::remove_file(&file)), "EPERM");
        assert_eq!(answer(fs::remove_file(dir.join("x"))), "EPERM");
        let created = answer(fs::write(dir.join("new"), ""));
        let expected = if flags.contains(IFlags::IMMUTABLE) {
            "EPERM"
        } else {
            "done"
        };
        assert_eq!(created, expected, "{name}");
    }
    fs::remove_file(f.at("free")).unwrap();
    drop(f);
}
