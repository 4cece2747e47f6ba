//! The disk of all measurements: the file system of the repository, or a new one with a journal
//! like that of a user's disk.

use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

use crate::subjects::sh;

/// A directory for images and mounts. A new file system is unmounted when this is dropped.
pub(crate) struct Disk {
    dir: PathBuf,
    own: bool,
}

/// Creates the file system if it does not exist, and mounts it. Nothing is initialised later,
/// during a measurement. Its data is not cached a second time for the image file.
const MOUNT: &str = r#"
if mountpoint -q "$2"; then exit; fi
if ! [ -e "$1" ]; then
    truncate -s 24G "$1.part"
    mkfs.ext4 -q -N 4000000 -E lazy_itable_init=0,lazy_journal_init=0,nodiscard "$1.part"
    mv "$1.part" "$1"
fi
mkdir -p "$2"
device=$(losetup --find --show --direct-io=on "$1")
trap 'losetup -d "$device"' EXIT
mount "$device" "$2"
"#;

impl Disk {
    /// Returns `target/bench`, on any file system.
    pub(crate) fn here() -> Self {
        Self {
            dir: Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench"),
            own: false,
        }
    }

    /// Makes an ext4 with the defaults of mkfs in `target/bench/disk.img`, on a loop device.
    pub(crate) fn of_its_own() -> Self {
        let here = Self::here();
        let kept = here.path();
        std::fs::create_dir_all(kept).unwrap();
        let dir = kept.join("disk");
        if let Err(why) = sh(MOUNT, &[&kept.join("disk.img"), &dir]) {
            panic!("an ext4 on a loop device: {why}");
        }
        Self { dir, own: true }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// Returns its description for the report.
    pub(crate) fn describe(&self) -> String {
        let kind = sh("findmnt -no FSTYPE -T \"$1\"", &[&self.dir]);
        let kind = kind.map_or("unknown".into(), |k| k.trim().to_owned());
        if self.own {
            format!("{kind} with a journal, on a loop device (--loop)")
        } else {
            kind
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.own
            && let Err(e) = unmount(&self.dir, UnmountFlags::empty())
        {
            eprintln!("unmount {}: {e}", self.dir.display());
        }
    }
}
