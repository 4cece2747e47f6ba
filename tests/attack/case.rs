//! Runs one case on kernel overlayfs and on unionfs in lockstep. The test compares the answer of
//! each step, then the modes as the caches have them, then the whole trees, then the upper as the
//! kernel reads it. It also checks that the lowers and the files beside them did not change.

use std::collections::BTreeMap;
use std::path::Path;

use testkit::deliberate;
use testkit::exec::{Answer, answer};
use testkit::layers::{self, Form};
use testkit::mount::{Fs, KERNEL, Mounted, Scratch, Stack};
use testkit::tree::{self, Mask, Tree};

use crate::act::{Act, Step, mode};
use crate::actor::{Actor, HANG, OWNER};
use crate::decoys::{Decoys, copies_of_the_secret, leaks};
use crate::generate::Plan;

/// A mount of root and everything beside it.
pub(crate) struct Scene {
    pub(crate) actors: BTreeMap<&'static str, Actor>,
    mounted: Option<Mounted>,
    pub(crate) stack: Stack,
    lowers: Vec<Tree>,
    decoys: Decoys,
    pub(crate) scratch: Scratch,
}

/// Returns the content of set-id files: `cat`, which shows its identity when it reads its own
/// status.
pub(crate) fn program() -> Vec<u8> {
    std::fs::read("/bin/cat").unwrap()
}

impl Scene {
    /// Mounts `fs` over the layers of a plan.
    pub(crate) fn set(fs: &Fs, plan: &Plan) -> Result<Self, String> {
        let scratch = Scratch::tmpfs();
        let lowers = layers::write_all(&plan.layers, scratch.path(), Form::Kernel);
        let upper = (scratch.dir("upper"), scratch.dir("work"));
        std::os::unix::fs::chown(&upper.0, Some(OWNER), Some(OWNER)).unwrap();
        layers::set_mtime(&upper.0, (1_300_000_000, 5));
        let decoys = Decoys::plant(scratch.dir("decoys"), &program());
        // So deep that the target of a symlink in the upper does not exist relative to this
        // directory.
        let mnt = scratch.path().join("m/m/m/m/mnt");
        std::fs::create_dir_all(&mnt).unwrap();
        let stack = Stack {
            lowers,
            upper: Some(upper),
            mnt,
        };
        let lowers = stack.lowers.iter().map(|l| tree::list_raw(l)).collect();
        let mounted = Some(fs.try_mount(&stack)?);
        Ok(Self {
            actors: BTreeMap::new(),
            mounted,
            stack,
            lowers,
            decoys,
            scratch,
        })
    }

    /// Returns the actor of a step and starts it on first use.
    pub(crate) fn actor(&mut self, script: &[Step], number: usize) -> &mut Actor {
        let who = script[number].who;
        let root = if who.behind {
            self.scratch.path()
        } else {
            &self.stack.mnt
        };
        let start = || Actor::start(who, root, script);
        self.actors.entry(who.name).or_insert_with(start)
    }

    /// Runs a step. Answers that are always wrong are added to `found`.
    fn run(&mut self, script: &[Step], number: usize, found: &mut Vec<String>) -> Answer {
        let answer = self.actor(script, number).run(number);
        // The comparison with the kernel shows who may read root's file inside.
        found.extend(wrong(&script[number], number, &answer, true));
        answer
    }

    pub(crate) fn mnt(&self) -> &Path {
        &self.stack.mnt
    }

    pub(crate) fn mounted(&self) -> &Mounted {
        self.mounted.as_ref().unwrap()
    }

    /// Returns the changes of objects that nobody may change.
    pub(crate) fn outside(&self) -> Vec<String> {
        let mut found = self.decoys.changes();
        for (n, (lower, before)) in self.stack.lowers.iter().zip(&self.lowers).enumerate() {
            let mask = Mask {
                ino: true,
                ..Mask::ALL
            };
            let changes = tree::diff(before, &tree::list_raw(lower), &mask);
            found.extend(changes.into_iter().map(|l| format!("lower {n}: {l}")));
        }
        found
    }

    pub(crate) fn unmount(&mut self) {
        self.actors.clear();
        self.mounted.take().unwrap().unmount();
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.actors.clear();
        self.mounted = None;
    }
}

/// Returns the answers that no implementation may give. `opened` says whether root may have let
/// others read its file in the layers.
pub(crate) fn wrong(step: &Step, number: usize, answer: &Answer, opened: bool) -> Option<String> {
    let text = match answer {
        Ok(text) | Err(text) => text,
    };
    let is_wrong = text == HANG
        || text == "panic"
        || text.starts_with("the actor is gone")
        || text.starts_with("cannot act")
        || leaks(text, opened || step.who.uid == 0);
    is_wrong.then(|| format!("{number}: {step}: {answer:?}"))
}

/// Tells whether the two answers may differ.
fn may_differ(act: &Act, kernel: &Answer, union: &Answer) -> bool {
    match act {
        Act::Do(op) | Act::Here(op) => deliberate::deliberate(op, kernel, union),
        // Handles without nfs_export are a deliberate difference (docs/SEMANTICS.md, "File handles").
        Act::Handle(_) => *kernel == Err("EOPNOTSUPP".into()),
        // The flags of chattr are compared if they are answered.
        Act::Nodump(_) => *union == Err("ENOTTY".into()),
        // unionfs has no escape for these names and refuses them (docs/SEMANTICS.md, "Extended
        // attributes"); the kernel's scene never runs the step.
        Act::Forge(..) => union.is_err(),
        _ => false,
    }
}

