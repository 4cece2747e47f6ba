//! The budget of system calls: the calls that the server makes on the layers for one operation,
//! counted with strace. docs/BUDGETS.md has the same table with the purpose of each call; this test
//! reads it, so that the two agree.
//!
//! The test counts the calls that an operation needs. It does not count the transport (`read`,
//! `writev`), which the budget of messages covers, nor memory, threads and locks, nor the calls
//! that a debug build adds.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
use testkit::caches;
use testkit::fixture::Fixture;
use testkit::mount::{Fs, Scratch, Stack};
use testkit::need::has_tools;
use testkit::strace::Trace;
use testkit::{need, need_mounts, without};

/// How often each operation is done.
const TIMES: usize = 40;
/// The calls that all of them together may cost once, beside a call in each layer: a directory is
/// looked up, opened, copied up.
const ONCE: usize = 24;

const NOT_COUNTED: &[&str] = &[
    "read",
    "writev",
    "futex",
    "brk",
    "mmap",
    "munmap",
    "mprotect",
    "madvise",
    "mremap",
    "sched_yield",
    "getrandom",
    "clone3",
    "rseq",
    "set_robust_list",
    "sigaltstack",
    "prctl",
    "restart_syscall",
    "exit",
    "gettid",
    "sched_getaffinity",
    // How often threads give way depends on what else runs.
    "sched_setaffinity",
    "sched_setscheduler",
    "rt_sigprocmask",
    "clone",
    "fcntl",
    // The calls of the statistics and of the end of the server.
    "accept4",
    "recvfrom",
    "sendto",
    "shutdown",
    "poll",
    "ppoll",
];

/// Detaches strace; returns the names of the calls.
fn calls(trace: Trace) -> Vec<String> {
    let counted = |name: &String| !NOT_COUNTED.contains(&&**name);
    trace.calls().into_iter().filter(counted).collect()
}

/// Makes a stack of `count` layers. The lowest has the files to read and to change, the others have
/// the directory only.
fn stack(count: usize) -> (Scratch, Stack) {
    let scratch = Scratch::disk();
    let lowers: Vec<_> = (0..count).map(|n| scratch.dir(&format!("l{n}"))).collect();
    for lower in &lowers {
        std::fs::create_dir(lower.join("dir")).unwrap();
    }
    let dir = lowers[count - 1].join("dir");
    for n in 0..TIMES {
        for kind in ["look", "gone", "mode"] {
            std::fs::write(dir.join(format!("{kind}{n}")), "data").unwrap();
        }
    }
    for (name, files) in [("walk", TIMES), ("long", 3 * TIMES * TIMES)] {
        let dir = lowers[count - 1].join(name);
        std::fs::create_dir(&dir).unwrap();
        for n in 0..files {
            File::create(dir.join(n.to_string())).unwrap();
        }
    }
    let stack = Stack::writable(&scratch, lowers);
    (scratch, stack)
}

fn write_new(path: PathBuf) {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).open(path).unwrap();
    file.write_all(b"data").unwrap();
}

/// Sets what `tar -x` and `cp -a` set while the new file is open.
fn write_with_metadata(path: PathBuf) {
    write_new(path.clone());
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let (name, flags) = ("user.kept", XattrFlags::empty());
    file.set_permissions(PermissionsExt::from_mode(0o640))
        .unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    fsetxattr(&file, name, b"value", flags).unwrap();
    let listed = flistxattr(&file, &mut [0u8; 64][..]).unwrap();
    assert_eq!(listed, name.len() + 1);
    let got = fgetxattr(&file, name, &mut [0u8; 64][..]).unwrap();
    assert_eq!(got, "value".len());
}

