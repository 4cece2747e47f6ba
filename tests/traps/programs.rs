//! Programs in the union: they run as soon as they are written, and are busy while they run or are
//! being written, as on kernel overlayfs. Also file handles of the union.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use testkit::caches;
use testkit::fixture::Fixture;
use testkit::layers::{Form, Layer};
use testkit::mount::{Fs, KERNEL, subject};
use testkit::{errno, errno_name, need_mounts};
use unionfs::sys::handle::{name_to_handle, open_by_handle};

fn layer() -> Layer {
    let sleep = std::fs::read("/bin/sleep").unwrap();
    Layer::new().file("sleep", sleep).mode(0o755)
}

/// Runs a program that no process has open for writing.
fn run(path: &Path) -> String {
    errno_name(errno(once_idle(|| Command::new(path).arg("0").status())))
}

fn open_for_writing(path: &Path) -> String {
    errno_name(errno(OpenOptions::new().write(true).open(path)))
}

/// Returns the result of `attempt` once `path` is no longer busy. It may be busy for a moment:
/// after a program's end, while another process reads its `/proc/PID`, which holds its memory and
/// so the file; after a writer's end, while another thread's child that has not yet executed its
/// program has the descriptor.
fn once_idle<T>(mut attempt: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(error)
                if error.kind() == ErrorKind::ExecutableFileBusy
                    && start.elapsed() < Duration::from_secs(10) =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            done => return done,
        }
    }
}

/// Tries operations on `path` while it runs and while it is open for writing; returns their
/// results.
fn busy(path: &Path) -> Vec<String> {
    let mut notes = vec![run(path)];
    let mut child = Command::new(path).arg("60").spawn().unwrap();
    notes.push(format!("open: {}", open_for_writing(path)));
    let truncated = OpenOptions::new().write(true).truncate(true).open(path);
    notes.push(format!("truncate: {}", errno_name(errno(truncated))));
    child.kill().unwrap();
    child.wait().unwrap();
    let writer = once_idle(|| OpenOptions::new().write(true).open(path)).unwrap();
    let while_open = Command::new(path).arg("0").status();
    notes.push(format!("run while open: {}", errno_name(errno(while_open))));
    drop(writer);
    notes.push(format!("run: {}", run(path)));
    notes
}

/// Observes a lower program, its copy, a program just written, and one replaced by rename while the
/// old one runs.
fn observe(fs: &Fs) -> Vec<String> {
    let mut f = Fixture::with(fs, &[layer()], Form::Kernel, true);
    let mut notes = busy(&f.at("sleep"));
    f.ok("utimens sleep 1.1 1.1");
    notes.extend(busy(&f.at("sleep")));
    std::fs::write(f.at("new"), std::fs::read("/bin/sleep").unwrap()).unwrap();
    std::fs::set_permissions(f.at("new"), PermissionsExt::from_mode(0o755)).unwrap();
    notes.extend(busy(&f.at("new")));
    let mut child = Command::new(f.at("sleep")).arg("60").spawn().unwrap();
    std::fs::rename(f.at("new"), f.at("sleep")).unwrap();
    notes.push(run(&f.at("sleep")));
    child.kill().unwrap();
    child.wait().unwrap();
    f.remount();
    notes.push(run(&f.at("sleep")));
    notes
}

#[test]
fn busy_as_on_the_kernels() {
    need_mounts!();
    let (kernel, ours) = (observe(&KERNEL), observe(&subject()));
    assert_eq!(kernel, ours);
    assert!(kernel.iter().any(|n| n.ends_with("ETXTBSY")), "{kernel:?}");
}

/// A program that is opened for reading with truncation: the kernel sends the truncation after the
/// open only. Kernel overlayfs then empties a lower program, and the process dies of SIGBUS.
#[test]
fn a_running_program_is_not_emptied() {
    need_mounts!();
    let f = Fixture::with(&subject(), &[layer()], Form::Kernel, true);
    std::fs::copy("/bin/sleep", f.at("new")).unwrap();
    let size = std::fs::metadata("/bin/sleep").unwrap().len();
    for name in ["sleep", "new"] {
        let path = f.at(name);
        let mut child = Command::new(&path).arg("60").spawn().unwrap();
        let mut empty = OpenOptions::new();
        let empty = empty.read(true).custom_flags(libc::O_TRUNC);
        assert_eq!(errno_name(errno(empty.open(&path))), "ETXTBSY", "{name}");
        assert_eq!(path.metadata().unwrap().len(), size, "{name}");
        assert!(child.try_wait().unwrap().is_none(), "{name}");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(Command::new(&path).arg("0").status().unwrap().success());
    }
}

/// A handle opens its file or gives an error: after copy-up, rename and dropped caches, and when
/// another file has taken the name.
#[test]
fn handles_never_lead_to_another_file() {
    need_mounts!();
    let mut f = Fixture::standard();
    let root = File::open(f.root()).unwrap();
    let handle = |name: &std::ffi::CStr| name_to_handle(&root, name).unwrap();
    let ino = |f: &Fixture, name: &str| {
        std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(f.at(name)).unwrap())
    };
    let (plain, top, dir) = (handle(c"plain.txt"), handle(c"top.txt"), handle(c"merged"));
    // Held open, they stay known to the kernel.
    let held = [f.at("plain.txt"), f.at("merged")].map(|p| File::open(p).unwrap());
    let opened = |handle| {
        let fd = open_by_handle(&root, handle)?;
        rustix::fs::fstat(fd).map(|s| s.st_ino)
    };
    f.ok("write plain.txt 0 X\nrename plain.txt moved\nchmod merged 700");
    assert_eq!(
        opened(&plain),
        Ok(ino(&f, "moved")),
        "copied up and renamed"
    );
    assert_eq!(opened(&dir), Ok(ino(&f, "merged")));
    let was = ino(&f, "top.txt");
    f.ok("unlink top.txt\ncreate top.txt 644\ncreate other 644");
    let _alone = caches::alone();
    caches::drop_names_and_inodes();
    for (handle, number) in [(&top, was), (&plain, ino(&f, "moved"))] {
        match opened(handle) {
            Ok(found) => assert_eq!(found, number),
            Err(e) => assert_eq!(e, rustix::io::Errno::STALE),
        }
    }
    drop((held, root));
    f.remount();
    assert_eq!(std::fs::read(f.at("moved")).unwrap()[..1], b"X"[..]);
}
