//! Mounts beneath others in this mount namespace (proc_pid_mountinfo(5)).

use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::mountinfo::{self, MountEntry, UNIONFS};

/// The types of file systems that containers have as their root directories.
const UNIONS: [&str; 5] = ["overlay", "aufs", "fuse", UNIONFS, "fuse.fuse-overlayfs"];

/// Unmounts the root directories of containers beneath `places` in this namespace, which is a copy
/// that no other process uses. A copy of such a mount would keep its upper in use after the
/// container has ended. A mount that cannot be removed stays.
///
/// # Errors
/// Those of [`mountinfo::list_of_process`].
pub(super) fn detach_unions<'p>(
    places: impl Iterator<Item = &'p Path> + Clone,
) -> Result<(), Errno> {
    let failed = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let mounts = mountinfo::list_of_process().map_err(failed)?;
    let unions = mounts.into_iter().filter_map(union_of);
    // A mount that contains a place is kept.
    let is_above = |path: &PathBuf| places.clone().any(|place| place.starts_with(path));
    let is_beneath = |path: &PathBuf| places.clone().any(|place| path.starts_with(place));
    let unions: Vec<PathBuf> = unions
        .filter(|path| is_beneath(path) && !is_above(path))
        .collect();
    // Mounts on top of others come first.
    for path in unions.iter().rev() {
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        if let Err(error) = rustix::mount::unmount(path, flags) {
            tracing::debug!(%error, ?path, "the copy of a mount stays");
        }
    }
    Ok(())
}

/// Returns the mountpoint, if the mount is a union.
fn union_of(entry: MountEntry) -> Option<PathBuf> {
    let is_union = UNIONS.iter().any(|kind| entry.fs_type == **kind);
    is_union.then_some(entry.mountpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn union_in(line: &[u8]) -> Option<PathBuf> {
        mountinfo::parse_line(line).and_then(union_of)
    }

    #[test]
    fn unions_are_found_in_lines() {
        let line = |kind: &str| {
            format!("36 35 0:50 / /a\\040b\\134/merged rw,noatime master:1 - {kind} x rw")
        };
        let path = Some(PathBuf::from("/a b\\/merged"));
        for kind in ["overlay", "fuse.unionfs", "fuse"] {
            assert_eq!(union_in(line(kind).as_bytes()), path, "{kind}");
        }
        for kind in ["ext4", "btrfs", "tmpfs", "fuse.sshfs"] {
            assert_eq!(union_in(line(kind).as_bytes()), None, "{kind}");
        }
        assert_eq!(union_in(b""), None);
    }
}