/// The operations of the table in the order in which they run, with their number.
type Operation = (&'static str, fn(&Path), usize);

fn each(of: &Path, name: &str, action: impl Fn(PathBuf)) {
    (0..TIMES).for_each(|n| action(of.join(format!("{name}{n}"))));
}

const OPERATIONS: &[Operation] = &[
    (
        "lookup",
        |m| {
            each(&m.join("dir"), "look", |p| {
                assert!(p.symlink_metadata().is_ok());
            });
        },
        TIMES,
    ),
    (
        "lookup again",
        |m| {
            each(&m.join("dir"), "look", |p| {
                assert!(p.symlink_metadata().is_ok());
            });
        },
        TIMES,
    ),
    (
        "lookup of nothing",
        |m| each(&m.join("dir"), "no", |p| assert!(!p.exists())),
        TIMES,
    ),
    (
        "create, write, close",
        |m| each(&m.join("dir"), "new", write_new),
        TIMES,
    ),
    (
        "rename",
        |m| {
            each(&m.join("dir"), "new", |p| {
                std::fs::rename(&p, p.with_extension("moved")).unwrap();
            });
        },
        TIMES,
    ),
    (
        "unlink",
        |m| {
            each(&m.join("dir"), "new", |p| {
                std::fs::remove_file(p.with_extension("moved")).unwrap();
            });
        },
        TIMES,
    ),
    (
        "unlink of a lower file",
        |m| each(&m.join("dir"), "gone", |p| std::fs::remove_file(p).unwrap()),
        TIMES,
    ),
    (
        "create over a whiteout",
        |m| {
            each(&m.join("dir"), "gone", |p| {
                drop(File::create_new(p).unwrap());
            });
        },
        TIMES,
    ),
    (
        "chmod of a lower file",
        |m| {
            let mode =
                |p: PathBuf| std::fs::set_permissions(p, PermissionsExt::from_mode(0o600)).unwrap();
            each(&m.join("dir"), "mode", mode);
        },
        TIMES,
    ),
    (
        "mkdir",
        |m| each(&m.join("dir"), "sub", |p| std::fs::create_dir(p).unwrap()),
        TIMES,
    ),
    (
        "rmdir",
        |m| each(&m.join("dir"), "sub", |p| std::fs::remove_dir(p).unwrap()),
        TIMES,
    ),
    (
        "in a new directory: create, write, close",
        |m| {
            std::fs::create_dir(m.join("new")).unwrap();
            each(&m.join("new"), "new", write_new);
        },
        TIMES,
    ),
    (
        "in a new directory: rename",
        |m| {
            each(&m.join("new"), "new", |p| {
                std::fs::rename(&p, p.with_extension("moved")).unwrap();
            });
        },
        TIMES,
    ),
    (
        "in a new directory: unlink",
        |m| {
            each(&m.join("new"), "new", |p| {
                std::fs::remove_file(p.with_extension("moved")).unwrap();
            });
        },
        TIMES,
    ),
    (
        "in a new directory: write a file with metadata",
        |m| each(&m.join("new"), "whole", write_with_metadata),
        TIMES,
    ),
    (
        "in a new directory: mkdir",
        |m| each(&m.join("new"), "sub", |p| std::fs::create_dir(p).unwrap()),
        TIMES,
    ),
    (
        "in a new directory: rmdir",
        |m| each(&m.join("new"), "sub", |p| std::fs::remove_dir(p).unwrap()),
        TIMES,
    ),
    (
        "readdir and stat, an entry",
        |m| {
            for entry in std::fs::read_dir(m.join("walk")).unwrap() {
                entry.unwrap().path().symlink_metadata().unwrap();
            }
        },
        TIMES,
    ),
    (
        "readdir of a long directory, an entry",
        |m| {
            let entries = std::fs::read_dir(m.join("long")).unwrap().count();
            assert_eq!(entries, 3 * TIMES * TIMES);
        },
        3 * TIMES * TIMES,
    ),
];

/// Returns the budget: a table row for each operation, with the calls for 1, 4 and 32 layers, and a
/// row of its own if a policy has another cost.
fn budget(operation: &str, policy: &str, layers: usize) -> f64 {
    let table = include_str!("../../docs/BUDGETS.md");
    let row = |name: String| {
        let is_it = |line: &&str| {
            line.strip_prefix("| ").and_then(|l| l.split(" | ").next()) == Some(&name)
        };
        table.lines().find(is_it)
    };
    let row = row(format!("{policy}: {operation}")).or_else(|| row(operation.into()));
    let row = row.unwrap_or_else(|| panic!("docs/BUDGETS.md has no row for {operation}"));
    let column = [1, 4, 32].iter().position(|n| *n == layers).unwrap() + 1;
    row.trim_start_matches("| ")
        .split(" | ")
        .nth(column)
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

/// The policies, with the options of their mounts and the operations that are counted (none: all).
/// The rings of io_uring have calls of their own.
const POLICIES: [(&str, &str, Option<&str>); 3] = [
    ("io=cached", "io=cached,transport=classic", None),
    ("io=passthrough", "io=passthrough,transport=classic", None),
    (
        "metacopy=on",
        "metacopy=on,io=cached,transport=classic",
        Some("chmod of a lower file"),
    ),
];

fn keeps_to_the_budget(layers: usize) {
    need_mounts!();
    need!(without::has_everything());
    need!(has_tools(&["strace"]));
    for (policy, options, only) in POLICIES {
        keeps_to_it(layers, policy, options, only);
    }
}

fn keeps_to_it(layers: usize, policy: &str, options: &'static str, only: Option<&str>) {
    let _undisturbed = caches::undisturbed();
    let (scratch, stack) = stack(layers);
    let f = Fixture::over(&Fs::Unionfs(options), scratch, stack);
    // Each layer's directory is looked up once.
    assert!(!f.at("dir/none").exists());
    let once = ONCE + layers;
    let mut over = Vec::new();
    let is_counted = |name: &str| only.is_none_or(|only| only == name);
    for (name, action, times) in OPERATIONS.iter().filter(|o| is_counted(o.0)) {
        let trace = Trace::of(&f, &[]);
        action(f.root());
        let calls = calls(trace);
        let cost = calls.len().saturating_sub(once) as f64 / *times as f64;
        let allowed = budget(name, policy, layers);
        println!("{policy}, {layers} layers, {name}: {cost:.2} of {allowed}");
        if cost > allowed {
            let mut by_name = std::collections::BTreeMap::new();
            calls
                .iter()
                .for_each(|call| *by_name.entry(call).or_insert(0) += 1);
            over.push(format!(
                "{name}: {cost:.2} calls, allowed are {allowed}: {by_name:?}"
            ));
        }
    }
    assert!(
        over.is_empty(),
        "{policy}, with {layers} layers\n{}",
        over.join("\n")
    );
}

#[test]
fn one_layer() {
    keeps_to_the_budget(1);
}

#[test]
fn four_layers() {
    keeps_to_the_budget(4);
}

#[test]
fn thirty_two_layers() {
    keeps_to_the_budget(32);
}