const SGID: u32 = libc::S_ISGID;

/// Returns the mode that an answer ends with, and the text before it.
fn mode_of(answer: &Answer) -> Option<(&str, u32)> {
    let (before, mode) = answer.as_ref().ok()?.rsplit_once("mode ")?;
    // An answer from below another root is quoted once more.
    let digits = mode.trim_end_matches(['"', ')', '\\']);
    Some((before, u32::from_str_radix(digits, 8).ok()?))
}

/// Tells whether set-id bits may be dropped differently from the kernel (docs/SEMANTICS.md,
/// "Differences where the kernel does not say enough"). Nobody gains a right by it, but the later
/// steps cannot be compared.
fn bits_fell_otherwise(step: &Step, kernel: &Answer, union: &Answer) -> bool {
    let (Some((k, kernel)), Some((u, union))) = (mode_of(kernel), mode_of(union)) else {
        return false;
    };
    let (lost, kept) = (kernel & !union, union & !kernel);
    // Without execution by the group the bit gives no right.
    let no_right = lost | kept == SGID && kernel & 0o10 == 0;
    let root_drops = step.who.uid == 0 && kept == 0 && lost & !0o6000 == 0;
    k == u && kernel != union && (no_right || root_drops)
}

fn ends(step: &Step, kernel: &Answer, union: &Answer) -> bool {
    if bits_fell_otherwise(step, kernel, union) {
        return true;
    }
    match &step.act {
        Act::Do(op) | Act::Here(op) => deliberate::ends(op, kernel, union),
        _ => false,
    }
}

/// Runs the scripts side by side until they differ; returns how many steps can be compared.
fn answers(left: &mut Scene, right: &mut Scene, plan: &Plan, found: &mut Vec<String>) -> bool {
    for (number, step) in plan.script.iter().enumerate() {
        let theirs = match step.act {
            Act::Forge(..) => Ok(String::new()),
            _ => left.run(&plan.script, number, found),
        };
        let ours = right.run(&plan.script, number, found);
        if ends(step, &theirs, &ours) {
            return false;
        }
        if theirs != ours && !may_differ(&step.act, &theirs, &ours) {
            found.push(format!("{number}: {step}: left {theirs:?}, right {ours:?}"));
        }
        if !found.is_empty() {
            return false;
        }
    }
    true
}

/// Returns the mode without the bit that gives no right, see [`bits_fell_otherwise`].
fn rights(mode: u32) -> u32 {
    let no_right = mode & libc::S_IFMT == libc::S_IFREG && mode & 0o10 == 0;
    if no_right { mode & !SGID } else { mode }
}

fn list(root: &Path) -> Tree {
    let mut tree = tree::list(root);
    for entry in tree.values_mut() {
        entry.mode = rights(entry.mode);
    }
    tree
}

/// Returns the modes that the caches of `right` have, together with the correct ones.
fn modes(tree: &Tree, right: &Path) -> Vec<String> {
    let differs = |(path, entry): (&Vec<u8>, &tree::Entry)| {
        let now = answer(mode(&tree::at(right, path)));
        let expected = format!("mode {:o}", entry.mode);
        let same = mode_of(&now).is_some_and(|(_, mode)| rights(mode) == entry.mode);
        let name = testkit::escape(path);
        (!same).then(|| format!("/{name}: cached {now:?}, left {expected:?}"))
    };
    tree.iter().filter_map(differs).collect()
}

/// Runs a plan on both and returns the differences; the list is empty if there are none. `spoil`
/// changes the right side before the trees are compared: the oracle uses it to plant a difference.
pub(crate) fn compare(
    left: &Fs,
    right: &Fs,
    plan: &Plan,
    spoil: Option<&dyn Fn(&Scene)>,
) -> Vec<String> {
    let mask = Mask::from_now();
    let (mut left, mut right) = match (Scene::set(left, plan), Scene::set(right, plan)) {
        (Ok(left), Ok(right)) => (left, right),
        (left, right) => return left.err().into_iter().chain(right.err()).collect(),
    };
    let mut found = Vec::new();
    let whole = answers(&mut left, &mut right, plan, &mut found);
    // The mount namespaces of the actors hold the mounts of both scenes.
    left.actors.clear();
    right.actors.clear();
    if let Some(spoil) = spoil {
        spoil(&right);
    }
    if whole {
        let kernel = list(left.mnt());
        found.extend(modes(&kernel, right.mnt()));
        let ours = list(right.mnt());
        found.extend(tree::diff(&kernel, &ours, &mask));
        found.extend(copies_of_the_secret(&ours, right.scratch.path()));
        right.unmount();
        match KERNEL.try_mount(&right.stack) {
            Ok(mounted) => {
                let again = tree::diff(&ours, &list(mounted.path()), &mask);
                let again = again
                    .into_iter()
                    .map(|l| format!("mounted by the kernel: {l}"));
                found.extend(again);
                mounted.unmount();
            }
            Err(e) => found.push(format!("the kernel does not mount the upper: {e}")),
        }
    }
    for scene in [&left, &right] {
        found.extend(scene.outside());
    }
    found
}
