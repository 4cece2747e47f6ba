//! Shrinks a failing plan: removes steps and entries of layers, many at once first, as long as the
//! rest still fails.

use testkit::layers::Node;

use crate::generate::Plan;

/// The maximum number of smaller plans that are tried.
const TRIES: usize = 300;

/// Returns the smallest failing plan that was found, and its failures.
pub(crate) fn shrink(
    mut plan: Plan,
    mut found: Vec<String>,
    fails: impl Fn(&Plan) -> Vec<String>,
) -> (Plan, Vec<String>) {
    let mut tries = 0;
    loop {
        let before = size(&plan);
        for part in 0..=plan.layers.len() {
            let mut step = len(&plan, part).div_ceil(2);
            while step > 0 {
                let mut at = 0;
                while at < len(&plan, part) && tries < TRIES {
                    let mut smaller = plan.clone();
                    cut(&mut smaller, part, at, step);
                    tries += 1;
                    let now = if len(&smaller, part) == len(&plan, part) {
                        Vec::new()
                    } else {
                        fails(&smaller)
                    };
                    if now.is_empty() {
                        at += step;
                    } else {
                        (plan, found) = (smaller, now);
                    }
                }
                step /= 2;
            }
        }
        if size(&plan) == before || tries >= TRIES {
            return (plan, found);
        }
    }
}

/// Returns the length of a part. Part 0 is the script; the layers follow.
fn len(plan: &Plan, part: usize) -> usize {
    match part {
        0 => plan.script.len(),
        n => plan.layers[n - 1].items.len(),
    }
}

fn size(plan: &Plan) -> usize {
    (0..=plan.layers.len()).map(|part| len(plan, part)).sum()
}

/// Removes entries. It keeps directories, because a whiteout needs a merged one, and entries to
/// which others are linked.
fn cut(plan: &mut Plan, part: usize, at: usize, step: usize) {
    let Some(n) = part.checked_sub(1) else {
        let end = plan.script.len().min(at + step);
        drop(plan.script.drain(at..end));
        return;
    };
    let items = &mut plan.layers[n].items;
    let end = items.len().min(at + step);
    for index in (at..end).rev() {
        let link = Node::Link(items[index].path.clone());
        if items[index].node != Node::Dir && !items.iter().any(|i| i.node == link) {
            items.remove(index);
        }
    }
}
