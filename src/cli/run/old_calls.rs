//! The numbers of calls that newer architectures do not have.

use libc::c_long;

#[cfg(target_arch = "x86_64")]
macro_rules! number {
    ($name:ident) => {
        Some(libc::$name)
    };
}

#[cfg(not(target_arch = "x86_64"))]
macro_rules! number {
    ($name:ident) => {
        None
    };
}

pub(super) const CHOWN: Option<c_long> = number!(SYS_chown);
pub(super) const IOPERM: Option<c_long> = number!(SYS_ioperm);
pub(super) const IOPL: Option<c_long> = number!(SYS_iopl);
pub(super) const LCHOWN: Option<c_long> = number!(SYS_lchown);
pub(super) const LSTAT: Option<c_long> = number!(SYS_lstat);
pub(super) const STAT: Option<c_long> = number!(SYS_stat);
pub(super) const SYSFS: Option<c_long> = number!(SYS_sysfs);
pub(super) const USELIB: Option<c_long> = number!(SYS_uselib);

/// Architectures of 32 bits have other calls instead.
pub(super) const NEWFSTATAT: Option<c_long> = {
    #[cfg(target_pointer_width = "64")]
    let number = Some(libc::SYS_newfstatat);
    #[cfg(not(target_pointer_width = "64"))]
    let number = None;
    number
};
