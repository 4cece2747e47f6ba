//! The pjdfstest crate as root: the same suite on kernel overlayfs and on unionfs, on the same
//! disk. A test that fails on unionfs must fail on the kernel too and be listed in
//! `pjdfstest.exclusions` with its reason; a listed test must really fail.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use testkit::layers::Layer;
use testkit::mount::{Fs, KERNEL, Scratch, subject};
use testkit::{need, need_mounts};

use super::support::{stack_in, tool};

const CONFIG: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}
[settings]
naptime = 0.01
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["games", "games"], ["man", "man"]]
"#;

/// The suite of 0.2.2 has 398 tests; fewer results mean that it aborted.
const AT_LEAST: usize = 390;

/// Test name to "ok", "FAILED" or "skipped".
type Results = BTreeMap<String, String>;

fn run(fs: &Fs, program: &Path) -> Results {
    let scratch = Scratch::disk();
    let stack = stack_in(&scratch, &[Layer::new()]);
    // The other file system for the tests of EXDEV, which rename and link to it.
    let other = Scratch::tmpfs();
    let config = scratch.path().join("pjdfstest.toml");
    std::fs::write(&config, CONFIG).unwrap();
    let mounted = fs.mount(&stack);
    let output = Command::new(program)
        .arg("--configuration-file")
        .arg(&config)
        .arg("--path")
        .arg(mounted.path())
        .arg("--secondary-fs")
        .arg(other.path())
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap();
    mounted.unmount();
    let text = String::from_utf8_lossy(&output.stdout);
    let results: Results = text.lines().filter_map(result).collect();
    assert!(
        results.len() >= AT_LEAST,
        "{fs:?}: only {} tests reported:\n{text}\n{}",
        results.len(),
        String::from_utf8_lossy(&output.stderr)
    );
    results
}

/// Parses a line of the form `NAME   RESULT`.
fn result(line: &str) -> Option<(String, String)> {
    let mut words = line.split_whitespace();
    let (name, result) = (words.next()?, words.next()?);
    let known = matches!(result, "ok" | "FAILED" | "skipped") && words.next().is_none();
    (known && name.contains("::")).then(|| (name.into(), result.into()))
}

/// Returns the names in the file; every line has a reason.
fn exclusions() -> BTreeSet<String> {
    let lines = include_str!("pjdfstest.exclusions").lines();
    lines
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
        .map(|line| {
            let (name, reason) = line.split_once(' ').unwrap_or((line, ""));
            assert!(!reason.trim().is_empty(), "no reason given for {name}");
            name.to_owned()
        })
        .collect()
}

fn failed(results: &Results) -> BTreeSet<String> {
    let failed = results.iter().filter(|(_, r)| *r == "FAILED");
    failed.map(|(name, _)| name.clone()).collect()
}

#[test]
fn no_failure_that_the_kernel_does_not_have() {
    need_mounts!();
    let program = need!(tool("pjdfstest"));
    let (kernel, ours) = (run(&KERNEL, &program), run(&subject(), &program));
    let more: Vec<_> = ours
        .iter()
        .filter(|(name, result)| *result != "ok" && kernel.get(*name) == Some(&"ok".into()))
        .collect();
    assert!(more.is_empty(), "the kernel passes these: {more:?}");
    let (excluded, failed) = (exclusions(), failed(&ours));
    let unexplained: Vec<_> = failed.difference(&excluded).collect();
    assert!(unexplained.is_empty(), "without a reason: {unexplained:?}");
    let stale: Vec<_> = excluded.difference(&failed).collect();
    assert!(stale.is_empty(), "excluded and not failing: {stale:?}");
}
