//! Filters of system calls (seccomp(2)) for the calling thread, and for threads and processes that
//! it starts later.

use std::collections::BTreeMap;
use std::io;

use rustix::io::Errno;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

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
    let arch = architecture()?;
    let mut rules = rules_of(allowed)?;
    let refused: BTreeMap<_, _> = unknown.iter().map(|call| (*call, Vec::new())).collect();
    // If two filters disagree, the kernel takes the stricter answer.
    rules.extend(refused.clone());
    let enosys = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let kill = SeccompAction::KillProcess;
    for program in [
        compile(refused, SeccompAction::Allow, enosys, arch)?,
        compile(rules, kill, SeccompAction::Allow, arch)?,
    ] {
        seccompiler::apply_filter(&program).map_err(io::Error::other)?;
    }
    Ok(())
}

fn architecture() -> io::Result<TargetArch> {
    TargetArch::try_from(std::env::consts::ARCH)
        .map_err(|error| io::Error::new(io::ErrorKind::Unsupported, error))
}

fn rules_of(calls: &[Call]) -> io::Result<BTreeMap<i64, Vec<SeccompRule>>> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in calls {
        match *call {
            Call::Any(call) => drop(rules.insert(call, Vec::new())),
            Call::If {
                call,
                argument,
                mask,
                value,
            } => {
                let bits = SeccompCmpOp::MaskedEq(u64::from(mask));
                let width = SeccompCmpArgLen::Dword;
                let rule = SeccompCondition::new(argument, width, bits, u64::from(value))
                    .and_then(|condition| SeccompRule::new(vec![condition]))
                    .map_err(io::Error::other)?;
                rules.entry(call).or_default().push(rule);
            }
        }
    }
    Ok(rules)
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matching: SeccompAction,
    arch: TargetArch,
) -> io::Result<BpfProgram> {
    SeccompFilter::new(rules, otherwise, matching, arch)
        .and_then(BpfProgram::try_from)
        .map_err(io::Error::other)
}

/// Makes these system calls fail with that error.
///
/// # Errors
/// As [`restrict`].
pub fn refuse(calls: &[Call], error: Errno) -> io::Result<()> {
    let arch = architecture()?;
    let rules = rules_of(calls)?;
    let refused = SeccompAction::Errno(error.raw_os_error().unsigned_abs());
    let program = compile(rules, SeccompAction::Allow, refused, arch)?;
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}

/// Allows only sockets of these families. Others fail with EAFNOSUPPORT. Of netlink(7) only routing
/// is allowed, from which libc learns the addresses of this machine: the kernel has other services
/// behind netlink.
///
/// # Errors
/// As [`restrict`].
pub fn refuse_sockets_but(families: &[u32]) -> io::Result<()> {
    let arch = architecture()?;
    let others = families.iter().map(|family| {
        let width = SeccompCmpArgLen::Dword;
        SeccompCondition::new(0, width, SeccompCmpOp::Ne, u64::from(*family))
    });
    let others = others.collect::<Result<Vec<_>, _>>();
    let rule = others
        .and_then(SeccompRule::new)
        .map_err(io::Error::other)?;
    let netlink = [
        (0, SeccompCmpOp::Eq, libc::AF_NETLINK),
        (2, SeccompCmpOp::Ne, libc::NETLINK_ROUTE),
    ];
    let netlink = netlink.into_iter().map(|(argument, how, value)| {
        let width = SeccompCmpArgLen::Dword;
        SeccompCondition::new(argument, width, how, u64::from(value.unsigned_abs()))
    });
    let other_netlink = netlink
        .collect::<Result<Vec<_>, _>>()
        .and_then(SeccompRule::new)
        .map_err(io::Error::other)?;
    let rules = BTreeMap::from([(libc::SYS_socket, vec![rule, other_netlink])]);
    let refused = SeccompAction::Errno(libc::EAFNOSUPPORT.unsigned_abs());
    let program = compile(rules, SeccompAction::Allow, refused, arch)?;
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}
