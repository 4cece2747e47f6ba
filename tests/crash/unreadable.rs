//! Layers that cannot be read for a moment: each request is made with each of its system calls
//! failing in turn (EIO, ENOMEM). The answer is the correct one or that error, never ENOENT or
//! another result. The next answer is correct: no failure is cached as a fact.

use testkit::need::has_tools;
use testkit::{need, need_mounts};

use crate::faults::{Use, fault, start, uses};

/// The calls that read a layer. Not read(2), through which the requests come.
const CALLS: &str = "openat,openat2,statx,newfstatat,readlinkat,getdents64,pread64,preadv,preadv2,\
    getxattr,lgetxattr,fgetxattr,listxattr,llistxattr,flistxattr,name_to_handle_at,open_by_handle_at,\
    copy_file_range,lseek";

const ERRORS: [&str; 2] = ["EIO", "ENOMEM"];

/// Makes the request with one call failing; returns whether the call was made.
fn ask((prepare, question): (&str, &str), one: &Use, error: &str, right: &[String]) -> bool {
    let f = start(prepare);
    let trace = fault(&f, CALLS, Some((one, error)));
    let answers = f.run(question);
    let calls = trace.end();
    let Some(what) = calls.iter().find(|l| l.contains("INJECTED")) else {
        return false;
    };
    for (answer, right) in answers.iter().zip(right) {
        let fits = match answer {
            Ok(value) => value == right,
            Err(e) => e == error,
        };
        assert!(fits, "{question}: {answers:?} and not {right:?}, {what}");
    }
    assert_eq!(f.ok(question), right, "afterwards, {what}");
    true
}

/// Makes the request with each call failing in turn, in a union that had no request before.
fn ask_each(prepare: &str, question: &str) {
    need_mounts!();
    need!(has_tools(&["strace"]));
    let (right, calls) = {
        let f = start(prepare);
        let trace = fault(&f, CALLS, None);
        let right = f.ok(question);
        (right, trace.end())
    };
    let uses = uses(&calls);
    assert!(!uses.is_empty(), "nothing traced in {question}");
    let mut failed = 0;
    for (n, one) in uses.iter().enumerate() {
        let error = ERRORS[(n + question.len()) % 2];
        failed += usize::from(ask((prepare, question), one, error, &right));
    }
    eprintln!("{question}: {failed} faults at {} calls", uses.len());
    assert!(failed > 0, "nothing failed in {question}");
}

#[test]
fn names() {
    ask_each("", "stat plain.txt");
    ask_each("", "stat merged/sub/t");
    ask_each("rename merged moved", "stat moved/sub/t");
    ask_each("write h1 0 x", "stat h2");
}

#[test]
fn listings() {
    ask_each("", "readdir .");
    ask_each("create merged/new 644\nunlink merged/top", "readdir merged");
    ask_each("", "readdir opaque");
}

#[test]
fn contents() {
    ask_each("", "read plain.txt");
    ask_each("write plain.txt 0 x", "read plain.txt");
    ask_each("", "readlink link-rel");
}

#[test]
fn attributes() {
    ask_each("", "listxattr acl-dir");
    ask_each("setxattr plain.txt user.x y", "getxattr plain.txt user.x");
    ask_each("", "getxattr caps security.capability");
}
