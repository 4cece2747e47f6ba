//! System calls that a host lacks: an old kernel answers ENOSYS. A filter of system calls that does not
//! know a call (Docker before 20.10) refuses it with EPERM, which may also be a true answer.

use std::sync::OnceLock;

use rustix::io::Errno;

/// Whether this error of a call says that there is no such call. `asks` makes the call on the root
/// directory, which nothing but a filter refuses with EPERM; `filtered` keeps the answer.
pub(super) fn says_missing<T>(
    error: Errno,
    filtered: &OnceLock<bool>,
    asks: impl FnOnce() -> Result<T, Errno>,
) -> bool {
    let refuses = || asks().is_err_and(|error| error == Errno::PERM);
    error == Errno::NOSYS || error == Errno::PERM && *filtered.get_or_init(refuses)
}
