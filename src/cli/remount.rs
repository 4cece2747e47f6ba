//! `mount -o remount,…`: mount(8) calls the helper again for a mount that is there. Only the flags of
//! the mount can change; options of layers and of the server are accepted and have no effect, since
//! mount(8) repeats those of fstab.

use std::path::Path;

use super::error::Usage;
use super::options::MountOptions;
use unionfs::fuse::{Mount, runtime};

/// Whether the options ask for it.
pub(super) fn is_wanted(options: &MountOptions) -> bool {
    options.other.iter().any(|option| option == "remount")
}

pub(super) fn run(mountpoint: &Path, options: &MountOptions) -> anyhow::Result<()> {
    let mount = Mount::at(mountpoint)?;
    if options.read_only == Some(false) && has_no_upper(&mount) {
        return Err(Usage(format!(
            "{} has no upper directory and stays read-only: unmount it, and mount it with one",
            mount.path().display()
        ))
        .into());
    }
    let access = options
        .read_only
        .map(|read_only| if read_only { "ro" } else { "rw" });
    let flags = options.other.iter().map(AsRef::as_ref);
    mount.remount(flags.chain(access.map(AsRef::as_ref)))?;
    Ok(())
}

/// Whether the record of a mount says so. Without a record its server answers EROFS to each change.
fn has_no_upper(mount: &Mount) -> bool {
    let record = runtime::of_mount(mount.entry());
    record.is_some_and(|record| record.description.upper.is_none())
}
