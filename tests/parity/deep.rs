//! The deep hunts: cases of `generate.rs` on kernel overlayfs in each of its modes and on unionfs
//! with matching options. A failing case shrinks and prints as Rust that can be pasted into
//! `regressions.rs`.
//!
//! `UNIONFS_PARITY_CASES` (of which each test here runs a third, because its cases are larger) and
//! `UNIONFS_PARITY_SEED` work as in `random.rs`.

use std::fmt::Write as _;

use proptest::strategy::{Strategy, ValueTree};
use testkit::descriptor::HOp;
use testkit::layers::{Item, Node};
use testkit::mount::Fs;
use testkit::need_mounts;
use testkit::runner::{Case, compare};
use testkit::script::Op;

use crate::generate::{self, Plan};
use crate::random::{assert_none, cases, fresh, runner};
use crate::shrink::shrink;

/// A mode of kernel overlayfs, and unionfs with matching options.
pub(crate) struct Mode {
    pub(crate) kernel: Fs,
    pub(crate) union: Fs,
    /// The kernel overlays that make layers.
    pub(crate) maker: Fs,
    /// Whether to compare the uppers too. With metacopies they differ by design; the remounts still
    /// compare their meaning.
    pub(crate) uppers: bool,
}

/// Everything on: metacopies and redirects in lowers and in the kernel's upper.
pub(crate) const ON: Mode = Mode {
    kernel: Fs::Kernel("index=on,redirect_dir=on,metacopy=on,xino=auto"),
    union: Fs::Unionfs("redirect_dir=on"),
    maker: Fs::Kernel("index=on,redirect_dir=on,metacopy=on"),
    uppers: false,
};

/// As [`ON`], with metacopies in the uppers of both. Passed through, an open for writing copies the
/// data, as in the kernel.
pub(crate) const METACOPY: Mode = Mode {
    kernel: ON.kernel,
    union: Fs::Unionfs("redirect_dir=on,metacopy=on,io=passthrough"),
    maker: ON.maker,
    uppers: true,
};

/// No metacopies: with `metacopy=off` the kernel would refuse to read them.
pub(crate) const PLAIN: Mode = Mode {
    kernel: Fs::Kernel("index=on,redirect_dir=on,metacopy=off,xino=auto"),
    union: Fs::Unionfs("redirect_dir=on"),
    maker: Fs::Kernel("index=on,redirect_dir=on,metacopy=off"),
    uppers: true,
};

/// Everything off. unionfs still keeps hard links together (SEMANTICS.md, "Hard links"), so the
/// stacks have none.
pub(crate) const OFF: Mode = Mode {
    kernel: Fs::Kernel("index=off,redirect_dir=off,metacopy=off,xino=auto"),
    union: Fs::Unionfs("redirect_dir=off"),
    maker: Fs::Kernel("index=off,redirect_dir=off,metacopy=off"),
    uppers: true,
};

/// Markers in `user.overlay.*`, as in user namespaces: no redirects, no index. The names of the
/// kernel's leftovers in its upper differ, so only the remounts compare the uppers.
pub(crate) const USER: Mode = Mode {
    kernel: Fs::Kernel("userxattr,index=off,xino=auto"),
    union: Fs::Unionfs("userxattr,dialect=overlay"),
    maker: Fs::Kernel("userxattr,index=off"),
    uppers: false,
};

/// Returns the differences of a plan in a mode.
pub(crate) fn differences(mode: &Mode, plan: &Plan) -> Vec<String> {
    let case = Case {
        layers: &plan.layers,
        script: &plan.script,
        uppers: mode.uppers,
        tmpfs: true,
        made: Some((&mode.maker, &plan.made)),
    };
    compare(&mode.kernel, &mode.union, &case)
}

pub(crate) fn hunt(mode: &Mode, links: bool, seed: u64) -> Option<String> {
    let strategy = generate::plan();
    let mut runner = runner(seed);
    for _ in 0..cases().div_ceil(3) {
        let mut plan = strategy.new_tree(&mut runner).unwrap().current();
        if !links {
            without_links(&mut plan);
        }
        let found = differences(mode, &plan);
        if !found.is_empty() {
            let (plan, found) = shrink(plan, found, |plan| differences(mode, plan));
            let text = format!(
                "UNIONFS_PARITY_SEED={seed}\n{}{}",
                show(&plan),
                found.join("\n")
            );
            return Some(text.replace(&"L".repeat(255), LONG));
        }
    }
    None
}

