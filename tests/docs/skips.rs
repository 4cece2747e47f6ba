//! Tests end early in one way only: `need!` or `skip` of `tests/kit/src/need.rs`, which print the
//! reason and fail in CI.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Returns the lines of the tests of a file, each with its number and its depth relative to its
/// test.
fn lines_of_tests(text: &str) -> Vec<(usize, usize, &str)> {
    let mut found = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((_, line)) = lines.next() {
        if line.trim() != "#[test]" {
            continue;
        }
        let indent = indentation(line);
        for (number, line) in lines.by_ref() {
            if line.trim() == "}" && indentation(line) == indent {
                break;
            }
            found.push((number + 1, indentation(line).saturating_sub(indent), line));
        }
    }
    found
}

/// Tells whether a line returns from the function without a message. A line deeper than an `if` of
/// the test is in a closure or a loop.
fn leaves(depth: usize, line: &str) -> bool {
    let line = line.trim();
    let bare = line == "return;" || line.contains("=> return,") || line.ends_with("{ return };");
    bare && depth <= 8
}

#[test]
fn no_test_ends_early_without_saying_so() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for dir in ["src", "tests"] {
        sources(&root.join(dir), &mut files);
    }
    let mut wrong = Vec::new();
    let mut lines = 0;
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for (number, depth, line) in lines_of_tests(&text) {
            lines += 1;
            if leaves(depth, line) {
                wrong.push(format!("{}:{number}: {}", file.display(), line.trim()));
            }
        }
    }
    assert!(lines > 10_000, "only {lines} lines of tests");
    assert!(wrong.is_empty(), "use `need!`: {wrong:#?}");
}

#[test]
fn a_bare_return_is_found() {
    let text = "    #[test]\n    fn a() {\n        if b() {\n            return;\n        }\n    }\n    fn c() {\n        return;\n    }\n";
    let found = lines_of_tests(text);
    let found: Vec<_> = found
        .iter()
        .filter(|(_, depth, line)| leaves(*depth, line))
        .collect();
    assert_eq!(found, [&(4, 8, "            return;")]);
}
