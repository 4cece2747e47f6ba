//! Disks that fail: each change is tried with each of its system calls failing in turn (EIO, ENOSPC
//! or EDQUOT, injected into the server by strace). The program gets that error or success. The tree
//! is the one before or after the change: at once, after a remount, and as kernel overlayfs reads
//! it. Nothing is left of the failed change, and the next one works.
//!
//! The three errors take turns; with `UNIONFS_FAULTS=all` each call fails with each of them.

use std::collections::BTreeMap;

use testkit::fixture::Fixture;
use testkit::layers::{Form, standard, write_all};
use testkit::mount::{Fs, KERNEL, Scratch, Stack, subject};
use testkit::need::has_tools;
use testkit::strace::Trace;
use testkit::tree::{self, Mask, Tree};
use testkit::{need, need_mounts};

/// The calls that change a disk, and those that open files for a change.
const CALLS: &str = "openat,openat2,linkat,renameat2,unlinkat,mkdirat,mknodat,symlinkat,\
    setxattr,lsetxattr,fsetxattr,removexattr,lremovexattr,fremovexattr,fchmod,fchmodat,?fchmodat2,\
    fchown,fchownat,utimensat,ftruncate,fallocate,copy_file_range,pwrite64,fsync,fdatasync";

/// The errors of a disk.
const ERRORS: [&str; 3] = ["EIO", "ENOSPC", "EDQUOT"];

/// A call that fails: its name, and its number among the uses in a thread.
pub(crate) type Use = (String, usize);

/// Starts strace on the server with `calls`, one of which may fail with an error.
pub(crate) fn fault(f: &Fixture, calls: &str, which: Option<(&Use, &str)>) -> Trace {
    let trace = format!("trace={calls}");
    let inject =
        which.map(|((call, nth), error)| format!("inject={call}:error={error}:when={nth}"));
    let mut args = vec!["-e", &trace];
    if let Some(inject) = &inject {
        args.extend(["-e", inject]);
    }
    Trace::of(f, &args)
}

/// Returns each use of each call in each thread, in order.
pub(crate) fn uses(calls: &[String]) -> Vec<Use> {
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
        // The calls of `sys::xattrat` are newer than this strace, which cannot make them fail.
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

/// Returns the differences that make a tree neither the old nor the new one.
fn differences(old: &Tree, new: &Tree, now: &Tree, mask: &Mask) -> Vec<String> {
    let from_old = tree::diff(old, now, mask);
    if from_old.is_empty() || tree::diff(new, now, mask).is_empty() {
        Vec::new()
    } else {
        from_old
    }
}

/// The mounts of a union: unionfs and kernel overlayfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copies {
    /// Copy-up copies the data.
    Whole,
    /// Changes of metadata copy no data (`metacopy=on`).
    Metadata,
}

impl Copies {
    fn union(self) -> Fs {
        match self {
            Self::Whole => subject(),
            Self::Metadata => Fs::Unionfs("metacopy=on"),
        }
    }

    fn kernel(self) -> Fs {
        match self {
            Self::Whole => KERNEL,
            Self::Metadata => Fs::Kernel("index=on,redirect_dir=on,metacopy=on,xino=auto"),
        }
    }
}

/// A union over the standard layers, after `prepare`, with a system call that always fails for the
/// server, and its error.
#[derive(Clone, Copy)]
pub(crate) struct Setup<'s> {
    pub(crate) prepare: &'s str,
    pub(crate) without: Option<(i64, i32)>,
    pub(crate) copies: Copies,
}

impl<'s> From<&'s str> for Setup<'s> {
    fn from(prepare: &'s str) -> Self {
        Self {
            prepare,
            without: None,
            copies: Copies::Whole,
        }
    }
}

