//! Filters as programs of classic BPF, which the kernel runs before a system call
//! (Documentation/userspace-api/seccomp_filter.rst, linux/filter.h).
//!
//! A program searches the number of the call in a sorted list of ranges by halving. When a filter is
//! installed, the kernel runs it once for each number that the architecture has
//! (`seccomp_cache_prepare_bitmap` in Linux' kernel/seccomp.c). With a program that compares one
//! number after the other, that takes a millisecond for 150 calls.
//!
//! Invariant: every path through a program ends in an action, so programs can be put one after the
//! other.

use std::collections::BTreeMap;
use std::io;

use libc::sock_filter;

/// The answer of a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Allow,
    /// The process is killed.
    Kill,
    /// The call fails with this error number.
    Fail(u16),
    /// The call waits for the answer of the filter's listener (seccomp_unotify(2)).
    AskListener,
}

impl Action {
    pub(super) fn value(self) -> u32 {
        match self {
            Self::Allow => libc::SECCOMP_RET_ALLOW,
            Self::Kill => libc::SECCOMP_RET_KILL_PROCESS,
            Self::Fail(errno) => libc::SECCOMP_RET_ERRNO | u32::from(errno),
            Self::AskListener => libc::SECCOMP_RET_USER_NOTIF,
        }
    }
}

/// A condition on the lower 32 bits of an argument.
#[derive(Clone, Copy, Debug)]
pub(super) struct Condition {
    /// The position of the argument, from 0 to 5.
    pub(super) argument: u8,
    /// The bits that are compared.
    pub(super) mask: u32,
    /// The value of these bits; other bits do not count.
    pub(super) value: u32,
    pub(super) wanted: Wanted,
}

/// The result of a comparison that fulfils a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Equal,
    Different,
}

/// What a filter answers to one call.
#[derive(Clone, Debug)]
pub(super) enum Rule {
    Always(Action),
    /// `action` if all conditions of one alternative hold, else as `otherwise` says. `None`: the answer
    /// to unlisted calls.
    If {
        alternatives: Vec<Vec<Condition>>,
        action: Action,
        otherwise: Option<Box<Rule>>,
    },
}

/// The answers of a filter.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// By the number of the call.
    pub(super) rules: BTreeMap<u32, Rule>,
    /// The answer to all other calls.
    pub(super) otherwise: Action,
}

/// Offsets in `struct seccomp_data` (linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// The value of `seccomp_data.arch` for calls of this program (linux/audit.h). The lower half of an
/// argument comes first on these architectures.
pub(super) const NATIVE: Option<u32> = if cfg!(target_arch = "x86_64") {
    Some(0xc000_003e)
} else if cfg!(target_arch = "aarch64") {
    Some(0xc000_00b7)
} else if cfg!(target_arch = "riscv64") {
    Some(0xc000_00f3)
} else {
    None
};

/// The bit of numbers of the x32 ABI (Linux' arch/x86/include/uapi/asm/unistd.h). It has the same
/// `seccomp_data.arch`, and the same calls under other numbers.
const X32: u32 = 0x4000_0000;

/// Codes of instructions (linux/bpf_common.h, linux/filter.h).
const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const JUMP_IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const JUMP_IF_GREATER_OR_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// The longest jump of a comparison.
const FAR: usize = u8::MAX as usize;

/// Calls with neighbouring numbers that get the same answer.
struct Range {
    first: u32,
    program: Vec<sock_filter>,
}

impl Table {
    /// Adds a rule that comes before the one that the call has.
    pub(super) fn put_before(&mut self, number: u32, mut rule: Rule) {
        let known = self.rules.remove(&number);
        if let Rule::If { otherwise, .. } = &mut rule {
            *otherwise = known.map(Box::new);
        }
        self.rules.insert(number, rule);
    }

    /// Returns the program. It kills the process for a call with the numbers of another
    /// architecture.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] on architectures without a filter;
    /// [`io::ErrorKind::InvalidInput`] for a rule whose conditions are too many.
    pub(super) fn program(&self) -> io::Result<Vec<sock_filter>> {
        let native = NATIVE.ok_or(io::ErrorKind::Unsupported)?;
        let mut program = vec![
            instruction(LOAD, ARCHITECTURE),
            jump(JUMP_IF_EQUAL, native, 1, 0)?,
            instruction(RETURN, Action::Kill.value()),
            instruction(LOAD, NUMBER),
        ];
        if cfg!(target_arch = "x86_64") {
            // The greatest number is no call of x32: a tracer sets it to skip a call.
            program.push(jump(JUMP_IF_GREATER_OR_EQUAL, X32, 0, 2)?);
            program.push(jump(JUMP_IF_EQUAL, u32::MAX, 1, 0)?);
            program.push(instruction(RETURN, self.of_x32().value()));
        }
        program.extend(search(&self.ranges()?)?);
        Ok(program)
    }

