//! Filters of system calls (seccomp(2)) for the calling thread, and for threads and processes that
//! it starts later.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::io;

use rustix::io::Errno;

use program::{Action, Condition, Rule, Table, Wanted};

mod program;

/// The number of this architecture in filters (`AUDIT_ARCH_*` of linux/audit.h), if it is known
/// here.
pub const ARCHITECTURE: Option<u32> = program::NATIVE;

/// A system call in a list of allowed or refused calls.
#[derive(Clone, Copy, Debug)]
pub enum Call {
    /// It matches with all arguments.
    Any(libc::c_long),
    /// It matches if the bits `mask` of the argument at this position, counted from 0, equal
    /// `value`. Several entries for one call are alternatives.
    If {
        /// The number of the call.
        call: libc::c_long,
        /// The position of the argument.
        argument: u8,
        /// The bits that are compared, of the lower 32.
        mask: u32,
        /// The wanted value of these bits.
        value: u32,
    },
}

/// Has every system call killed that is not among `allowed`, with the process. This includes calls
/// with the numbers of another architecture. Those of `unknown` fail with ENOSYS.
///
/// # Errors
/// Those of seccomp(2); [`io::ErrorKind::Unsupported`] on architectures without a filter.
pub fn restrict(allowed: &[Call], unknown: &[libc::c_long]) -> io::Result<()> {
    install(&restriction(allowed, unknown)?)
}

/// As [`restrict`], and has those of `refused` fail with that error. What is refused must be allowed.
/// It is one filter: each further one takes time to install.
///
/// # Errors
/// As [`restrict`].
pub fn restrict_refusing(
    allowed: &[Call],
    refused: &[Call],
    error: Errno,
    unknown: &[libc::c_long],
) -> io::Result<()> {
    install(&restriction_with(allowed, refused, error, unknown)?)
}

/// A rule of a [`program`].
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// The number of the call.
    pub call: libc::c_long,
    /// The position of an argument, counted from 0, and bits of its lower 32: the rule applies if
    /// one of them is set. `None`: it applies to all calls.
    pub bits: Option<(u8, u32)>,
    /// What the rule does.
    pub then: Then,
}

/// What a rule of a [`program`] does with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It fails with this errno; 0: it does nothing and succeeds.
    Errno(u16),
    /// The listener of the filter answers it ([`notify`](super::notify)).
    AskListener,
}

/// Returns a filter for another program: `struct sock_filter` after `struct sock_filter`, as
/// bubblewrap reads it. The calls get these answers; of several for one call the first counts. All
/// others are allowed. Calls with the numbers of another architecture kill the process, because the
/// rules do not know their numbers. `None`: the architecture is not known here.
pub fn program(answers: &[Answer]) -> Option<Vec<u8>> {
    let steps = steps(answers).ok()?;
    let bytes = steps.iter().flat_map(|step| {
        let [a, b] = step.code.to_ne_bytes();
        let [c, d, e, f] = step.k.to_ne_bytes();
        [a, b, step.jt, step.jf, c, d, e, f]
    });
    Some(bytes.collect())
}

/// Returns the steps of a [`program`].
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] on architectures without a filter.
pub(super) fn steps(answers: &[Answer]) -> io::Result<Vec<libc::sock_filter>> {
    let mut rules = BTreeMap::new();
    for answer in answers {
        let action = match answer.then {
            Then::Errno(number) => Action::Fail(number),
            Then::AskListener => Action::AskListener,
        };
        let rule = match answer.bits {
            None => Rule::Always(action),
            Some((argument, mask)) => Rule::If {
                alternatives: vec![vec![Condition {
                    argument,
                    mask,
                    value: 0,
                    wanted: Wanted::Different,
                }]],
                action,
                otherwise: None,
            },
        };
        rules.entry(number(answer.call)?).or_insert(rule);
    }
    let otherwise = Action::Allow;
    Table { rules, otherwise }.program()
}