/// The printed form of a name of 255 bytes, also used in regressions.
pub(crate) const LONG: &str = "<L255>";

fn links(op: &Op) -> bool {
    match op {
        Op::Link(..) | Op::Held(_, HOp::Link(_) | HOp::LinkEmpty(_)) => true,
        Op::In(_, op) => links(op),
        _ => false,
    }
}

fn without_links(plan: &mut Plan) {
    for layer in &mut plan.layers {
        layer.items.retain(|i| !matches!(i.node, Node::Link(_)));
    }
    let keep = |ops: &mut Vec<Op>| ops.retain(|op| !links(op));
    plan.made.iter_mut().for_each(keep);
    keep(&mut plan.script);
}

/// Formats the plan as the arguments of `regressions::check`.
fn show(plan: &Plan) -> String {
    let mut text = "layers (top first): vec![\n".to_owned();
    for layer in &plan.layers {
        let items: Vec<_> = layer.items.iter().map(show_item).collect();
        let _ = writeln!(text, "  Layer::new(){},", items.concat());
    }
    text += "],\n";
    for ops in &plan.made {
        let _ = writeln!(text, "made by the kernel, bottom first:\n{}", lines(ops));
    }
    let _ = writeln!(text, "script:\n{}", lines(&plan.script));
    text
}

fn lines(ops: &[Op]) -> String {
    let lines: Vec<_> = ops.iter().map(|op| format!("    {op}")).collect();
    lines.join("\n")
}

fn show_item(item: &Item) -> String {
    let bytes = |b: &[u8]| format!("b\"{}\"", b.escape_ascii());
    let path = bytes(&item.path);
    let mut text = match &item.node {
        Node::Dir => format!(".dir({path})"),
        Node::File(data) => format!(".file({path}, {})", bytes(data)),
        Node::Symlink(to) => format!(".symlink({path}, {})", bytes(to)),
        Node::Link(to) => format!(".link({path}, {})", bytes(to)),
        Node::Whiteout => return format!(".whiteout({path})"),
        other => format!(".add({path}, Node::{other:?})"),
    };
    text += &format!(
        ".mode(0o{:o}).own({}, {})",
        item.mode, item.owner.0, item.owner.1
    );
    if item.opaque {
        text += ".opaque()";
    }
    for (name, value) in &item.xattrs {
        text += &format!(".xattr({}, {})", bytes(name), bytes(value));
    }
    text
}

const SEED: u64 = 19_991_231;

#[test]
fn fixed_seed_on() {
    need_mounts!();
    assert_none(hunt(&ON, true, SEED));
}

#[test]
fn fixed_seed_metacopy() {
    need_mounts!();
    assert_none(hunt(&METACOPY, true, SEED));
}

#[test]
fn fresh_seed_metacopy() {
    need_mounts!();
    assert_none(hunt(&METACOPY, true, fresh()));
}

#[test]
fn fixed_seed_plain() {
    need_mounts!();
    assert_none(hunt(&PLAIN, true, SEED));
}

#[test]
fn fixed_seed_off() {
    need_mounts!();
    assert_none(hunt(&OFF, false, SEED));
}

#[test]
fn fixed_seed_user() {
    need_mounts!();
    assert_none(hunt(&USER, false, SEED));
}

#[test]
fn fresh_seed_user() {
    need_mounts!();
    assert_none(hunt(&USER, false, fresh()));
}

#[test]
fn fresh_seed_on() {
    need_mounts!();
    assert_none(hunt(&ON, true, fresh()));
}

#[test]
fn fresh_seed_plain() {
    need_mounts!();
    assert_none(hunt(&PLAIN, true, fresh()));
}

#[test]
fn fresh_seed_off() {
    need_mounts!();
    assert_none(hunt(&OFF, false, fresh()));
}

/// The generator is sound: the kernel equals the kernel in each mode.
#[test]
fn kernel_equals_kernel() {
    need_mounts!();
    for (mode, links) in [(ON, true), (PLAIN, true), (OFF, false), (USER, false)] {
        let mode = Mode {
            union: mode.kernel.clone(),
            ..mode
        };
        assert_none(hunt(&mode, links, 7));
    }
}
