//! `unionfs diff A B`: the differences of two trees, as lines, as a tree, or as JSON.

use std::collections::HashSet;
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

use super::archive_names;
use super::command_sandbox::SandboxArgs;
use super::diff::{base64_if_binary, escape};
use super::ls::kind_name;
use super::named_tree::Opening;
use super::output::{print, print_json, size};
use unionfs::changes::{ChangeKind, Difference, compare_trees};
use unionfs::union::{Attr, FileKind};

/// The form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Lines,
    Tree,
    Json,
}

#[derive(Serialize)]
struct Report {
    changes: Vec<Row>,
    added: Total,
    changed: Total,
    deleted: Total,
}

/// The files of one kind of change.
#[derive(Clone, Copy, Default, Serialize)]
struct Total {
    files: u64,
    /// Their bytes; for changed files the difference.
    bytes: i64,
}

#[derive(Serialize)]
struct Row {
    kind: char,
    /// The absolute path.
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_base64: Option<String>,
    /// What differs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    how: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<Side>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<Side>,
    /// The files and directories in a deleted directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<u64>,
}

#[derive(Serialize)]
struct Side {
    #[serde(rename = "type")]
    kind: &'static str,
    mode: String,
    uid: u32,
    gid: u32,
    /// The bytes of the file, or of all files in a deleted directory.
    size: u64,
    mtime: i64,
}

pub(super) fn run(
    names: [&str; 2],
    form: Form,
    sandbox: &SandboxArgs,
    root: Option<&Path>,
) -> anyhow::Result<()> {
    let [first, second] = names;
    let before = archive_names::resolve(first, sandbox, root)?;
    let after = archive_names::resolve(second, sandbox, root)?;
    let trees = Opening::prepare("diff", sandbox, root, &[&*before, &*after])?.enter()?;
    let (before, after) = (trees.open(&before)?, trees.open(&after)?);
    let mut found = Vec::new();
    compare_trees(before.as_ref(), after.as_ref(), &mut |difference| {
        found.push(difference);
        Ok(())
    })
    .with_context(|| format!("cannot compare {first} and {second}"))?;
    match form {
        Form::Json => print_json(&report(&found)),
        Form::Lines => print(&lines(&found)),
        Form::Tree => print(&tree(&found)),
    }
}

/// Returns the bytes of a file that count: those of data.
fn bytes(attr: Option<&Attr>) -> u64 {
    attr.filter(|attr| attr.kind == FileKind::Regular)
        .map_or(0, |attr| attr.size)
}

fn gone_or(attr: Option<&Attr>, difference: &Difference) -> u64 {
    bytes(attr).saturating_add(difference.below.bytes)
}

fn totals(found: &[Difference]) -> [Total; 3] {
    let [mut added, mut changed, mut deleted] = [Total::default(); 3];
    // A file with several names counts once.
    let mut counted = HashSet::new();
    let mut once = |attr: Option<&Attr>, is_new: bool| {
        let linked = attr.filter(|attr| attr.nlink > 1);
        linked.is_none_or(|attr| counted.insert((attr.ino, is_new)))
    };
    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    for difference in found {
        let (before, after) = (difference.before.as_ref(), difference.after.as_ref());
        let old = signed(gone_or(before.filter(|_| once(before, false)), difference));
        let new = signed(bytes(after.filter(|_| once(after, true))));
        let (total, bytes) = match difference.kind {
            ChangeKind::Added => (&mut added, new),
            ChangeKind::Changed => (&mut changed, new.saturating_sub(old)),
            ChangeKind::Deleted => (&mut deleted, old),
        };
        total.files += 1 + difference.below.files;
        total.bytes = total.bytes.saturating_add(bytes);
    }
    [added, changed, deleted]
}

fn report(found: &[Difference]) -> Report {
    let [added, changed, deleted] = totals(found);
    Report {
        changes: found.iter().map(row).collect(),
        added,
        changed,
        deleted,
    }
}

fn row(difference: &Difference) -> Row {
    let path = [b"/", &difference.path[..]].concat();
    let side = |attr: &Attr, size| Side {
        kind: kind_name(attr.kind),
        mode: format!("{:04o}", attr.perm),
        uid: attr.uid,
        gid: attr.gid,
        size,
        mtime: attr.mtime.sec,
    };
    let before = difference.before.as_ref();
    let after = difference.after.as_ref();
    Row {
        kind: difference.kind.letter(),
        path: String::from_utf8_lossy(&path).into_owned(),
        path_base64: base64_if_binary(&path),
        how: difference.how.iter().map(|how| how.name()).collect(),
        before: before.map(|attr| side(attr, gone_or(before, difference))),
        after: after.map(|attr| side(attr, bytes(after))),
        files: (difference.below.files > 0).then_some(difference.below.files),
    }
}

