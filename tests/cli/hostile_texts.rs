//! Texts of images are shown to root on a terminal: no character of them moves the cursor or starts
//! a line, in any command, and JSON output is valid JSON.

use serde_json::{Value, json};
use testkit::home::Home;
use unionfs::oci::Digest;

/// Escape sequences in both forms, a line that looks like one of our output, and right-to-left
/// overrides.
const HOSTILE: &str = "x\u{1b}[2J\u{9b}1m\u{7f}\r\nSize: 1B\u{202e}\u{2028}";

fn append(tar: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, bytes).unwrap();
}

/// Returns an archive with one image of one layer, whose configuration is hostile.
fn archive(layer_name: &str) -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    append(&mut layer, "file", b"content");
    let layer = layer.into_inner().unwrap();
    let config = json!({
        "architecture": HOSTILE, "os": "linux", "author": HOSTILE, "comment": HOSTILE,
        "created": HOSTILE,
        "config": {HOSTILE: HOSTILE, "Labels": {HOSTILE: HOSTILE}, "Env": [HOSTILE]},
        "history": [{"created": HOSTILE, "created_by": HOSTILE, "comment": HOSTILE}],
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer).to_string()]},
    });
    let manifest = json!([{
        "Config": "c.json", "RepoTags": ["evil:1"], "Layers": [layer_name],
    }]);
    let mut out = tar::Builder::new(Vec::new());
    append(&mut out, "c.json", config.to_string().as_bytes());
    append(&mut out, "l.tar", &layer);
    append(&mut out, "manifest.json", manifest.to_string().as_bytes());
    out.into_inner().unwrap()
}

fn is_harmless(text: &str) {
    let bad = |c: &char| *c != '\n' && (c.is_control() || ('\u{2028}'..='\u{202e}').contains(c));
    assert_eq!(text.chars().find(bad), None, "{text:?}");
}

#[test]
fn no_image_writes_on_the_terminal() {
    let home = Home::new();
    let file = home.path("a.tar");
    std::fs::write(&file, archive("l.tar")).unwrap();
    let file = file.to_str().unwrap();
    home.run(["load", "-q", "-i", file]).ok();
    for command in [
        &["images"][..],
        &["inspect", "evil:1"],
        &["history", "--no-trunc", "evil:1"],
        &["layers", "evil:1"],
        &["df"],
    ] {
        let shown = home.run(command).ok();
        is_harmless(&shown);
        let forged = shown.lines().find(|line| line.starts_with("Size: 1B"));
        assert_eq!(forged, None, "{shown}");
        let shown = home.run(command.iter().chain(&["--json"])).ok();
        is_harmless(&shown);
        serde_json::from_str::<Value>(&shown).unwrap();
    }
    // Templates show every field.
    for command in [
        &[
            "images",
            "--format",
            "{{json .}}{{.Platform}}{{.CreatedAt}}",
        ][..],
        &["images", "--format", r"table {{.Platform}}\t{{.CreatedAt}}"],
        &[
            "inspect",
            "-f",
            "{{json .}}{{.Config}}{{.Author}}",
            "evil:1",
        ],
        &[
            "history",
            "--format",
            "{{.CreatedBy}}{{.Comment}}",
            "evil:1",
        ],
        &["layers", "--format", "{{.TopOf}}{{json .}}"],
        &["df", "--format", "json"],
    ] {
        is_harmless(&home.run(command).ok());
    }
    let whole = home.json(["inspect", "--json", "evil:1"])[0].clone();
    assert_eq!(whole["config"][HOSTILE], HOSTILE, "{whole}");
}

#[test]
fn an_error_is_one_line_of_bounded_length() {
    let home = Home::new();
    let file = home.path("a.tar");
    for name in [
        HOSTILE.to_owned(),
        "ä/".repeat(100_000),
        format!("../{}", "x".repeat(100_000)),
    ] {
        std::fs::write(&file, archive(&name)).unwrap();
        let failed = home.run(["load", "-q", "-i", file.to_str().unwrap()]);
        failed.failed(1, &["a.tar"]);
        is_harmless(&failed.stderr);
        assert_eq!(failed.stderr.lines().count(), 1, "{}", failed.stderr);
        assert!(
            failed.stderr.len() < 10_000,
            "{} bytes",
            failed.stderr.len()
        );
    }
}
