//! The budget of `unionfs mount`: the number of system calls that each further layer costs, and the
//! lengths of the filters that it installs, as strace shows them. docs/BUDGETS.md explains them.

use std::path::Path;

use serde_json::json;
use testkit::home::{Home, traced_mount};
use testkit::need;
use testkit::need::{can_mount, has_tools};
use unionfs::oci::Digest;

/// The numbers of layers of the two images that are compared.
const FEW: usize = 4;
const MANY: usize = 36;
/// The limit for one layer, see docs/BUDGETS.md.
const BUDGET: usize = 13;
/// The limit for the instructions of a filter of system calls, see there.
const FILTER: usize = 410;

/// Writes an archive in the format of `docker save`, with one image of that many layers for each
/// name.
fn archive(file: &Path, images: &[(&str, usize)]) {
    let mut out = tar::Builder::new(std::fs::File::create(file).unwrap());
    let mut add = |name: &str, bytes: &[u8]| append(&mut out, name, bytes);
    let mut manifest = Vec::new();
    for (image, count) in images {
        let layers: Vec<_> = (0..*count).map(|n| format!("{image}{n}.tar")).collect();
        let mut diff_ids = Vec::new();
        for layer in &layers {
            let mut content = tar::Builder::new(Vec::new());
            append(&mut content, layer, b"content");
            let bytes = content.into_inner().unwrap();
            diff_ids.push(Digest::of(&bytes).to_string());
            add(layer, &bytes);
        }
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        add(&format!("{image}.json"), config.to_string().as_bytes());
        manifest.push(json!({
            "Config": format!("{image}.json"), "RepoTags": [format!("{image}:latest")],
            "Layers": layers,
        }));
    }
    add("manifest.json", json!(manifest).to_string().as_bytes());
    out.finish().unwrap();
}

fn append<W: std::io::Write>(tar: &mut tar::Builder<W>, name: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, bytes).unwrap();
}

/// Returns the calls of a mount and its unmount, by the command and by the server.
fn calls(home: &Home, image: &str) -> usize {
    let lines = traced_mount(home, &[], &["--read-only", image]);
    // A debug build checks each descriptor before it closes it.
    let counted = |line: &&str| !line.contains("F_GETFD");
    lines.lines().filter(counted).count()
}

#[test]
fn a_layer_costs_no_more_than_its_budget() {
    need!(can_mount());
    need!(has_tools(&["strace"]));
    let home = Home::new();
    home.dirs(&["mnt"]);
    let file = home.path("images.tar");
    archive(&file, &[("few", FEW), ("many", MANY)]);
    home.run(["load", "--quiet", "-i", file.to_str().unwrap()])
        .ok();
    for image in ["few", "many"] {
        home.run(["catalog", "build", image]).ok();
    }
    let (few, many) = (calls(&home, "few"), calls(&home, "many"));
    let each = many.saturating_sub(few) as f64 / (MANY - FEW) as f64;
    assert!(
        each <= BUDGET as f64 + 0.9,
        "{each:.1} calls a layer ({few} with {FEW}, {many} with {MANY}), budget {BUDGET}"
    );
}

#[test]
fn filters_of_system_calls_are_short() {
    need!(can_mount());
    need!(has_tools(&["strace"]));
    let home = Home::new();
    home.dirs(&["mnt"]);
    let file = home.path("images.tar");
    archive(&file, &[("image", 1)]);
    home.run(["load", "--quiet", "-i", file.to_str().unwrap()])
        .ok();
    let lines = traced_mount(&home, &["-e", "trace=seccomp"], &["--read-only", "image"]);
    let length = |line: &str| {
        let (_, rest) = line.split_once("{len=")?;
        rest.split(',').next()?.parse::<usize>().ok()
    };
    let lengths: Vec<_> = lines.lines().filter_map(length).collect();
    // The process that looks into the store has one, and so has the server.
    assert!(lengths.len() >= 2, "{lines}");
    assert!(lengths.iter().all(|length| *length <= FILTER), "{lines}");
}
