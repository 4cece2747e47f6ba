//! The ioctls that are answered: four of fixed size, in exactly the form in which the kernel itself
//! sends them (`fuse_fileattr_get` and `fuse_fileattr_set`, fs/fuse/ioctl.c), after it has checked
//! the permission of the caller. The transports refuse all others with ENOTTY.

use zerocopy::FromBytes as _;

use super::operations::{FlagsForm, InodeFlags};
use crate::sys::fileattr::{FSGETXATTR, FSSETXATTR, FsxAttr};

/// The size of the value of `FS_IOC_GETFLAGS` and `FS_IOC_SETFLAGS`, whatever size their number
/// contains.
const FLAGS: usize = size_of::<u32>();
const XFLAGS: usize = size_of::<FsxAttr>();

/// An ioctl for the flags of a file.
pub(super) enum FlagIoctl {
    Get(FlagsForm),
    Set(InodeFlags),
}

/// Parses an ioctl with the input `data` and an output of `out_size` bytes. `None` if it is another
/// ioctl, or has another size.
pub(super) fn parse(cmd: u32, data: &[u8], out_size: u32) -> Option<FlagIoctl> {
    let sizes = (data.len(), usize::try_from(out_size).ok()?);
    match (libc::Ioctl::from(cmd), sizes) {
        (libc::FS_IOC_GETFLAGS, (0, FLAGS)) => Some(FlagIoctl::Get(FlagsForm::Flags)),
        (libc::FS_IOC_SETFLAGS, (FLAGS, 0)) => {
            let flags = u32::read_from_bytes(data).ok()?;
            Some(FlagIoctl::Set(InodeFlags::Flags(flags)))
        }
        _ => match (cmd, sizes) {
            (FSGETXATTR, (0, XFLAGS)) => Some(FlagIoctl::Get(FlagsForm::Xflags)),
            (FSSETXATTR, (XFLAGS, 0)) => {
                let flags = FsxAttr::read_from_bytes(data).ok()?;
                Some(FlagIoctl::Set(InodeFlags::Xflags(flags)))
            }
            _ => None,
        },
    }
}
