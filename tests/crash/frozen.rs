//! A file system that is frozen (fsfreeze) in the middle of copy-ups and syncs: all that waited ends
//! well when it is thawed.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::disk::Disk;
use crate::common::mount::poll;
use crate::common::{ioctl, need_mounts};
use crate::disks::{POLICIES, Union};

/// FIFREEZE and FITHAW. Asked for by ioctl(2): a command that is started closes the descriptors
/// that it inherits, and that of a file on the mount may wait for the thaw.
const FREEZE: u32 = 0xc004_5877;
const THAW: u32 = 0xc004_5878;

/// A frozen file system, thawed when dropped: nothing could unmount it.
struct Frozen(File);

impl Frozen {
    fn new(disk: &Path) -> Self {
        let disk = File::open(disk).unwrap();
        ioctl::with_room(&disk, FREEZE, &mut [0; 2048]).unwrap();
        Self(disk)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        ioctl::with_room(&self.0, THAW, &mut [0; 2048]).unwrap();
    }
}

/// A sync that was asked for during the frost is answered after it, and only then.
#[test]
fn a_sync_waits() {
    need_mounts!();
    for fs in POLICIES {
        let union = Union::start(fs, |dir| Disk::new(dir, "disk", 64, "noatime")).unwrap();
        let mut file = File::create(union.at("new")).unwrap();
        file.write_all(b"data").unwrap();
        let (begun, thawed) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let frozen = Frozen::new(union.disk.path());
            let (begun, thawed, file) = (&begun, &thawed, &file);
            let copy = union.at("plain.txt");
            scope.spawn(move || {
                begun.store(true, Ordering::SeqCst);
                let mut options = OpenOptions::new();
                let mut file = options.append(true).open(copy).unwrap();
                file.write_all(b"more").unwrap();
                file.sync_all().unwrap();
                assert!(thawed.load(Ordering::SeqCst), "written to what is frozen");
            });
            assert!(poll(|| begun.load(Ordering::SeqCst)));
            // ext4 has synced what it had when it was frozen.
            std::thread::sleep(Duration::from_millis(50));
            thawed.store(true, Ordering::SeqCst);
            drop(frozen);
            file.sync_all().unwrap();
        });
        let text = fs::read_to_string(union.at("plain.txt")).unwrap();
        assert_eq!(text, "plain file, lower only\nmore");
        assert_eq!(fs::read(union.at("new")).unwrap(), b"data");
    }
}
