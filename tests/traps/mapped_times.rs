//! The mtime that a write through a mapping leaves is seen at once, as on kernel overlayfs, also by
//! who has looked at the file just before.

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

/// As make(1) and rsync(1) look.
fn stated(path: &Path) -> (i64, i64) {
    let meta = path.metadata().unwrap();
    (meta.mtime(), meta.mtime_nsec())
}

/// For the time alone.
fn asked(path: &Path) -> (i64, i64) {
    let stat = rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::MTIME).unwrap();
    (stat.stx_mtime.tv_sec, i64::from(stat.stx_mtime.tv_nsec))
}

/// How often the time moved; each round looks, opens, maps, writes, closes and looks again.
fn moved(fs: &Fs, look: fn(&Path) -> (i64, i64)) -> usize {
    map::memory();
    let layer = Layer::new().file("known", [b'a'; 8192]);
    let f = Fixture::with(fs, &[layer], Form::Kernel, true);
    let path = f.at("known");
    let round = |_: &usize| {
        let before = look(&path);
        // More than the kernel's clock for times takes for a step.
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
