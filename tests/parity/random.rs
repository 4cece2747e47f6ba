//! Random scripts over random layers with few names, so that names collide in every way. Seeds are
//! fixed, or fresh and printed. A failing case shrinks and prints as layers and script, which can
//! be pasted into the scenarios.
//!
//! `UNIONFS_PARITY_CASES=n` sets the number of cases of each test (default 30).
//! `UNIONFS_PARITY_SEED=n` sets the seed of the fresh ones.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use testkit::layers::{Layer, Node};
use testkit::mount::{Fs, KERNEL, subject};
use testkit::need_mounts;
use testkit::runner::{Case, compare};
use testkit::script::{Flags, Op};

/// An object that a layer has under a name.
#[derive(Clone, Debug)]
enum Plan {
    Absent,
    File(u8),
    Symlink,
    Whiteout,
    /// Whether it is opaque, and its entries by name.
    Dir(bool, Vec<Plan>),
}

const NAMES: [&str; 3] = ["a", "b", "c"];

fn plan(depth: u32) -> BoxedStrategy<Plan> {
    let leaf = prop_oneof![
        3 => Just(Plan::Absent),
        3 => any::<u8>().prop_map(Plan::File),
        1 => Just(Plan::Symlink),
        1 => Just(Plan::Whiteout),
    ];
    if depth == 0 {
        return leaf.boxed();
    }
    let below = vec(plan(depth - 1), NAMES.len());
    let dir = (prop::bool::weighted(0.2), below).prop_map(|(o, b)| Plan::Dir(o, b));
    prop_oneof![1 => leaf, 2 => dir].boxed()
}

fn add(mut layer: Layer, path: &str, plan: &Plan) -> Layer {
    match plan {
        Plan::Absent => layer,
        Plan::File(n) => layer.file(path, format!("{path} {n}")),
        Plan::Symlink => layer.symlink(path, "a"),
        Plan::Whiteout => layer.whiteout(path),
        Plan::Dir(opaque, below) => {
            layer = layer.dir(path);
            if *opaque {
                layer = layer.opaque();
            }
            for (name, plan) in NAMES.iter().zip(below) {
                layer = add(layer, &format!("{path}/{name}"), plan);
            }
            layer
        }
    }
}

pub(crate) fn layer() -> impl Strategy<Value = Layer> {
    vec(plan(2), NAMES.len()).prop_map(|plans| {
        let named = NAMES.iter().zip(&plans);
        named.fold(Layer::new(), |layer, (name, plan)| add(layer, name, plan))
    })
}

/// Removes whiteouts that no overlay would have written: those without a merged directory around
/// them. Kernel overlayfs reads a directory of a single layer unchanged and would list them,
/// although a lookup finds nothing.
pub(crate) fn prune(mut layers: Vec<Layer>) -> Vec<Layer> {
    // The visible tree of the layers below: path to "is a directory".
    let mut below: BTreeMap<Vec<u8>, bool> = BTreeMap::new();
    let lowest = layers.len() - 1;
    for (n, layer) in layers.iter_mut().enumerate().rev() {
        let opaque: Vec<_> = layer.items.iter().filter(|i| i.opaque).collect();
        let opaque: Vec<_> = opaque
            .iter()
            .map(|i| [&i.path[..], b"/"].concat())
            .collect();
        let merged = |path: &[u8]| {
            let parent = path.iter().rposition(|b| *b == b'/').map(|n| &path[..n]);
            let dir_below = parent.is_none_or(|p| below.get(p) == Some(&true));
            n != lowest && dir_below && !opaque.iter().any(|o| path.starts_with(o))
        };
        layer
            .items
            .retain(|i| i.node != Node::Whiteout || merged(&i.path));
        for item in &layer.items {
            let is_dir = item.node == Node::Dir;
            if !is_dir || item.opaque || below.get(&item.path) == Some(&false) {
                let inside = [&item.path[..], b"/"].concat();
                below.retain(|path, _| *path != item.path && !path.starts_with(&inside));
            }
            if item.node != Node::Whiteout {
                below.insert(item.path.clone(), is_dir);
            }
        }
    }
    layers
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    vec(prop::sample::select(&NAMES[..]), 1..4).prop_map(|names| names.join("/").into_bytes())
}

fn mode() -> impl Strategy<Value = u32> {
    prop::sample::select(&[0o600u32, 0o644, 0o755, 0o700, 0o1777][..])
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    vec(prop::sample::select(&b"xyz"[..]), 1..8)
}

fn no_flags() -> Flags {
    Flags("-".into())
}

fn namespace_op() -> impl Strategy<Value = Op> {
    let rename_flags = prop_oneof![
        6 => Just(0u32),
        1 => Just(libc::RENAME_NOREPLACE),
        2 => Just(libc::RENAME_EXCHANGE),
    ];
    prop_oneof![
        3 => (path(), mode()).prop_map(|(p, m)| Op::Create(p, m, no_flags())),
        3 => (path(), mode()).prop_map(|(p, m)| Op::Mkdir(p, m)),
        3 => path().prop_map(Op::Unlink),
        3 => path().prop_map(Op::Rmdir),
        6 => (path(), path(), rename_flags).prop_map(|(a, b, f)| Op::Rename(a, b, f)),
        2 => (path(), path()).prop_map(|(a, b)| Op::Link(a, b)),
        1 => path().prop_map(|p| Op::Symlink(b"b/c".to_vec(), p)),
        1 => path().prop_map(|p| Op::Mknod(p, libc::S_IFIFO | 0o600, 0, 0)),
    ]
}

