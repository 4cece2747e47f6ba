//! `unionfs diff` lists the changes in a container or named layer.

use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

use super::candidates;
use super::command_sandbox::SandboxArgs;
use super::diff_trees::{self, Form};
use super::output::{is_unsafe, print, print_json};
use super::outside_helper::Outside;
use unionfs::changes::{Change, Tree};

/// List the changes of a container or named layer, or the differences of two trees
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs diff web
  unionfs diff --json web | jq -r '.[] | select(.kind == \"D\") | .path'
  unionfs diff --tree myapp:1 myapp:2

A means added, C changed, D deleted, as in docker diff. For a deleted directory only the directory is
listed, for an added directory everything in it too. A directory that contains changes is changed.

With two names, the trees of two images, containers, named layers or layers (as for unionfs ls) are
compared: A means only in B, D only in A. What differs is type, mode, owner, device, size, content,
xattrs, or the time of a file that is not a directory. A directory does not differ because a file in
it does. Sizes of each path and in total are shown.

Control characters, backslashes and bytes that are not UTF-8 are printed as \\xNN.")]
pub(super) struct Args {
    /// The container or named layer: name, ID or ID prefix; with OTHER, also an image or layer
    #[arg(add = candidates::trees())]
    name: String,
    /// What NAME is compared with: an image, container, named layer or layer
    #[arg(add = candidates::trees())]
    other: Option<String>,
    /// Draw the differences as a tree
    #[arg(long, requires = "other", conflicts_with = "json")]
    tree: bool,
    /// Print JSON: an array of kind and path, for paths that are not UTF-8 path_base64 too; for two
    /// names an object with changes and totals
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

#[derive(Serialize)]
struct Row {
    kind: char,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_base64: Option<String>,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    if let Some(other) = &args.other {
        let form = match (args.json, args.tree) {
            (true, _) => Form::Json,
            (false, true) => Form::Tree,
            (false, false) => Form::Lines,
        };
        return diff_trees::run([&args.name, other], form, &args.sandbox, root);
    }
    let mut cage = args.sandbox.cage("diff")?;
    let places = cage.stores_of_containers(root, &[])?;
    let outside = Outside::start(None, Some(&places)).context("cannot start a process")?;
    let stores = cage.enter_with_stores(places)?;
    let container = stores.container(&args.name)?;
    let tree = Tree::open(&container.changed_stack()?)?;
    tree.find_origins_by(&outside.finder());
    let changes = tree.changes()?;
    if args.json {
        let rows: Vec<Row> = changes.iter().map(row).collect();
        return print_json(&rows);
    }
    let mut text = String::new();
    for change in &changes {
        text.push(change.kind.letter());
        text.push(' ');
        escape(&change.path, &mut text);
        text.push('\n');
    }
    print(&text)
}

fn row(change: &Change) -> Row {
    Row {
        kind: change.kind.letter(),
        path: String::from_utf8_lossy(&change.path).into_owned(),
        path_base64: base64_if_binary(&change.path),
    }
}

/// Returns the bytes of a path that is not UTF-8, for JSON.
pub(super) fn base64_if_binary(path: &[u8]) -> Option<String> {
    use base64::Engine as _;
    let encode = || base64::engine::general_purpose::STANDARD.encode(path);
    std::str::from_utf8(path).is_err().then(encode)
}

/// Formats a path on one line, from which its bytes can be recovered.
pub(super) fn escape(path: &[u8], text: &mut String) {
    use std::fmt::Write as _;
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            if is_unsafe(c) || c == '\\' {
                let mut bytes = [0; 4];
                for byte in c.encode_utf8(&mut bytes).bytes() {
                    // Writing to a String cannot fail.
                    let _ = write!(text, "\\x{byte:02x}");
                }
            } else {
                text.push(c);
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use unionfs::changes::ChangeKind;

    #[test]
    fn paths_keep_to_their_line_and_can_be_told_apart() {
        let shown = |path: &[u8]| {
            let mut text = String::new();
            escape(path, &mut text);
            text
        };
        assert_eq!(shown("/é x".as_bytes()), "/é x");
        assert_eq!(shown(b"/a\nb\\x0a\xff"), "/a\\x0ab\\x5cx0a\\xff");
    }

    #[test]
    fn json_has_the_bytes_of_names_that_are_no_text() {
        let of = |path: &[u8]| {
            let kind = ChangeKind::Added;
            let path = path.to_vec();
            serde_json::to_value(row(&Change { path, kind })).unwrap()
        };
        assert_eq!(of(b"/a"), serde_json::json!({"kind": "A", "path": "/a"}));
        assert_eq!(of(b"/\xff")["path_base64"], "L/8=");
    }
}
