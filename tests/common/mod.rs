//! What the test binaries and the comparison bench share: mounts that always go
//! away again, tree listings that can be compared, layers made to order, and
//! scripts of operations. Used by `tests/parity`, `tests/mount`, `tests/core`.

// Every test binary compiles this module and uses its own part of it; a helper
// that cannot do its work fails the test by panicking.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    unused_macros,
    clippy::unwrap_used,
    clippy::panic
)]

pub mod base;
pub mod deliberate;
pub mod descriptor;
pub mod disk;
pub mod exec;
pub mod fixture;
pub mod ioctl;
pub mod layers;
pub mod map;
pub mod mount;
pub mod script;
pub mod strace;
pub mod task;
pub mod tree;
pub mod upper;
pub mod uring;

/// Why this process cannot mount for real, if it cannot.
pub fn missing_privilege() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root".into());
    }
    if let Err(e) = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
    {
        return Some(format!("cannot open /dev/fuse: {e}"));
    }
    None
}

/// Reports that a test cannot run here: a printed skip on a laptop, a failure
/// where `UNIONFS_REQUIRE_ALL=1` says that everything must run (CI).
pub fn skip(reason: &str) {
    assert!(
        std::env::var_os("UNIONFS_REQUIRE_ALL").is_none_or(|v| v != "1"),
        "cannot run, and UNIONFS_REQUIRE_ALL=1: {reason}"
    );
    eprintln!("SKIPPED: {reason}");
}

/// Leaves the test with a printed skip (or a failure, see [`skip`]) unless it may mount; what
/// the test mounts is in a mount namespace of its own from here on.
macro_rules! need_mounts {
    () => {
        if let Some(reason) = $crate::common::missing_privilege() {
            return $crate::common::skip(&reason);
        }
        $crate::common::mount::own_namespace();
    };
}
pub(crate) use need_mounts;

/// Bytes as a person reads them: printable ASCII as it is, the rest as `\xNN`.
/// The reverse of [`unescape`].
pub fn escape(bytes: &[u8]) -> String {
    let mut s = String::new();
    for &b in bytes {
        match b {
            b'\\' => s.push_str("\\\\"),
            0x21..=0x7e => s.push(b as char),
            _ => s.push_str(&format!("\\x{b:02x}")),
        }
    }
    s
}

/// Reads what [`escape`] wrote.
pub fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        if bytes[i] == b'\\' && bytes.get(i + 1) == Some(&b'\\') {
            out.push(b'\\');
            i += 2;
        } else if bytes[i] == b'\\' && bytes.get(i + 1) == Some(&b'x') {
            out.push(u8::from_str_radix(&text[i + 2..i + 4], 16).unwrap());
            i += 4;
        } else {
            out.push(bytes[i]);
            i += 1;
        }
    }
    out
}

/// The name of an errno.
pub fn errno_name(errno: i32) -> String {
    let name = match errno {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::EIO => "EIO",
        libc::ENXIO => "ENXIO",
        libc::ENOMEM => "ENOMEM",
        libc::ENOTTY => "ENOTTY",
        libc::ENOEXEC => "ENOEXEC",
        libc::EBADF => "EBADF",
        libc::EAGAIN => "EAGAIN",
        libc::EACCES => "EACCES",
        libc::EBUSY => "EBUSY",
        libc::EEXIST => "EEXIST",
        libc::EXDEV => "EXDEV",
        libc::ENODEV => "ENODEV",
        libc::ENOTDIR => "ENOTDIR",
        libc::EISDIR => "EISDIR",
        libc::EINVAL => "EINVAL",
        libc::ETXTBSY => "ETXTBSY",
        libc::EFBIG => "EFBIG",
        libc::ENOSPC => "ENOSPC",
        libc::EROFS => "EROFS",
        libc::EMLINK => "EMLINK",
        libc::ERANGE => "ERANGE",
        libc::ENAMETOOLONG => "ENAMETOOLONG",
        libc::ENOSYS => "ENOSYS",
        libc::ENOTEMPTY => "ENOTEMPTY",
        libc::ELOOP => "ELOOP",
        libc::ENODATA => "ENODATA",
        libc::EOVERFLOW => "EOVERFLOW",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::EDQUOT => "EDQUOT",
        libc::ESTALE => "ESTALE",
        libc::ENOTCONN => "ENOTCONN",
        other => return format!("errno {other}"),
    };
    name.into()
}

/// The errno of a failed call of std.
pub fn errno<T>(result: std::io::Result<T>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(e) => e.raw_os_error().unwrap(),
    }
}
