//! Layers whose file system fails or lies. An error concerns only the file that has it. To the kernel,
//! ENOSYS from a server of FUSE means that it has no such operation at all: it would send none of that
//! kind any more, for any file of the mount. And a short answer to a read means the end of the file.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{
    FallocateFlags, Mode, OFlags, RenameFlags, SeekFrom, XattrFlags, getxattr, listxattr,
    removexattr, setxattr,
};
use rustix::io::Errno;
use testkit::failing_fs::{self, FailingFs};
use testkit::fixture::Fixture;
use testkit::layers::acl;
use testkit::mount::{Fs, Scratch, Stack};
use testkit::stats::requests_of;
use testkit::{need, need_mounts, without};

/// A union of a file system that fails, and a directory.
struct Bed {
    // The fields are dropped in this order: first the mount, then its layer.
    union: Fixture,
    failing: FailingFs,
}

impl Bed {
    fn new(options: &'static str) -> Self {
        let scratch = Scratch::disk();
        let lowers = vec![scratch.dir("failing"), scratch.dir("lower")];
        for name in ["good", "other"] {
            std::fs::write(lowers[1].join(name), "good").unwrap();
        }
        for name in ["known", "secret"] {
            let path = lowers[1].join(name);
            std::fs::write(&path, "secret").unwrap();
            std::os::unix::fs::chown(&path, Some(0), Some(5)).unwrap();
            // The group has no right of its own. The mode shows the mask in its place.
            let rights = acl(6, &[(1000, 6)], 0, 6, 0);
            let flags = XattrFlags::empty();
            setxattr(&path, "system.posix_acl_access", &rights, flags).unwrap();
        }
        let failing = FailingFs::mount(&lowers[0]);
        let stack = Stack::writable(&scratch, lowers);
        let union = Fixture::over(&Fs::Unionfs(options), scratch, stack);
        Self { union, failing }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.union.at(name)
    }

    /// Runs all that may fail at the file of the layer that fails. If it is `opened` for writing before,
    /// passthrough has copied it up.
    fn provoke(&self, opened: bool, errno: i32) {
        let path = self.at(failing_fs::NAME);
        // The kernel knows the file from now on.
        path.metadata().unwrap();
        let open = || OpenOptions::new().read(true).write(true).open(&path);
        let open = opened.then(|| open().unwrap());
        let target = File::create(self.at("target")).unwrap();
        self.failing.fails_with(errno);
        let below = self.union.stack.lowers[0].join(failing_fs::NAME).metadata();
        assert!(below.is_err(), "the layer does not fail");
        let asked = getxattr(&path, "user.a", &mut [0u8; 16][..]);
        // The other answers differ with the options. What matters is what other files can do afterwards.
        try_all(&path);
        if let Some(open) = open {
            let _ = rustix::fs::fallocate(&open, FallocateFlags::empty(), 0, 4096);
            let _ = rustix::fs::seek(&open, SeekFrom::Hole(0));
            let _ = rustix::fs::copy_file_range(&open, None, &target, None, 10);
            let _ = rustix::fs::ioctl_getflags(&open);
            let _ = open.sync_all();
        }
        self.failing.fails_with(0);
        assert!(opened || asked.is_err(), "the layer did not fail");
    }

    /// Whether the ACL keeps the group of a file out.
    fn keeps_group_out(&self, name: &str) -> bool {
        let answers = self.union.run(&format!("as 1001 5\nread {name}"));
        answers[1] == Err("EACCES".into())
    }
}

impl Drop for Bed {
    /// The lowers are compared with what they were.
    fn drop(&mut self) {
        self.failing.works();
    }
}