fn other_op() -> impl Strategy<Value = Op> {
    let stamp = (1_000_000_000..1_000_001_000i64, 0..1_000_000_000i64);
    prop_oneof![
        3 => (path(), 0..10u64, data()).prop_map(|(p, o, d)| Op::Write(p, o, d, no_flags())),
        1 => (path(), 0..12u64).prop_map(|(p, n)| Op::Truncate(p, n)),
        2 => (path(), mode()).prop_map(|(p, m)| Op::Chmod(p, m)),
        1 => (path(), 0..3u32, 0..3u32).prop_map(|(p, u, g)| Op::Chown(p, u, g)),
        1 => (path(), stamp).prop_map(|(p, t)| Op::Utimens(p, t, t)),
        1 => (path(), data()).prop_map(|(p, v)| Op::Setxattr(p, b"user.x".to_vec(), v, 0)),
        1 => path().prop_map(|p| Op::Removexattr(p, b"user.x".to_vec())),
        1 => path().prop_map(Op::Readdir),
        1 => path().prop_map(Op::Stat),
        1 => path().prop_map(Op::Read),
    ]
}

pub(crate) fn script() -> impl Strategy<Value = Vec<Op>> {
    vec(prop_oneof![2 => namespace_op(), 1 => other_op()], 1..25)
}

pub(crate) fn cases() -> u32 {
    let set = std::env::var("UNIONFS_PARITY_CASES").ok();
    set.map_or(30, |n| n.parse().unwrap())
}

pub(crate) fn runner(seed: u64) -> TestRunner {
    let config = Config {
        cases: cases(),
        max_shrink_iters: 120,
        failure_persistence: None,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    TestRunner::new_with_rng(config, rng)
}

/// Compares `cases()` random cases from a seed; returns the smallest failure as text.
fn hunt(left: &Fs, right: &Fs, seed: u64) -> Option<String> {
    let layers = vec(layer(), 1..4).prop_map(prune);
    let strategy = (layers, script());
    let result = runner(seed).run(&strategy, |(layers, script)| {
        let case = Case {
            layers: &layers,
            script: &script,
            uppers: true,
            tmpfs: true,
            made: None,
        };
        let found = compare(left, right, &case);
        if found.is_empty() {
            return Ok(());
        }
        Err(TestCaseError::fail(found.join("\n")))
    });
    failure(result, seed)
}

/// The result of proptest for a run over layers and scripts.
pub(crate) type Outcome = Result<(), TestError<(Vec<Layer>, Vec<Op>)>>;

/// Formats a failure as layers and script that can be pasted.
pub(crate) fn failure(result: Outcome, seed: u64) -> Option<String> {
    match result {
        Ok(()) => None,
        Err(TestError::Abort(reason)) => Some(reason.to_string()),
        Err(TestError::Fail(reason, (layers, script))) => {
            let lines: Vec<_> = script.iter().map(ToString::to_string).collect();
            let items = layers.iter().enumerate().flat_map(|(n, layer)| {
                let describe = move |i: &testkit::layers::Item| {
                    let path = String::from_utf8_lossy(&i.path).into_owned();
                    format!("layer {n}: {path} {:?} opaque={}", i.node, i.opaque)
                };
                layer.items.iter().map(describe).collect::<Vec<_>>()
            });
            let items: Vec<_> = items.collect();
            Some(format!(
                "seed {seed}\n{}\nscript:\n{}\n{reason}",
                items.join("\n"),
                lines.join("\n")
            ))
        }
    }
}

pub(crate) fn assert_none(found: Option<String>) {
    if let Some(text) = found {
        panic!("{text}");
    }
}

#[test]
fn fixed_seed() {
    need_mounts!();
    assert_none(hunt(&KERNEL, &subject(), 20_240_229));
}

#[test]
fn fresh_seed() {
    need_mounts!();
    assert_none(hunt(&KERNEL, &subject(), fresh()));
}

/// Returns the seed of this run, after printing it.
pub(crate) fn fresh() -> u64 {
    let set = std::env::var("UNIONFS_PARITY_SEED").ok();
    let seed = set.map_or_else(rand_seed, |n| n.parse().unwrap());
    eprintln!("UNIONFS_PARITY_SEED={seed}");
    seed
}

pub(crate) fn rand_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::from(now.unwrap().subsec_nanos()) << 16 | u64::from(std::process::id() & 0xffff)
}

/// The generator itself is sound (kernel equals kernel) and strong enough to detect a kernel mount
/// without redirects.
#[test]
fn generator_finds_a_known_difference() {
    need_mounts!();
    assert_none(hunt(&KERNEL, &KERNEL, 7));
    let other = Fs::Kernel("index=on,redirect_dir=off,metacopy=off");
    let found = hunt(&KERNEL, &other, 7);
    assert!(found.is_some(), "no difference found in {} cases", cases());
}
