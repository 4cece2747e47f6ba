//! More rows of the table of [`faults`](crate::faults): changes of directories, ACLs, unnamed
//! files, further renames, ranges of data, set-id bits. Also the calls that this strace does not
//! know (fchmodat2, setxattrat): a filter of system calls makes them fail each time.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use testkit::need::has_tools;
use testkit::tree::{self, Mask};
use testkit::{need, need_mounts};

use crate::faults::{Setup, States, fail_each_call, fault, look, start};

#[test]
fn of_acls() {
    fail_each_call("", "setacl plain.txt access 1000 6");
    fail_each_call("chmod acl-dir 755", "setacl acl-dir default 1001 5");
    fail_each_call(
        "chmod acl.txt 644\nsetacl acl.txt access 1000 6",
        "read acl.txt\nremovexattr acl.txt system.posix_acl_access",
    );
}

#[test]
fn of_attributes_of_directories() {
    fail_each_call("", "chmod merged/sub 700");
    fail_each_call("", "chown merged 1000 1000");
    fail_each_call("setxattr merged user.a b", "setxattr merged user.a changed");
    fail_each_call("setxattr merged user.a b", "removexattr merged user.a");
    fail_each_call("", "utimens deep 1.1 2.2");
}

#[test]
fn of_links() {
    fail_each_call("write plain.txt 0 x", "link plain.txt merged/second");
    fail_each_call(
        "unlink both.txt\nwrite plain.txt 0 x",
        "link plain.txt both.txt",
    );
}

#[test]
fn of_renames_over_whiteouts_and_redirects() {
    fail_each_call("unlink both.txt", "rename plain.txt both.txt");
    fail_each_call("unlink both.txt\nmkdir d 755", "rename d both.txt");
    fail_each_call("rename deep moved\nchmod moved/a 700", "rename moved/a a");
    fail_each_call("write plain.txt 0 x", "rename plain.txt null exchange");
}

#[test]
fn of_unnamed_files() {
    fail_each_call(
        "",
        "open 0 merged bp 640\nhwrite 0 0 data\nhlink 0 merged/named",
    );
    fail_each_call("unlink both.txt", "open 0 . wp 600\nhlink 0 both.txt");
}

#[test]
fn of_ranges() {
    fail_each_call("write big.bin 0 x", "fallocate big.bin 3 4096 8192");
    fail_each_call("write both.txt 0 x", "copyrange big.bin 0 both.txt 0 4000");
}

#[test]
fn of_set_id_bits() {
    fail_each_call("", "chown suid 1000 1000");
}

/// A change of data by another user drops the bits first: if the change fails they may be gone, and
/// if it succeeds they are.
#[test]
fn of_set_id_bits_that_fall() {
    need_mounts!();
    need!(has_tools(&["strace"]));
    let change = "as 1001 1001\ntruncate suid 3";
    for call in ["fchownat", "ftruncate"] {
        let f = start("chmod suid 6777");
        let trace = fault(
            &f,
            "fchownat,ftruncate",
            Some((&(call.to_owned(), 1), "EIO")),
        );
        let answers = f.run(change);
        let calls = trace.end();
        assert!(calls.iter().any(|c| c.contains("INJECTED")), "{calls:?}");
        assert_eq!(answers[1], Err("EIO".into()), "{call}");
        assert_eq!(f.ok("read suid"), ["\"#!suid\\x0a\""], "{call}");
        f.ok(change);
        let stat = f.ok("stat suid");
        assert!(stat[0].starts_with("mode 100777 "), "{call}: {stat:?}");
    }
}

/// Whiteouts that are files with an xattr, where devices cannot be made: renames take several
/// steps.
#[test]
fn of_renames_without_devices() {
    let setup = |prepare| Setup {
        without: Some((libc::SYS_mknodat, libc::EPERM)),
        ..Setup::from(prepare)
    };
    // Both names are in the upper; only the source is; the target is new; and a directory.
    let both = "write both.txt 0 x\nwrite plain.txt 0 x";
    fail_each_call(setup(both), "rename plain.txt both.txt");
    fail_each_call(setup("write plain.txt 0 x"), "rename plain.txt both.txt");
    fail_each_call(setup("write plain.txt 0 x"), "rename plain.txt new");
    fail_each_call(setup("mkdir d 755\nchmod empty 700"), "rename empty d");
}

/// Makes a system call fail each time, in this thread and those that it starts: mknodat(2) for
/// character devices only; other calls except with -1 as their first argument, because programs
/// test with that whether the kernel has the call.
pub(crate) fn refuse(call: i64, error: i32) {
    let (argument, operator, value) = match call {
        libc::SYS_mknodat => (
            2,
            SeccompCmpOp::MaskedEq(libc::S_IFMT.into()),
            libc::S_IFCHR,
        ),
        _ => (0, SeccompCmpOp::Ne, u32::MAX),
    };
    let condition =
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value.into());
    let rule = SeccompRule::new(vec![condition.unwrap()]).unwrap();
    let filter = SeccompFilter::new(
        BTreeMap::from([(call, vec![rule])]),
        SeccompAction::Allow,
        SeccompAction::Errno(error as u32),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

/// asm-generic has these numbers on every architecture.
const FCHMODAT2: i64 = 452;
const SETXATTRAT: i64 = 463;

/// Tries a change while one system call of the server never succeeds.
fn fail_always(prepare: &str, change: &str, call: i64) {
    need_mounts!();
    let mask = Mask::from_now();
    let (old, new) = {
        let f = start(prepare);
        let old = f.tree();
        f.ok(change);
        (old, f.tree())
    };
    let mut setup = Setup::from(prepare);
    setup.without = Some((call, libc::EIO));
    let states = States {
        old,
        new,
        mask,
        copies: setup.copies,
    };
    let mut f = setup.start();
    let answers = f.run(change);
    let about = format!("{change} without system call {call}: {answers:?}");
    let errors: Vec<_> = answers.iter().filter_map(|a| a.as_ref().err()).collect();
    assert_eq!(errors, ["EIO"], "{about}");
    look(&mut f, &states, &states.mask, &about);
    let now = f.tree();
    let difference = tree::diff(&states.old, &now, &states.mask);
    assert!(difference.is_empty(), "{about}: {difference:?}");
    f.ok(change);
    tree::assert_same(&about, &states.new, &f.tree(), &states.mask);
}

#[test]
fn of_calls_that_strace_does_not_know() {
    fail_always("", "chmod plain.txt 600", FCHMODAT2);
    fail_always("", "chmod merged 700", FCHMODAT2);
    fail_always("chmod merged 750", "chmod merged 700", FCHMODAT2);
    fail_always("write plain.txt 0 x", "chmod plain.txt 600", FCHMODAT2);
    fail_always("", "setxattr merged user.new value", SETXATTRAT);
    fail_always("", "setacl acl-dir default 1001 5", SETXATTRAT);
}
