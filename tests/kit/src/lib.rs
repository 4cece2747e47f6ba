//! Code that the tests, the benchmarks, the examples and the fuzzers share: mounts that are removed
//! on drop, tree listings that can be compared, layers with given entries, scripts of operations,
//! home directories for the program, sample stores, fuzz targets, and the rule for tests that
//! cannot run ([`need`]).

// A helper that cannot do its work panics, which fails the test.
#![allow(clippy::unwrap_used, clippy::panic)]

pub mod base;
pub mod caches;
pub mod catalogs;
pub mod deliberate;
pub mod descriptor;
pub mod disk;
pub mod exec;
pub mod failing_fs;
pub mod fixture;
#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod home;
pub mod ioctl;
pub mod layers;
pub mod map;
pub mod mount;
pub mod need;
pub mod runner;
pub mod script;
pub mod stats;
#[cfg(feature = "store")]
pub mod store;
pub mod strace;
pub mod task;
pub mod tree;
pub mod upper;
pub mod uring;
pub mod without;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// Returns the directory of the repository.
pub fn repository() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let kit = Path::new(env!("CARGO_MANIFEST_DIR"));
        kit.ancestors().nth(2).unwrap().to_owned()
    });
    &ROOT
}

/// Returns the path of the built program: `CARGO_BIN_EXE_unionfs` if cargo (1.94 and newer) or
/// nextest sets it at run time, else the program beside the directory of this test binary, where
/// cargo puts it.
pub fn program() -> &'static str {
    static PROGRAM: LazyLock<String> = LazyLock::new(|| {
        let told = ["CARGO_BIN_EXE_unionfs", "NEXTEST_BIN_EXE_unionfs"];
        if let Some(told) = told.iter().find_map(|name| std::env::var(name).ok()) {
            return told;
        }
        let this = std::env::current_exe().unwrap();
        let program = this
            .parent()
            .and_then(Path::parent)
            .unwrap()
            .join("unionfs");
        assert!(program.is_file(), "{program:?} is not built");
        program.into_os_string().into_string().unwrap()
    });
    &PROGRAM
}

/// Returns readable text for bytes: printable ASCII unchanged, other bytes as `\xNN`. The reverse
/// of [`unescape`].
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

/// Parses the text that [`escape`] returns.
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

/// Returns the name of an errno.
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

/// Returns the errno of a failed call of std.
pub fn errno<T>(result: std::io::Result<T>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(e) => e.raw_os_error().unwrap(),
    }
}
