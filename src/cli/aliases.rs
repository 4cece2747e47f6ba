//! Other names of commands, as users of Docker and podman know them: `image ls` is `images`.
//!
//! [`expand`] replaces the words of an alias by those of its command before the command line is
//! parsed. There is no second implementation. [`with_groups`] adds the groups (`image`, `container`,
//! `system`) to the parser, for help and completions. The guide has the same table
//! (docs/guide/commands.md).

use std::ffi::{OsStr, OsString};

use clap::Command;

/// Another name of a command.
pub(super) struct Alias {
    /// The words that a user types.
    pub(super) words: &'static [&'static str],
    /// The command, with options.
    pub(super) command: &'static [&'static str],
}

const fn alias(words: &'static [&'static str], command: &'static [&'static str]) -> Alias {
    Alias { words, command }
}

/// All aliases, in the order of the guide.
pub(super) const TABLE: [Alias; 36] = [
    alias(&["image", "ls"], &["images"]),
    alias(&["image", "list"], &["images"]),
    alias(&["image", "rm"], &["rmi"]),
    alias(&["image", "inspect"], &["inspect"]),
    alias(&["image", "history"], &["history"]),
    alias(&["image", "prune"], &["prune", "--dangling"]),
    alias(&["image", "tag"], &["tag"]),
    alias(&["image", "save"], &["save"]),
    alias(&["image", "load"], &["load"]),
    alias(&["image", "pull"], &["pull"]),
    alias(&["image", "push"], &["push"]),
    alias(&["image", "import"], &["import"]),
    alias(&["image", "mount"], &["mount"]),
    alias(&["image", "unmount"], &["umount"]),
    alias(&["image", "umount"], &["umount"]),
    alias(&["image", "tree"], &["layers"]),
    alias(&["image", "diff"], &["diff"]),
    alias(&["container", "run"], &["run"]),
    alias(&["container", "ls"], &["ps"]),
    alias(&["container", "list"], &["ps"]),
    alias(&["container", "ps"], &["ps"]),
    alias(&["container", "rm"], &["rm"]),
    alias(&["container", "diff"], &["diff"]),
    alias(&["container", "cp"], &["cp"]),
    alias(&["container", "prune"], &["prune", "--changes"]),
    alias(&["container", "commit"], &["commit"]),
    alias(&["container", "export"], &["export"]),
    alias(&["container", "mount"], &["mount", "--of-container"]),
    alias(&["container", "unmount"], &["umount"]),
    alias(&["container", "umount"], &["umount"]),
    alias(&["container", "stats"], &["stats"]),
    alias(&["system", "df"], &["df"]),
    alias(&["system", "info"], &["info"]),
    alias(&["system", "prune"], &["prune", "--dangling"]),
    alias(&["system", "check"], &["verify", "--all"]),
    alias(&["unmount"], &["umount"]),
];

/// The groups with their help texts.
const GROUPS: [(&str, &str); 3] = [
    ("image", "Commands for images, as in Docker"),
    (
        "container",
        "Commands for containers and read-write layers, as in Docker",
    ),
    ("system", "Commands for stores, as in Docker"),
];

/// The options that may stand before the command and have a value.
const WITH_VALUE: [&str; 5] = ["--root", "--runroot", "--store", "--namespace", "--policy"];

/// Those that have none.
const WITHOUT_VALUE: [&str; 1] = ["--insecure-policy"];

/// Replaces an alias by its command. All other arguments stay.
pub(super) fn expand(args: Vec<OsString>) -> Vec<OsString> {
    let Some(first) = word_from(&args, 1) else {
        return args;
    };
    let second = word_from(&args, first + 1);
    let found = TABLE.iter().find(|alias| match (alias.words, second) {
        ([only], _) => args[first] == *only,
        ([group, name], Some(second)) => args[first] == *group && args[second] == *name,
        _ => false,
    });
    let Some(alias) = found else {
        return args;
    };
    let last = if alias.words.len() == 1 {
        first
    } else {
        second.unwrap_or(first)
    };
    let mut expanded = args[..first].to_vec();
    // Options between the two words belong to the whole command line.
    expanded.extend(args[first + 1..last.max(first + 1)].iter().cloned());
    expanded.extend(alias.command.iter().map(OsString::from));
    expanded.extend(args[last + 1..].iter().cloned());
    expanded
}

/// Returns the place of the first argument from `start` on that is no option of the whole program.
fn word_from(args: &[OsString], start: usize) -> Option<usize> {
    let mut at = start;
    while let Some(arg) = args.get(at) {
        if WITH_VALUE.iter().any(|option| arg == option) {
            at += 2;
        } else if is_joined(arg) || is_flag(arg) {
            at += 1;
        } else {
            return Some(at);
        }
    }
    None
}

