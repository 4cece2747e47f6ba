//! Checks the user guide against the source: each message that the troubleshooting page quotes is
//! a message of the program, and each mount option has an entry on a page.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// Collects all Rust sources below `dir`.
fn sources(dir: &Path, all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|e| e == "rs") {
            all.push(path);
        }
    }
}

/// Returns the text of the program, with string literals that continue on the next line joined.
fn program() -> String {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let mut text = String::new();
    for file in files {
        let mut lines = fs::read_to_string(file).unwrap();
        while let Some(at) = lines.find("\\\n") {
            let rest = lines[at + 2..].trim_start().to_owned();
            lines.truncate(at);
            lines.push_str(&rest);
        }
        text.push_str(&lines);
    }
    text.replace("\\\"", "\"")
}

/// Returns the quoted messages of a page: the code spans in the first column of each table whose
/// head is "message", cut at "…", where the program puts a name.
fn messages(page: &str) -> Vec<String> {
    let mut in_table = false;
    let mut all = Vec::new();
    for line in page.lines() {
        in_table = line.starts_with("| message |") || (in_table && line.starts_with('|'));
        let cell = line.trim_start_matches('|').split(" | ").next();
        if let (true, Some(cell)) = (in_table, cell) {
            let spans = cell.split('`').skip(1).step_by(2);
            all.extend(spans.flat_map(|span| span.split('…')).map(str::to_owned));
        }
    }
    all
}

/// The length up to which a message is too short to prove anything.
const SHORT: usize = 6;
/// Messages of other programs.
const FOREIGN: [&str; 1] = ["fusermount3: option allow_other only allowed if"];

#[test]
fn every_message_that_the_guide_quotes_exists() {
    let program = program();
    let messages = messages(&read("docs/guide/troubleshooting.md"));
    let ours = messages.iter().filter(|message| {
        let is_foreign = FOREIGN.iter().any(|foreign| message.starts_with(foreign));
        message.len() > SHORT && !is_foreign
    });
    // Format strings have names in braces and doubled quotes where the page has quotes.
    let (found, missing): (Vec<_>, Vec<_>) = ours.partition(|message| {
        let bare = message.trim_matches(['"', ' ', ':', ',', '(', ')']);
        program.contains(bare)
    });
    assert!(missing.is_empty(), "no such message: {missing:#?}");
    assert!(found.len() > 40, "only {} messages were found", found.len());
}

/// Returns the byte strings in a part of a source file.
fn byte_strings(source: &str) -> impl Iterator<Item = &str> {
    source
        .split("b\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
}

/// Returns the part of `source` from `start` to the next `end`.
fn part<'a>(source: &'a str, start: &str, end: &str) -> &'a str {
    let (_, rest) = source.split_once(start).unwrap();
    rest.split_once(end).unwrap().0
}

#[test]
fn every_mount_option_has_an_entry_in_the_guide() {
    let options = read("src/cli/options.rs");
    let config = read("src/fuse/config.rs");
    let mut known: BTreeSet<&str> = byte_strings(part(&options, "fn flag(", "\n    }\n")).collect();
    let valued = part(&options, "fn valued(", "\n    }\n");
    // The keys are those of match arms; the values of options are in arms of their own.
    let values = ["all", "overlay", "0", "1", "2", "="];
    known.extend(byte_strings(valued).filter(|text| !values.contains(text)));
    known.extend(byte_strings(part(&config, "fn flag_of(", "\n}\n")));
    known.extend(["allow_other", "context", "fsname"]);
    let mut headings = String::new();
    for entry in fs::read_dir(root().join("docs/guide")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("options-") {
            let page = fs::read_to_string(path).unwrap();
            headings.extend(page.lines().filter(|line| line.starts_with("## ")));
        }
    }
    let has = |option: &&&str| {
        let starts = [format!("`{option}`"), format!("`{option}=")];
        !starts.iter().any(|start| headings.contains(start))
    };
    let missing: Vec<_> = known.iter().filter(has).collect();
    assert!(missing.is_empty(), "options without an entry: {missing:?}");
    assert!(known.len() > 30, "only {} options were found", known.len());
}
