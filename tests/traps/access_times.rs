//! Access times of files of the upper on a mount with `noatime`: reading does not change them, as
//! on kernel overlayfs.

use std::fs::{File, FileTimes, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use testkit::fixture::Fixture;
use testkit::layers::{Form, Layer};
use testkit::mount::{Fs, KERNEL};
use testkit::need_mounts;

/// Sets an access time older than the modification, so that `relatime` would change it.
fn age(path: &Path) {
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let times = FileTimes::new().set_accessed(old);
    File::open(path).unwrap().set_times(times).unwrap();
}

fn atime(path: &Path) -> i64 {
    std::fs::symlink_metadata(path).unwrap().atime()
}

/// Returns which of the read files have a changed access time in the upper.
fn moved(fs: &Fs) -> Vec<&'static str> {
    let layer = Layer::new().file("lower", [b'a'; 8192]);
    let mut f = Fixture::with(fs, &[layer], Form::Kernel, true);
    for name in ["new", "open", "dir/in"] {
        let _ = std::fs::create_dir(f.at("dir"));
        std::fs::write(f.at(name), [b'b'; 8192]).unwrap();
    }
    OpenOptions::new().write(true).open(f.at("lower")).unwrap();
    f.ok("chmod lower 600");
    let names = ["lower", "new", "open", "dir/in", "dir"];
    // After the remount nothing is cached, neither data nor descriptors.
    f.remount();
    let held = OpenOptions::new().read(true).write(true).open(f.at("open"));
    let held = held.unwrap();
    for name in names {
        age(&f.upper(name));
    }
    for name in names {
        match name {
            "dir" => assert_eq!(std::fs::read_dir(f.at(name)).unwrap().count(), 1),
            name => assert_eq!(std::fs::read(f.at(name)).unwrap().len(), 8192),
        }
    }
    drop(held);
    names
        .into_iter()
        .filter(|name| atime(&f.upper(name)) != 1_000_000)
        .collect()
}

#[test]
fn noatime_leaves_those_of_the_upper() {
    need_mounts!();
    let kernel = Fs::Kernel("index=on,redirect_dir=on,metacopy=off,xino=auto,noatime");
    assert_eq!(moved(&kernel), [""; 0]);
    assert!(!moved(&KERNEL).is_empty(), "without it they move");
    for options in ["io=passthrough,noatime", "io=cached,noatime", "noatime"] {
        assert_eq!(moved(&Fs::Unionfs(options)), [""; 0], "{options}");
    }
}
