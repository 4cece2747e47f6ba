//! The words that a shell completes: names of images, containers and read-write layers, mountpoints.
//!
//! A copy of this process in the sandbox of the queries reads the stores, also if root presses the
//! key. The copy is killed if it takes too long: a store may be on a file system that does not
//! answer. Whatever fails gives no words, without a message.
//!
//! Invariant: a word has only characters that no shell expands. bash inserts words as they are.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap_complete::engine::{
    ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter,
};

use super::command_sandbox::SandboxArgs;
use super::environment;
use unionfs::fuse::runtime;
use unionfs::sandbox::command::Command;
use unionfs::store::{Places, Stores};
use unionfs::sys::daemon;

/// The time after which the copy is killed.
const PATIENCE: Duration = Duration::from_millis(1500);
/// The maximum length of all words together.
const LIMIT: u64 = 1 << 20;
/// The maximum number of words.
const WORDS: usize = 2000;

/// A kind of words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Images,
    /// Read-write layers of `mount --name`.
    Layers,
    /// Containers of engines and read-write layers.
    Containers,
    Mountpoints,
}

/// Names and tags of images.
pub(super) fn images() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| matching(typed, &[Kind::Images]))
}

/// An image or a directory: the engine does not say which of two operands is typed.
pub(super) fn image_and_directory() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        let mut words = matching(typed, &[Kind::Images]);
        if !SHELL_HAS_PATHS.load(Ordering::Relaxed) {
            words.extend(PathCompleter::dir().complete(typed));
        }
        words
    })
}

/// Names of read-write layers.
pub(super) fn layers() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| matching(typed, &[Kind::Layers]))
}

/// Containers and read-write layers.
pub(super) fn containers() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| matching(typed, &[Kind::Containers]))
}

/// Containers, read-write layers and images.
pub(super) fn trees() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| matching(typed, &[Kind::Containers, Kind::Images]))
}

/// Directories with a mount.
pub(super) fn mountpoints() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| matching(typed, &[Kind::Mountpoints]))
}

/// Whether the shell completes paths itself.
static SHELL_HAS_PATHS: AtomicBool = AtomicBool::new(false);

/// Leaves paths to the shell.
pub(super) fn leave_paths_to_the_shell() {
    SHELL_HAS_PATHS.store(true, Ordering::Relaxed);
}

/// Whether no shell gives a meaning to a character of the word.
pub(super) fn is_plain(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:@+,=%".contains(c);
    // A word that begins with a hyphen would be an option.
    !word.is_empty() && word.chars().all(plain)
}

fn matching(typed: &OsStr, kinds: &'static [Kind]) -> Vec<CompletionCandidate> {
    let Some(typed) = typed.to_str() else {
        return Vec::new();
    };
    let fits = |word: &&str| word.starts_with(typed) && !word.starts_with('-') && is_plain(word);
    let all = all(kinds);
    let words = all.split('\n').filter(fits).take(WORDS);
    words.map(CompletionCandidate::new).collect()
}

/// Returns all words, in lines. Nothing but the answer of the copy is read here.
fn all(kinds: &'static [Kind]) -> String {
    let answer = daemon::answer_within(LIMIT, PATIENCE, move |out| {
        let words = words(kinds).unwrap_or_default();
        // The reader may be gone.
        let _ = std::fs::File::from(out).write_all(words.join("\n").as_bytes());
    });
    String::from_utf8(answer.unwrap_or_default()).unwrap_or_default()
}

/// Collects the words, in the copy.
fn words(kinds: &[Kind]) -> anyhow::Result<Vec<String>> {
    if kinds == [Kind::Mountpoints] {
        let records = runtime::list().into_iter();
        let paths = records.map(|record| record.mountpoint.to_string_lossy().into_owned());
        return Ok(paths.collect());
    }
    let mut sandbox = Command::quick(SandboxArgs::default().mode()?);
    let mut environment = environment();
    environment.run_root = typed("--runroot");
    let mut places = Places::find(typed("--root").as_deref(), &environment)?;
    if kinds.contains(&Kind::Containers) {
        places.open_run_lists(&environment);
    }
    for root in places.roots() {
        sandbox.read(root)?;
    }
    sandbox.enter()?;
    let stores = Stores::open(places)?;
    let mut words = Vec::new();
    for kind in kinds {
        match kind {
            Kind::Images => words.extend(stores.image_names().map(|name| name.to_string())),
            Kind::Layers => {
                let named = stores.named().into_iter().filter_map(Result::ok);
                words.extend(named.map(|(_, named)| named.name));
            }
            Kind::Containers => words.extend(stores.container_names()),
            Kind::Mountpoints => {}
        }
    }
    words.sort();
    words.dedup();
    // What is longer than the limit would give no words at all.
    let mut left = usize::try_from(LIMIT)?;
    words.retain(|word| {
        let fits = word.len() < left;
        left = left.saturating_sub(word.len() + 1);
        fits
    });
    Ok(words)
}

/// Returns the value of an option on the line that is completed.
fn typed(option: &str) -> Option<PathBuf> {
    let words: Vec<OsString> = std::env::args_os()
        .skip_while(|word| word != "--")
        .collect();
    let mut found = None;
    for (at, word) in words.iter().enumerate() {
        if word == option {
            found = words.get(at + 1).map(PathBuf::from);
        } else if let Some(value) = word.to_str().and_then(|word| word.strip_prefix(option))
            && let Some(value) = value.strip_prefix('=')
        {
            found = Some(PathBuf::from(value));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_word_can_become_a_command() {
        for plain in [
            "app:1",
            "example.org:5000/a/b@sha256:0f",
            "web_1-2",
            "/mnt/a",
            "v1+2,3=%",
        ] {
            assert!(is_plain(plain), "{plain}");
        }
        for word in [
            "",
            "a b",
            "$(reboot)",
            "`x`",
            "a;b",
            "a&b",
            "a|b",
            "a>b",
            "*",
            "a?",
            "[a]",
            "{a,b}",
            "~",
            "!x",
            "#x",
            "a\\b",
            "a'b",
            "a\"b",
            "a\nb",
            "\u{1b}[2J",
            "ä",
            "a\u{202e}",
        ] {
            assert!(!is_plain(word), "{word}");
        }
    }
}
