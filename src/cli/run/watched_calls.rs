//! The system calls of a container that this process answers, and what their arguments say.

use unionfs::sys::notify::WaitingCall;

use super::old_calls as old;
use super::seccomp::Named;

/// Which calls are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watched {
    /// Those that give a file to another user.
    Changes,
    /// These, and those that ask for the attributes of a file.
    ChangesAndQuestions,
}

/// Calls that give a file to another user. Where a container has one user ID, the kernel refuses them
/// with EINVAL or EPERM before any file system sees them.
pub(super) const CHOWN: [Named; 7] = [
    ("chown", old::CHOWN),
    ("chown32", None),
    ("fchown", Some(libc::SYS_fchown)),
    ("fchown32", None),
    ("fchownat", Some(libc::SYS_fchownat)),
    ("lchown", old::LCHOWN),
    ("lchown32", None),
];

/// Calls that tell the owner of a file. The kernel shows the overflow ID for all that a container does
/// not have.
const STAT: [Named; 5] = [
    ("stat", old::STAT),
    ("lstat", old::LSTAT),
    ("fstat", Some(libc::SYS_fstat)),
    ("newfstatat", old::NEWFSTATAT),
    ("statx", Some(libc::SYS_statx)),
];

impl Watched {
    /// Returns the calls.
    pub(super) fn calls(self) -> Vec<Named> {
        match self {
            Self::Changes => CHOWN.to_vec(),
            Self::ChangesAndQuestions => [&CHOWN[..], &STAT].concat(),
        }
    }
}

/// A file, as the arguments of a call name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NamedFile {
    /// The descriptor of the file, or of the directory at which the path begins.
    pub(super) dir: i32,
    /// The address of the path.
    pub(super) path: Option<u64>,
    /// Whether an empty path names `dir`.
    pub(super) may_be_empty: bool,
    /// Whether a symlink at the end of the path is followed.
    pub(super) follows: bool,
}

impl NamedFile {
    fn by_path(path: u64, follows: bool) -> Self {
        Self {
            dir: libc::AT_FDCWD,
            path: Some(path),
            may_be_empty: false,
            follows,
        }
    }

    fn by_descriptor(fd: u64) -> Self {
        Self {
            dir: fd as i32,
            path: None,
            may_be_empty: true,
            follows: true,
        }
    }

    /// With the flags of calls whose name ends in `at`. No path is an empty one, since Linux 6.11.
    fn at(dir: u64, path: u64, flags: u64) -> Self {
        let has = |flag: i32| flags as i32 & flag != 0;
        let may_be_empty = has(libc::AT_EMPTY_PATH);
        Self {
            dir: dir as i32,
            path: (path != 0 || !may_be_empty).then_some(path),
            may_be_empty,
            follows: !has(libc::AT_SYMLINK_NOFOLLOW),
        }
    }
}

/// What a call asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// A change of the owner. `u32::MAX` is no change.
    Chown { file: NamedFile, uid: u32, gid: u32 },
    /// The attributes, to be written at an address.
    Stat {
        file: NamedFile,
        answer: u64,
        form: StatForm,
    },
}

/// The form in which attributes are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StatForm {
    /// `struct stat`.
    Stat,
    /// `struct statx`, with these flags and this mask of the call.
    Statx { flags: i32, mask: u32 },
}

impl Asked {
    /// Reads a call with the numbers of this architecture; `None` for one that is not answered.
    pub(super) fn of(call: &WaitingCall) -> Option<Self> {
        Self::by_number(call.number.into(), &call.arguments)
    }

