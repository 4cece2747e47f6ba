//! Makes a failing plan small: steps and entries of layers are taken out, many at once first, as
//! long as what is left still fails.

use testkit::layers::Node;

use crate::generate::Plan;

/// How many smaller plans are tried at most.
const TRIES: usize = 300;

/// The smallest failing plan found, and how it fails.
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

/// Part 0 is the script, then come the layers.
fn len(plan: &Plan, part: usize) -> usize {
    match part {
        0 => plan.script.len(),
        n => plan.layers[n - 1].items.len(),
    }
}

fn size(plan: &Plan) -> usize {
    (0..=plan.layers.len()).map(|part| len(plan, part)).sum()
}

/// Entries that others are linked to stay, and directories: a whiteout needs one that is merged.
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
