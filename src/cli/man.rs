//! `unionfs man` makes the manual pages: one for each command, from its help text, and unionfs(5).
//!
//! Exit codes, environment and files are those of docs/guide/reference.md, so that a page cannot
//! differ from the guide.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Command, CommandFactory as _};
use clap_mangen::Man;
use roff::{Roff, bold, roman};

use super::aliases;
use super::output::print_bytes;
use super::output_file::Output;
use super::version::VERSION;
use unionfs::sys::walk::{self, Trust};

/// Print the manual page, or write all manual pages to a directory
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs man | man -l -
  unionfs man /usr/local/share/man

The directory gets unionfs.1 and a page for each command in man1, and unionfs.5 in man5. If its own
name is man1, all pages are written into it.")]
pub(super) struct Args {
    /// Write all pages below DIR, which is created if needed
    dir: Option<PathBuf>,
}

/// The page of the guide with the tables.
const REFERENCE: &str = include_str!("../../docs/guide/reference.md");

/// The pages that each page names at its end.
const SEE_ALSO: &str = "unionfs(1), unionfs(5), mount(8), umount(8), fusermount3(1)";

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let mut command = super::Cli::command().disable_help_subcommand(true);
    command.build();
    let Some(dir) = &args.dir else {
        return print_bytes(&page(&command, &[])?);
    };
    let is_one_section = dir.file_name().is_some_and(|name| name == "man1");
    let section = |name: &str| {
        if is_one_section {
            dir.clone()
        } else {
            dir.join(name)
        }
    };
    let (commands, formats) = (section("man1"), section("man5"));
    for dir in [&commands, &formats] {
        walk::make_directory(dir, Trust::of_root(), 0o755)
            .with_context(|| format!("cannot create {}", dir.display()))?;
    }
    write_pages(&commands, &command, &[])?;
    write(&formats.join("unionfs.5"), &store_page()?)
}

fn write(file: &Path, page: &[u8]) -> anyhow::Result<()> {
    Output::open(file, None)?.write(|out| Ok(out.write_all(page)?))
}

/// Writes the page of a command and those of its subcommands. `above`: the words before its name.
fn write_pages(dir: &Path, command: &Command, above: &[&str]) -> anyhow::Result<()> {
    let words = [above, &[command.get_name()]].concat();
    let file = dir.join(format!("{}.1", words.join("-")));
    write(&file, &page(command, above)?)?;
    for sub in subcommands(command) {
        write_pages(dir, sub, &words)?;
    }
    Ok(())
}

fn subcommands(command: &Command) -> impl Iterator<Item = &Command> {
    let all = command.get_subcommands();
    all.filter(|sub| sub.get_name() != "help" && !sub.is_hide_set())
}

fn page(command: &Command, above: &[&str]) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    let man = Man::new(command.clone())
        .manual("unionfs")
        .source(format!("unionfs {VERSION}"));
    let failed = "cannot write the manual page";
    man.render_title(&mut text).context(failed)?;
    man.render_name_section(&mut text).context(failed)?;
    man.render_synopsis_section(&mut text).context(failed)?;
    man.render_description_section(&mut text).context(failed)?;
    man.render_options_section(&mut text).context(failed)?;
    let mut roff = Roff::new();
    let words = [above, &[command.get_name()]].concat();
    let mut subs = subcommands(command).peekable();
    if subs.peek().is_some() {
        roff.control("SH", ["COMMANDS"]);
        for sub in subs {
            roff.control("TP", []);
            roff.text([bold(format!("{}-{}(1)", words.join("-"), sub.get_name()))]);
            let about = sub.get_about().map(ToString::to_string);
            roff.text([roman(about.unwrap_or_default())]);
        }
    }
    if above.is_empty() {
        roff.control("SH", ["OTHER NAMES"]);
        roff.text([roman("Users of Docker and podman can type:")]);
        for alias in &aliases::TABLE {
            roff.control("TP", []);
            roff.text([bold(format!("unionfs {}", alias.words.join(" ")))]);
            roff.text([roman(format!("unionfs {}", alias.command.join(" ")))]);
        }
    }
    let help = command.get_after_help().map(ToString::to_string);
    after_help(&mut roff, &help.unwrap_or_default());
    for (head, title) in [
        ("EXIT STATUS", "Exit codes"),
        ("ENVIRONMENT", "Environment"),
        ("FILES", "Files"),
    ] {
        roff.control("SH", [head]);
        markdown(&mut roff, section(title));
    }
    see_also(&mut roff);
    roff.to_writer(&mut text).context(failed)?;
    Ok(text)
}