    fn by_number(number: libc::c_long, arguments: &[u64; 6]) -> Option<Self> {
        let [a, b, c, d, e, _] = *arguments;
        let chown = |file, uid, gid| {
            let (uid, gid) = (uid as u32, gid as u32);
            Some(Self::Chown { file, uid, gid })
        };
        let stat = |file, answer| {
            let form = StatForm::Stat;
            Some(Self::Stat { file, answer, form })
        };
        match number {
            _ if Some(number) == old::CHOWN => chown(NamedFile::by_path(a, true), b, c),
            _ if Some(number) == old::LCHOWN => chown(NamedFile::by_path(a, false), b, c),
            libc::SYS_fchown => chown(NamedFile::by_descriptor(a), b, c),
            libc::SYS_fchownat => chown(NamedFile::at(a, b, e), c, d),
            _ if Some(number) == old::STAT => stat(NamedFile::by_path(a, true), b),
            _ if Some(number) == old::LSTAT => stat(NamedFile::by_path(a, false), b),
            libc::SYS_fstat => stat(NamedFile::by_descriptor(a), b),
            _ if Some(number) == old::NEWFSTATAT => stat(NamedFile::at(a, b, d), c),
            libc::SYS_statx => Some(Self::Stat {
                file: NamedFile::at(a, b, c),
                answer: e,
                form: StatForm::Statx {
                    flags: c as i32,
                    mask: d as u32,
                },
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(number: libc::c_long, arguments: [u64; 5]) -> Option<Asked> {
        let [a, b, c, d, e] = arguments;
        Asked::by_number(number, &[a, b, c, d, e, 0])
    }

    fn file(dir: i32, path: Option<u64>, may_be_empty: bool, follows: bool) -> NamedFile {
        NamedFile {
            dir,
            path,
            may_be_empty,
            follows,
        }
    }

    #[test]
    fn changes_of_owners_are_read_from_their_arguments() {
        let chown = |file, uid, gid| Some(Asked::Chown { file, uid, gid });
        let arguments = [7, 8, 9, 10, libc::AT_EMPTY_PATH as u64];
        assert_eq!(
            of(libc::SYS_fchownat, arguments),
            chown(file(7, Some(8), true, true), 9, 10)
        );
        assert_eq!(
            of(libc::SYS_fchown, arguments),
            chown(file(7, None, true, true), 8, 9)
        );
        let here = libc::AT_FDCWD;
        if let (Some(by_path), Some(of_link)) = (old::CHOWN, old::LCHOWN) {
            assert_eq!(
                of(by_path, arguments),
                chown(file(here, Some(7), false, true), 8, 9)
            );
            assert_eq!(
                of(of_link, arguments),
                chown(file(here, Some(7), false, false), 8, 9)
            );
        }
        assert_eq!(of(libc::SYS_setuid, arguments), None);
        let flags = libc::AT_SYMLINK_NOFOLLOW as u64;
        assert_eq!(
            of(
                libc::SYS_fchownat,
                [0, 0, u64::from(u32::MAX), u64::MAX, flags]
            ),
            chown(file(0, Some(0), false, false), u32::MAX, u32::MAX)
        );
    }

    #[test]
    fn questions_are_read_from_their_arguments() {
        let stat = |file, answer, form| Some(Asked::Stat { file, answer, form });
        let here = libc::AT_FDCWD;
        let empty = libc::AT_EMPTY_PATH as u64;
        let no_follow = libc::AT_SYMLINK_NOFOLLOW as u64;
        if let (Some(by_path), Some(of_link)) = (old::STAT, old::LSTAT) {
            let arguments = [7, 8, 0, 0, 0];
            assert_eq!(
                of(by_path, arguments),
                stat(file(here, Some(7), false, true), 8, StatForm::Stat)
            );
            assert_eq!(
                of(of_link, arguments),
                stat(file(here, Some(7), false, false), 8, StatForm::Stat)
            );
        }
        assert_eq!(
            of(libc::SYS_fstat, [3, 8, 0, 0, 0]),
            stat(file(3, None, true, true), 8, StatForm::Stat)
        );
        if let Some(at) = old::NEWFSTATAT {
            let of = |path, flags| of(at, [u64::MAX, path, 9, flags, 0]);
            assert_eq!(
                of(8, no_follow),
                stat(file(-1, Some(8), false, false), 9, StatForm::Stat)
            );
            assert_eq!(
                of(0, empty),
                stat(file(-1, None, true, true), 9, StatForm::Stat)
            );
            assert_eq!(
                of(0, 0),
                stat(file(-1, Some(0), false, true), 9, StatForm::Stat)
            );
        }
        let form = StatForm::Statx {
            flags: no_follow as i32,
            mask: 0xfff,
        };
        assert_eq!(
            of(libc::SYS_statx, [3, 8, no_follow, 0xfff, 99]),
            stat(file(3, Some(8), false, false), 99, form)
        );
    }
}
