//! `listxattrat(2)`, `getxattrat(2)` and `setxattrat(2)` (Linux 6.13) access the extended
//! attributes of a name in a directory. The way through `/proc/self/fd` costs more than the call
//! itself.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::OnceLock;

use rustix::io::Errno;

const SETXATTRAT: libc::c_long = 463;
const GETXATTRAT: libc::c_long = 464;
const LISTXATTRAT: libc::c_long = 465;

/// `struct xattr_args` of linux/xattr.h.
#[repr(C)]
struct Args {
    value: u64,
    size: u32,
    flags: u32,
}

fn result(rc: libc::c_long) -> Result<usize, Errno> {
    usize::try_from(rc)
        .map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}

/// Whether the kernel, and the filter of system calls, knows them.
pub fn is_available() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let root = rustix::fs::CWD;
        super::NUMBERS_AS_GENERIC
            && matches!(list(root, c"/", &mut []), Ok(_) | Err(Errno::OPNOTSUPP))
    })
}

/// Returns the names of the extended attributes of `name` in `dir`, each followed by NUL; of a
/// symlink itself, if it is one. With an empty buffer, returns their length.
///
/// # Errors
/// ERANGE if they do not fit, else those of listxattrat(2).
pub fn list(dir: BorrowedFd<'_>, name: &CStr, names: &mut [u8]) -> Result<usize, Errno> {
    let (buffer, size) = (names.as_mut_ptr(), names.len());
    // SAFETY: `name` is NUL-terminated, and the kernel writes at most `size` bytes to `buffer`.
    result(unsafe {
        libc::syscall(
            LISTXATTRAT,
            dir.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            buffer,
            size,
        )
    })
}

/// Returns the value of an extended attribute; of a symlink itself, if it is one.
///
/// # Errors
/// ERANGE if it does not fit, ENODATA if there is none, else those of getxattrat(2).
pub fn get(
    dir: BorrowedFd<'_>,
    name: &CStr,
    attribute: &CStr,
    value: &mut [u8],
) -> Result<usize, Errno> {
    let args = Args {
        value: value.as_mut_ptr() as u64,
        size: u32::try_from(value.len()).unwrap_or(u32::MAX),
        flags: 0,
    };
    // SAFETY: the kernel writes at most `size` bytes to `value`, which is ours alone.
    unsafe { with_args(GETXATTRAT, dir, name, attribute, &args) }
}

/// Sets an extended attribute; of a symlink itself, if it is one. `flags` are those of setxattr(2).
///
/// # Errors
/// Those of setxattrat(2).
pub fn set(
    dir: BorrowedFd<'_>,
    name: &CStr,
    attribute: &CStr,
    value: &[u8],
    flags: u32,
) -> Result<(), Errno> {
    let args = Args {
        value: value.as_ptr() as u64,
        size: u32::try_from(value.len()).map_err(|_| Errno::TOOBIG)?,
        flags,
    };
    // SAFETY: the kernel reads `size` bytes of `value`, and writes nothing.
    unsafe { with_args(SETXATTRAT, dir, name, attribute, &args) }.map(drop)
}

/// # Safety
/// `args` must describe memory that the call `number` may read or write.
unsafe fn with_args(
    number: libc::c_long,
    dir: BorrowedFd<'_>,
    name: &CStr,
    attribute: &CStr,
    args: &Args,
) -> Result<usize, Errno> {
    // SAFETY: both names are NUL-terminated, and `args` is a `struct xattr_args` of that size;
    // the rest is the caller's promise.
    result(unsafe {
        libc::syscall(
            number,
            dir.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            attribute.as_ptr(),
            &raw const *args,
            size_of::<Args>(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    use testkit::need::skip;

    #[test]
    fn agree_with_the_old_calls() {
        if !is_available() {
            return skip(&"the kernel has no setxattrat(2)");
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "").unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        let fd = fd.as_fd();
        let path = dir.path().join("f");
        match set(fd, c"f", c"user.a", b"value", 0) {
            Err(Errno::OPNOTSUPP) => return skip(&"a file system without xattrs of users"),
            other => other.unwrap(),
        }
        let mut buffer = [0; 64];
        let n = rustix::fs::getxattr(&path, c"user.a", &mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"value");
        let n = get(fd, c"f", c"user.a", &mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"value");
        assert_eq!(get(fd, c"f", c"user.a", &mut [0; 2]), Err(Errno::RANGE));
        assert_eq!(get(fd, c"f", c"user.b", &mut buffer), Err(Errno::NODATA));
        assert_eq!(get(fd, c"no", c"user.b", &mut buffer), Err(Errno::NOENT));
        let n = list(fd, c"f", &mut buffer).unwrap();
        assert!(buffer[..n].ends_with(b"user.a\0"));
        let create = libc::XATTR_CREATE.cast_unsigned();
        assert_eq!(set(fd, c"f", c"user.a", b"", create), Err(Errno::EXIST));
    }
}
