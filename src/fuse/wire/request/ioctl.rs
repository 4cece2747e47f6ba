//! IOCTL. Requests for the flags of a file are accepted in the form in which the kernel itself
//! sends them. Other forms, with another size or with an argument of the program (kernels before
//! Linux 5.13 pass all of them on without a check), count as other ioctls.

use super::{Body, Request};
use crate::fuse::flag_ioctls::{self, FlagIoctl};
use crate::fuse::wire::abi;

pub(super) fn parse(mut body: Body<'_>) -> Option<Request<'_>> {
    let head: abi::IoctlIn = body.take()?;
    let data = body.bytes(head.in_size)?;
    // A request of the kernel itself has no address.
    if head.arg != 0 {
        return Some(Request::Ioctl);
    }
    Some(match flag_ioctls::parse(head.cmd, data, head.out_size) {
        Some(FlagIoctl::Get(form)) => Request::Flags(form),
        Some(FlagIoctl::Set(flags)) => Request::SetFlags(flags),
        None => Request::Ioctl,
    })
}
