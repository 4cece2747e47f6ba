//! `unionfs man` makes the manual pages from the help texts.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use super::output::print_bytes;
use super::output_file::Output;
use unionfs::sys::walk::{self, Trust};

/// Print the manual page, or write all manual pages to a directory
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs man | man -l -
  unionfs man /usr/local/share/man/man1")]
pub(super) struct Args {
    /// Write unionfs.1, unionfs-mount.1 and the others to DIR, which is created if needed
    dir: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let mut command = super::Cli::command();
    command.build();
    match &args.dir {
        None => print_bytes(&page(&command)?),
        Some(dir) => {
            walk::make_directory(dir, Trust::of_root(), 0o755)
                .with_context(|| format!("cannot create {}", dir.display()))?;
            write_pages(dir, &command)
        }
    }
}

fn write_pages(dir: &Path, command: &Command) -> anyhow::Result<()> {
    let write = |name: &str, command: &Command| {
        let file = dir.join(format!("{name}.1"));
        let page = page(command)?;
        Output::open(&file, None)?.write(|out| Ok(out.write_all(&page)?))
    };
    write("unionfs", command)?;
    for sub in command
        .get_subcommands()
        .filter(|sub| sub.get_name() != "help")
    {
        write(&format!("unionfs-{}", sub.get_name()), sub)?;
    }
    Ok(())
}

fn page(command: &Command) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    Man::new(command.clone())
        .manual("unionfs")
        .render(&mut text)
        .context("cannot write the manual page")?;
    Ok(text)
}
