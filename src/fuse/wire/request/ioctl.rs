//! The ioctls that are answered: four of fixed size, in the very form in which the kernel sends
//! them for itself (`fuse_fileattr_get` and `fuse_fileattr_set`, fs/fuse/ioctl.c), after it has
//! found that the caller may. What a program sends past that, with another size or with an
//! argument of its own (kernels before Linux 5.13 pass all of them on unchecked), is refused with
//! ENOTTY like any other ioctl.

use zerocopy::FromBytes as _;

use super::{Body, Request};
use crate::fuse::operations::{FlagsForm, InodeFlags};
use crate::fuse::wire::abi;
use crate::sys::fileattr::{FSGETXATTR, FSSETXATTR, FsxAttr};

/// What `FS_IOC_GETFLAGS` and `FS_IOC_SETFLAGS` carry, whatever size their number says.
const FLAGS: u32 = size_of::<u32>() as u32;
const XFLAGS: u32 = size_of::<FsxAttr>() as u32;

pub(super) fn parse(mut body: Body<'_>) -> Option<Request<'_>> {
    let head: abi::IoctlIn = body.take()?;
    let data = body.bytes(head.in_size)?;
    // The kernel has no address to pass.
    if head.arg != 0 {
        return Some(Request::Ioctl);
    }
    let sizes = (head.in_size, head.out_size);
    Some(match (libc::Ioctl::from(head.cmd), sizes) {
        (libc::FS_IOC_GETFLAGS, (0, FLAGS)) => Request::Flags(FlagsForm::Flags),
        (libc::FS_IOC_SETFLAGS, (FLAGS, 0)) => {
            Request::SetFlags(InodeFlags::Flags(u32::read_from_bytes(data).ok()?))
        }
        _ => match (head.cmd, sizes) {
            (FSGETXATTR, (0, XFLAGS)) => Request::Flags(FlagsForm::Xflags),
            (FSSETXATTR, (XFLAGS, 0)) => {
                Request::SetFlags(InodeFlags::Xflags(FsxAttr::read_from_bytes(data).ok()?))
            }
            _ => Request::Ioctl,
        },
    })
}
