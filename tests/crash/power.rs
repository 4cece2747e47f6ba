//! Power cuts: the tests copy the upper's disk while everything runs, and mount the copy. Synced
//! data is there, a replaced file is either the old or the new one, and no copy-up leaves half a
//! file.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::disk::Disk;
use testkit::mount::{Fs, Mounted, Scratch, Stack};
use testkit::need::{Needed, has_tools};
use testkit::strace::Trace;
use testkit::{need, need_mounts, program};

/// ext4 commits nothing by itself within the time of a test.
const LAZY: &str = "commit=1000";

fn big() -> Vec<u8> {
    (0..3u32 << 20).map(|n| (n % 241) as u8).collect()
}

/// A union whose upper is on a disk of its own.
struct Machine {
    mounted: Mounted,
    disk: Disk,
    scratch: Scratch,
    fs: Fs,
    cuts: std::cell::Cell<u32>,
}

impl Machine {
    fn start(options: &'static str) -> Needed<Self> {
        let scratch = Scratch::disk();
        let low = scratch.dir("low");
        fs::create_dir(low.join("dir")).unwrap();
        for name in ["big", "other", "dir/f"] {
            fs::write(low.join(name), big()).unwrap();
        }
        fs::write(low.join("config"), "old").unwrap();
        let disk = Disk::new(scratch.path(), "disk", 64, LAZY)?;
        Ok(Self::begin(scratch, disk, options))
    }

    /// Starts a machine with the lower on the disk too, where files are cloned.
    fn cloning() -> Needed<Self> {
        let scratch = Scratch::disk();
        let disk = Disk::xfs(scratch.path(), "disk")?;
        let low = disk.path().join("low");
        fs::create_dir(&low).unwrap();
        std::os::unix::fs::symlink(&low, scratch.path().join("low")).unwrap();
        for name in ["big", "other"] {
            fs::write(low.join(name), big()).unwrap();
        }
        Ok(Self::begin(scratch, disk, ""))
    }

    /// Mounts, with the upper on `disk`.
    fn begin(scratch: Scratch, disk: Disk, options: &'static str) -> Self {
        let fs = Fs::Unionfs(options);
        let mounted = fs.mount(&Self::stack(&scratch, disk.path(), "mnt"));
        // The start of each test: an upper whose directories are on the disk.
        rustix::fs::syncfs(File::open(disk.path()).unwrap()).unwrap();
        Self {
            mounted,
            disk,
            scratch,
            fs,
            cuts: 0.into(),
        }
    }

