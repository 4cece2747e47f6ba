//! Real mounts through the whole transport. They need root (or fusermount3) and /dev/fuse. Without
//! these the tests print that and pass on a developer's machine, and fail if `CI` is set.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use rustix::mount::MountFlags;
use testkit::need;
use testkit::need::{Needed, fuse_device, is_root};

use super::*;
use crate::fuse::{MountState, detach, mountinfo, runtime, unmount};
use crate::layer::{Dialect, LayerSpec, StackSpec};
use crate::union::Options;

struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Needed<Self> {
        fuse_device()?;
        let dir = tempfile::tempdir().unwrap();
        for name in ["lower", "mnt"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("lower/file"), b"content").unwrap();
        Ok(Self { dir })
    }

    fn config(&self) -> MountConfig {
        let mut config = MountConfig::new(self.dir.path().join("mnt"));
        config.flags = MountFlags::RDONLY;
        config.handle_signals = false;
        config
    }

    fn mount(&self, config: &MountConfig) -> Result<Mounted> {
        let stack = StackSpec {
            lowers: vec![LayerSpec::open(self.dir.path().join("lower"), Dialect::ALL).unwrap()],
            data_only: Vec::new(),
            upper: None,
        };
        mount(Union::new(&stack, Options::default()).unwrap(), config)
    }
}

#[test]
fn mounted_serves_and_unmounts() {
    let fixture = need!(Fixture::new());
    let mut config = fixture.config();
    config.fsname = "a source, with commas".into();
    config.register = false;
    let mount = fixture.mount(&config).unwrap().spawn().unwrap();
    let point = mount.mountpoint().to_owned();
    let shown = mountinfo::find(&point).unwrap();
    assert!(shown.is_unionfs());
    assert_eq!(shown.source, "a source, with commas");
    wait_ready(&point).unwrap();
    assert_eq!(fs::read(point.join("file")).unwrap(), b"content");
    assert_eq!(point.metadata().unwrap().ino(), 1);
    mount.unmount().unwrap();
    assert_eq!(mountinfo::find(&point), None);
    assert!(wait_ready(&point).is_err());
}

#[test]
fn a_mount_in_use_stays_until_it_is_released() {
    let fixture = need!(Fixture::new());
    let mut config = fixture.config();
    config.register = false;
    let mount = fixture.mount(&config).unwrap().spawn().unwrap();
    let point = mount.mountpoint().to_owned();
    let open = File::open(point.join("file")).unwrap();
    let error = unmount(&point).unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
    detach(&point).unwrap();
    // The mount is detached, and still served to programs that have a file of it open.
    assert_eq!(io::read_to_string(&open).unwrap(), "content");
    drop(open);
    mount.join().unwrap();
}

#[test]
fn what_is_not_served_does_not_stay_mounted() {
    let fixture = need!(Fixture::new());
    let mounted = fixture.mount(&fixture.config()).unwrap();
    let point = mounted.mountpoint().to_owned();
    assert!(mountinfo::find(&point).is_some());
    drop(mounted);
    assert_eq!(mountinfo::find(&point), None);
}

#[test]
fn a_dropped_background_mount_is_unmounted() {
    let fixture = need!(Fixture::new());
    let mut config = fixture.config();
    config.register = false;
    let mount = fixture.mount(&config).unwrap().spawn().unwrap();
    let point = mount.mountpoint().to_owned();
    drop(mount);
    assert_eq!(mountinfo::find(&point), None);
}

#[test]
fn a_registered_mount_is_found_and_counted() {
    let fixture = need!(Fixture::new());
    let mut config = fixture.config();
    config.description.image = Some("image:tag".into());
    let mount = fixture.mount(&config).unwrap().spawn().unwrap();
    let point = mount.mountpoint().to_owned();
    let record = runtime::find(&fixture.dir.path().join("mnt/."))
        .unwrap()
        .unwrap();
    assert_eq!(record.state(), Some(MountState::Live));
    assert_eq!(record.description.image.as_deref(), Some("image:tag"));
    assert!(record.read_only);
    assert!(fs::metadata(point.join("absent")).is_err());
    let before = stats::query(&record).unwrap();
    assert!(before.requests_of("LOOKUP") > 0, "{before:?}");
    // The kernel caches that there is no such name.
    assert!(fs::metadata(point.join("absent")).is_err());
    let after = stats::query(&record).unwrap();
    assert_eq!(after.requests, before.requests);
    assert_eq!(after.mount, record);
    mount.unmount().unwrap();
    assert!(!record.file().exists() && !record.socket().exists());
    assert!(record.wait_end(Duration::ZERO));
}

#[test]
fn detached_mounts_in_use_are_aborted_by_the_second_step() {
    let fixture = need!(Fixture::new());
    let mut config = fixture.config();
    config.register = false;
    let mounted = fixture.mount(&config).unwrap();
    let control = Arc::clone(mounted.attachment.control());
    let mount = mounted.spawn().unwrap();
    let open = File::open(mount.mountpoint().join("file")).unwrap();
    detach(mount.mountpoint()).unwrap();
    if let Err(error) = control.abort() {
        // fusectl is not mounted, and only root can mount it.
        need!(is_root());
        panic!("{error}");
    }
    mount.join().unwrap();
    assert!(io::read_to_string(&open).is_err());
    assert!(!control.is_connected());
    // The number may belong to another connection now.
    control
        .abort()
        .unwrap_or_else(|error| assert_eq!(error.kind(), io::ErrorKind::NotFound));
}

/// Tests a device number that was used again: the kernel gives the number of a file system that is
/// gone to the next one.
#[test]
fn a_used_number_aborts_and_detaches_nothing() {
    let (first, second) = (need!(Fixture::new()), need!(Fixture::new()));
    let config = |fixture: &Fixture| {
        let mut config = fixture.config();
        config.register = false;
        config
    };
    // Tests that run at the same time use numbers too.
    for _ in 0..200 {
        let mounted = first.mount(&config(&first)).unwrap();
        let control = Arc::clone(mounted.attachment.control());
        let own = mounted.attachment.own().clone();
        mounted.spawn().unwrap().unmount().unwrap();
        let next = second.mount(&config(&second)).unwrap();
        let same = next.attachment.own().id().device == own.id().device;
        let next = next.spawn().unwrap();
        if same {
            let point = next.mountpoint().to_owned();
            assert!(!own.is_there() && !own.detach(Connectedness::Connected).unwrap());
            control.read_ahead(4);
            control.abort().unwrap();
            assert_eq!(fs::read(point.join("file")).unwrap(), b"content");
            let (major, minor) = own.id().device;
            let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
            if let Ok(text) = fs::read_to_string(file) {
                assert_ne!(text.trim(), "4");
            }
            return next.unmount().unwrap();
        }
        next.unmount().unwrap();
    }
    panic!("the kernel gave no number again");
}
