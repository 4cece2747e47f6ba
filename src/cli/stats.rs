//! `unionfs stats` shows the counters of a mount.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::bail;

use super::candidates;
use super::command_sandbox::SandboxArgs;
use super::output::{print, print_json, size, terminal_width, wrapped};
use unionfs::fuse::stats::{Stats, connect};
use unionfs::fuse::{self, MountRecord, MountState, runtime};
use unionfs::union::Counters;

/// Show the counters of a mount: requests, cache hits, copy-ups
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs stats /mnt
  unionfs stats --json /mnt | jq .requests.LOOKUP

Requests are the messages that the kernel has sent to the daemon since the mount. Accesses that the
caches of the kernel answered are not counted. Exit code 3: the daemon does not answer (within 5
seconds, or $UNIONFS_TIMEOUT).")]
pub(super) struct Args {
    /// The directory that it is mounted on
    #[arg(add = candidates::mountpoints())]
    mountpoint: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let cage = args.sandbox.cage("stats")?;
    let connection = connect(&live_record(&args.mountpoint)?)?;
    cage.enter()?;
    let stats = connection.answer()?;
    if args.json {
        print_json(&stats)
    } else {
        print(&describe(&stats))
    }
}

/// Returns the record of a mount whose daemon runs.
pub(super) fn live_record(mountpoint: &Path) -> anyhow::Result<MountRecord> {
    let shown = mountpoint.display();
    // A path that leads nowhere is not a mount either.
    let found = match runtime::find(mountpoint) {
        Err(fuse::Error::Mountpoint { source, .. }) if source.kind() == ErrorKind::NotFound => None,
        other => other?,
    };
    let Some(record) = found else {
        bail!("no unionfs of this user is mounted on {shown}: unionfs ps lists what is");
    };
    if record.state() == Some(MountState::Dead) {
        bail!(
            "the daemon of {shown} was killed: unmount it (unionfs umount {shown}) or mount there again"
        );
    }
    Ok(record)
}

fn describe(stats: &Stats) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "transport         {}", stats.mount.transport.name());
    let _ = writeln!(text, "io                {}", stats.mount.io.name());
    if let Some(sandbox) = &stats.mount.sandbox {
        let sandbox = sandbox.to_string();
        text += &wrapped("sandbox           ", &sandbox, terminal_width());
    }
    let _ = writeln!(text, "requests          {}", stats.total_requests());
    for (operation, count) in &stats.requests {
        let _ = writeln!(text, "  {operation:<16}{count}");
    }
    // The pattern names every counter, so that a new one cannot be forgotten here.
    let Counters {
        inodes,
        cached_names,
        lookup_hits,
        lookup_negative_hits,
        lookup_misses,
        copy_ups,
        copy_up_bytes,
        fd_hits,
        fd_misses,
        searches,
        catalogued,
    } = stats.union;
    let hits = lookup_hits + lookup_negative_hits;
    let _ = write!(
        text,
        "inodes            {inodes}\n\
         lookup cache      {cached_names} names, {hits} hits ({lookup_negative_hits} negative), \
         {lookup_misses} misses{}\n\
         descriptor cache  {fd_hits} hits, {fd_misses} misses{}\n\
         copy-ups          {copy_ups}, {} of data\n\
         searches          {searches}\n\
         catalog           {}\n",
        rate(hits, lookup_misses),
        rate(fd_hits, fd_misses),
        size(copy_up_bytes),
        if catalogued { "used" } else { "none" },
    );
    text
}

/// Formats `, 98.5% hits`; empty without any requests.
fn rate(hits: u64, misses: u64) -> String {
    match hits + misses {
        0 => String::new(),
        all => format!(", {:.1}% hits", hits as f64 * 100.0 / all as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        assert_eq!(rate(0, 0), "");
        assert_eq!(rate(3, 1), ", 75.0% hits");
    }
}
