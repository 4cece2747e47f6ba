//! Where everything is measured: on the file system that the repository is on, or on a new one with
//! a journal, as a user's disk has, whatever this machine's is like.

use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

use crate::subjects::sh;

/// A directory for images and beds; what is made of its own is unmounted when dropped.
pub(crate) struct Disk {
    dir: PathBuf,
    own: bool,
}

/// Makes the file system where it is not there yet, and mounts it. Nothing is initialised later,
/// while something is measured; its data is not cached a second time, for the file below it.
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
    /// `target/bench`, on whatever it is on.
    pub(crate) fn here() -> Self {
        Self {
            dir: Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench"),
            own: false,
        }
    }

    /// An ext4 as mkfs makes it, in `target/bench/disk.img` by way of a loop device.
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

    /// What the report says of it.
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
