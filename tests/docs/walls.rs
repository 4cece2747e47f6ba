//! Checks that the parts of `src/` use each other in one direction only.
//!
//! [`ROOMS`] is the required order: a room uses only rooms that stand before it in the table, and
//! of those only the ones that it names. So there is no cycle. The test reads every `crate::…` path
//! (and every `super::…` path that leaves its room) of every file in `src/`, and every `unionfs::…`
//! path: the command line is in the crate of the program, so the compiler limits it to the public
//! items of the library. Comments do not count. docs/ARCHITECTURE.md prints the same table.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A part of `src/` and the parts that it may use.
struct Room {
    name: &'static str,
    uses: &'static [&'static str],
}

const fn room(name: &'static str, uses: &'static [&'static str]) -> Room {
    Room { name, uses }
}

/// The required order. `cli` may use every room.
const ROOMS: [Room; 16] = [
    room("sys", &[]),
    room("progress", &[]),
    room("layer", &["sys"]),
    room("lowers", &["layer"]),
    room("catalog", &["sys", "progress", "layer", "lowers"]),
    room("union", &["sys", "layer", "lowers"]),
    room("oci", &[]),
    room("layer_tar", &["sys", "layer", "oci"]),
    room("store", &["sys", "progress", "layer", "oci", "layer_tar"]),
    room(
        "archive",
        &["sys", "progress", "layer", "oci", "layer_tar", "store"],
    ),
    room(
        "registry",
        &["sys", "progress", "oci", "layer_tar", "store", "archive"],
    ),
    room("changes", &["sys", "layer", "union", "layer_tar"]),
    room("sandbox", &["sys", "layer"]),
    room("fuse", &["sys", "layer", "union", "sandbox"]),
    room(
        "image_mounts",
        &[
            "sys", "layer", "catalog", "union", "oci", "store", "sandbox", "fuse",
        ],
    ),
    room(
        "cli",
        &[
            "sys",
            "progress",
            "layer",
            "catalog",
            "union",
            "oci",
            "layer_tar",
            "store",
            "archive",
            "registry",
            "changes",
            "sandbox",
            "fuse",
            "image_mounts",
        ],
    ),
];

/// Uses against the order that still exist: file, room, reason. The list only shrinks: an entry
/// that is not needed any more fails the test.
const EXCEPTIONS: [(&str, &str, &str); 0] = [];

#[test]
fn rooms_use_each_other_in_one_direction() {
    let arrows = arrows(Path::new(env!("CARGO_MANIFEST_DIR")));
    let allowed = |from: &str, to: &str| {
        let room = ROOMS.iter().find(|room| room.name == from);
        room.is_some_and(|room| room.uses.contains(&to))
    };
    let excepted = |file: &Path, to: &str| {
        let is = |e: &&(&str, &str, &str)| Path::new(e.0) == file && e.1 == to;
        EXCEPTIONS.iter().any(|e| is(&e))
    };
    let wrong: Vec<String> = arrows
        .iter()
        .filter(|(file, from, to)| !allowed(from, to) && !excepted(file, to))
        .map(|(file, _, to)| format!("{} uses {to}", file.display()))
        .collect();
    assert!(wrong.is_empty(), "arrows against the order: {wrong:#?}");

    for (file, to, _) in EXCEPTIONS {
        let there = arrows
            .iter()
            .any(|(f, _, t)| f == Path::new(file) && t == to);
        assert!(
            there,
            "{file} does not use {to} any more: remove the exception"
        );
    }
    for room in &ROOMS {
        for uses in room.uses {
            let there = arrows.iter().any(|(_, f, t)| f == room.name && t == uses);
            assert!(
                there,
                "{} does not use {uses}: remove it from ROOMS",
                room.name
            );
        }
    }
}

#[test]
fn the_table_is_an_order_of_all_folders() {
    let mut before: Vec<&str> = Vec::new();
    for room in &ROOMS {
        for uses in room.uses {
            assert!(
                before.contains(uses),
                "{uses} must stand before {}",
                room.name
            );
        }
        before.push(room.name);
    }
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let folders: BTreeSet<String> = fs::read_dir(src)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    let rooms: BTreeSet<String> = before.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(folders, rooms);
}

#[test]
fn the_architecture_prints_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ARCHITECTURE.md");
    let text = fs::read_to_string(path).unwrap();
    for room in &ROOMS {
        let uses = match (room.name, room.uses) {
            ("cli", _) => "all of them".to_owned(),
            (_, []) => "none".to_owned(),
            (_, uses) => uses.join(", "),
        };
        let row = format!("| `src/{}` | {uses} |", room.name);
        assert!(text.contains(&row), "docs/ARCHITECTURE.md lacks: {row}");
    }
}

