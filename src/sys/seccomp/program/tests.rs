//! Programs are run by an interpreter and compared with those of the crate `seccompiler`, which
//! compares one number after the other.

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use rustix::io::Errno;

use super::super::{Call, only_sockets, restriction, restriction_with, rules};
use super::*;

/// A system call.
#[derive(Clone, Copy, Debug)]
struct Called {
    architecture: u32,
    number: u32,
    arguments: [u64; 6],
}

/// Runs a program as the kernel does. Returns the answer and the number of steps.
fn run(program: &[sock_filter], call: &Called) -> (u32, usize) {
    let load = |offset: u32| match offset {
        NUMBER => call.number,
        ARCHITECTURE => call.architecture,
        _ => {
            let (argument, rest) = ((offset - ARGUMENTS) / 8, (offset - ARGUMENTS) % 8);
            let value = call.arguments[argument as usize];
            if rest == 4 {
                (value >> 32) as u32
            } else {
                value as u32
            }
        }
    };
    let (mut at, mut loaded, mut steps) = (0, 0, 0);
    loop {
        let step = &program[at];
        (at, steps) = (at + 1, steps + 1);
        let mut jump = |holds: bool| at += usize::from(if holds { step.jt } else { step.jf });
        match u32::from(step.code) {
            LOAD => loaded = load(step.k),
            AND => loaded &= step.k,
            JUMP => at += step.k as usize,
            JUMP_IF_EQUAL => jump(loaded == step.k),
            JUMP_IF_GREATER_OR_EQUAL => jump(loaded >= step.k),
            // Only the other crate uses this.
            code if code == libc::BPF_JMP | libc::BPF_JGT => jump(loaded > step.k),
            RETURN => return (step.k, steps),
            code => panic!("unknown code {code}"),
        }
    }
}

/// Returns the same filter made by the other crate, for a table with one action beside the answer
/// to unlisted calls.
fn of_the_crate(table: &Table) -> Vec<sock_filter> {
    let action = |action: Action| match action {
        Action::Allow => SeccompAction::Allow,
        Action::Kill => SeccompAction::KillProcess,
        Action::Fail(errno) => SeccompAction::Errno(errno.into()),
        // Seccompiler has no such action, and no table here has it.
        Action::AskListener => SeccompAction::Log,
    };
    let mut matching = None;
    let mut rules = BTreeMap::new();
    for (number, rule) in &table.rules {
        let alternatives = match rule {
            Rule::Always(action) => {
                matching = Some(*action);
                Vec::new()
            }
            Rule::If {
                alternatives,
                action,
                otherwise,
            } => {
                assert!(otherwise.is_none(), "the other crate has no such rules");
                matching = Some(*action);
                alternatives.clone()
            }
        };
        let alternatives = alternatives.into_iter().map(|conditions| {
            let conditions = conditions.into_iter().map(|c| {
                let how = match c.wanted {
                    Wanted::Equal => SeccompCmpOp::MaskedEq(c.mask.into()),
                    Wanted::Different => SeccompCmpOp::Ne,
                };
                let width = SeccompCmpArgLen::Dword;
                SeccompCondition::new(c.argument, width, how, c.value.into()).unwrap()
            });
            SeccompRule::new(conditions.collect()).unwrap()
        });
        rules.insert(i64::from(*number), alternatives.collect());
    }
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let (otherwise, matching) = (action(table.otherwise), action(matching.unwrap()));
    let filter = SeccompFilter::new(rules, otherwise, matching, arch).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    let same = |i: &seccompiler::sock_filter| sock_filter {
        code: i.code,
        jt: i.jt,
        jf: i.jf,
        k: i.k,
    };
    program.iter().map(same).collect()
}

/// Returns calls of every number around those of the table, with arguments that fulfil its
/// conditions and others.
fn calls(table: &Table) -> Vec<Called> {
    let mut values = vec![0, 1, u64::MAX, 1 << 32];
    for rule in table.rules.values() {
        if let Rule::If { alternatives, .. } = rule {
            for c in alternatives.iter().flatten() {
                let value = u64::from(c.value);
                let masked = value | u64::from(!c.mask);
                // Nothing in the upper half counts.
                let upper = value | 7 << 32;
                let off = [
                    value ^ 1,
                    value ^ (u64::from(c.mask) & (1 << 31)),
                    value ^ 2,
                ];
                values.extend([value, masked, upper]);
                values.extend(off);
            }
        }
    }
    values.sort_unstable();
    values.dedup();
    let architectures = [NATIVE.unwrap(), 0x4000_0003];
    let numbers = (0..600).chain([0x4000_0000, 0x4000_0001, u32::MAX - 1, u32::MAX]);
    let mut calls = Vec::new();
    for number in numbers {
        let conditional = matches!(table.rules.get(&number), Some(Rule::If { .. }));
        let tried = if conditional {
            &values[..]
        } else {
            &values[..2]
        };
        for architecture in architectures {
            for (n, &value) in tried.iter().enumerate() {
                let other = tried[(n * 7 + 3) % tried.len()];
                for arguments in [[value; 6], [value, other, value, other, value, other]] {
                    calls.push(Called {
                        architecture,
                        number,
                        arguments,
                    });
                }
            }
        }
    }
    calls
}

/// Compares a table with the answers of the other crate, on each of these calls.
fn assert_same(table: &Table) {
    let (ours, theirs) = (table.program().unwrap(), of_the_crate(table));
    for call in calls(table) {
        let (ours, theirs) = (run(&ours, &call).0, run(&theirs, &call).0);
        if cfg!(target_arch = "x86_64") && (X32..u32::MAX).contains(&call.number) {
            // The other crate does not know x32.
            assert_ne!(ours, Action::Allow.value(), "{call:?}");
            continue;
        }
        assert_eq!(ours, theirs, "{call:?}");
    }
}

