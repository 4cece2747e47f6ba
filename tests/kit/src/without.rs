//! Hosts that lack system calls: the program runs under a filter of system calls (seccomp(2)) that
//! refuses them as an old kernel does. `UNIONFS_TEST_WITHOUT` names what is refused for all mounts
//! of the tests, so that a whole suite runs without it.
#![allow(unsafe_code)]

use std::io;
use std::process::{Command, Output};

/// Something that a host can lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// statx(2), Linux 4.11.
    Statx,
    /// openat2(2), Linux 5.6.
    Openat2,
    /// open_tree(2), move_mount(2), fsopen(2), fsconfig(2), fsmount(2), fspick(2), Linux 5.2, and
    /// mount_setattr(2), Linux 5.12.
    MountCalls,
    /// move_mount(2) alone, as by a filter.
    MoveMount,
    /// close_range(2), Linux 5.9.
    CloseRange,
    /// name_to_handle_at(2) and open_by_handle_at(2).
    FileHandles,
    /// The flags of renameat2(2) (EINVAL, as on NFS).
    RenameFlags,
    /// O_TMPFILE (EOPNOTSUPP).
    UnnamedFiles,
    /// linkat(2) with AT_EMPTY_PATH (ENOENT, as without CAP_DAC_READ_SEARCH before Linux 6.10).
    LinkOfDescriptor,
    /// copy_file_range(2), Linux 4.5.
    Copies,
    /// fchmodat2(2), Linux 6.6.
    Chmodat,
    /// The calls of xattrs with a name and a directory, Linux 6.13.
    Xattrat,
    /// Landlock, Linux 5.13.
    Landlock,
    /// All calls that Linux 4.18 does not have.
    Linux4_18,
}

/// All of them, with their names in `UNIONFS_TEST_WITHOUT`.
pub const ALL: [(&str, Lack); 14] = [
    ("statx", Lack::Statx),
    ("openat2", Lack::Openat2),
    ("mount-calls", Lack::MountCalls),
    ("move_mount", Lack::MoveMount),
    ("close_range", Lack::CloseRange),
    ("file-handles", Lack::FileHandles),
    ("rename-flags", Lack::RenameFlags),
    ("unnamed-files", Lack::UnnamedFiles),
    ("link-of-descriptor", Lack::LinkOfDescriptor),
    ("copies", Lack::Copies),
    ("fchmodat2", Lack::Chmodat),
    ("xattrat", Lack::Xattrat),
    ("landlock", Lack::Landlock),
    ("4.18", Lack::Linux4_18),
];

/// A rule of the filter.
struct Rule {
    call: libc::c_long,
    /// The position of an argument and bits; the rule applies if one of them is set (`None`: to all
    /// calls).
    bits: Option<(u32, u32)>,
    error: i32,
}

