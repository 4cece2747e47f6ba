//! Commands that read what nobody vouches for enter their sandbox here: before the first byte of
//! it, and before there is a second thread. What is opened before is closed again; paths that are
//! used afterwards are absolute and lead through no symlinks, since the working directory goes.

use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::error::Usage;
use super::{interrupt, own};
use crate::sandbox::Mode;
use crate::sandbox::command::Command;
use crate::store::Writable;

const VARIABLE: &str = "UNIONFS_SANDBOX";

/// Where libc finds the addresses of hosts, and the modules it loads for that.
const ADDRESSES: [&str; 10] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/protocols",
    "/etc/networks",
    "/etc/ld.so.cache",
    // Who downloads a blob, for a message.
    "/proc/locks",
];
const LIBRARIES: [&str; 6] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/nix/store",
    "/gnu/store",
];

/// How the sandbox of a command is chosen.
#[derive(Debug, clap::Args)]
pub(super) struct SandboxArgs {
    /// What keeps the command from anything but its work: auto (what the system allows), strict
    /// (all of it, or fail), off [default: $UNIONFS_SANDBOX, else auto]
    #[arg(long, value_name = "MODE", value_parser = mode)]
    sandbox: Option<Mode>,
}

fn mode(text: &str) -> Result<Mode, String> {
    match text {
        "auto" => Ok(Mode::Auto),
        "off" => Ok(Mode::Off),
        "strict" => Ok(Mode::Strict),
        _ => Err("use auto, strict or off".to_owned()),
    }
}

/// The sandbox of a command, before it is entered.
#[derive(Debug)]
pub(super) struct Cage(Command);

impl SandboxArgs {
    /// A sandbox with nothing in it.
    pub(super) fn cage(&self) -> anyhow::Result<Cage> {
        let mode = match (self.sandbox, std::env::var_os(VARIABLE)) {
            (Some(mode), _) => mode,
            (None, Some(text)) if !text.is_empty() => {
                let known = text.to_str().and_then(|text| mode(text).ok());
                known
                    .ok_or_else(|| Usage(format!("{VARIABLE}={text:?}: use auto, strict or off")))?
            }
            (None, _) => Mode::Auto,
        };
        Ok(Cage(Command::new(mode)))
    }
}

impl Cage {
    /// What is there may be read; its path from then on.
    pub(super) fn read(&mut self, path: &Path) -> io::Result<PathBuf> {
        let path = path.canonicalize()?;
        self.0.read(&path)?;
        Ok(path)
    }

    /// Servers may be talked to.
    pub(super) fn talk(&mut self) -> anyhow::Result<()> {
        self.0.talk();
        for (paths, code) in [(&ADDRESSES[..], false), (&LIBRARIES, true)] {
            for path in paths.iter().map(Path::new) {
                // What is not there is not missed.
                let Ok(place) = path.canonicalize() else {
                    continue;
                };
                let done = match code {
                    true => self.0.load_code(&place),
                    false => self.0.read(&place),
                };
                done.with_context(|| format!("cannot keep {path:?} in the sandbox"))?;
                if place != path {
                    self.0.link(path, &place);
                }
            }
        }
        Ok(())
    }

    /// Enters it, for a command that reads only.
    pub(super) fn enter(self) -> anyhow::Result<()> {
        let in_force = self.0.enter()?;
        tracing::debug!(%in_force, "sandbox entered");
        interrupt::watch();
        Ok(())
    }

    /// Enters it with our own store, which is made if there is none. What killed commands have
    /// left there is swept away, unless somebody else changes the store just now.
    pub(super) fn enter_with_store(mut self, store: Writable) -> anyhow::Result<Writable> {
        let root = store.root().to_owned();
        let sweep = own::Sweep::begin(&store)?;
        // It holds directories open.
        drop(store);
        let failed = || format!("cannot open {root:?}");
        self.0.write(&root).with_context(failed)?;
        self.enter()?;
        let store = Writable::open(&root)?;
        if let Some(sweep) = sweep {
            sweep.run(&store)?;
        }
        Ok(store)
    }
}

/// What a command reads.
#[derive(Debug)]
pub(super) enum Input {
    Stdin,
    /// A file or a directory, which is opened inside of the sandbox.
    At(PathBuf),
    /// A FIFO, a device, a descriptor of the shell's.
    Open(File),
}

impl Input {
    /// That of `path`; standard input where there is none, or for `-`. `typed`: what is said when
    /// that is a terminal.
    pub(super) fn of(cage: &mut Cage, path: Option<&Path>, typed: &str) -> anyhow::Result<Self> {
        let Some(path) = path.filter(|path| *path != Path::new("-")) else {
            return match io::stdin().is_terminal() {
                true => Err(Usage(typed.to_owned()).into()),
                false => Ok(Self::Stdin),
            };
        };
        let found = path.metadata().and_then(|meta| {
            if meta.is_file() || meta.is_dir() {
                match cage.read(path) {
                    Ok(place) => return Ok(Self::At(place)),
                    Err(error) if meta.is_dir() => return Err(error),
                    // A file without a name has nothing to be found by.
                    Err(_) => {}
                }
            }
            File::open(path).map(Self::Open)
        });
        found.with_context(|| format!("cannot read {path:?}"))
    }
}
