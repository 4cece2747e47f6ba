//! Tips for wrong command lines.
//!
//! clap proposes every command that sounds alike, such as `prune` for `run`. A tip that misleads is
//! worse than none: only typing errors are corrected here, and commands that only an engine can have
//! get an answer of their own.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Commands of engines that unionfs does not have, with what to do.
const OF_ENGINES: [(&[&str], &str); 6] = [
    (
        &["exec", "start", "create", "attach"],
        "unionfs keeps no containers: `unionfs run IMAGE COMMAND` runs a command in an image, with --name \
         in a layer that stays",
    ),
    (
        &[
            "stop", "kill", "restart", "pause", "unpause", "wait", "logs", "top", "port",
        ],
        "unionfs keeps no containers: `unionfs ps` lists mounts, `unionfs umount DIR` ends one",
    ),
    (
        &["build", "buildx", "builder"],
        "unionfs builds no images: mount one with --name, change it, and use `unionfs commit`",
    ),
    (
        &["search"],
        "unionfs does not search registries: `unionfs tags NAME` lists the tags of a repository",
    ),
    (
        &["reset"],
        "`unionfs prune --all` removes unused images and layers of the own store",
    ),
    (
        &["volume", "network", "compose", "service", "swarm", "pod"],
        "unionfs has only images, layers and mounts: `unionfs --help` lists the commands",
    ),
];

/// Replaces a misleading tip.
pub(super) fn better_tip(mut error: clap::Error) -> clap::Error {
    // An option that does not exist is hardly meant as a value.
    if error.kind() == ErrorKind::UnknownArgument {
        error.remove(ContextKind::Suggested);
        return error;
    }
    if error.kind() != ErrorKind::InvalidSubcommand {
        return error;
    }
    let Some(ContextValue::String(typed)) = error.get(ContextKind::InvalidSubcommand).cloned()
    else {
        return error;
    };
    let of_engine = OF_ENGINES
        .iter()
        .find(|(words, _)| words.contains(&&*typed));
    if let Some((_, tip)) = of_engine {
        error.remove(ContextKind::SuggestedSubcommand);
        let tip = vec![(*tip).to_owned().into()];
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tip));
        return error;
    }
    let near = match error.remove(ContextKind::SuggestedSubcommand) {
        Some(ContextValue::Strings(all)) => all,
        Some(ContextValue::String(one)) => vec![one],
        _ => Vec::new(),
    };
    let near: Vec<String> = near
        .into_iter()
        .filter(|name| is_typo(&typed, name))
        .collect();
    if near.is_empty() {
        // The parser has a tip of its own for these, without a word in it.
        error.remove(ContextKind::Suggested);
    } else {
        error.insert(
            ContextKind::SuggestedSubcommand,
            ContextValue::Strings(near),
        );
    }
    error
}

/// Whether `typed` is probably meant to be `name`: one mistake, or two in a long word.
fn is_typo(typed: &str, name: &str) -> bool {
    let mistakes = strsim::osa_distance(typed, name);
    let shorter = typed.chars().count().min(name.chars().count());
    mistakes <= if shorter > 4 { 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_typing_errors_are_corrected() {
        for (typed, name) in [
            ("imags", "images"),
            ("umoutn", "umount"),
            ("sp", "ps"),
            ("rmm", "rm"),
        ] {
            assert!(is_typo(typed, name), "{typed}");
        }
        for (typed, name) in [("ran", "prune"), ("exec", "export"), ("list", "ls")] {
            assert!(!is_typo(typed, name), "{typed}");
        }
    }

    #[test]
    fn a_command_of_an_engine_gets_an_answer() {
        use clap::CommandFactory as _;
        let error = |word: &str| {
            let parsed = super::super::Cli::command().try_get_matches_from(["unionfs", word]);
            better_tip(parsed.unwrap_err()).render().to_string()
        };
        let exec = error("exec");
        assert!(
            exec.contains("keeps no containers") && !exec.contains("export"),
            "{exec}"
        );
        let typo = error("imags");
        assert!(
            typo.contains("'images'") && typo.contains("Usage:"),
            "{typo}"
        );
        assert!(error("search").contains("unionfs tags NAME"));
        let option =
            super::super::Cli::command().try_get_matches_from(["unionfs", "login", "--bogus"]);
        let option = better_tip(option.unwrap_err()).render().to_string();
        assert!(
            option.contains("'--bogus'") && !option.contains("-- --bogus"),
            "{option}"
        );
        let none = error("frobnicate");
        assert!(!none.contains("tip:") && none.contains("Usage:"), "{none}");
    }
}
