//! Slow work that waits: however many writes wait for a copy-up, the server holds a limited part of
//! their data, and all of them succeed.

use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use testkit::disk::Disk;
use testkit::fixture::Fixture;
use testkit::layers::{self, Form, Layer};
use testkit::mount::{Fs, Scratch, Stack};
use testkit::need_mounts;

/// The number of concurrent writes of 1 MiB each.
const WRITERS: usize = 300;

/// Returns the memory of a process in MiB (VmHWM or VmRSS of proc(5)).
fn memory(process: u32, which: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(which))
        .unwrap();
    let kib: u64 = line
        .trim_matches([':', ' ', '\t'])
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib >> 10
}

fn freeze(how: &str, disk: &Disk) {
    let done = Command::new("fsfreeze").arg(how).arg(disk.path()).status();
    assert!(done.unwrap().success(), "fsfreeze {how}");
}

#[test]
fn writes_that_wait_for_copy_up_take_bounded_memory() {
    need_mounts!();
    // Dropped after the mount that is on it.
    let below = Scratch::disk();
    let scratch = Scratch::disk();
    let disk = Disk::new(below.path(), "disk", 700, "noatime").unwrap();
    let upper = (disk.path().join("upper"), disk.path().join("work"));
    std::fs::create_dir(&upper.0).unwrap();
    std::fs::create_dir(&upper.1).unwrap();
    let lowers = layers::write_all(&[Layer::new()], scratch.path(), Form::Kernel);
    for n in 0..WRITERS {
        std::fs::write(lowers[0].join(format!("file{n}")), "lower").unwrap();
    }
    let stack = Stack {
        lowers,
        upper: Some(upper),
        mnt: scratch.dir("mnt"),
    };
    let fs = Fs::Unionfs("io=cached");
    let mut f = Fixture::over(&fs, scratch, stack);
    let server = f.mounted().servers()[0];
    let before = memory(server, "VmRSS");
    let files: Vec<_> = (0..WRITERS)
        .map(|n| {
            let mut options = std::fs::File::options();
            options.write(true).open(f.at(format!("file{n}"))).unwrap()
        })
        .collect();
    freeze("-f", &disk);
    let begun = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for (n, file) in files.iter().enumerate() {
            let begun = &begun;
            scope.spawn(move || {
                let data = vec![u8::try_from(n % 251).unwrap(); 1 << 20];
                begun.fetch_add(1, Ordering::SeqCst);
                file.write_all_at(&data, 0).unwrap();
            });
        }
        while begun.load(Ordering::SeqCst) < WRITERS {
            std::thread::sleep(Duration::from_millis(5));
        }
        // Wait until the server accepts no more data: its memory stays the same for a second.
        let (mut last, mut same) = (0, 0);
        while same < 20 {
            std::thread::sleep(Duration::from_millis(50));
            let now = memory(server, "VmRSS");
            same = if now == last { same + 1 } else { 0 };
            last = now;
        }
        freeze("-u", &disk);
    });
    let peak = memory(server, "VmHWM");
    eprintln!("{before} MiB before, {peak} MiB with {WRITERS} MiB to be written");
    // 64 MiB of data in the pool, and buffers. Over io_uring also 16 MiB in entries that wait, and 1 MiB
    // for each thread of a ring: 32 for each CPU. All of it would be 300.
    assert!(peak < before + 240, "{before} MiB, then {peak} MiB");
    drop(files);
    for n in 0..WRITERS {
        let data = std::fs::read(f.at(format!("file{n}"))).unwrap();
        assert_eq!(data.len(), 1 << 20);
        let expected = u8::try_from(n % 251).unwrap();
        assert!(data.iter().all(|byte| *byte == expected), "file{n}");
    }
    f.unmount();
}
