//! `unionfs layers` shows the tree of layers, with their sizes and the images that share them.

use std::path::Path;

use anyhow::bail;

use super::archive_names;
use super::candidates;
use super::command_sandbox::SandboxArgs;
use super::filters::{Condition as _, FittingLayers, LayerFilter};
use super::output::{Cut, print_json, size};
use super::rows::{Field, RowArgs, Rows, field};
use super::warn;
use unionfs::oci::Digest;
use unionfs::store::LayerNode;

/// Show layers as a tree, with their sizes and the images that share them
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs layers            all layers, each below its parent
  unionfs layers myapp:2    the layers of one image
  unionfs layers --format '{{.ID}} {{.Path}}' myapp:2
  unionfs layers --filter shared=true --filter reference='sample*'

Filters: reference=PATTERN, label=NAME[=VALUE], label!=NAME[=VALUE], before=IMAGE, since=IMAGE,
until=TIME, dangling=true|false and store=unionfs|docker|podman|containerd|ROOT show the layers of
the images that fit; shared=true|false those that several images have, or one. All must fit.
Fields of --format: Layer (with the lines of the tree), ID, DiffID, Parent, Size, Images, TopOf, Root,
Path.")]
pub(super) struct Args {
    /// Show only the layers of this image: name, ID or ID prefix
    #[arg(add = candidates::images())]
    image: Option<String>,
    /// Show only layers that fit; may be repeated
    #[arg(long, short = 'f', value_name = "KEY=VALUE", value_parser = LayerFilter::parse)]
    filter: Vec<LayerFilter>,
    #[command(flatten)]
    rows: RowArgs,
    /// Print JSON: sizes in bytes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let resolve = |image| archive_names::resolve(image, &args.sandbox, root);
    let image = args.image.as_deref().map(resolve).transpose()?;
    let names: Vec<&str> = image.as_deref().into_iter().collect();
    let stores = args.sandbox.stores("layers", root, &names)?;
    let image = image.map(|name| stores.find(&name)).transpose()?;
    let mut tree = stores.layers(image.as_ref());
    if !args.filter.is_empty() {
        let images = stores.images();
        FittingLayers::find(&args.filter, &images, image.as_ref())?.retain(&mut tree.nodes);
    }
    if args.json {
        print_json(&tree.nodes)?;
    } else {
        rows(&tree.nodes, &args.rows).print(&args.rows)?;
    }
    // Damage elsewhere does not matter for the layers of one image.
    if image.is_some() {
        return Ok(());
    }
    let Some((last, others)) = tree.problems.split_last() else {
        return Ok(());
    };
    for problem in others {
        warn(problem);
    }
    bail!("{last}")
}

const FIELDS: [Field; 9] = [
    field("Layer", "LAYER", Cut::No),
    field("ID", "ID", Cut::No),
    field("DiffID", "DIFF ID", Cut::No),
    field("Parent", "PARENT", Cut::No),
    field("Size", "SIZE", Cut::No),
    field("Images", "IMAGES", Cut::No),
    field("TopOf", "TOP OF", Cut::Middle),
    field("Root", "ROOT", Cut::Middle),
    field("Path", "PATH", Cut::Middle),
];

fn rows(nodes: &[LayerNode], args: &RowArgs) -> Rows {
    let mut rows = Rows::new(&FIELDS, ["Layer", "Size", "Images", "TopOf"], "ID");
    let id = |id: &Digest| {
        if args.no_trunc {
            id.to_string()
        } else {
            id.short()
        }
    };
    for (node, branch) in nodes.iter().zip(branches(nodes)) {
        let layer = &node.layer;
        rows.row([
            branch + &id(&layer.chain_id),
            id(&layer.chain_id),
            id(&layer.diff_id),
            layer.parent.as_ref().map_or_else(|| "-".into(), id),
            size(layer.size),
            node.images.len().to_string(),
            node.top_of.join(", "),
            node.root.to_string_lossy().into_owned(),
            layer.place.path().to_string_lossy().into_owned(),
        ]);
    }
    rows
}

/// Returns the lines before each node. A chain of only children keeps its column, because the
/// layers of an image with forty layers would otherwise not fit on the screen.
fn branches(nodes: &[LayerNode]) -> Vec<String> {
    let depths: Vec<usize> = nodes.iter().map(|node| node.depth).collect();
    draw(&depths)
}

fn draw(depths: &[usize]) -> Vec<String> {
    // For each open ancestor: whether it has several children, and how many remain.
    let children = |at: usize| {
        let below = depths[at + 1..].iter().take_while(|d| **d > depths[at]);
        below.filter(|d| **d == depths[at] + 1).count()
    };
    let mut open: Vec<(usize, usize)> = Vec::new();
    let mut lines = Vec::with_capacity(depths.len());
    for (at, &depth) in depths.iter().enumerate() {
        open.truncate(depth);
        let mut line = String::new();
        for (level, (total, left)) in open.iter_mut().enumerate() {
            let is_parent = level + 1 == depth;
            if is_parent {
                *left = left.saturating_sub(1);
            }
            if *total > 1 {
                line.push_str(match (is_parent, *left > 0) {
                    (true, true) => "├─",
                    (true, false) => "└─",
                    (false, true) => "│ ",
                    (false, false) => "  ",
                });
            }
        }
        lines.push(line);
        let count = children(at);
        open.push((count, count));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_branches_indent() {
        // base ─ a ─┬─ b ─ c
        //           └─ d ─┬─ e
        //                 └─ f          and another base
        let lines = draw(&[0, 1, 2, 3, 2, 3, 3, 0]);
        assert_eq!(lines, ["", "", "├─", "│ ", "└─", "  ├─", "  └─", ""]);
    }

    #[test]
    fn odd_depths_do_not_panic() {
        assert_eq!(draw(&[]).len(), 0);
        assert_eq!(draw(&[3, 1, 5]).len(), 3);
    }
}
