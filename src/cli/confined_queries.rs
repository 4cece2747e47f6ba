//! A confined copy of this process answers questions about stores, because this process must
//! continue outside of a sandbox. The copy parses the JSON of the stores and returns only a short
//! answer, which is checked here.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::error::{self, NotUnpacked, Relayed, UnknownImage};
use unionfs::catalog::directory;
use unionfs::image_mounts::ImageCatalogs;
use unionfs::sandbox::Mode;
use unionfs::sandbox::command::Command;
use unionfs::store::Places;
use unionfs::sys::daemon;

/// The first byte of an answer. Any other first byte is the exit code of a failure, and a message
/// follows.
const ANSWERED: u8 = 0;

/// The code for a failure by [`NotUnpacked`]. No command exits with it.
const NOT_UNPACKED: u8 = 255;

/// The code for a failure by [`UnknownImage`]. No command exits with it.
const UNKNOWN_IMAGE: u8 = 254;

/// The maximum number of other stores below the read-write layers of ours.
const MAX_SOURCES: usize = 64;

/// Runs `work` in a copy of this process inside of the sandbox, and returns its answer, which has
/// at most this number of bytes. Without a sandbox, `work` runs in this process.
///
/// # Errors
/// The failure of `work`, with its message and exit code; those of [`daemon::answer_of`].
pub(super) fn ask(
    sandbox: Command,
    limit: u64,
    work: impl FnOnce() -> anyhow::Result<Vec<u8>>,
) -> anyhow::Result<Vec<u8>> {
    if sandbox.mode() == Mode::Off {
        return work();
    }
    // The closure only refers to it: what a closure owns stays open in this process.
    let mut sandbox = Some(sandbox);
    let answer = daemon::answer_of(limit + 1, |out| {
        let entered = sandbox.take().map(Command::enter);
        let outcome = entered
            .unwrap_or_else(|| Err(std::io::ErrorKind::NotFound.into()))
            .map_err(anyhow::Error::from)
            .and_then(|in_force| {
                tracing::debug!(%in_force, "sandbox entered, to look into a store");
                work()
            });
        let answer = match outcome {
            Ok(answer) => [&[ANSWERED], &*answer].concat(),
            Err(e) => [&[code(&e)], error::line(&e).as_bytes()].concat(),
        };
        // The reader may be gone.
        let _ = File::from(out).write_all(&answer);
    });
    let answer = answer.context("the process that looks into the store has ended")?;
    match answer.split_first() {
        Some((&ANSWERED, answer)) => Ok(answer.to_vec()),
        Some((&code, message)) => {
            let message = super::output::one_line(&String::from_utf8_lossy(message));
            let failed = |message| Relayed {
                code: error::FAILURE,
                message,
            };
            Err(match code {
                NOT_UNPACKED => NotUnpacked(failed(message)).into(),
                UNKNOWN_IMAGE => UnknownImage(failed(message)).into(),
                code => Relayed { message, code }.into(),
            })
        }
        None => anyhow::bail!("the process that looks into the store has ended"),
    }
}

fn code(error: &anyhow::Error) -> u8 {
    if error::is_not_unpacked(error) {
        NOT_UNPACKED
    } else if error::is_unknown_image(error) {
        UNKNOWN_IMAGE
    } else {
        error::exit_code(error)
    }
}

/// Returns the roots of other stores below the read-write layers in these places. A root that is
/// not a store is left out, even if a record names it.
pub(super) fn sources(places: &Places, mode: Mode) -> anyhow::Result<Vec<PathBuf>> {
    if mode == Mode::Off || !places.have_named() {
        return Ok(Vec::new());
    }
    let mut sandbox = Command::quick(mode);
    for root in places.roots() {
        sandbox
            .read(root)
            .with_context(|| format!("cannot open {root:?}"))?;
    }
    let answer = ask(sandbox, 1 << 20, || Ok(joined(&places.sources())));
    // The command itself reports a store that cannot be read.
    Ok(stores_in(&answer.unwrap_or_default()))
}

/// Returns the roots of the stores that have catalogs in our own store at `own`.
pub(super) fn catalogued(own: &Path, mode: Mode) -> anyhow::Result<Vec<PathBuf>> {
    if mode == Mode::Off {
        return Ok(Vec::new());
    }
    let dir = directory::dir(own);
    let mut sandbox = Command::quick(mode);
    let failed = || format!("cannot open {dir:?}");
    sandbox.read(&dir).with_context(failed)?;
    let answer = ask(sandbox, 1 << 20, || {
        Ok(joined(&ImageCatalogs::of(own).stores()?))
    })?;
    Ok(stores_in(&answer))
}

fn joined(roots: &[PathBuf]) -> Vec<u8> {
    let roots = roots.iter().take(MAX_SOURCES);
    let roots: Vec<&[u8]> = roots.map(|root| root.as_os_str().as_bytes()).collect();
    roots.join(&0)
}

/// Returns the stores in an answer.
fn stores_in(answer: &[u8]) -> Vec<PathBuf> {
    let parts = answer.split(|byte| *byte == 0).take(MAX_SOURCES);
    let paths = parts.map(|part| Path::new(OsStr::from_bytes(part)));
    paths.filter_map(Places::store_at).collect()
}