impl Setup<'_> {
    /// Mounts the union.
    pub(crate) fn start(self) -> Fixture {
        let mut f = start_as(self.copies, self.prepare);
        let Some((call, error)) = self.without else {
            return f;
        };
        f.unmount();
        // The filter applies to a thread and those that it starts, and ends with it.
        std::thread::scope(|scope| {
            let mount = || {
                crate::fault_rows::refuse(call, error);
                f.remount();
            };
            scope.spawn(mount).join().unwrap();
        });
        f
    }
}

/// Starts a union over the standard layers, after `prepare`.
pub(crate) fn start(prepare: &str) -> Fixture {
    start_as(Copies::Whole, prepare)
}

fn start_as(copies: Copies, prepare: &str) -> Fixture {
    let scratch = Scratch::tmpfs();
    let stack = Stack {
        lowers: write_all(&standard(), scratch.path(), Form::Kernel),
        upper: Some((scratch.dir("upper"), scratch.dir("work"))),
        mnt: scratch.dir("mnt"),
    };
    let mut f = Fixture::over(&copies.union(), scratch, stack);
    if !prepare.is_empty() {
        f.ok(prepare);
        // The server has cached nothing that a new server would not know.
        f.remount();
    }
    f
}

/// The union before and after a change.
pub(crate) struct States {
    pub(crate) old: Tree,
    pub(crate) new: Tree,
    pub(crate) mask: Mask,
    pub(crate) copies: Copies,
}

/// Asserts that after a failure the union is one of the two trees, for every implementation that
/// mounts it.
pub(crate) fn look(f: &mut Fixture, states: &States, mask: &Mask, about: &str) {
    let States { old, new, .. } = states;
    let one_of_both = |state: &str, tree: &Tree| {
        let found = differences(old, new, tree, mask);
        assert!(found.is_empty(), "{about}, {state}:\n{}", found.join("\n"));
    };
    one_of_both("live", &f.tree());
    f.unmount();
    // The next mount removes files that could not be removed; otherwise there is nothing to remove.
    if !about.contains("unlinkat(") {
        let work = f.stack.upper.as_ref().unwrap().1.join("work");
        let staged: Vec<_> = std::fs::read_dir(work).unwrap().collect();
        assert!(staged.is_empty(), "{about}: {staged:?} is left");
    }
    let kernel = states.copies.kernel().mount(&f.stack);
    let theirs = tree::list(kernel.path());
    kernel.unmount();
    f.remount();
    let ours = f.tree();
    one_of_both("remounted", &ours);
    tree::assert_same(&format!("{about}, the kernel"), &ours, &theirs, mask);
}

/// Tells whether that call restores the time of a directory after a copy-up into it. As in
/// overlayfs (ovl_link_up), a failure of that is ignored.
fn is_time_put_back(call: &str) -> bool {
    call.contains("utimensat(") && call.contains("\"/proc/self/fd/")
}

/// Tries `change` with one of its calls failing; returns whether the call was made.
fn fail(setup: Setup<'_>, change: &str, (one, error): (&Use, &str), states: &States) -> bool {
    let States { old, new, mask, .. } = states;
    let mut f = setup.start();
    let trace = fault(&f, CALLS, Some((one, error)));
    let answers = f.run(change);
    let calls = trace.end();
    // Another worker may have handled the request this time, and made the first use of the call.
    let Some(what) = calls.iter().find(|l| l.contains("INJECTED")) else {
        return false;
    };
    let about = format!("{change}: {answers:?}, {what}");
    let errors: Vec<_> = answers.iter().filter_map(|a| a.as_ref().err()).collect();
    let mask = &Mask {
        dir_mtimes: !is_time_put_back(what),
        ..*mask
    };
    // Later lines of the script may need objects that the first ones did not make. Without its
    // redirect a directory cannot move, which is EXDEV, as in overlayfs: mv(1) then copies.
    let redirect = what.contains(".redirect\"");
    let fits = |e: &&String| **e == error || redirect && *e == "EXDEV";
    assert!(
        errors.first().is_none_or(fits),
        "{about}: not what the disk said"
    );
    look(&mut f, states, mask, &about);
    if errors.is_empty() {
        tree::assert_same(&about, new, &f.tree(), mask);
    } else if tree::diff(old, &f.tree(), mask).is_empty() {
        f.ok(change);
        tree::assert_same(&format!("again, {about}"), new, &f.tree(), mask);
    }
    true
}

