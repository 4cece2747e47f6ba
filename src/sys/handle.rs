//! File handles: `name_to_handle_at(2)`, `open_by_handle_at(2)`, and the UUID of a file system.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// Largest handle the kernel hands out (MAX_HANDLE_SZ).
const MAX_HANDLE: usize = 128;

/// A file handle as the kernel encodes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHandle {
    /// The file system's handle type.
    pub kind: i32,
    /// The opaque bytes.
    pub bytes: Vec<u8>,
}

#[repr(C)]
struct RawHandle {
    len: u32,
    kind: i32,
    bytes: [u8; MAX_HANDLE],
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Returns the handle of `name` in `dir` without following symlinks. An empty name means `dir`
/// itself.
///
/// # Errors
/// EOPNOTSUPP if the file system has no handles, else those of name_to_handle_at(2).
pub fn name_to_handle(dir: impl AsFd, name: &std::ffi::CStr) -> Result<FileHandle, Errno> {
    let mut raw = RawHandle {
        len: MAX_HANDLE as u32,
        kind: 0,
        bytes: [0; MAX_HANDLE],
    };
    let mut mount_id: libc::c_int = 0;
    let flags = if name.is_empty() {
        libc::AT_EMPTY_PATH
    } else {
        0
    };
    // SAFETY: `raw` is a `struct file_handle` with MAX_HANDLE bytes behind it, as its `len`
    // says; `name` is NUL-terminated; all pointers live through the call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            dir.as_fd().as_raw_fd(),
            name.as_ptr(),
            &raw mut raw,
            &raw mut mount_id,
            flags,
        )
    };
    if rc < 0 {
        return Err(last_errno());
    }
    let len = (raw.len as usize).min(MAX_HANDLE);
    Ok(FileHandle {
        kind: raw.kind,
        bytes: raw.bytes[..len].to_vec(),
    })
}

/// Opens a handle with `O_PATH` on the file system of `mount`.
///
/// # Errors
/// EPERM without CAP_DAC_READ_SEARCH; ESTALE if the file no longer exists; EINVAL for a malformed
/// handle; else those of open_by_handle_at(2).
pub fn open_by_handle(mount: impl AsFd, handle: &FileHandle) -> Result<OwnedFd, Errno> {
    if handle.bytes.len() > MAX_HANDLE {
        return Err(Errno::INVAL);
    }
    let mut raw = RawHandle {
        len: handle.bytes.len() as u32,
        kind: handle.kind,
        bytes: [0; MAX_HANDLE],
    };
    raw.bytes[..handle.bytes.len()].copy_from_slice(&handle.bytes);
    // SAFETY: `raw` is a `struct file_handle` whose `len` bytes are initialised; the kernel
    // only reads it.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_fd().as_raw_fd(),
            &raw mut raw,
            libc::O_PATH | libc::O_CLOEXEC | libc::O_NOFOLLOW,
        )
    };
    if fd < 0 {
        return Err(last_errno());
    }
    // SAFETY: the call returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// `struct fsuuid2` of linux/fs.h.
#[repr(C)]
struct FsUuid {
    len: u8,
    uuid: [u8; 16],
}

/// `FS_IOC_GETFSUUID`: `_IOR(0x15, 0, struct fsuuid2)`, Linux 6.9.
const FS_IOC_GETFSUUID: libc::c_ulong = (2 << 30) | (17 << 16) | (0x15 << 8);

/// Returns the UUID of the file system of `fd`, which is open for reading. `None`: the file system
/// has none, or the kernel does not tell it.
pub fn fs_uuid(fd: impl AsFd) -> Option<[u8; 16]> {
    let mut out = FsUuid {
        len: 0,
        uuid: [0; 16],
    };
    // SAFETY: the ioctl writes one `struct fsuuid2`, which `out` is.
    let rc = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), FS_IOC_GETFSUUID as _, &raw mut out) };
    (rc == 0 && out.len == 16).then_some(out.uuid)
}