/// The check itself recognises every form of a path.
#[test]
fn every_form_of_a_path_is_noticed() {
    let text = "
        //! [`crate::cli`] in a comment, and \"crate::cli\" in a text: \"crate::cli\"
        /* crate::cli */ '\\\"' '\"' r#\" \" crate::cli\"# \"\\\" crate::cli\"
        use crate::{layer::{self, at::At}, store as other};
        pub(crate) use crate :: union::Ino;
        fn f() -> crate::fuse::Error { crate::oci::parse::<crate::sys::X>() }
        use super::super::registry::Kind;
        use super::archive;
        use super::*;
        use unionfs::changes::{self, Tree};
        fn g(text: unionfs::sandbox::Mode) -> other::unionfs::catalog::File {}
    ";
    let names = |depth: usize| -> Vec<String> {
        let found: BTreeSet<String> = roots(text, depth).into_iter().collect();
        found.into_iter().filter(|name| is_room(name)).collect()
    };
    let with = |more: &[&'static str]| {
        let always = [
            "changes", "fuse", "layer", "oci", "sandbox", "store", "sys", "union",
        ];
        let all: BTreeSet<&str> = always.iter().chain(more).copied().collect();
        all.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(names(3), with(&[]));
    assert_eq!(names(2), with(&["registry"]));
    assert_eq!(names(1), with(&["archive", "registry"]));
}

fn is_room(name: &str) -> bool {
    ROOMS.iter().any(|room| room.name == name)
}

/// Returns every use of a room by a file of another one: the file, its room, the room that it uses.
fn arrows(root: &Path) -> BTreeSet<(PathBuf, String, String)> {
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    assert!(files.len() > 200, "only {} files were found", files.len());
    let mut arrows = BTreeSet::new();
    for path in files {
        let file = path.strip_prefix(root).unwrap();
        let parts: Vec<&str> = file.iter().map(|part| part.to_str().unwrap()).collect();
        // src/lib.rs and src/main.rs belong to no room.
        let [_, from, .., name] = parts[..] else {
            continue;
        };
        let depth = parts.len() - if name == "mod.rs" { 2 } else { 1 };
        for to in roots(&fs::read_to_string(&path).unwrap(), depth) {
            if is_room(&to) && to != from {
                arrows.insert((file.to_owned(), from.to_owned(), to));
            }
        }
    }
    arrows
}

fn sources(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Returns the first segments after `crate::` and after `unionfs::`, and after as many `super::` as
/// lead out of a module that is `depth` modules below the crate.
fn roots(text: &str, depth: usize) -> Vec<String> {
    let tokens = tokens(text);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let mut supers = 0;
        while tokens.get(at).is_some_and(|t| t == "super") && is_path(&tokens, at + 1) {
            supers += 1;
            at += 2;
        }
        if supers > 0 && supers >= depth {
            first_segments(&tokens, at, &mut found);
        } else if supers == 0 {
            let is_first = at == 0 || !is_path(&tokens, at - 1);
            let is_root = matches!(tokens[at].as_str(), "crate" | "unionfs");
            if is_first && is_root && is_path(&tokens, at + 1) {
                first_segments(&tokens, at + 2, &mut found);
            }
            at += 1;
        }
    }
    found
}

fn is_path(tokens: &[String], at: usize) -> bool {
    tokens.get(at).is_some_and(|token| token == "::")
}

/// Adds the segment at `at`, or each first segment of a group of paths in braces.
fn first_segments(tokens: &[String], at: usize, found: &mut Vec<String>) {
    let Some(token) = tokens.get(at) else { return };
    if token != "{" {
        found.push(token.clone());
        return;
    }
    let mut depth = 0;
    for (token, last) in tokens[at..].iter().zip(&tokens[at - 1..]) {
        match token.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            name if depth == 1 && (last == "{" || last == ",") => found.push(name.to_owned()),
            _ => {}
        }
        if depth == 0 {
            return;
        }
    }
}

/// Splits a source into words, `::` and other single characters. Comments and string literals are
/// left out.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with("'\\\"'") {
            4
        } else if rest.starts_with("'\"'") || rest.starts_with("'{'") || rest.starts_with("'}'") {
            3
        } else if c == '"' {
            end_of_text(rest)
        } else if rest.starts_with("::") {
            tokens.push("::".to_owned());
            2
        } else if word(c) {
            let end = rest.find(|c| !word(c)).unwrap_or(rest.len());
            match (&rest[..end], end_of_raw_text(&rest[end..])) {
                ("r" | "br", Some(length)) => end + length,
                (word, _) => {
                    tokens.push(word.to_owned());
                    end
                }
            }
        } else {
            if !c.is_whitespace() {
                tokens.push(c.to_string());
            }
            c.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

/// Returns the length of a raw string at the start of `rest`, from its first `#` or quotation mark
/// on. `None` if there is no raw string.
fn end_of_raw_text(rest: &str) -> Option<usize> {
    let hashes = rest.find(|c| c != '#')?;
    let text = rest[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", &rest[..hashes]);
    Some(hashes + 1 + text.find(&end)? + end.len())
}

/// Returns the length of a string in quotation marks at the start of `rest`.
fn end_of_text(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}