/// Tries `change` with each of its calls failing in turn, after `prepare`.
pub(crate) fn fail_each_call<'s>(setup: impl Into<Setup<'s>>, change: &str) {
    need_mounts!();
    need!(has_tools(&["strace"]));
    let setup = setup.into();
    let mask = Mask::from_now();
    let (old, new, calls) = {
        let f = setup.start();
        let old = f.tree();
        let trace = fault(&f, CALLS, None);
        f.ok(change);
        let calls = trace.end();
        (old, f.tree(), calls)
    };
    let uses = uses(&calls);
    assert!(!uses.is_empty(), "nothing traced in {change}");
    let copies = setup.copies;
    let states = States {
        old,
        new,
        mask,
        copies,
    };
    let all = std::env::var("UNIONFS_FAULTS").is_ok_and(|v| v == "all");
    let mut failed = 0;
    for (n, one) in uses.iter().enumerate() {
        // Each change begins with another error, so that every error meets every kind of call.
        let first = change.len() + n;
        let errors = (0..if all { 3 } else { 1 }).map(|k| ERRORS[(first + k) % 3]);
        failed += errors
            .filter(|e| fail(setup, change, (one, e), &states))
            .count();
    }
    eprintln!("{change}: {failed} faults at {} calls", uses.len());
    assert!(failed > 0, "nothing failed in {change}");
}

#[test]
fn of_a_copy_up() {
    fail_each_call("", "write big.bin 5 changed");
    fail_each_call("", "chmod plain.txt 600");
    fail_each_call("", "chown link-rel 1 1");
}

/// Copy-ups of metadata, the completion of one, and redirects of files.
#[test]
fn of_metacopies() {
    let setup = |prepare| Setup {
        prepare,
        without: None,
        copies: Copies::Metadata,
    };
    fail_each_call(setup(""), "chmod big.bin 600");
    fail_each_call(setup("chmod big.bin 600"), "write big.bin 5 changed");
    fail_each_call(setup(""), "chown h1 5 5");
    fail_each_call(setup(""), "rename plain.txt merged/plain");
    fail_each_call(setup(""), "link plain.txt merged/second");
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

#[test]
fn of_special_files_and_unnamed_ones() {
    fail_each_call("", "mknod merged/fifo 10644 0 0");
    fail_each_call("unlink plain.txt", "mknod plain.txt 20644 1 3");
    fail_each_call("", "open 0 . wp 640\nhlink 0 merged/named");
}

#[test]
fn of_attributes() {
    fail_each_call("", "setxattr plain.txt user.new value");
    fail_each_call(
        "setxattr plain.txt user.new value",
        "read plain.txt\nremovexattr plain.txt user.new",
    );
    fail_each_call("", "setxattr merged user.new value");
    fail_each_call("", "utimens plain.txt 1.1 2.2");
    fail_each_call("chmod plain.txt 644", "chown plain.txt 1000 1000");
}

/// A write whose data is half written is not a state of its own: each write is one call.
#[test]
fn of_data() {
    fail_each_call("", "truncate plain.txt 3");
    fail_each_call("write both.txt 0 x", "write both.txt 9 changed a");
    fail_each_call("write both.txt 0 x", "fallocate both.txt 0 0 9000");
    fail_each_call("write both.txt 0 x", "copyrange plain.txt 0 both.txt 3 5");
    fail_each_call("", "open 0 plain.txt b 0\nhwrite 0 0 x\nhsync 0");
}

#[test]
fn of_moved_directories() {
    fail_each_call("", "rename merged opaque exchange");
    fail_each_call("mkdir d 755\ncreate d/f 644", "rename d merged/d");
    fail_each_call("rename merged moved", "rename moved opaque/again");
}