fn see_also(roff: &mut Roff) {
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(SEE_ALSO)]);
}

/// The page of the own store's format.
fn store_page() -> anyhow::Result<Vec<u8>> {
    let mut roff = Roff::new();
    let version = format!("unionfs {VERSION}");
    roff.control("TH", ["unionfs", "5", "", &version, "unionfs"]);
    roff.control("SH", ["NAME"]);
    roff.text([roman("unionfs - the layout of the store of unionfs")]);
    roff.control("SH", ["DESCRIPTION"]);
    markdown(&mut roff, section("Layout of the own store"));
    roff.control("SH", ["FILES"]);
    markdown(&mut roff, section("Files"));
    roff.control("SH", ["ENVIRONMENT"]);
    markdown(&mut roff, section("Environment"));
    see_also(&mut roff);
    let mut text = Vec::new();
    roff.to_writer(&mut text)
        .context("cannot write the manual page")?;
    Ok(text)
}

/// Adds the text after the options: examples, then notes. Exit codes and variables have sections of
/// their own.
fn after_help(roff: &mut Roff, help: &str) {
    let mut notes: Vec<&str> = Vec::new();
    for paragraph in help.split("\n\n") {
        let paragraph = paragraph.trim_end();
        if let Some(examples) = paragraph
            .strip_prefix("Examples:\n")
            .or_else(|| paragraph.strip_prefix("Example:\n"))
        {
            roff.control("SH", ["EXAMPLES"]);
            roff.control("nf", []);
            for line in examples.lines() {
                roff.text([roman(line)]);
            }
            roff.control("fi", []);
        } else if !paragraph.starts_with("Exit codes:") && !paragraph.is_empty() {
            notes.push(paragraph);
        }
    }
    if notes.is_empty() {
        return;
    }
    roff.control("SH", ["NOTES"]);
    for note in notes {
        roff.control("PP", []);
        for line in note.lines() {
            // A line with its own indentation keeps its break.
            if line.starts_with(' ') {
                roff.control("br", []);
            }
            roff.text([roman(line.trim_start())]);
        }
    }
}

/// Returns the text below a heading of the reference.
fn section(title: &str) -> &'static str {
    let mut parts = REFERENCE.split("\n## ").skip(1);
    let found = parts.find_map(|part| part.strip_prefix(title)?.strip_prefix('\n'));
    found.unwrap_or_default()
}

/// Adds text and tables of two columns.
fn markdown(roff: &mut Roff, text: &str) {
    let mut rows = 0;
    for line in text.lines() {
        let cells = line
            .strip_prefix("| ")
            .and_then(|row| row.strip_suffix(" |"));
        let Some((name, meaning)) = cells.and_then(|row| row.split_once(" | ")) else {
            rows = 0;
            match plain(line) {
                text if text.is_empty() => {
                    roff.control("PP", []);
                }
                text => {
                    roff.text([roman(text)]);
                }
            }
            continue;
        };
        rows += 1;
        // The head and the line below it.
        if rows > 2 {
            roff.control("TP", []);
            roff.text([bold(plain(name))]);
            roff.text([roman(plain(meaning))]);
        }
    }
}

/// Returns text without the marks of code and links.
fn plain(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('[') {
        shown.push_str(before);
        let Some((link, after)) = after.split_once("](") else {
            shown.push('[');
            rest = after;
            continue;
        };
        shown.push_str(link);
        rest = after.split_once(')').map_or("", |(_, after)| after);
    }
    shown.push_str(rest);
    shown.replace('`', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_has_the_sections() {
        for title in [
            "Exit codes",
            "Environment",
            "Files",
            "Layout of the own store",
        ] {
            assert!(section(title).contains("| --- | --- |"), "{title}");
        }
        assert_eq!(plain("see [a b](c.md) and `x` [y]"), "see a b and x [y]");
    }
}