    /// Returns the answer to calls of x32. A filter that allows what it does not list must not allow
    /// them.
    fn of_x32(&self) -> Action {
        match self.otherwise {
            Action::Kill => Action::Kill,
            Action::Allow | Action::Fail(_) | Action::AskListener => {
                Action::Fail(libc::ENOSYS as u16)
            }
        }
    }

    /// Returns the ranges of all numbers in their order. The first begins at 0.
    fn ranges(&self) -> io::Result<Vec<Range>> {
        let mut ranges: Vec<Range> = Vec::new();
        let mut add = |first, program: Vec<sock_filter>| match ranges.last_mut() {
            Some(last) if is_same(&last.program, &program) => {}
            _ => ranges.push(Range { first, program }),
        };
        let otherwise = vec![instruction(RETURN, self.otherwise.value())];
        let mut next = Some(0);
        for (&number, rule) in &self.rules {
            if next.is_some_and(|next| next < number) {
                add(next.unwrap_or_default(), otherwise.clone());
            }
            add(number, rule.program(self.otherwise)?);
            next = number.checked_add(1);
        }
        if let Some(next) = next {
            add(next, otherwise);
        }
        Ok(ranges)
    }
}

impl Rule {
    /// Returns a program for a call of whose number is known that the rule is for it.
    fn program(&self, otherwise: Action) -> io::Result<Vec<sock_filter>> {
        let (alternatives, action, rest) = match self {
            Self::Always(action) => return Ok(vec![instruction(RETURN, action.value())]),
            Self::If {
                alternatives,
                action,
                otherwise,
            } => (alternatives, *action, otherwise),
        };
        let mut program = Vec::new();
        for alternative in alternatives {
            program.extend(all_hold(alternative, action)?);
        }
        let rest = rest
            .as_deref()
            .unwrap_or(&Self::Always(otherwise))
            .program(otherwise)?;
        program.extend(rest);
        Ok(program)
    }
}

/// Returns a program that ends in `action` if all conditions hold, and else goes on behind its end.
fn all_hold(conditions: &[Condition], action: Action) -> io::Result<Vec<sock_filter>> {
    // From the last one on, as each condition jumps over all that follows it.
    let mut program = vec![instruction(RETURN, action.value())];
    for condition in conditions.iter().rev() {
        let over = program.len();
        let mut test = vec![instruction(
            LOAD,
            ARGUMENTS + 8 * u32::from(condition.argument),
        )];
        if condition.mask != u32::MAX {
            test.push(instruction(AND, condition.mask));
        }
        let (equal, different) = match condition.wanted {
            Wanted::Equal => (0, over),
            Wanted::Different => (over, 0),
        };
        let value = condition.value & condition.mask;
        test.push(jump(JUMP_IF_EQUAL, value, equal, different)?);
        test.append(&mut program);
        program = test;
    }
    Ok(program)
}

/// Returns a program that finds the range of the loaded number.
fn search(ranges: &[Range]) -> io::Result<Vec<sock_filter>> {
    let (below, above) = ranges.split_at(ranges.len() / 2);
    let first = match (below, above) {
        ([], [only]) => return Ok(only.program.clone()),
        (_, [first, ..]) => first.first,
        (_, []) => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let (below, above) = (search(below)?, search(above)?);
    let mut program = if below.len() <= FAR {
        vec![jump(JUMP_IF_GREATER_OR_EQUAL, first, below.len(), 0)?]
    } else {
        let over = u32::try_from(below.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let far = instruction(JUMP, over);
        vec![jump(JUMP_IF_GREATER_OR_EQUAL, first, 0, 1)?, far]
    };
    program.extend(below);
    program.extend(above);
    Ok(program)
}

fn is_same(one: &[sock_filter], other: &[sock_filter]) -> bool {
    let fields = |i: &sock_filter| (i.code, i.jt, i.jf, i.k);
    one.iter().map(fields).eq(other.iter().map(fields))
}

/// Returns an instruction that is no comparison.
fn instruction(code: u32, value: u32) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k: value,
    }
}

/// Returns a comparison, with the numbers of instructions to jump over.
fn jump(code: u32, value: u32, if_true: usize, if_false: usize) -> io::Result<sock_filter> {
    let near = |over| u8::try_from(over).map_err(|_| io::ErrorKind::InvalidInput);
    Ok(sock_filter {
        code: code as u16,
        jt: near(if_true)?,
        jf: near(if_false)?,
        k: value,
    })
}

#[cfg(test)]
mod tests;