/// Whether a word is an option of the whole program, with or without its value.
pub(super) fn is_program_option(word: &OsStr) -> bool {
    WITH_VALUE.iter().any(|option| word == *option) || is_joined(word) || is_flag(word)
}

fn is_flag(word: &OsStr) -> bool {
    WITHOUT_VALUE.iter().any(|option| word == *option)
}

/// Whether it is an option of the whole program with its value: `--root=DIR`.
fn is_joined(arg: &OsStr) -> bool {
    let is = |text: &str| {
        WITH_VALUE
            .iter()
            .any(|option| (text.strip_prefix(option)).is_some_and(|rest| rest.starts_with('=')))
    };
    arg.to_str().is_some_and(is)
}

/// Whether a word begins an alias.
pub(super) fn is_first_word(word: &OsStr) -> bool {
    TABLE
        .iter()
        .any(|alias| alias.words.first().is_some_and(|first| word == *first))
}

/// Adds the groups to the parser.
pub(super) fn with_groups(mut command: Command) -> Command {
    for (group, about) in GROUPS {
        let mut made = Command::new(group)
            .about(about)
            .subcommand_required(true)
            .arg_required_else_help(true)
            .disable_help_subcommand(true)
            .after_help(
                "Examples:\n  unionfs image ls\n  unionfs system df\n\nEach command is another \
                 name of the command in brackets.",
            );
        for alias in &TABLE {
            let ([first, name], [target, ..]) = (alias.words, alias.command) else {
                continue;
            };
            let Some(target) = command.find_subcommand(target).filter(|_| *first == group) else {
                continue;
            };
            let about = target.get_about().cloned().unwrap_or_default();
            let about = format!("{about} [{}]", alias.command.join(" "));
            made = made.subcommand(target.clone().name(*name).about(about));
        }
        command = command.subcommand(made);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(line: &str) -> String {
        let args = line.split(' ').map(OsString::from).collect();
        let args = expand(args);
        let args: Vec<_> = args.iter().map(|arg| arg.to_str().unwrap()).collect();
        args.join(" ")
    }

    #[test]
    fn aliases_become_commands() {
        for (line, expected) in [
            ("unionfs image ls -q", "unionfs images -q"),
            (
                "unionfs --root /x image --namespace=y rm a image ls",
                "unionfs --root /x --namespace=y rmi a image ls",
            ),
            (
                "unionfs container mount web /mnt",
                "unionfs mount --of-container web /mnt",
            ),
            ("unionfs unmount /mnt", "unionfs umount /mnt"),
            ("unionfs image bogus", "unionfs image bogus"),
            ("unionfs image", "unionfs image"),
            ("unionfs --store /x image ls", "unionfs --store /x images"),
            (
                "unionfs --insecure-policy --policy p image --policy=x ls",
                "unionfs --insecure-policy --policy p --policy=x images",
            ),
            ("unionfs container run a id", "unionfs run a id"),
            ("unionfs --root", "unionfs --root"),
            ("unionfs rmi image ls", "unionfs rmi image ls"),
            ("unionfs", "unionfs"),
        ] {
            assert_eq!(expanded(line), expected);
        }
    }

    #[test]
    fn every_alias_names_a_command_and_hides_none() {
        use clap::CommandFactory as _;
        let cli = super::super::Cli::command();
        for alias in &TABLE {
            let shown = alias.words.join(" ");
            let target = cli.find_subcommand(alias.command[0]);
            assert!(target.is_some(), "{shown}");
            assert!(cli.find_subcommand(alias.words[0]).is_none(), "{shown}");
        }
        let mut all = with_groups(cli);
        all.build();
        all.clone().debug_assert();
        let image = all.find_subcommand("image").unwrap();
        let ls = image.find_subcommand("ls").unwrap();
        assert!(ls.get_arguments().any(|arg| arg.get_id() == "json"));
    }

    #[test]
    fn the_guide_has_the_same_table() {
        let text = include_str!("../../docs/guide/commands.md");
        let (_, table) = text
            .split_once("| alias | command |\n| --- | --- |\n")
            .unwrap();
        let rows: Vec<&str> = table
            .lines()
            .take_while(|line| line.starts_with('|'))
            .collect();
        let expected = TABLE.iter().map(|alias| {
            let (words, command) = (alias.words.join(" "), alias.command.join(" "));
            format!("| `unionfs {words}` | `unionfs {command}` |")
        });
        assert_eq!(rows, expected.collect::<Vec<_>>());
    }
}
