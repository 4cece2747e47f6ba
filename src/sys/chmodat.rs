//! `fchmodat2(2)` (Linux 6.6) changes the permission bits of a name without following a symlink,
//! which fchmodat(2) would follow, or of a descriptor that was opened with O_PATH. Callers must
//! have another way for kernels without it.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::OnceLock;

use rustix::io::Errno;

const FCHMODAT2: libc::c_long = 452;

/// Whether the kernel, and the filter of system calls, knows the call.
pub fn is_available() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    // No descriptor has this number: a kernel that knows the call answers EBADF.
    *KNOWN.get_or_init(|| {
        super::NUMBERS_AS_GENERIC && call(-1, c"", 0, libc::AT_EMPTY_PATH) == Err(Errno::BADF)
    })
}

/// Changes the permission bits of `name` in `dir`, or of `dir` itself if the name is empty.
///
/// # Errors
/// EOPNOTSUPP for a symlink; ENOSYS where the call is not [available](is_available); else those of
/// chmod(2).
pub fn chmod(dir: BorrowedFd<'_>, name: &CStr, perm: u32) -> Result<(), Errno> {
    if !is_available() {
        return Err(Errno::NOSYS);
    }
    let flags = if name.is_empty() {
        libc::AT_EMPTY_PATH
    } else {
        libc::AT_SYMLINK_NOFOLLOW
    };
    call(dir.as_raw_fd(), name, perm, flags)
}

fn call(dir: i32, name: &CStr, perm: u32, flags: i32) -> Result<(), Errno> {
    // SAFETY: the name is NUL-terminated and lives through the call, which only reads it.
    let rc = unsafe { libc::syscall(FCHMODAT2, dir, name.as_ptr(), perm & 0o7777, flags) };
    match rc {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::PermissionsExt;

    use testkit::need::skip;

    #[test]
    fn a_symlink_is_not_followed() {
        if !is_available() {
            return skip(&"the kernel has no fchmodat2(2)");
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "").unwrap();
        std::os::unix::fs::symlink("f", dir.path().join("s")).unwrap();
        let mode = || {
            dir.path()
                .join("f")
                .metadata()
                .unwrap()
                .permissions()
                .mode()
                & 0o7777
        };
        let fd = std::fs::File::open(dir.path()).unwrap();
        chmod(fd.as_fd(), c"f", 0o640).unwrap();
        assert_eq!(mode(), 0o640);
        assert_eq!(chmod(fd.as_fd(), c"s", 0o777), Err(Errno::OPNOTSUPP));
        assert_eq!(mode(), 0o640);
    }
}