/// Allows only sockets of these families. Others fail with EAFNOSUPPORT. Of netlink(7) only routing
/// is allowed, from which libc learns the addresses of this machine: the kernel has other services
/// behind netlink.
///
/// # Errors
/// As [`restrict`].
pub fn refuse_sockets_but(families: &[u32]) -> io::Result<()> {
    install(&only_sockets(families)?)
}

fn restriction(allowed: &[Call], unknown: &[libc::c_long]) -> io::Result<Table> {
    let mut rules = rules(allowed, Action::Allow)?;
    let enosys = Rule::Always(failure(Errno::NOSYS)?);
    for call in unknown {
        rules.insert(number(*call)?, enosys.clone());
    }
    Ok(Table {
        rules,
        otherwise: Action::Kill,
    })
}

fn restriction_with(
    allowed: &[Call],
    refused: &[Call],
    error: Errno,
    unknown: &[libc::c_long],
) -> io::Result<Table> {
    let mut table = restriction(allowed, unknown)?;
    for (number, rule) in rules(refused, failure(error)?)? {
        table.put_before(number, rule);
    }
    Ok(table)
}

fn only_sockets(families: &[u32]) -> io::Result<Table> {
    let is = |argument, value, wanted| Condition {
        argument,
        mask: u32::MAX,
        value,
        wanted,
    };
    let others = families.iter();
    let others = others.map(|family| is(0, *family, Wanted::Different));
    let netlink = vec![
        is(0, libc::AF_NETLINK.unsigned_abs(), Wanted::Equal),
        is(2, libc::NETLINK_ROUTE.unsigned_abs(), Wanted::Different),
    ];
    let rule = Rule::If {
        alternatives: vec![others.collect(), netlink],
        action: failure(Errno::AFNOSUPPORT)?,
        otherwise: None,
    };
    Ok(Table {
        rules: BTreeMap::from([(number(libc::SYS_socket)?, rule)]),
        otherwise: Action::Allow,
    })
}

/// Returns a rule for each call of a list. A call that is in it without a condition gets `action`
/// with all arguments.
fn rules(calls: &[Call], action: Action) -> io::Result<BTreeMap<u32, Rule>> {
    let mut rules: BTreeMap<u32, Rule> = BTreeMap::new();
    for call in calls {
        let (call, condition) = match *call {
            Call::Any(call) => {
                rules.insert(number(call)?, Rule::Always(action));
                continue;
            }
            Call::If {
                call,
                argument,
                mask,
                value,
            } => {
                let wanted = Wanted::Equal;
                let condition = Condition {
                    argument,
                    mask,
                    value,
                    wanted,
                };
                (call, condition)
            }
        };
        let rule = rules.entry(number(call)?).or_insert(Rule::If {
            alternatives: Vec::new(),
            action,
            otherwise: None,
        });
        if let Rule::If { alternatives, .. } = rule {
            alternatives.push(vec![condition]);
        }
    }
    Ok(rules)
}

fn number(call: libc::c_long) -> io::Result<u32> {
    u32::try_from(call).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn failure(error: Errno) -> io::Result<Action> {
    let number = u16::try_from(error.raw_os_error());
    Ok(Action::Fail(
        number.map_err(|_| io::ErrorKind::InvalidInput)?,
    ))
}

/// Installs a filter beside those that are in force. The kernel takes the strictest answer.
fn install(table: &Table) -> io::Result<()> {
    super::capabilities::set_no_new_privs()?;
    load(&table.program()?, 0).map(drop)
}

/// Calls seccomp(2) with the steps of a filter and `SECCOMP_FILTER_FLAG_*`, and returns its result. It
/// allocates nothing.
pub(super) fn load(steps: &[libc::sock_filter], flags: libc::c_ulong) -> io::Result<libc::c_long> {
    let described = libc::sock_fprog {
        len: u16::try_from(steps.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: steps.as_ptr().cast_mut(),
    };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: `described` and the program that it points to live through the call, which only reads
    // them.
    match unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const described) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}
