//! Shrinks a failing plan: removes parts, large ones first, as long as the rest still fails. This
//! is faster than proptest's own shrinking, which does not know layers.

use testkit::layers::{Layer, Node};
use testkit::script::Op;

use crate::generate::Plan;

/// The maximum number of smaller plans that are tried.
const TRIES: usize = 600;

/// Returns the smallest failing plan that was found, and its failures.
pub(crate) fn shrink(
    mut plan: Plan,
    mut found: Vec<String>,
    fails: impl Fn(&Plan) -> Vec<String>,
) -> (Plan, Vec<String>) {
    let mut tries = 0;
    loop {
        let before = size(&plan);
        for part in 0..parts(&plan) {
            let mut step = len(&plan, part).max(1);
            while step > 0 {
                let mut at = 0;
                while at < len(&plan, part) && tries < TRIES {
                    let mut smaller = plan.clone();
                    cut(&mut smaller, part, at, step);
                    tries += 1;
                    let now = fails(&smaller);
                    if now.is_empty() {
                        at += step;
                    } else {
                        (plan, found) = (smaller, now);
                    }
                }
                step /= 2;
            }
        }
        // Whole layers.
        for part in (1..parts(&plan)).rev() {
            let mut smaller = plan.clone();
            match part.checked_sub(1 + smaller.made.len()) {
                None => drop(smaller.made.remove(part - 1)),
                Some(n) if smaller.layers.len() > 1 => drop(smaller.layers.remove(n)),
                Some(_) => continue,
            }
            let now = fails(&smaller);
            if !now.is_empty() {
                (plan, found) = (smaller, now);
            }
        }
        if size(&plan) == before || tries >= TRIES {
            return (plan, found);
        }
    }
}

/// Returns the number of parts: the script, each made layer, each written layer.
fn parts(plan: &Plan) -> usize {
    1 + plan.made.len() + plan.layers.len()
}

fn len(plan: &Plan, part: usize) -> usize {
    let made = plan.made.len();
    match part {
        0 => plan.script.len(),
        n if n <= made => plan.made[n - 1].len(),
        n => plan.layers[n - 1 - made].items.len(),
    }
}

fn size(plan: &Plan) -> usize {
    (0..parts(plan)).map(|part| len(plan, part)).sum()
}

fn cut(plan: &mut Plan, part: usize, at: usize, step: usize) {
    let made = plan.made.len();
    let drain = |ops: &mut Vec<Op>| drop(ops.drain(at..ops.len().min(at + step)));
    match part {
        0 => drain(&mut plan.script),
        n if n <= made => drain(&mut plan.made[n - 1]),
        n => cut_items(&mut plan.layers[n - 1 - made], at, step),
    }
}

/// Removes entries, with all entries that are in them or linked to them.
fn cut_items(layer: &mut Layer, at: usize, step: usize) {
    let end = layer.items.len().min(at + step);
    let mut gone: Vec<Vec<u8>> = layer.items.drain(at..end).map(|i| i.path).collect();
    layer.items.retain(|item| {
        let inside = |path: &[u8]| {
            let in_one = |g: &Vec<u8>| path == &g[..] || path.starts_with(&[&g[..], b"/"].concat());
            gone.iter().any(in_one)
        };
        let linked = matches!(&item.node, Node::Link(to) if inside(to));
        let cut = linked || inside(&item.path);
        if cut {
            gone.push(item.path.clone());
        }
        !cut
    });
}
