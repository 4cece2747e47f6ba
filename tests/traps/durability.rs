//! Syncs that reach the upper's file system when a program syncs, seen with strace on the server:
//! fsync and fdatasync of the same file, of directories, of O_SYNC writes, of a copy-up before its
//! name; and none at all on a `volatile` mount.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;

use testkit::fixture::Fixture;
use testkit::layers::{self, Form};
use testkit::mount::Fs;
use testkit::need::{Needed, has_tools};
use testkit::strace::{self, Trace};
use testkit::{need, need_mounts, program};

const CALLS: &[&str] = &[
    "-y",
    "-e",
    "trace=fsync,fdatasync,syncfs,sync,sync_file_range,linkat,renameat2",
];

/// Makes every kind of sync that a program can make.
fn sync_everything(f: &Fixture) {
    let mut new = File::create(f.at("merged/new")).unwrap();
    new.write_all(b"data").unwrap();
    new.sync_all().unwrap();
    new.sync_data().unwrap();
    rustix::fs::fsync(File::open(f.at("merged")).unwrap()).unwrap();
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true);
    let mut sync = options
        .custom_flags(libc::O_SYNC)
        .open(f.at("sync"))
        .unwrap();
    sync.write_all(b"synchronous").unwrap();
    // Copy-up, and a sync of the copy.
    let lower = OpenOptions::new()
        .write(true)
        .open(f.at("big.bin"))
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&lower, b"x", 0).unwrap();
    lower.sync_all().unwrap();
}

fn traced(options: &'static str) -> Needed<(Fixture, Vec<String>)> {
    has_tools(&["strace"])?;
    let fs = Fs::Unionfs(options);
    let f = Fixture::with(&fs, &layers::standard(), Form::Kernel, true);
    let trace = Trace::of(&f, CALLS);
    sync_everything(&f);
    let calls = trace.end();
    Ok((f, calls))
}

/// Returns the position of the first call of `name` on a path that ends in `path`.
fn position(calls: &[String], name: &str, path: &str) -> usize {
    let on = format!("{path}>");
    let found = calls
        .iter()
        .position(|c| c.contains(&format!(" {name}(")) && c.contains(&on));
    found.unwrap_or_else(|| panic!("no {name} of {path} in:\n{}", calls.join("\n")))
}

#[test]
fn syncs_reach_the_upper() {
    need_mounts!();
    // Under `passthrough` the kernel itself serves O_SYNC.
    let (mut f, calls) = need!(traced("io=cached"));
    position(&calls, "fsync", "/upper/merged/new");
    position(&calls, "fdatasync", "/upper/merged/new");
    position(&calls, "fsync", "/upper/merged");
    position(&calls, "fsync", "/upper/sync");
    position(&calls, "fsync", "/upper/big.bin");
    f.remount();
    assert_eq!(std::fs::read(f.at("sync")).unwrap(), b"synchronous");
}

/// The end of a mount does not sync, so that ephemeral and temporary mounts cost nothing.
#[test]
fn unmounting_syncs_nothing() {
    need_mounts!();
    need!(has_tools(&["strace"]));
    let mut f = Fixture::standard();
    let trace = Trace::of(&f, CALLS);
    std::fs::write(f.at("new"), "data").unwrap();
    f.unmount();
    let calls = trace.end();
    let syncs = |c: &&String| c.contains("sync(") || c.contains("syncfs(");
    assert_eq!(calls.iter().find(syncs), None);
    assert!(calls.iter().any(|c| c.contains("exited")), "{calls:?}");
    assert_eq!(std::fs::read(f.upper("new")).unwrap(), b"data");
}

/// syncfs(2) of the mount never reaches the server; `unionfs sync` syncs the upper.
#[test]
fn syncfs_is_for_unionfs_sync() {
    need_mounts!();
    need!(has_tools(&["strace"]));
    for options in ["", "volatile"] {
        let fs = Fs::Unionfs(options);
        let f = Fixture::with(&fs, &layers::standard(), Form::Kernel, true);
        let trace = Trace::of(&f, CALLS);
        std::fs::write(f.at("new"), "data").unwrap();
        rustix::fs::syncfs(File::open(f.root()).unwrap()).unwrap();
        let calls = trace.end();
        let syncs = |c: &&String| c.contains("syncfs(") || c.contains(" fsync(");
        assert_eq!(calls.iter().find(syncs), None, "{options:?}");
        let file = f.scratch.path().join("sync.trace");
        let sync = Command::new("strace")
            .args(["-f", "-y", "-e", "trace=syncfs", "-o"])
            .arg(&file)
            .args([program(), "sync"])
            .arg(f.root())
            .output()
            .unwrap();
        assert!(sync.status.success(), "{sync:?}");
        let calls: Vec<_> = strace::text(&file).lines().map(str::to_owned).collect();
        // First the data in the kernel's pages, then the disk.
        assert!(position(&calls, "syncfs", "/mnt") < position(&calls, "syncfs", "/upper"));
    }
    let none = Command::new(program()).args(["sync", "/"]).output();
    let none = none.unwrap();
    let message = String::from_utf8_lossy(&none.stderr);
    assert!(
        !none.status.success() && message.contains("unionfs ps"),
        "{message}"
    );
}

/// The copy is synced while it has no name, and then gets its name.
#[test]
fn a_copy_is_synced_before_it_has_its_name() {
    need_mounts!();
    let (_f, calls) = need!(traced(""));
    let named = calls
        .iter()
        .position(|c| {
            (c.contains(" linkat(") || c.contains(" renameat2(")) && c.contains("big.bin")
        })
        .unwrap_or_else(|| panic!("no name given in:\n{}", calls.join("\n")));
    // By the same thread: each line begins with its thread ID.
    let thread = calls[named].split_whitespace().next().unwrap();
    let synced = calls[..named]
        .iter()
        .filter(|c| c.starts_with(thread))
        .any(|c| c.contains(" fsync(") && c.contains("/work/"));
    assert!(synced, "no fsync before it:\n{}", calls.join("\n"));
}

#[test]
fn volatile_never_syncs() {
    need_mounts!();
    let (mut f, calls) = need!(traced("volatile"));
    let syncs: Vec<_> = calls.iter().filter(|c| c.contains("sync")).collect();
    // Names of files contain the word too.
    let syncs: Vec<_> = syncs
        .iter()
        .filter(|c| {
            ["sync(", "syncfs(", "sync_file_range("]
                .iter()
                .any(|s| c.contains(s))
        })
        .collect();
    assert!(syncs.is_empty(), "{syncs:?}");
    f.remount();
    assert_eq!(std::fs::read(f.at("sync")).unwrap(), b"synchronous");
}
