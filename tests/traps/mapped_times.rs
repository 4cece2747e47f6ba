//! The mtime of a write through a mapping is visible at once, as on kernel overlayfs, also to a
//! process that has read the attributes just before.

use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, StatxFlags};
use testkit::fixture::Fixture;
use testkit::layers::{Form, Layer};
use testkit::map::{self, Map};
use testkit::mount::{Fs, KERNEL};
use testkit::need_mounts;

/// Reads the mtime as make(1) and rsync(1) do.
fn stated(path: &Path) -> (i64, i64) {
    let meta = path.metadata().unwrap();
    (meta.mtime(), meta.mtime_nsec())
}

/// Requests the mtime alone.
fn asked(path: &Path) -> (i64, i64) {
    let stat = rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::MTIME).unwrap();
    (stat.stx_mtime.tv_sec, i64::from(stat.stx_mtime.tv_nsec))
}

/// Returns how often the time changed; each round reads it, opens, maps, writes, closes and reads
/// it again.
fn moved(fs: &Fs, look: fn(&Path) -> (i64, i64)) -> usize {
    map::memory();
    let layer = Layer::new().file("known", [b'a'; 8192]);
    let f = Fixture::with(fs, &[layer], Form::Kernel, true);
    let path = f.at("known");
    let round = |_: &usize| {
        let before = look(&path);
        // Longer than a step of the kernel's clock for file times.
        std::thread::sleep(Duration::from_millis(20));
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.unwrap();
        let map = Map::shared(&file, true).unwrap();
        map.write(0, b"MAPPED").unwrap();
        drop((map, file));
        look(&path) > before
    };
    (0..20).filter(round).count()
}

#[test]
fn a_mapped_write_is_seen_each_time() {
    need_mounts!();
    for look in [stated, asked] {
        assert_eq!(moved(&KERNEL, look), 20);
        for io in ["io=passthrough", "io=cached"] {
            assert_eq!(moved(&Fs::Unionfs(io), look), 20, "{io}");
        }
    }
}
