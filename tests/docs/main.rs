//! Checks that every test which a document names exists and that links lead to existing files.
//! Further checks: the guide agrees with the source (`guide`), published figures are those of the published report (`figures`), tests end early in one way only
//! (`skips`), and the parts of `src/` use each other in one direction (`walls`).
//!
//! A reference is a code span of one of these forms:
//!
//! | form | means |
//! | --- | --- |
//! | `folder/file::test` | `fn test` in `tests/folder/file.rs` or in a file of `tests/folder/file/` |
//! | `folder/file::module::test` | the same, with modules between |
//! | `::test` | another test of the file in the last reference before it |
//! | `folder/file` | the file alone |
//! | `store-mounted::test` | `fn test` in `tests/store/mounted.rs` |
//! | `unit module::file::test` | `fn test` in `src/module/file.rs` or `src/module/file/tests.rs` |
//!
//! In a table whose head says "test in `folder/file`", the last column names tests of that file.

#![allow(clippy::unwrap_used, clippy::panic)]

mod figures;
mod guide;
mod skips;
mod walls;

use std::fs;
use std::path::{Path, PathBuf};

/// The documents whose promises name tests.
const DOCUMENTS: [&str; 3] = ["SECURITY.md", "docs/SEMANTICS.md", "docs/CATALOG.md"];

#[test]
fn every_test_that_a_document_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut missing = Vec::new();
    let mut found = 0;
    for document in DOCUMENTS {
        let text = fs::read_to_string(root.join(document)).unwrap();
        for reference in references(&text) {
            if exists(root, &reference) {
                found += 1;
            } else {
                missing.push(format!("{document}: {reference}"));
            }
        }
    }
    assert!(missing.is_empty(), "no such test: {missing:#?}");
    assert!(found > 100, "only {found} references were found");
}

/// The check itself reports a missing test.
#[test]
fn what_does_not_exist_is_noticed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = "`docs/main::no_such_test`, `::every_test_that_a_document_names_exists`, \
                `docs/no_such_file`, `unit layer::markers::no_such_test`";
    let answers: Vec<bool> = references(text).iter().map(|r| exists(root, r)).collect();
    assert_eq!(answers, [false, true, false, false]);
}

/// Returns all references of a document, each in its full form.
fn references(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut last_prefix = String::new();
    let mut table_file: Option<String> = None;
    for line in text.lines() {
        if let Some((_, rest)) = line.split_once("test in `") {
            table_file = rest.split('`').next().map(str::to_owned);
            continue;
        }
        if !line.starts_with('|') {
            table_file = None;
        }
        if let Some(file) = &table_file {
            let cell = line.trim_end_matches(['|', ' ']).rsplit('|').next();
            let names = spans(cell.unwrap_or(""));
            all.extend(names.map(|name| format!("{file}::{name}")));
            continue;
        }
        for span in spans(line) {
            let full = match span.strip_prefix("::") {
                Some(test) => format!("{last_prefix}::{test}"),
                None => span.to_owned(),
            };
            if !is_reference(&full) {
                continue;
            }
            if let Some((prefix, _)) = full.rsplit_once("::") {
                last_prefix = prefix.to_owned();
            }
            all.push(full);
        }
    }
    all
}

/// Returns the code spans of a line.
fn spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

fn is_reference(span: &str) -> bool {
    if span.strip_prefix("unit ").is_some() || span.starts_with("store-mounted::") {
        return span.contains("::");
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-/:".contains(c);
    let Some((folder, rest)) = span.split_once('/') else {
        return false;
    };
    let folders = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(folder);
    !folder.is_empty() && !rest.is_empty() && span.chars().all(plain) && folders.is_dir()
}

fn exists(root: &Path, reference: &str) -> bool {
    if let Some(path) = reference.strip_prefix("unit ") {
        let mut parts: Vec<&str> = path.split("::").collect();
        let test = parts.pop().unwrap_or("");
        let file = parts
            .iter()
            .fold(root.join("src"), |dir, part| dir.join(part));
        return has_test(&file, test);
    }
    let (place, test) = match reference.split_once("::") {
        Some((place, test)) => (place, Some(test)),
        None => (reference, None),
    };
    let place = place.replace("store-mounted", "store/mounted");
    let file = root.join("tests").join(&place);
    match test {
        Some(test) => has_test(&file, test.rsplit("::").next().unwrap_or(test)),
        // Some folders of `src` have the same name as one of `tests`.
        None => !sources(&file).is_empty() || !sources(&root.join("src").join(&place)).is_empty(),
    }
}

/// Tells whether `file.rs` or a file of the folder `file` has `test`: as a function, as a scenario
/// (`name: "script"`, see `tests/parity/scenarios.rs`) or as a module of tests.
fn has_test(file: &Path, test: &str) -> bool {
    let heads = [
        format!("fn {test}("),
        format!("    {test}: \""),
        format!("mod {test};"),
    ];
    let has = |file: &PathBuf| {
        let text = fs::read_to_string(file).unwrap_or_default();
        heads.iter().any(|head| text.contains(head))
    };
    sources(file).iter().any(has)
}

/// Returns `file.rs` and the files of the folder `file`, as far as they exist.
fn sources(file: &Path) -> Vec<PathBuf> {
    let beside = file.with_extension("rs");
    let inside = fs::read_dir(file).into_iter().flatten().flatten();
    let mut all: Vec<PathBuf> = inside.map(|entry| entry.path()).collect();
    all.retain(|path| path.extension().is_some_and(|e| e == "rs"));
    all.extend(beside.is_file().then_some(beside));
    all
}

/// Links between the documents lead to files that exist.
#[test]
fn every_link_to_a_file_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut documents: Vec<PathBuf> = ["", "docs", "docs/bench", "docs/guide"]
        .iter()
        .flat_map(|folder| fs::read_dir(root.join(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    documents.retain(|path| path.extension().is_some_and(|e| e == "md"));
    let mut broken = Vec::new();
    for document in &documents {
        let text = fs::read_to_string(document).unwrap();
        let targets = text.split("](").skip(1);
        for target in targets.filter_map(|rest| rest.split([')', '#']).next()) {
            let is_file = !target.is_empty() && !target.contains("://");
            if is_file && !document.parent().unwrap().join(target).exists() {
                broken.push(format!("{}: {target}", document.display()));
            }
        }
    }
    assert!(documents.len() > 10 && broken.is_empty(), "{broken:#?}");
}