impl Lack {
    fn rules(self) -> Vec<Rule> {
        const MOUNT_CALLS: &[libc::c_long] = &[
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_fsopen,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_fspick,
            libc::SYS_mount_setattr,
        ];
        const LANDLOCK: &[libc::c_long] = &[
            libc::SYS_landlock_create_ruleset,
            libc::SYS_landlock_add_rule,
            libc::SYS_landlock_restrict_self,
        ];
        /// setxattrat, getxattrat, listxattrat, removexattrat.
        const XATTRAT: &[libc::c_long] = &[463, 464, 465, 466];
        const FCHMODAT2: libc::c_long = 452;
        let missing = |calls: &[libc::c_long]| -> Vec<Rule> {
            let rule = |call: &libc::c_long| Rule {
                call: *call,
                bits: None,
                error: libc::ENOSYS,
            };
            calls.iter().map(rule).collect()
        };
        let with = |call, argument, bits: i32, error| Rule {
            call,
            bits: Some((argument, bits as u32)),
            error,
        };
        match self {
            Self::Statx => missing(&[libc::SYS_statx]),
            Self::Openat2 => missing(&[libc::SYS_openat2]),
            Self::MountCalls => missing(MOUNT_CALLS),
            Self::MoveMount => missing(&[libc::SYS_move_mount]),
            Self::CloseRange => missing(&[libc::SYS_close_range]),
            Self::FileHandles => {
                let mut rules =
                    missing(&[libc::SYS_name_to_handle_at, libc::SYS_open_by_handle_at]);
                rules
                    .iter_mut()
                    .for_each(|rule| rule.error = libc::EOPNOTSUPP);
                rules
            }
            Self::RenameFlags => vec![with(libc::SYS_renameat2, 4, 7, libc::EINVAL)],
            Self::UnnamedFiles => {
                let only = libc::O_TMPFILE & !libc::O_DIRECTORY;
                vec![with(libc::SYS_openat, 2, only, libc::EOPNOTSUPP)]
            }
            Self::LinkOfDescriptor => {
                vec![with(libc::SYS_linkat, 4, libc::AT_EMPTY_PATH, libc::ENOENT)]
            }
            Self::Copies => missing(&[libc::SYS_copy_file_range]),
            Self::Chmodat => missing(&[FCHMODAT2]),
            Self::Xattrat => missing(XATTRAT),
            Self::Landlock => missing(LANDLOCK),
            Self::Linux4_18 => {
                let others = [
                    libc::SYS_openat2,
                    libc::SYS_close_range,
                    libc::SYS_faccessat2,
                ];
                let others = others
                    .into_iter()
                    .chain([FCHMODAT2, libc::SYS_pidfd_open, 457, 458]);
                let all: Vec<_> = [MOUNT_CALLS, LANDLOCK, XATTRAT].concat();
                missing(&all.into_iter().chain(others).collect::<Vec<_>>())
            }
        }
    }
}

/// Returns what `UNIONFS_TEST_WITHOUT` names: names with commas between them.
///
/// # Panics
/// On a name that is none of [`ALL`].
pub fn asked() -> Vec<Lack> {
    let names = std::env::var("UNIONFS_TEST_WITHOUT").unwrap_or_default();
    let lack = |name: &str| match ALL.iter().find(|(known, _)| *known == name) {
        Some((_, lack)) => *lack,
        None => panic!("UNIONFS_TEST_WITHOUT: {name:?} is none of {ALL:?}"),
    };
    names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(lack)
        .collect()
}

/// Runs a command without these, and all that it starts.
///
/// # Errors
/// Those of seccomp(2), which needs root, and of [`Command::output`].
pub fn output(command: &mut Command, lacks: &[Lack]) -> io::Result<Output> {
    if lacks.is_empty() {
        return command.output();
    }
    let rules: Vec<Rule> = lacks.iter().flat_map(|lack| lack.rules()).collect();
    // The filter holds for the thread and what it starts.
    std::thread::scope(|scope| {
        let started = scope.spawn(|| {
            refuse(&rules)?;
            command.output()
        });
        started.join().unwrap()
    })
}

/// Has the calling thread's calls answered by the rules. Unlike the filters of the program itself it
/// does not set no_new_privs, which would keep fusermount3 from its rights.
fn refuse(rules: &[Rule]) -> io::Result<()> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = Vec::new();
    for rule in rules {
        let answer = libc::SECCOMP_RET_ERRNO | rule.error as u32;
        // The number of the call is the first field of `struct seccomp_data`.
        program.push(step(LOAD, 0, 0, 0));
        match rule.bits {
            None => program.push(step(EQUAL, 0, 1, rule.call as u32)),
            Some((argument, bits)) => {
                program.push(step(EQUAL, 0, 3, rule.call as u32));
                // The lower half of an argument, on a little-endian machine.
                let low = if cfg!(target_endian = "little") { 0 } else { 4 };
                program.push(step(LOAD, 0, 0, 16 + 8 * argument + low));
                program.push(step(ANY_BIT, 0, 1, bits));
            }
        }
        program.push(step(RETURN, 0, 0, answer));
    }
    program.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the kernel reads the program, which lives through the call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const filter,
        )
    };
    match rc {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
