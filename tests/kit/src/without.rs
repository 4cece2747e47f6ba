//! Hosts that lack system calls: the program runs under a filter of system calls (seccomp(2)) that
//! refuses them as an old kernel does, and does not use what an old kernel does not offer for FUSE
//! (`UNIONFS_TEST_KERNEL_WITHOUT`, which programs with debug assertions read). `UNIONFS_TEST_WITHOUT`
//! names what is missing for all mounts of the tests, so that a whole suite runs without it.
#![allow(unsafe_code)]

use std::io;
use std::process::{Command, Output};

use crate::mount::{Mounted, Stack};

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
    /// Character devices 0:0 (mknodat(2) with ENOENT, as on fuse-overlayfs).
    Whiteouts,
    /// The same with another error.
    WhiteoutsWith(i32),
    /// chown(2) and its relatives to any user but root (EPERM, as on NFS for root that is another user
    /// there).
    Chown,
    /// READDIRPLUS, Linux 3.9.
    ReaddirPlus,
    /// ENOSYS as the answer to OPEN (Linux 3.16) and OPENDIR (Linux 5.1).
    NoOpen,
    /// All calls that Linux 4.18 does not have.
    Linux4_18,
    /// The same and statx(2), refused with EPERM by a filter of system calls that does not know them: that of
    /// Docker before 20.10.
    OldFilter,
}

/// All of them, with their names in `UNIONFS_TEST_WITHOUT`.
pub const ALL: [(&str, Lack); 18] = [
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
    ("whiteouts", Lack::Whiteouts),
    ("readdirplus", Lack::ReaddirPlus),
    ("no-open", Lack::NoOpen),
    ("4.18", Lack::Linux4_18),
    ("old-filter", Lack::OldFilter),
];

/// A rule of the filter.
struct Rule {
    call: libc::c_long,
    /// The position of an argument and bits; the rule applies if one of them is set (`None`: to all
    /// calls).
    bits: Option<(u32, u32)>,
    /// The position of an argument that must be 0 as well.
    zero: Option<u32>,
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
                zero: None,
                error: libc::ENOSYS,
            };
            calls.iter().map(rule).collect()
        };
        let with = |call, argument, bits: i32, error| Rule {
            call,
            bits: Some((argument, bits as u32)),
            zero: None,
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
            Self::Whiteouts => Self::WhiteoutsWith(libc::ENOENT).rules(),
            Self::WhiteoutsWith(error) => {
                let kind = libc::S_IFCHR as i32;
                let mut rule = with(libc::SYS_mknodat, 2, kind, error);
                rule.zero = Some(3);
                vec![rule]
            }
            // No change of an ID (all bits) is one of these as well, which nobody but chown(1) asks for.
            Self::Chown => {
                let calls = [(libc::SYS_fchown, 1), (libc::SYS_fchownat, 2)];
                let of = |(call, first)| {
                    [
                        with(call, first, -1, libc::EPERM),
                        with(call, first + 1, -1, libc::EPERM),
                    ]
                };
                calls.into_iter().flat_map(of).collect()
            }
            Self::ReaddirPlus | Self::NoOpen => Vec::new(),
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
            Self::OldFilter => {
                let mut rules = Self::Linux4_18.rules();
                rules.extend(Self::Statx.rules());
                rules.iter_mut().for_each(|rule| rule.error = libc::EPERM);
                rules
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

/// Mounts a stack by a program that lacks these. `options` follow those of the stack.
///
/// # Panics
/// If the mount fails.
pub fn mount(stack: &Stack, options: &str, lacks: &[Lack]) -> Mounted {
    let mut command = Command::new(crate::program());
    command.args(["-o", &format!("{}{options}", stack.options())]);
    let output = output(command.arg(&stack.mnt), lacks).unwrap();
    assert!(output.status.success(), "{lacks:?} {output:?}");
    Mounted::new(&stack.mnt, true)
}

/// As [`has`], for tests of `trusted.*` xattrs in lists: without pidfd_open(2) the server does not know who
/// may see them.
///
/// # Errors
/// As [`has`].
pub fn lists_trusted() -> Result<(), String> {
    has(&[Lack::Linux4_18, Lack::OldFilter])
}

/// As [`has`], for tests of what file handles alone make possible: groups of hard links that a copy-up
/// keeps, numbers that outlive a mount, and metacopies in uppers of others.
///
/// # Errors
/// As [`has`].
pub fn has_file_handles() -> Result<(), String> {
    has(&[Lack::FileHandles])
}

/// As [`has`], for tests of what statx(2) alone tells: times of birth, generations, and the protection of
/// files of lowers.
///
/// # Errors
/// As [`has`].
pub fn has_statx() -> Result<(), String> {
    has(&[Lack::Statx, Lack::OldFilter])
}

/// Whether mounts of the tests have these. The error is the reason why a test whose expectation needs
/// them cannot run.
///
/// # Errors
/// The first that `UNIONFS_TEST_WITHOUT` names.
pub fn has(needed: &[Lack]) -> Result<(), String> {
    let asked = asked();
    match needed.iter().find(|lack| asked.contains(lack)) {
        Some(lack) => Err(format!("{lack:?} is left out (UNIONFS_TEST_WITHOUT)")),
        None => Ok(()),
    }
}

/// Whether mounts of the tests lack nothing, for tests that count messages or system calls.
///
/// # Errors
/// As [`has`].
pub fn has_everything() -> Result<(), String> {
    has(&ALL.map(|(_, lack)| lack))
}

/// Runs a command without these, and all that it starts.
///
/// # Errors
/// Those of seccomp(2), which needs root, and of [`Command::output`].
pub fn output(command: &mut Command, lacks: &[Lack]) -> io::Result<Output> {
    if lacks.is_empty() {
        return command.output();
    }
    let of_kernel = lacks.iter().filter_map(|lack| match lack {
        Lack::ReaddirPlus => Some("readdirplus"),
        Lack::NoOpen => Some("no-open"),
        _ => None,
    });
    let of_kernel: Vec<&str> = of_kernel.collect();
    command.env("UNIONFS_TEST_KERNEL_WITHOUT", of_kernel.join(","));
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
        // The lower half of an argument, on a little-endian machine.
        let low = if cfg!(target_endian = "little") { 0 } else { 4 };
        let argument = |position: u32| step(LOAD, 0, 0, 16 + 8 * position + low);
        let mut conditions = Vec::new();
        if let Some((position, bits)) = rule.bits {
            conditions.push((argument(position), ANY_BIT, bits));
        }
        if let Some(position) = rule.zero {
            conditions.push((argument(position), EQUAL, 0));
        }
        // A condition that does not hold goes on behind the answer.
        let mut rest = 2 * conditions.len() as u8 + 1;
        program.push(step(EQUAL, 0, rest, rule.call as u32));
        for (load, compare, value) in conditions {
            rest -= 2;
            program.push(load);
            program.push(step(compare, 0, rest, value));
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
