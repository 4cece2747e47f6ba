//! Finds out from sysfs whether a device of the kernel uses a pool's file:
//!
//! ```text
//! /sys/dev/block/7:3/holders/dm-0            dm-0 is made of device 7:3
//! /sys/block/loop3/loop/backing_file         loop3 is made of this file
//! /sys/block/dm-0/dm/name                    what device mapper calls dm-0
//! ```
//! Without sysfs no device is found.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

/// Returns the device that uses a block device of that number, or a file through a loop device.
pub(super) fn holder(sys: &Path, device: Option<u64>, path: &Path) -> Option<String> {
    let Some(device) = device else {
        return loops(sys, path).find_map(|holders| name_in(sys, &holders));
    };
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let device = sys.join(format!("dev/block/{major}:{minor}"));
    name_in(sys, &device.join("holders"))
}

/// Returns the directories with the holders of the loop devices of a file.
fn loops(sys: &Path, file: &Path) -> impl Iterator<Item = PathBuf> {
    let devices = std::fs::read_dir(sys.join("block"));
    let devices = devices.into_iter().flatten().flatten();
    devices.filter_map(move |device| {
        let dir = device.path();
        let backing = std::fs::read(dir.join("loop/backing_file")).ok()?;
        let backing = backing.strip_suffix(b"\n").unwrap_or(&backing);
        (Path::new(OsStr::from_bytes(backing)) == file).then(|| dir.join("holders"))
    })
}

/// Returns a device in a directory of holders.
fn name_in(sys: &Path, holders: &Path) -> Option<String> {
    let mut devices = std::fs::read_dir(holders).ok()?.flatten();
    let device = devices.next()?.file_name();
    let name = std::fs::read(sys.join("block").join(&device).join("dm/name"));
    let name = name.unwrap_or_else(|_| device.into_vec());
    let text = String::from_utf8_lossy(name.trim_ascii()).into_owned();
    Some(text.chars().filter(|c| !c.is_control()).take(128).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_are_found_by_device_and_by_file() {
        let temp = tempfile::tempdir().unwrap();
        let sys = temp.path();
        for dir in ["block/loop3/loop", "block/loop3/holders", "block/dm-0/dm"] {
            std::fs::create_dir_all(sys.join(dir)).unwrap();
        }
        std::fs::create_dir_all(sys.join("dev/block")).unwrap();
        std::os::unix::fs::symlink("../../block/loop3", sys.join("dev/block/7:3")).unwrap();
        std::fs::write(sys.join("block/loop3/loop/backing_file"), "/d/metadata\n").unwrap();
        let device = Some(rustix::fs::makedev(7, 3));
        let (ours, other) = (Path::new("/d/metadata"), Path::new("/d/data"));
        // A loop device without a holder is not in use.
        assert_eq!(holder(sys, None, ours), None);
        assert_eq!(holder(sys, device, ours), None);
        std::fs::create_dir(sys.join("block/loop3/holders/dm-0")).unwrap();
        assert_eq!(holder(sys, None, ours).as_deref(), Some("dm-0"));
        std::fs::write(sys.join("block/dm-0/dm/name"), "docker-8:1-7-pool\n").unwrap();
        for (device, path) in [(None, ours), (device, other)] {
            let found = holder(sys, device, path);
            assert_eq!(found.as_deref(), Some("docker-8:1-7-pool"));
        }
        assert_eq!(holder(sys, None, other), None);
        assert_eq!(holder(sys, Some(rustix::fs::makedev(7, 4)), ours), None);
        assert_eq!(holder(Path::new("/nowhere"), device, ours), None);
    }
}
