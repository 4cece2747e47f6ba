//! One parity case: two implementations, each with its own copy of the layers, run the
//! same script. Compared are
//! 1. the answer of every operation (value or errno),
//! 2. the full trees afterwards ([`tree::diff`] omits some properties, for the reasons in its module),
//! 3. the upper directories, markers included ([`upper::view`] lists the permitted differences),
//! 4. each tree with what a remount shows: by the implementation that wrote the upper,
//!    by the other one, and by the first again (the visit of the other must leave the
//!    upper usable),
//! 5. the lowers with their state before: never changed by either.

use std::path::PathBuf;

use crate::base::{Base, Refusing};
use crate::deliberate::{changes_by_descriptor, deliberate, ends};
use crate::exec::{self, Answer};
use crate::layers::{self, Form, Layer};
use crate::mount::{Fs, Scratch, Stack};
use crate::script::Op;
use crate::tree::{self, Mask, Tree};
use crate::upper;

/// A case to compare.
pub struct Case<'a> {
    /// Layers, top first.
    pub layers: &'a [Layer],
    /// The operations that run on their union.
    pub script: &'a [Op],
    /// Whether to compare the upper directories too.
    pub uppers: bool,
    /// Whether to run on a tmpfs (fast) instead of the disk.
    pub tmpfs: bool,
    /// Further layers above those, bottom first. Each is the upper that this implementation leaves
    /// when it runs the script over all layers below it.
    pub made: Option<(&'a Fs, &'a [Vec<Op>])>,
}

/// The results of one implementation.
struct Side {
    fs: Fs,
    stack: Stack,
    lowers_before: Vec<Tree>,
    answers: Vec<Answer>,
    tree: Tree,
    upper: Tree,
    // This is the last field, because the directories of the others are in it.
    base: Option<Base>,
    _scratch: Scratch,
}

/// Returns the upper that `maker` leaves after `script` over `lowers`, with times that are the same
/// in every run.
pub fn make_layer(
    maker: &Fs,
    scratch: &Scratch,
    n: usize,
    lowers: &[PathBuf],
    script: &[Op],
) -> Result<PathBuf, String> {
    let upper = scratch.dir(&format!("made{n}"));
    let stack = Stack {
        lowers: lowers.to_vec(),
        upper: Some((upper.clone(), scratch.dir(&format!("made{n}.work")))),
        mnt: scratch.dir("mnt"),
    };
    let mounted = maker.try_mount(&stack)?;
    exec::run(mounted.path(), script);
    mounted.unmount();
    for (count, path) in tree::list_raw(&upper).keys().enumerate() {
        let stamp = (1_350_000_000 + n as i64 * 1_000_000 + count as i64, 77);
        layers::set_mtime(&tree::at(&upper, path), stamp);
    }
    Ok(upper)
}

fn list_lowers(lowers: &[PathBuf]) -> Vec<Tree> {
    lowers.iter().map(|l| tree::list_raw(l)).collect()
}

impl Side {
    fn run(
        fs: &Fs,
        case: &Case<'_>,
        refusing: Option<Refusing>,
        mask: &Mask,
    ) -> Result<Self, String> {
        let scratch = if case.tmpfs {
            Scratch::tmpfs()
        } else {
            Scratch::disk()
        };
        let form = if fs.has("userxattr") {
            Form::UserOpaque
        } else {
            Form::Kernel
        };
        let mut lowers = layers::write_all(case.layers, scratch.path(), form);
        if let Some((maker, scripts)) = case.made {
            for (n, script) in scripts.iter().enumerate() {
                let made = make_layer(maker, &scratch, n, &lowers, script)?;
                lowers.insert(0, made);
            }
        }
        let base = refusing.map(Base::mount);
        let upper = match &base {
            Some(base) => base.upper(),
            None => (scratch.dir("upper"), scratch.dir("work")),
        };
        let stack = Stack {
            lowers,
            upper: Some(upper),
            mnt: scratch.dir("mnt"),
        };
        // The union shows the mtime of the upper's root. It is set to the same value on both sides.
        layers::set_mtime(&stack.upper.as_ref().unwrap().0, (1_300_000_000, 5));
        let lowers_before = list_lowers(&stack.lowers);
        let mounted = fs.try_mount(&stack)?;
        let start = tree::list(mounted.path());
        let answers = exec::run(mounted.path(), case.script);
        let tree = tree::list(mounted.path());
        mounted.unmount();
        let upper = upper::view(&stack.upper.as_ref().unwrap().0, (&start, &tree), mask);
        Ok(Self {
            fs: fs.clone(),
            stack,
            lowers_before,
            answers,
            tree,
            upper,
            base,
            _scratch: scratch,
        })
    }

