//! `unionfs diff`: what was changed in a container or named layer. Called by `cli::main`.

use std::path::Path;

use serde::Serialize;

use super::open_stores;
use super::output::{print_bytes, print_json};
use crate::changes::{Change, Tree};

/// List what was changed since a container or named layer was made
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs diff web
  unionfs diff --json web | jq -r '.[] | select(.kind == \"D\") | .path'

A is added, C changed, D deleted, as with docker diff: of a deleted directory only itself is
listed, of an added one all that is in it, and a directory with changes in it is changed.
Control characters, backslashes and bytes that are no UTF-8 are written \\xNN.")]
pub(super) struct Args {
    /// Name, ID or start of an ID
    name: String,
    /// Print JSON: an array of kind and path, for paths that are not UTF-8 path_base64 too
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    kind: char,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_base64: Option<String>,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let container = open_stores(root)?.container(&args.name)?;
    let changes = Tree::open(&container.changed_stack()?)?.changes()?;
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
    print_bytes(text.as_bytes())
}

fn row(change: &Change) -> Row {
    use base64::Engine as _;
    let exact = std::str::from_utf8(&change.path).is_ok();
    let encode = || base64::engine::general_purpose::STANDARD.encode(&change.path);
    Row {
        kind: change.kind.letter(),
        path: String::from_utf8_lossy(&change.path).into_owned(),
        path_base64: (!exact).then(encode),
    }
}

/// A path on one line, from which its bytes can be told.
fn escape(path: &[u8], text: &mut String) {
    use std::fmt::Write as _;
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '\\' {
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
    use crate::changes::ChangeKind;

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