/// Tries operations by name, whatever they answer.
fn try_all(path: &Path) {
    let mut value = [0u8; 256];
    let _ = getxattr(path, "system.posix_acl_access", &mut value);
    let _ = listxattr(path, &mut value);
    let _ = setxattr(path, "user.a", b"1", XattrFlags::empty());
    let _ = removexattr(path, "user.a");
    let _ = std::fs::read(path);
    let _ = OpenOptions::new().read(true).write(true).open(path);
    let _ = OpenOptions::new().write(true).truncate(true).open(path);
    let _ = std::fs::rename(path, path.with_extension("moved"));
    let _ = std::fs::hard_link(path, path.with_extension("linked"));
    let _ = rustix::fs::chmod(path, Mode::from_raw_mode(0o600));
}

#[test]
fn it_takes_no_acl_away() {
    need_mounts!();
    let bed = Bed::new("");
    assert!(bed.keeps_group_out("known"));
    bed.provoke(false, libc::ENOSYS);
    // The kernel has not asked for the ACL of this one before.
    assert!(bed.keeps_group_out("secret"), "the ACL is not enforced");
}

#[test]
fn it_switches_nothing_off() {
    need_mounts!();
    for (options, opened) in [
        ("", false),
        ("", true),
        ("io=cached", false),
        ("io=cached", true),
    ] {
        let bed = Bed::new(options);
        bed.provoke(opened, libc::ENOSYS);
        let good = bed.at("good");
        let mut value = [0u8; 16];
        setxattr(&good, "user.a", b"1", XattrFlags::empty()).unwrap();
        assert_eq!(getxattr(&good, "user.a", &mut value), Ok(1));
        assert!(listxattr(&good, &mut [0u8; 64][..]).unwrap() >= 7);
        removexattr(&good, "user.a").unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&good);
        let file = file.unwrap();
        file.set_len(1 << 20).unwrap();
        let hole = rustix::fs::seek(&file, SeekFrom::Hole(0)).unwrap();
        assert!(hole < 1 << 20, "{options}: no hole is found");
        rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 20).unwrap();
        let dir = File::open(bed.union.root()).unwrap();
        let flags = RenameFlags::NOREPLACE;
        rustix::fs::renameat_with(&dir, "good", &dir, "better", flags).unwrap();
        let sent = requests_of(bed.union.root(), || {
            File::open(bed.at("other")).unwrap();
            let target = File::create(bed.at("copy")).unwrap();
            rustix::fs::copy_file_range(&file, None, &target, None, 4).unwrap();
            target.sync_all().unwrap();
        });
        let mut asked = vec!["COPY_FILE_RANGE", "FSYNC"];
        asked.extend(options.is_empty().then_some("OPEN"));
        for name in asked {
            assert!(
                sent.keys().any(|sent| sent.starts_with(name)),
                "{options}: {name} in {sent:?}"
            );
        }
    }
}

/// Errors that say that a file system has no xattrs or file handles.
const NONE_THERE: [i32; 4] = [libc::EPERM, libc::ENOSYS, libc::EOVERFLOW, libc::EOPNOTSUPP];

/// All numbers of errors.h but two: EINTR and EAGAIN make the server try again. A file whose descriptor the
/// server still has may be copied up and changed all the same after [`NONE_THERE`], and without file handles
/// after all errors.
#[test]
fn no_error_concerns_other_files() {
    need_mounts!();
    need!(without::has_file_handles());
    let mut bed = Bed::new("");
    let again = [libc::EINTR, libc::EAGAIN];
    for errno in (1..=133).filter(|errno| !again.contains(errno)) {
        bed.provoke(false, errno);
        let good = bed.at("good");
        let mut value = [0u8; 16];
        setxattr(&good, "user.a", b"1", XattrFlags::empty()).unwrap();
        assert_eq!(getxattr(&good, "user.a", &mut value), Ok(1), "{errno}");
        removexattr(&good, "user.a").unwrap();
        assert_eq!(std::fs::read(&good).unwrap(), b"good", "{errno}");
        if bed.union.upper(failing_fs::NAME).symlink_metadata().is_ok() {
            assert!(NONE_THERE.contains(&errno), "{errno}: it was copied up");
            assert!(
                bed.keeps_group_out("secret"),
                "{errno}: the ACL is not enforced"
            );
            bed = Bed::new("");
        } else {
            let text = std::fs::read(bed.at(failing_fs::NAME)).unwrap();
            assert_eq!(text, failing_fs::TEXT, "{errno}");
        }
    }
    assert!(bed.keeps_group_out("secret"), "the ACL is not enforced");
}