    /// Returns the differences between the tree after the script and the trees of remounts.
    fn check_remounts(&self, other: &Fs, mask: &Mask) -> Vec<String> {
        let mut lines = Vec::new();
        let visits = [(&self.fs, "own"), (other, "other"), (&self.fs, "own again")];
        let possible = |visit: &str| self.base.is_none() || visit != "other";
        for (fs, visit) in visits.into_iter().filter(|(_, visit)| possible(visit)) {
            let title = format!("upper of {:?}, remounted by {visit} ({fs:?})", self.fs);
            match fs.try_mount(&self.stack) {
                Ok(mounted) => {
                    let tree = tree::list(mounted.path());
                    mounted.unmount();
                    section(&mut lines, &title, tree::diff(&self.tree, &tree, mask));
                }
                Err(e) => section(&mut lines, &title, vec![e]),
            }
        }
        let now = list_lowers(&self.stack.lowers);
        for (n, (before, now)) in self.lowers_before.iter().zip(&now).enumerate() {
            let title = format!("lower {n} of {:?} was changed", self.fs);
            section(&mut lines, &title, tree::diff(before, now, &Mask::ALL));
        }
        lines
    }
}

fn section(lines: &mut Vec<String>, title: &str, found: Vec<String>) {
    if !found.is_empty() {
        lines.push(format!("{title}:"));
        lines.extend(found.into_iter().map(|l| format!("    {l}")));
    }
}

/// Whether the kernel brought back special files of a lower: a file was removed while open, then
/// changed through the descriptor, which copies it up to its former name, over the whiteout
/// (docs/SEMANTICS.md, "Open files").
fn brought_back(l: &Side, r: &Side) -> bool {
    let special = |kind| matches!(kind, libc::S_IFBLK | libc::S_IFCHR | libc::S_IFIFO);
    let hidden = |path: &Vec<u8>| r.upper.get(path).is_some_and(tree::Entry::is_whiteout);
    matches!(l.fs, Fs::Kernel(_))
        && l.tree.iter().any(|(path, entry)| {
            special(entry.kind()) && !r.tree.contains_key(path) && hidden(path)
        })
}

fn diff_answers(script: &[Op], left: &[Answer], right: &[Answer]) -> Vec<String> {
    let both = left.iter().zip(right);
    let rows = script.iter().zip(both).enumerate();
    rows.filter(|(_, (op, (l, r)))| l != r && !deliberate(op, l, r))
        .map(|(n, (op, (l, r)))| format!("{n}: {op}: left {l:?}, right {r:?}"))
        .collect()
}

/// Returns the differences without those of files whose mtime the kernel changed when it opened a
/// metacopy for writing and copied its data. An open must not change the mtime, and unionfs does
/// not (docs/SEMANTICS.md).
fn without_completions(kernel: &Fs, mut found: Vec<String>) -> Vec<String> {
    if !matches!(kernel, Fs::Kernel(options) if options.contains("metacopy=on")) {
        return found;
    }
    let touched: Vec<_> = found
        .iter()
        .filter_map(|l| l.strip_suffix(": mtime: left has recent"))
        .map(|path| format!("{path}: mtime: "))
        .collect();
    found.retain(|l| !touched.iter().any(|t| l.starts_with(t)));
    found
}

/// Runs the case on both. Returns the differences; empty if there are none.
pub fn compare(left: &Fs, right: &Fs, case: &Case<'_>) -> Vec<String> {
    compare_on(left, right, case, None)
}

/// As [`compare`], with the upper of the right side on a file system that refuses markers. The left
/// side never mounts that upper.
pub fn compare_on(left: &Fs, right: &Fs, case: &Case<'_>, base: Option<Refusing>) -> Vec<String> {
    let mask = Mask::from_now();
    let sides = (
        Side::run(left, case, None, &mask),
        Side::run(right, case, base, &mask),
    );
    let (l, r) = match sides {
        (Ok(l), Ok(r)) => (l, r),
        (l, r) => {
            let failed = [l.err(), r.err()].into_iter().flatten();
            return failed.map(|e| format!("mount failed: {e}")).collect();
        }
    };
    let both = l.answers.iter().zip(&r.answers);
    let mut rows = case.script.iter().zip(both);
    let end = rows.position(|(op, (l, r))| ends(op, l, r));
    let last_change = || case.script.iter().rposition(changes_by_descriptor);
    let end = match end {
        None if brought_back(&l, &r) => last_change(),
        end => end,
    };
    if let Some(end) = end {
        let script = &case.script[..end];
        return compare_on(left, right, &Case { script, ..*case }, base);
    }
    let mut lines = Vec::new();
    let answers = diff_answers(case.script, &l.answers, &r.answers);
    section(&mut lines, "answers", answers);
    let trees = tree::diff(&l.tree, &r.tree, &mask);
    section(&mut lines, "trees", without_completions(left, trees));
    if case.uppers {
        let mask = Mask {
            nlink: false,
            ..mask
        };
        let uppers = tree::diff(&l.upper, &r.upper, &mask);
        section(&mut lines, "uppers", without_completions(left, uppers));
    }
    lines.extend(l.check_remounts(right, &mask));
    lines.extend(r.check_remounts(left, &mask));
    if !lines.is_empty() {
        lines.insert(0, format!("left is {left:?}, right is {right:?}"));
    }
    lines
}
