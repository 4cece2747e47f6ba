//! What a user can do about a failed system call. The text is appended to messages.

use rustix::io::Errno;

/// Returns the remedy for an errno, with a leading semicolon; empty if there is none.
pub(crate) fn remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::ACCESS | Errno::PERM => "; run as the store's owner (root for /var/lib/docker)",
        Errno::IO => "; check the disk",
        Errno::NOSPC | Errno::DQUOT => "; free some space",
        _ => "",
    }
}

/// Returns the remedy for an error of the standard library.
pub(crate) fn io_remedy(error: &std::io::Error) -> &'static str {
    Errno::from_io_error(error).map_or("", remedy)
}

/// Whether the error means that a file system or a quota is full.
pub(crate) fn is_full(errno: Errno) -> bool {
    matches!(errno, Errno::NOSPC | Errno::DQUOT)
}

/// Whether an error of the standard library means that a file system or a quota is full.
pub(crate) fn io_is_full(error: &std::io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(is_full)
}