    fn stack(scratch: &Scratch, disk: &Path, mnt: &str) -> Stack {
        let made = |name: &str| {
            let path = disk.join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        Stack {
            lowers: vec![scratch.path().join("low")],
            upper: Some((made("upper"), made("work"))),
            mnt: scratch.dir(mnt),
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.mounted.path().join(name)
    }

    /// Cuts the power and restores it; returns what `look` finds in the union then.
    fn cut<T>(&self, look: impl FnOnce(&Path) -> T) -> T {
        let n = self.cuts.replace(self.cuts.get() + 1);
        let disk = self.disk.cut(&format!("cut{n}"));
        let stack = Self::stack(&self.scratch, disk.path(), &format!("mnt{n}"));
        let mounted = self.fs.mount(&stack);
        let found = look(mounted.path());
        mounted.unmount();
        found
    }

    /// Writes a new file with this content, synced or not.
    fn write(&self, name: &str, sync: bool) -> File {
        let mut file = File::create(self.at(name)).unwrap();
        file.write_all(name.as_bytes()).unwrap();
        if sync {
            file.sync_all().unwrap();
        }
        file
    }
}

fn has(root: &Path, name: &str) -> bool {
    fs::read(root.join(name)).is_ok_and(|data| data == name.as_bytes())
}

/// Other processes on this machine may sync everything at any time, so a loss is tried several
/// times.
fn is_lost_once(lost: impl FnMut(u32) -> bool) -> bool {
    (0..5).any(lost)
}

#[test]
fn what_was_synced_is_there() {
    need_mounts!();
    let m = need!(Machine::start(""));
    m.write("new", true);
    let copied = OpenOptions::new().write(true).open(m.at("big")).unwrap();
    copied.write_all_at(b"CHANGED", 1000).unwrap();
    copied.sync_data().unwrap();
    fs::rename(m.at("dir"), m.at("moved")).unwrap();
    fs::remove_file(m.at("other")).unwrap();
    rustix::fs::fsync(File::open(m.mounted.path()).unwrap()).unwrap();
    m.cut(|root| {
        assert!(has(root, "new"));
        let mut expected = big();
        expected[1000..1007].copy_from_slice(b"CHANGED");
        assert!(fs::read(root.join("big")).unwrap() == expected);
        assert!(fs::read(root.join("moved/f")).unwrap() == big());
        assert!(!root.join("dir").exists() && !root.join("other").exists());
    });
    let lost = is_lost_once(|n| {
        let name = format!("unsynced{n}");
        m.write(&name, false);
        !m.cut(|root| has(root, &name))
    });
    assert!(
        lost,
        "what was not synced was there too: the test shows nothing"
    );
}

/// Write, sync and rename, as editors and package managers do: the file is the old or the new one,
/// never missing or half.
#[test]
fn a_replaced_file_is_the_old_or_the_new() {
    need_mounts!();
    let m = need!(Machine::start(""));
    let mut before = "old".to_owned();
    for n in 0..6 {
        let new = format!("config{n}");
        m.write(&new, true);
        fs::rename(m.at(&new), m.at("config")).unwrap();
        // In every second round the rename is synced too.
        let sync = n % 2 == 1;
        if sync {
            rustix::fs::fsync(File::open(m.mounted.path()).unwrap()).unwrap();
        }
        let found = m.cut(|root| fs::read_to_string(root.join("config")).unwrap());
        assert!(found == new || !sync && found == before, "{found} of {new}");
        before = found;
    }
}

/// A name refers to the whole copy or to the lower file, without any sync by the program.
#[test]
fn a_copy_up_is_whole_or_not_there() {
    need_mounts!();
    let m = need!(Machine::start(""));
    for (name, mode) in [("big", 0o600), ("other", 0o640), ("dir/f", 0o604)] {
        let path = m.at(name);
        testkit::mount::chmod(&path, mode);
        // The journal of the disk commits at the worst moment: it has the names, but perhaps not
        // the data.
        let trigger = File::create(m.disk.path().join("trigger")).unwrap();
        trigger.sync_all().unwrap();
        m.cut(|root| assert!(fs::read(root.join(name)).unwrap() == big(), "{name}"));
    }
}

/// Metacopies are not synced. The journal has the marker before the name, so that a name never leads
/// to a file of zeros. Their completion is synced before it is visible.
#[test]
fn a_metacopy_is_whole_or_not_there() {
    need_mounts!();
    let m = need!(Machine::start("metacopy=on"));
    for (name, mode) in [("big", 0o600), ("other", 0o640), ("dir/f", 0o604)] {
        testkit::mount::chmod(&m.at(name), mode);
        let trigger = File::create(m.disk.path().join("trigger")).unwrap();
        trigger.sync_all().unwrap();
        m.cut(|root| {
            assert!(fs::read(root.join(name)).unwrap() == big(), "{name}");
            assert_eq!(mode_of(root, name), mode, "the journal was written");
        });
        let file = OpenOptions::new().write(true).open(m.at(name)).unwrap();
        file.write_all_at(b"B", 0).unwrap();
        trigger.sync_all().unwrap();
        m.cut(|root| {
            let found = fs::read(root.join(name)).unwrap();
            assert!(found[1..] == big()[1..], "{name}");
        });
    }
}

/// A clone is not synced, and its name still refers to the complete file.
#[test]
fn a_clone_is_whole_or_not_there() {
    need_mounts!();
    need!(has_tools(&["strace"]));
    let m = need!(Machine::cloning());
    let traced = ["-e", "trace=ioctl,fsync,fdatasync,linkat,renameat2"];
    let server = m.mounted.servers()[0];
    let trace = Trace::attach(server, m.scratch.path(), &traced);
    for (name, mode) in [("big", 0o600), ("other", 0o640)] {
        testkit::mount::chmod(&m.at(name), mode);
        let trigger = File::create(m.disk.path().join("trigger")).unwrap();
        trigger.sync_all().unwrap();
        let shown = m.cut(|root| (fs::read(root.join(name)).unwrap(), mode_of(root, name)));
        assert!(shown.0 == big(), "{name}");
        assert_eq!(shown.1, mode, "the journal was written");
    }
    let calls = trace.end();
    assert!(calls.iter().any(|c| c.contains("CLONE")), "{calls:?}");
    assert!(!calls.iter().any(|c| c.contains("sync(")), "{calls:?}");
}

fn mode_of(root: &Path, name: &str) -> u32 {
    fs::metadata(root.join(name)).unwrap().permissions().mode() & 0o7777
}

/// `volatile` promises no durability, but `unionfs sync` makes the data durable even there.
#[test]
fn volatile_and_sync() {
    need_mounts!();
    let m = need!(Machine::start("volatile"));
    let lost = is_lost_once(|n| {
        let name = format!("volatile{n}");
        m.write(&name, true);
        rustix::fs::syncfs(File::open(m.mounted.path()).unwrap()).unwrap();
        !m.cut(|root| has(root, &name))
    });
    assert!(lost, "a volatile mount synced");
    m.write("kept", false);
    let mut sync = Command::new(program());
    assert!(
        sync.arg("sync")
            .arg(m.mounted.path())
            .status()
            .unwrap()
            .success()
    );
    assert!(m.cut(|root| has(root, "kept")));
}