/// Returns a table like those of the sandboxes: many calls, some with conditions.
fn allowed() -> Table {
    let mut calls: Vec<Call> = (0..470)
        .filter(|n| n % 3 != 0 || n % 5 == 0)
        .map(Call::Any)
        .collect();
    let mut add = |call, argument, mask, value| {
        calls.retain(|other| !matches!(other, Call::Any(n) if *n == call));
        calls.push(Call::If {
            call,
            argument,
            mask,
            value,
        });
    };
    for value in [0x4004_9409, 0x8008_6601, 0x5401] {
        add(16, 1, u32::MAX, value);
    }
    add(9, 2, 4, 0);
    add(56, 0, 0x7e02_0100, 0x1_0100);
    add(62, 0, u32::MAX, 4711);
    for command in 0..40 {
        add(72, 1, u32::MAX, command);
    }
    restriction(&calls, &[]).unwrap()
}

#[test]
fn the_answers_are_those_of_a_search_one_by_one() {
    assert_same(&allowed());
    assert_same(&only_sockets(&[libc::AF_INET as u32, 10, 16]).unwrap());
    for step in [1, 2, 3, 7] {
        let rules = (0..400)
            .step_by(step)
            .map(|n| (n, Rule::Always(Action::Fail(38))));
        assert_same(&Table {
            rules: rules.collect(),
            otherwise: Action::Allow,
        });
    }
}

#[test]
fn calls_at_the_ends_and_of_other_architectures() {
    let rules = BTreeMap::from([
        (0, Rule::Always(Action::Allow)),
        (7, Rule::Always(Action::Fail(38))),
        (X32 - 1, Rule::Always(Action::Allow)),
        (u32::MAX, Rule::Always(Action::Allow)),
    ]);
    let otherwise = Action::Kill;
    let program = Table { rules, otherwise }.program().unwrap();
    let answer = |architecture, number| {
        let arguments = [0; 6];
        let call = Called {
            architecture,
            number,
            arguments,
        };
        run(&program, &call).0
    };
    let native = NATIVE.unwrap();
    let kill = Action::Kill.value();
    assert_eq!(answer(native, 0), Action::Allow.value());
    assert_eq!(answer(native, 1), kill);
    assert_eq!(answer(native, 7), Action::Fail(38).value());
    assert_eq!(answer(native, X32 - 2), kill);
    assert_eq!(answer(native, X32 - 1), Action::Allow.value());
    assert_eq!(answer(native, X32), kill);
    assert_eq!(answer(native, u32::MAX - 1), kill);
    assert_eq!(answer(native, u32::MAX), Action::Allow.value());
    assert_eq!(answer(0x4000_0003, 0), kill);
}

/// The kernel runs a filter about a thousand times when it is installed.
#[test]
fn a_number_is_found_in_few_steps() {
    let table = allowed();
    let program = table.program().unwrap();
    for number in (0..600).filter(|n| !matches!(table.rules.get(n), Some(Rule::If { .. }))) {
        let call = Called {
            architecture: NATIVE.unwrap(),
            number,
            arguments: [0; 6],
        };
        let (_, steps) = run(&program, &call);
        assert!(steps <= 16, "{number}: {steps} steps");
    }
}

#[test]
fn conditions_that_are_too_many_are_refused() {
    let condition = Condition {
        argument: 0,
        mask: u32::MAX,
        value: 1,
        wanted: Wanted::Equal,
    };
    let rule = Rule::If {
        alternatives: vec![vec![condition; 200]],
        action: Action::Allow,
        otherwise: None,
    };
    let table = Table {
        rules: BTreeMap::from([(1, rule)]),
        otherwise: Action::Kill,
    };
    let error = table.program().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

/// One filter that refuses some of what it allows answers as two filters do, of which the kernel takes
/// the strictest answer.
#[test]
fn refused_calls_of_one_filter_are_those_of_two() {
    let command = |value| Call::If {
        call: 16,
        argument: 1,
        mask: u32::MAX,
        value,
    };
    // One whole call, one with conditions of which others are allowed, one that is allowed whole.
    let flags = Call::If {
        call: 257,
        argument: 2,
        mask: 1,
        value: 1,
    };
    let refused = [Call::Any(83), command(0x4008_6602), flags];
    let mut allowed: Vec<_> = [0, 1, 83, 257].map(Call::Any).into();
    allowed.extend([command(0x4008_6602), command(0x5401)]);
    let both = restriction_with(&allowed, &refused, Errno::ROFS, &[435]).unwrap();
    let one = restriction(&allowed, &[435]).unwrap();
    let error = Action::Fail(30);
    let other = Table {
        rules: rules(&refused, error).unwrap(),
        otherwise: Action::Allow,
    };
    let tables = [&both, &one, &other].map(|table| table.program().unwrap());
    let mut seen = Vec::new();
    for call in calls(&one).into_iter().chain(calls(&other)) {
        if call.architecture != NATIVE.unwrap() || call.number >= 0x4000_0000 {
            continue;
        }
        let [both, one, other] = tables.each_ref().map(|table| run(table, &call).0);
        let strictest = if one == Action::Kill.value() || other == Action::Allow.value() {
            one
        } else {
            other
        };
        assert_eq!(both, strictest, "{call:?}");
        seen.push((call.number, both));
    }
    for number in [83, 16, 257] {
        assert!(seen.contains(&(number, error.value())), "{number}");
    }
    for number in [16, 257] {
        assert!(seen.contains(&(number, Action::Allow.value())), "{number}");
    }
}