/// Describes what differs, without the path.
fn details(difference: &Difference) -> String {
    let (before, after) = (difference.before.as_ref(), difference.after.as_ref());
    let (old, new) = (gone_or(before, difference), bytes(after));
    let is_file = |attr: Option<&Attr>| attr.is_some_and(|attr| attr.kind == FileKind::Regular);
    match difference.kind {
        ChangeKind::Added if is_file(after) => size(new),
        ChangeKind::Deleted if difference.below.files > 0 => {
            format!("{} files, {}", difference.below.files, size(old))
        }
        ChangeKind::Deleted if is_file(before) => size(old),
        ChangeKind::Added | ChangeKind::Deleted => String::new(),
        ChangeKind::Changed => {
            let how: Vec<&str> = difference.how.iter().map(|how| how.name()).collect();
            let mut text = how.join(", ");
            if let (Some(before), Some(after)) = (before, after) {
                if before.perm != after.perm {
                    text += &format!("  {:04o} → {:04o}", before.perm, after.perm);
                }
                if (before.uid, before.gid) != (after.uid, after.gid) {
                    let (old, new) = ((before.uid, before.gid), (after.uid, after.gid));
                    text += &format!("  {}:{} → {}:{}", old.0, old.1, new.0, new.1);
                }
            }
            if old != new {
                text += &format!("  {} → {}", size(old), size(new));
            }
            text
        }
    }
}

fn lines(found: &[Difference]) -> String {
    let mut text = String::new();
    for difference in found {
        text.push(difference.kind.letter());
        text.push_str(" /");
        escape(&difference.path, &mut text);
        add_details(difference, &mut text);
    }
    text + &summary(found)
}

fn add_details(difference: &Difference, text: &mut String) {
    let details = details(difference);
    if !details.is_empty() {
        text.push_str("  ");
        text.push_str(&details);
    }
    text.push('\n');
}

fn summary(found: &[Difference]) -> String {
    let [added, changed, deleted] = totals(found);
    if found.is_empty() {
        return "no differences\n".to_owned();
    }
    let signed = if changed.bytes < 0 { "-" } else { "+" };
    format!(
        "{} added ({}), {} changed ({signed}{}), {} deleted ({})\n",
        added.files,
        size(added.bytes.unsigned_abs()),
        changed.files,
        size(changed.bytes.unsigned_abs()),
        deleted.files,
        size(deleted.bytes.unsigned_abs()),
    )
}

/// A line of the tree: how deep it is, and its text.
struct Branch {
    depth: usize,
    text: String,
}

fn tree(found: &[Difference]) -> String {
    let mut branches: Vec<Branch> = Vec::new();
    // The directories on the path of the line before.
    let mut open: Vec<&[u8]> = Vec::new();
    for difference in found {
        let names: Vec<&[u8]> = match &difference.path[..] {
            b"" => Vec::new(),
            path => path.split(|byte| *byte == b'/').collect(),
        };
        let Some((last, dirs)) = names.split_last() else {
            let mut text = "C /".to_owned();
            add_details(difference, &mut text);
            branches.push(Branch { depth: 0, text });
            continue;
        };
        let same = open.iter().zip(dirs).take_while(|(a, b)| a == b).count();
        open.truncate(same);
        for (depth, dir) in dirs.iter().enumerate().skip(same) {
            let mut text = String::new();
            escape(dir, &mut text);
            text.push_str("/\n");
            branches.push(Branch {
                depth: depth + 1,
                text,
            });
            open.push(dir);
        }
        let mut text = format!("{} ", difference.kind.letter());
        escape(last, &mut text);
        let attr = difference.after.as_ref().or(difference.before.as_ref());
        if attr.is_some_and(|attr| attr.kind == FileKind::Directory) {
            text.push('/');
            open.push(last);
        }
        add_details(difference, &mut text);
        branches.push(Branch {
            depth: names.len(),
            text,
        });
    }
    draw(&branches) + &summary(found)
}

fn draw(branches: &[Branch]) -> String {
    // From the end: whether a later line continues each level.
    let mut continued: Vec<bool> = Vec::new();
    let mut lines = Vec::with_capacity(branches.len());
    for branch in branches.iter().rev() {
        let depth = branch.depth;
        let more = continued.get(depth).copied().unwrap_or(false);
        continued.resize(depth + 1, false);
        let mut line = String::new();
        for level in &continued[1.min(depth)..depth] {
            line.push_str(if *level { "│   " } else { "    " });
        }
        if depth > 0 {
            line.push_str(if more { "├── " } else { "└── " });
        }
        line.push_str(&branch.text);
        lines.push(line);
        if let Some(level) = continued.get_mut(depth) {
            *level = true;
        }
    }
    lines.reverse();
    lines.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_has_a_line_for_each_directory() {
        let branch = |depth: usize, text: &str| Branch {
            depth,
            text: format!("{text}\n"),
        };
        let drawn = draw(&[
            branch(1, "etc/"),
            branch(2, "C a"),
            branch(2, "sub/"),
            branch(3, "A b"),
            branch(1, "D opt/"),
        ]);
        assert_eq!(
            drawn,
            "├── etc/\n│   ├── C a\n│   └── sub/\n│       └── A b\n└── D opt/\n"
        );
    }
}
