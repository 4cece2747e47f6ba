//! What to type instead of the path of a file or directory where an image is named.
//!
//! Before a command enters its sandbox, it looks whether the names that it was given are paths too
//! ([`learn`]). If it then finds no such image, its message says how the image in the file is named.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// The names that are paths, each with what to type.
static SEEN: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

/// The messages about names that mean nothing.
const UNKNOWN: [&str; 3] = [
    "no image ",
    "no container or read-write layer ",
    "invalid image reference ",
];

/// The message if there is no store, which names no image.
const NO_STORE: &str = "no image store found";

/// Looks whether a name of an image is a path.
pub(super) fn learn(name: &str) {
    // Most names are none.
    let Ok(found) = std::fs::metadata(name) else {
        return;
    };
    let path = Path::new(name);
    let has = |entry: &str| path.join(entry).is_file();
    let is_plain = !name.contains(':');
    let hint = match (found.is_dir(), is_plain) {
        (true, true) if has("index.json") => {
            format!("oci:{name} is the image in that directory (unionfs load {name} loads it)")
        }
        (true, true) if has("manifest.json") => {
            format!("dir:{name} is the image in that directory (unionfs load {name} loads it)")
        }
        (true, _) => format!(
            "{name:?} is a directory: unionfs import makes an image of a root file system, unionfs mount -o \
             lowerdir=DIR mounts one"
        ),
        (false, true) => format!(
            "docker-archive:{name} is the image in that archive (unionfs load {name} loads it)"
        ),
        (false, false) => format!("{name:?} is a file: unionfs load takes archives of images"),
    };
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    seen.push((name.to_owned(), hint));
}

/// Returns what to type instead, if a message is about a name that is a path.
pub(super) fn note(message: &str) -> Option<String> {
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    if message.contains(NO_STORE) {
        return seen.first().map(|(_, hint)| hint.clone());
    }
    if !UNKNOWN.iter().any(|start| message.contains(start)) {
        return None;
    }
    let mut fitting = seen.iter();
    let fitting = fitting.find(|(name, _)| message.contains(&format!("{name:?}")));
    fitting.map(|(_, hint)| hint.clone())
}
