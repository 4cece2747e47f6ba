//! Disks that fail: each change is tried with each of its system calls failing in turn (EIO,
//! injected into the server by strace). The program gets an error or success; the tree is what
//! it was or what it should become, now and after a remount; and the next try works.

use std::collections::BTreeMap;

use crate::common::fixture::Fixture;
use crate::common::layers::{Form, standard, write_all};
use crate::common::mount::{Scratch, Stack, subject};
use crate::common::need_mounts;
use crate::common::strace::{Trace, need_strace};
use crate::common::tree::{self, Mask, Tree};

/// What changes a disk, and what is opened for it.
const CALLS: &str = "openat,openat2,linkat,renameat2,unlinkat,mkdirat,mknodat,symlinkat,\
    setxattr,lsetxattr,fsetxattr,removexattr,lremovexattr,fremovexattr,fchmod,fchmodat,?fchmodat2,\
    fchown,fchownat,utimensat,ftruncate,fallocate,copy_file_range,pwrite64,fsync,fdatasync";

/// strace on the server, which lets one call fail: `which` is its name, and which of its uses in
/// a thread.
fn fault(f: &Fixture, which: Option<&(String, usize)>) -> Trace {
    let trace = format!("trace={CALLS}");
    let inject = which.map(|(call, nth)| format!("inject={call}:error=EIO:when={nth}"));
    let mut args = vec!["-e", &trace];
    if let Some(inject) = &inject {
        args.extend(["-e", inject]);
    }
    Trace::of(f, &args)
}

/// Each use of each call in each thread, in order.
fn uses(calls: &[String]) -> Vec<(String, usize)> {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut uses = Vec::new();
    for line in calls {
        let mut words = line.split_whitespace();
        let (Some(thread), Some(rest)) = (words.next(), words.next()) else {
            continue;
        };
        let Some((call, _)) = rest.split_once('(') else {
            continue;
        };
        // Those of `sys::xattrat`, newer than this strace, which cannot make them fail.
        if call.starts_with("syscall_") {
            continue;
        }
        let count = counts.entry((thread, call)).or_default();
        *count += 1;
        let one = (call.to_owned(), *count);
        if !uses.contains(&one) {
            uses.push(one);
        }
    }
    uses
}

/// Lines that make a tree neither the old nor the new.
fn differences(old: &Tree, new: &Tree, now: &Tree, mask: &Mask) -> Vec<String> {
    let from_old = tree::diff(old, now, mask);
    match from_old.is_empty() || tree::diff(new, now, mask).is_empty() {
        true => Vec::new(),
        false => from_old,
    }
}

/// Tries `change` with each of its calls failing in turn, after `prepare`.
fn fail_each_call(prepare: &str, change: &str) {
    need_mounts!();
    need_strace!();
    let mask = Mask::from_now();
    let start = || {
        let scratch = Scratch::tmpfs();
        let stack = Stack {
            lowers: write_all(&standard(), scratch.path(), Form::Kernel),
            upper: Some((scratch.dir("upper"), scratch.dir("work"))),
            mnt: scratch.dir("mnt"),
        };
        let mut f = Fixture::over(&subject(), scratch, stack);
        f.ok(prepare);
        // Nothing is known to it that a new server would not know.
        f.remount();
        f
    };
    let (old, new, calls) = {
        let f = start();
        let old = f.tree();
        let trace = fault(&f, None);
        f.ok(change);
        let calls = trace.end();
        (old, f.tree(), calls)
    };
    let uses = uses(&calls);
    assert!(!uses.is_empty(), "nothing traced in {change}");
    let mut failed = 0;
    for one in &uses {
        let mut f = start();
        let trace = fault(&f, Some(one));
        let answers = f.run(change);
        let calls = trace.end();
        // Another worker may have had it this time, and with it the first use.
        let Some(what) = calls.iter().find(|l| l.contains("INJECTED")) else {
            continue;
        };
        failed += 1;
        let about = format!("{change}: {answers:?}, {what}");
        for state in ["live", "remounted"] {
            let found = differences(&old, &new, &f.tree(), &mask);
            assert!(found.is_empty(), "{about}, {state}:\n{}", found.join("\n"));
            f.remount();
        }
        if answers.iter().all(Result::is_ok) {
            tree::assert_same(&about, &new, &f.tree(), &mask);
        } else if tree::diff(&old, &f.tree(), &mask).is_empty() {
            f.ok(change);
            tree::assert_same(&format!("again, {about}"), &new, &f.tree(), &mask);
        }
    }
    eprintln!("{change}: {failed} of {} calls failed in turn", uses.len());
    assert!(failed > 0, "nothing failed in {change}");
}

#[test]
fn of_a_copy_up() {
    fail_each_call("", "write big.bin 5 changed");
    fail_each_call("", "chmod plain.txt 600");
    fail_each_call("", "chown link-rel 1 1");
}

#[test]
fn of_a_linked_file() {
    fail_each_call("", "write h1 0 changed");
    fail_each_call("write h1 0 changed", "unlink h2");
    fail_each_call("", "link h1 merged/h4");
}

#[test]
fn of_creations() {
    fail_each_call("", "create merged/new 644");
    fail_each_call("", "mkdir merged/gone 750");
    fail_each_call("unlink plain.txt", "symlink x plain.txt");
    fail_each_call("", "mkdir acl-dir/new 755");
}

#[test]
fn of_removals() {
    fail_each_call("", "unlink plain.txt");
    fail_each_call("write both.txt 0 upper", "unlink both.txt");
    fail_each_call("", "rmdir empty");
    fail_each_call(
        "unlink merged/sub/b\nunlink merged/sub/t",
        "rmdir merged/sub",
    );
}

#[test]
fn of_renames() {
    fail_each_call("", "rename plain.txt merged/plain");
    fail_each_call("", "rename plain.txt both.txt");
    fail_each_call("", "rename merged moved");
    fail_each_call("create new 644", "rename new plain.txt");
    fail_each_call("", "rename plain.txt both.txt exchange");
    fail_each_call("mkdir d 755", "rename d empty");
}
