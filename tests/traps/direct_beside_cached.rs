//! libaio writes that bypass the kernel's cache, beside readers that use the cache: after the
//! writes, readers permanently see the written data.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use testkit::fixture::Fixture;
use testkit::layers::{Form, Layer};
use testkit::mount::{Fs, KERNEL};
use testkit::need::has_tools;
use testkit::{need, need_mounts};

const SIZE: usize = 256 << 10;
const ROUNDS: usize = 25;

/// Writes the whole file with fio, 16 writes at once, every byte as `byte`.
fn write_all(f: &Fixture, byte: usize) {
    let file = f.at("file");
    let fio = Command::new("fio")
        .current_dir(f.scratch.path())
        .args(["--name=w", "--ioengine=libaio", "--direct=1", "--rw=write"])
        .args(["--bs=16k", "--iodepth=16", "--size=256k", "--minimal"])
        .arg(format!("--buffer_pattern=0x{byte:02x}"))
        .arg(format!("--filename={}", file.display()))
        .output()
        .unwrap();
    assert!(fio.status.success(), "{fio:?}");
}

/// Returns how many rounds leave a reader with old data.
fn stale(fs: &Fs) -> usize {
    let layer = Layer::new().file("file", vec![0; SIZE]);
    let f = Fixture::with(fs, &[layer], Form::Kernel, true);
    // The file is in the upper from the start.
    drop(OpenOptions::new().append(true).open(f.at("file")).unwrap());
    f.ok("chmod file 644");
    let over = AtomicBool::new(false);
    let reader = || {
        let file = File::open(f.at("file")).unwrap();
        let mut data = vec![0; SIZE];
        while !over.load(Ordering::Relaxed) {
            file.read_exact_at(&mut data, 0).unwrap();
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(reader);
        }
        let round = |n: &usize| {
            let byte = n % 255 + 1;
            write_all(&f, byte);
            let seen = std::fs::read(f.at("file")).unwrap();
            seen.len() != SIZE || seen.iter().any(|seen| usize::from(*seen) != byte)
        };
        let stale = (0..ROUNDS).filter(round).count();
        over.store(true, Ordering::Relaxed);
        stale
    })
}

#[test]
fn readers_see_what_libaio_wrote() {
    need_mounts!();
    need!(has_tools(&["fio"]));
    assert_eq!(stale(&KERNEL), 0);
    for options in ["io=cached", "io=cached,writeback", "io=passthrough"] {
        assert_eq!(stale(&Fs::Unionfs(options)), 0, "{options}");
    }
}