/// Reads a file piece by piece. Returns the number of bytes before the error, or before the end.
fn read_to_error(file: &File) -> (u64, Option<Errno>) {
    let mut buffer = [0u8; 8192];
    let mut count = 0;
    loop {
        match rustix::io::read(file, &mut buffer) {
            Ok(0) => return (count, None),
            Ok(n) => count += n as u64,
            Err(error) => return (count, Some(error)),
        }
    }
}

/// A read that fails in the middle of a file is an error at that place, as on overlayfs. Were the answer
/// only shorter, the kernel would take the place for the end of the file.
#[test]
fn a_bad_place_is_no_end() {
    need_mounts!();
    let bad = 20 << 10;
    for options in ["", "io=cached", "ro", "io=shared"] {
        for errno in [Errno::IO, Errno::INTR, Errno::NODATA] {
            let bed = Bed::new(options);
            bed.failing.is_bad_from(bad, errno.raw_os_error());
            let below = File::open(bed.union.stack.lowers[0].join(failing_fs::LONG)).unwrap();
            assert_eq!(read_to_error(&below), (bad, Some(errno)));
            let file = File::open(bed.at(failing_fs::LONG)).unwrap();
            let read = read_to_error(&file);
            assert_eq!(read, (bad, Some(errno)), "{options}");
            let size = file.metadata().unwrap().len();
            assert_eq!(size, failing_fs::LONG_SIZE, "{options}, {errno}");
            let mut rest = [0u8; 100];
            let behind = rustix::io::pread(&file, &mut rest, bad + 50_000);
            assert_eq!(behind, Err(errno), "{options}");
            // A copy is whole, or there is none. The standard library would try again after EINTR.
            if options != "ro" {
                let flags = OFlags::RDWR | OFlags::APPEND;
                let written = rustix::fs::open(bed.at(failing_fs::LONG), flags, Mode::empty())
                    .and_then(|file| rustix::io::write(file, b"x"));
                assert_eq!(written, Err(errno), "{options}");
            }
            assert_eq!(file.metadata().unwrap().len(), failing_fs::LONG_SIZE);
        }
    }
}

/// Such a file system may say for ever that a signal has interrupted it.
#[test]
fn interruptions_end() {
    need_mounts!();
    for options in ["", "io=cached"] {
        let bed = Bed::new(options);
        bed.failing.is_bad_from(0, libc::EINTR);
        let path = bed.at(failing_fs::LONG);
        let file = File::open(&path).unwrap();
        assert_eq!(read_to_error(&file), (0, Some(Errno::INTR)), "{options}");
        rustix::fs::chmod(&path, Mode::from_raw_mode(0o600)).unwrap_err();
        assert_eq!(std::fs::read(bed.at("good")).unwrap(), b"good");
    }
}

/// A file system in user space may say of any place that data begins before it.
#[test]
fn a_copy_ends_whatever_is_said_of_holes() {
    need_mounts!();
    let bed = Bed::new("");
    bed.failing.lies_about_holes();
    let mut shell = Command::new("timeout");
    shell.args(["20", "sh", "-c", ": >>\"$0\""]);
    let status = shell.arg(bed.at(failing_fs::LONG)).status();
    assert!(status.unwrap().success(), "the copy did not end");
    let copy = bed.union.upper(failing_fs::LONG);
    let copied = std::fs::read(copy).unwrap();
    assert!(copied == vec![failing_fs::BYTE; failing_fs::LONG_SIZE as usize]);
}
