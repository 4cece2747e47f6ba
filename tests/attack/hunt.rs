//! Random cases beside kernel overlayfs; the seed selects the transport and the I/O policy.

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use testkit::mount::{Fs, KERNEL, subject};
use testkit::need::has_user_namespaces;
use testkit::{escape, need, need_mounts};

use crate::case::{compare, program};
use crate::generate::{Plan, plan};
use crate::shrink::shrink;

/// The time limit of a hunt in the ordinary test run.
const BUDGET: Duration = Duration::from_secs(25);

/// The ways to mount unionfs.
const MODES: [Fs; 6] = [
    Fs::Unionfs("transport=classic"),
    Fs::Unionfs("transport=classic,io=cached"),
    Fs::Unionfs("transport=classic,io=cached,writeback"),
    Fs::Unionfs("transport=uring"),
    Fs::Unionfs("transport=uring,io=cached"),
    Fs::Unionfs("transport=uring,io=cached,writeback"),
];

/// Returns the mode of a seed, among those that this machine supports.
pub(crate) fn fs_of(seed: u64) -> Fs {
    if std::env::var_os("UNIONFS_TEST_AS").is_some() {
        return subject();
    }
    static RINGS: LazyLock<bool> = LazyLock::new(|| need::part(need::has_uring()));
    let count = if *RINGS { MODES.len() } else { MODES.len() / 2 };
    MODES[(seed % count as u64) as usize].clone()
}

/// Returns the requested number of cases. `None` if none is requested; then as many run as fit in
/// [`BUDGET`].
fn cases() -> Option<u64> {
    let set = std::env::var("UNIONFS_ATTACK_CASES").ok();
    set.map(|n| n.parse().unwrap())
}

pub(crate) fn fresh() -> u64 {
    let set = std::env::var("UNIONFS_ATTACK_SEED").ok();
    let now = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.unwrap().as_micros() as u64
    };
    let seed = set.map_or_else(now, |n| n.parse().unwrap());
    eprintln!("UNIONFS_ATTACK_SEED={seed}");
    seed
}

/// Runs a case; a panic is a failure of the case.
pub(crate) fn caught(run: impl FnOnce() -> Vec<String>) -> Vec<String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(found) => found,
        Err(e) => {
            let text = e.downcast_ref::<String>().cloned();
            vec![format!("panic: {}", text.unwrap_or_default())]
        }
    }
}

/// Runs cases from a seed on, each with a seed of its own, and fails with the differences found.
pub(crate) fn hunt(
    seed: u64,
    make: impl Fn(u64) -> Plan,
    differences: impl Fn(u64, &Plan) -> Vec<String>,
) {
    let start = Instant::now();
    let (most, mut count) = (cases(), 0);
    while most.map_or(start.elapsed() < BUDGET, |most| count < most) {
        let seed = seed.wrapping_add(count);
        let plan = make(seed);
        let found = differences(seed, &plan);
        if !found.is_empty() {
            let all = found.join("\n");
            let (plan, found) = shrink(plan, found, |plan| differences(seed, plan));
            let text = show(&plan);
            let found = found.join("\n");
            panic!("UNIONFS_ATTACK_SEED={seed}\n{text}{found}\nbefore it was made small:\n{all}");
        }
        count += 1;
    }
    eprintln!("{count} cases in {:?}", start.elapsed());
}

/// Formats a plan as text.
fn show(plan: &Plan) -> String {
    let mut text = String::new();
    for (n, layer) in plan.layers.iter().enumerate() {
        for item in &layer.items {
            let mut node = format!("{:?}", item.node);
            node.truncate(40);
            let xattrs: Vec<_> = item.xattrs.iter().map(|(name, _)| escape(name)).collect();
            let _ = writeln!(
                text,
                "layer {n}: {} {node} mode {:o} owner {:?} opaque={} {xattrs:?}",
                escape(&item.path),
                item.mode,
                item.owner,
                item.opaque
            );
        }
    }
    for step in &plan.script {
        let _ = writeln!(text, "    {step}");
    }
    text
}

fn beside_the_kernel(seed: u64) {
    let program = program();
    let differences = |seed: u64, plan: &Plan| {
        let mut found = caught(|| compare(&KERNEL, &fs_of(seed), plan, None));
        if !found.is_empty() {
            found.insert(0, format!("left is {KERNEL:?}, right is {:?}", fs_of(seed)));
        }
        found
    };
    hunt(seed, |seed| plan(seed, &program), differences);
}

#[test]
fn fixed_seed() {
    need_mounts!();
    need!(has_user_namespaces());
    beside_the_kernel(20_261_128);
}

#[test]
fn fresh_seed() {
    need_mounts!();
    need!(has_user_namespaces());
    beside_the_kernel(fresh());
}
