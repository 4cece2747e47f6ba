//! IOCTL. Those for the flags of a file are taken in the form in which the kernel sends them for
//! itself. What a program sends past that, with another size or with an argument of its own (kernels
//! before Linux 5.13 pass all of them on unchecked), is one of the others.

use super::{Body, Request};
use crate::fuse::flag_ioctls::{self, FlagIoctl};
use crate::fuse::wire::abi;

pub(super) fn parse(mut body: Body<'_>) -> Option<Request<'_>> {
    let head: abi::IoctlIn = body.take()?;
    let data = body.bytes(head.in_size)?;
    // The kernel has no address to pass.
    if head.arg != 0 {
        return Some(Request::Ioctl);
    }
    Some(match flag_ioctls::parse(head.cmd, data, head.out_size) {
        Some(FlagIoctl::Get(form)) => Request::Flags(form),
        Some(FlagIoctl::Set(flags)) => Request::SetFlags(flags),
        None => Request::Ioctl,
    })
}
