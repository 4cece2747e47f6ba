//! The files and hosts that each command may use in its sandbox: one row for each command.
//! docs/ARCHITECTURE.md has the same table.
//!
//! [`super::command_sandbox::Cage`] grants only what the row of the command contains.

use Use::{No, Read, Write};

/// How a kind of place may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Use {
    No,
    Read,
    Write,
}

impl Use {
    #[cfg(test)]
    fn text(self) -> &'static str {
        match self {
            Self::No => "-",
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// The row of a command.
#[derive(Debug)]
pub(super) struct Reach {
    pub(super) command: &'static str,
    /// The stores in which images and containers are searched; only that of `--root` if it is
    /// given.
    pub(super) stores: Use,
    /// The own store.
    pub(super) own: Use,
    /// The directory of catalogs.
    pub(super) catalogs: Use,
    /// Servers.
    pub(super) network: bool,
    /// Other places. `None`: the command enters no sandbox; `why` gives the reason.
    pub(super) confined: bool,
    /// The files that are opened before, or the reason for no sandbox, for the table.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "compared with the documented table")
    )]
    note: &'static str,
}

const fn row(command: &'static str, stores: Use, own: Use, note: &'static str) -> Reach {
    Reach {
        command,
        stores,
        own,
        catalogs: No,
        network: false,
        confined: true,
        note,
    }
}

const fn outside(command: &'static str, note: &'static str) -> Reach {
    Reach {
        confined: false,
        ..row(command, No, No, note)
    }
}

const fn with_catalogs(catalogs: Use, row: Reach) -> Reach {
    Reach { catalogs, ..row }
}

const fn with_network(row: Reach) -> Reach {
    Reach {
        network: true,
        ..row
    }
}

const ASKING: &str = "logins, certificates and configuration, read before";

/// All commands, in the order of `unionfs --help`.
pub(super) static TABLE: &[Reach] = &[
    outside(
        "mount",
        "finds the layers in a confined process; its daemon has a sandbox of its own",
    ),
    outside(
        "umount",
        "reads nothing but records of the runtime directory",
    ),
    outside(
        "run",
        "finds and mounts the image by commands with sandboxes, and looks into it in a confined process",
    ),
    outside(
        "bundle",
        "finds and mounts the image by commands with sandboxes, and looks into it in a confined process",
    ),
    row("images", Read, No, ""),
    with_network(row(
        "inspect",
        Read,
        No,
        "docker:// names: servers and no stores; logins, certificates and configuration, read before",
    )),
    row("history", Read, No, ""),
    row("layers", Read, No, ""),
    row("verify", Read, No, ""),
    row("ps", No, Read, "mounts are looked at before"),
    with_catalogs(
        Read,
        row("diff", Read, No, "origins are found by a process outside"),
    ),
    row(
        "commit",
        Read,
        Write,
        "a process outside syncs a mounted layer and finds origins",
    ),
    row("squash", Read, Write, ""),
    row(
        "export",
        Read,
        No,
        "the output; a process outside gives it its name, syncs a mounted layer and finds origins",
    ),
    with_catalogs(Read, row("ls", Read, No, "a process outside finds origins")),
    with_catalogs(
        Read,
        row("cat", Read, No, "a process outside finds origins"),
    ),
    with_catalogs(
        Read,
        row(
            "cp",
            Read,
            No,
            "the destination (write); a process outside finds origins",
        ),
    ),
    row(
        "load",
        No,
        Write,
        "the archive (read); with `--repair` live mounts are looked at before",
    ),
    row("import", No, Write, "the tar or directory (read)"),
    row(
        "save",
        Read,
        No,
        "the output; a process outside gives it its name",
    ),
    with_network(row(
        "pull",
        No,
        Write,
        "logins, certificates and configuration, read before; with `--repair` live mounts too",
    )),
    with_network(row(
        "push",
        Read,
        Write,
        "logins, certificates and configuration, read before; files without a name if there is no store of \
         ours",
    )),
    with_network(row(
        "login",
        No,
        No,
        "a process outside reads configuration and certificates, and writes the login",
    )),
    outside("logout", "reads and writes files with logins only"),
    with_network(row("tags", No, No, ASKING)),
    with_network(row("digest", No, No, ASKING)),
    with_network(row(
        "copy",
        Read,
        Write,
        "stores only where one is source or destination; logins, certificates and configuration, read \
         before; an archive (read); the directory or file of the destination (written)",
    )),
    with_network(row("delete", No, No, ASKING)),
    row("stats", No, No, "the daemon's socket"),
    outside("sync", "reads nothing but records of the runtime directory"),
    row("tag", Read, Write, ""),
    with_catalogs(
        Write,
        row("rmi", Read, Write, "live mounts are looked at before"),
    ),
    row("rm", No, Write, ""),
    with_catalogs(
        Write,
        row("prune", Read, Write, "live mounts are looked at before"),
    ),
    with_catalogs(Read, row("df", Read, Read, "")),
    with_catalogs(
        Write,
        row(
            "catalog",
            Read,
            No,
            "with -o: the layers (read), the file's directory",
        ),
    ),
    row("info", Read, No, "mounts are looked at before"),
    outside(
        "doctor",
        "reads /proc, /sys and /etc; its mounts are made by this program, with their own sandboxes",
    ),
    outside("version", "reads nothing"),
    outside(
        "completions",
        "reads nothing; for the names on a line that is completed, a confined process reads the stores",
    ),
    outside("man", "reads nothing"),
];

/// Returns the row of a command.
pub(super) fn of(command: &str) -> Option<&'static Reach> {
    TABLE.iter().find(|row| row.command == command)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_command_has_a_row_and_the_option_that_goes_with_it() {
        let mut cli = super::super::Cli::command();
        cli.build();
        let commands = cli.get_subcommands().filter(|sub| sub.get_name() != "help");
        let commands: Vec<_> = commands.collect();
        let names: Vec<&str> = commands.iter().map(|sub| sub.get_name()).collect();
        let rows: Vec<&str> = TABLE.iter().map(|row| row.command).collect();
        assert_eq!(names, rows, "in the order of unionfs --help");
        for (command, row) in commands.iter().zip(TABLE) {
            let takes = |command: &clap::Command| {
                command.get_arguments().any(|arg| arg.get_id() == "sandbox")
            };
            let subs: Vec<_> = command
                .get_subcommands()
                .filter(|s| s.get_name() != "help")
                .collect();
            let takes_it = if subs.is_empty() {
                takes(command)
            } else {
                subs.iter().all(|sub| takes(sub))
            };
            assert_eq!(takes_it, row.confined, "--sandbox of {}", row.command);
        }
    }

    #[test]
    fn the_documented_table_is_what_commands_get() {
        let text = include_str!("../../docs/ARCHITECTURE.md");
        let (_, table) = text.split_once("| command | stores | own store |").unwrap();
        let rows: Vec<&str> = table
            .lines()
            .skip(2)
            .take_while(|line| line.starts_with('|'))
            .collect();
        let expected = TABLE.iter().map(|row| {
            let network = if row.network { "servers" } else { "-" };
            let cells = if row.confined {
                [
                    row.stores.text(),
                    row.own.text(),
                    row.catalogs.text(),
                    network,
                ]
            } else {
                ["no sandbox", "", "", ""]
            };
            format!("| {} | {} | {} |", row.command, cells.join(" | "), row.note)
        });
        let expected: Vec<String> = expected.collect();
        assert_eq!(rows, expected);
    }
}
