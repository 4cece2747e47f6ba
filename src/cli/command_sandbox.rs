//! Commands that read what nobody vouches for enter their sandbox here: before the first byte of
//! it, and before there is a second thread. What is opened before is closed again; paths that are
//! used afterwards are absolute and lead through no symlinks, since the working directory goes.
//!
//! Invariant: nothing is granted that the command's row in [`super::sandbox_access`] does not have.

use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::fs::FileType;

use super::error::Usage;
use super::own_store::Mounted;
use super::sandbox_access::{self, Reach, Use};
use super::{confined_queries, interrupt, own_store, warn};
use unionfs::catalog::directory;
use unionfs::layer::dir::path_of;
use unionfs::sandbox::Mode;
use unionfs::sandbox::command::Command;
use unionfs::store::discovery::Environment;
use unionfs::store::{Places, Stores, Writable};
use unionfs::sys::walk::{self, Trust};

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
    /// Confine the command: auto (as far as the system allows), strict (fully, or fail), off [default: $UNIONFS_SANDBOX, else auto]
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

/// What becomes of a directory that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    Make,
    Leave,
}

/// The sandbox of a command, before it is entered.
#[derive(Debug)]
pub(super) struct Cage {
    sandbox: Command,
    reach: &'static Reach,
    /// Whether signals wait until what is half done has been taken away.
    moves_images: bool,
}

impl SandboxArgs {
    /// A sandbox with nothing in it, for a command that has a row.
    pub(super) fn cage(&self, command: &str) -> anyhow::Result<Cage> {
        let reach = sandbox_access::of(command).filter(|row| row.confined);
        Ok(Cage {
            sandbox: Command::new(self.mode()?),
            reach: reach.with_context(|| format!("no sandbox is known for {command}"))?,
            moves_images: false,
        })
    }

    /// Enters the sandbox of a command that reads stores and nothing else, and opens them.
    pub(super) fn stores(&self, command: &str, root: Option<&Path>) -> anyhow::Result<Stores> {
        let mut cage = self.cage(command)?;
        let places = cage.stores(root)?;
        cage.enter_with_stores(places)
    }

    fn mode(&self) -> anyhow::Result<Mode> {
        let mode = match (self.sandbox, std::env::var_os(VARIABLE)) {
            (Some(mode), _) => mode,
            (None, Some(text)) if !text.is_empty() => {
                let known = text.to_str().and_then(|text| mode(text).ok());
                known
                    .ok_or_else(|| Usage(format!("{VARIABLE}={text:?}: use auto, strict or off")))?
            }
            (None, _) => Mode::Auto,
        };
        Ok(mode)
    }
}

impl Cage {
    /// How much is wanted.
    pub(super) fn mode(&self) -> Mode {
        self.sandbox.mode()
    }

    /// For a command that may be at it for long and leave something half done.
    pub(super) fn moves_images(mut self) -> Self {
        self.moves_images = true;
        self
    }

    /// What is there may be read; its path from then on. The path is absolute and without symlinks.
    pub(super) fn read(&mut self, path: &Path) -> io::Result<PathBuf> {
        self.sandbox.read(path)?;
        Ok(path.to_owned())
    }

    fn require(&self, granted: Use, wanted: Use, what: &str) -> anyhow::Result<()> {
        let command = self.reach.command;
        anyhow::ensure!(granted >= wanted, "{command} has no access to {what}");
        Ok(())
    }

    /// The stores may be read in which images are looked for; `root`: only there.
    pub(super) fn stores(&mut self, root: Option<&Path>) -> anyhow::Result<Places> {
        self.require(self.reach.stores, Use::Read, "stores")?;
        let places = Places::find(root, &Environment::current())?;
        for place in places.roots() {
            self.read_store(place)?;
        }
        Ok(places)
    }

    /// As [`Self::stores`], and the stores that read-write layers of these are on.
    pub(super) fn stores_of_containers(&mut self, root: Option<&Path>) -> anyhow::Result<Places> {
        let mut places = self.stores(root)?;
        let others = confined_queries::sources(&places, self.mode())?;
        for other in &others {
            self.read_store(other)?;
        }
        places.add_others(others);
        Ok(places)
    }

    fn read_store(&mut self, path: &Path) -> anyhow::Result<()> {
        let failed = || format!("cannot open {path:?}");
        self.sandbox.read(path).with_context(failed)
    }

    /// The catalogs may be used as the row says: the root of our own store, in which they are.
    /// `None` where there are none, unless the directory is to be made.
    pub(super) fn catalogs(&mut self, missing: Missing) -> anyhow::Result<Option<PathBuf>> {
        self.require(self.reach.catalogs, Use::Read, "catalogs")?;
        let own = Environment::current().own_root().ok();
        if let Some(own) = own.as_ref().filter(|_| missing == Missing::Make) {
            let dir = directory::dir(own);
            walk::make_directory(&dir, Trust::of_root(), 0o700)
                .with_context(|| format!("cannot make {dir:?}"))?;
        }
        let Some(own) = own.and_then(|own| directory::existing(&own)) else {
            return Ok(None);
        };
        let dir = directory::dir(&own);
        let granted = match self.reach.catalogs {
            Use::Write => self.sandbox.write(&dir),
            _ => self.sandbox.read(&dir),
        };
        granted.with_context(|| format!("cannot open {dir:?}"))?;
        Ok(Some(own))
    }

    /// As [`Self::catalogs`], and the stores that they are of may be read.
    pub(super) fn catalogs_with_stores(&mut self) -> anyhow::Result<Option<PathBuf>> {
        let own = self.catalogs(Missing::Leave)?;
        if let Some(own) = &own {
            for store in confined_queries::catalogued(own, self.mode())? {
                self.read_store(&store)?;
            }
        }
        Ok(own)
    }

    /// A file may be replaced, and whatever else is in its directory: its path from then on. `missing`:
    /// what becomes of a directory that is not there.
    pub(super) fn file_to_replace(
        &mut self,
        path: &Path,
        missing: Missing,
    ) -> anyhow::Result<PathBuf> {
        self.require(self.reach.catalogs, Use::Write, "files")?;
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(path.to_owned());
        };
        let failed = || format!("cannot open {dir:?}");
        if missing == Missing::Make {
            walk::make_directory(dir, Trust::of_root(), 0o700).with_context(failed)?;
        }
        let found = walk::open_directory(dir, Trust::of_root()).ok();
        let Some(dir) = found.and_then(path_of) else {
            return Ok(path.to_owned());
        };
        self.sandbox.write(&dir).with_context(failed)?;
        Ok(dir.join(name))
    }

    /// Our own store may be read, if there is one: its root.
    pub(super) fn read_own(&mut self, root: Option<&Path>) -> anyhow::Result<Option<PathBuf>> {
        self.require(self.reach.own, Use::Read, "our own store")?;
        let Some(store) = own_store::existing(root)? else {
            return Ok(None);
        };
        self.read_store(store.root())?;
        Ok(Some(store.root().to_owned()))
    }

    /// Servers may be talked to.
    pub(super) fn talk(&mut self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.reach.network,
            "{} talks to no servers",
            self.reach.command
        );
        self.sandbox.talk();
        for (paths, code) in [(&ADDRESSES[..], false), (&LIBRARIES, true)] {
            for path in paths.iter().map(Path::new) {
                // What is not there is not missed.
                let Ok(place) = path.canonicalize() else {
                    continue;
                };
                let done = if code {
                    self.sandbox.load_code(&place)
                } else {
                    self.sandbox.read(&place)
                };
                done.with_context(|| format!("cannot keep {path:?} in the sandbox"))?;
                if place != path {
                    self.sandbox.link(path, &place);
                }
            }
        }
        Ok(())
    }

    /// Enters it.
    pub(super) fn enter(self) -> anyhow::Result<()> {
        let in_force = self.sandbox.enter()?;
        tracing::debug!(%in_force, "sandbox entered");
        if self.moves_images {
            interrupt::watch();
        }
        Ok(())
    }

    /// Enters it, and opens the stores.
    pub(super) fn enter_with_stores(self, places: Places) -> anyhow::Result<Stores> {
        self.enter()?;
        open(places)
    }

    /// Enters it with our own store, which may be changed.
    pub(super) fn enter_with_own(mut self, store: Writable) -> anyhow::Result<Writable> {
        self.require(self.reach.own, Use::Write, "our own store")?;
        let root = store.root().to_owned();
        // It holds directories open.
        drop(store);
        let failed = || format!("cannot open {root:?}");
        self.sandbox.write(&root).with_context(failed)?;
        self.enter()?;
        Ok(Writable::open(&root)?)
    }

    /// As [`Self::enter_with_own`], with the store locked and the mounts that are live by then, which
    /// are not seen inside.
    pub(super) fn enter_with_mounts(
        self,
        store: Writable,
    ) -> anyhow::Result<(Writable, File, Mounted)> {
        let lock = own_store::lock(&store)?.into_lock();
        let mounted = Mounted::now();
        let store = self.enter_with_own(store)?;
        Ok((store, lock, mounted))
    }

    /// As [`Self::enter_with_own`], for what takes images in. What killed commands have left there
    /// is swept away, unless somebody else changes the store just now.
    pub(super) fn enter_to_take_in(self, store: Writable) -> anyhow::Result<Writable> {
        let sweep = own_store::Sweep::begin(&store)?;
        let store = self.moves_images().enter_with_own(store)?;
        if let Some(sweep) = sweep {
            sweep.run(&store)?;
        }
        Ok(store)
    }
}

/// Says what keeps stores from being found, once.
pub(super) fn warn_of(places: &mut Places) {
    for problem in places.take_skipped() {
        warn(problem);
    }
}

/// Opens the stores that were found, and says what keeps others from being read.
pub(super) fn open(places: Places) -> anyhow::Result<Stores> {
    let stores = Stores::open(places)?;
    for problem in stores.skipped() {
        warn(problem);
    }
    Ok(stores)
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
            return if io::stdin().is_terminal() {
                Err(Usage(typed.to_owned()).into())
            } else {
                Ok(Self::Stdin)
            };
        };
        let opened = Self::named(cage, path);
        opened.with_context(|| format!("cannot read {path:?}"))
    }

    /// What root names is not what another user makes of it: symlinks of others are not followed.
    fn named(cage: &mut Cage, path: &Path) -> io::Result<Self> {
        if walk::is_own_descriptor(path) && !path.is_dir() {
            return File::open(path).map(Self::Open);
        }
        let found = walk::open(path, Trust::of_root(), |_| Ok::<_, io::Error>(false))?;
        let kind = walk::kind(&found);
        let is_dir = kind == Some(FileType::Directory);
        if is_dir || kind == Some(FileType::RegularFile) {
            let path = path_of(&found).ok_or(io::ErrorKind::NotFound)?;
            let there = || -> io::Result<bool> {
                let (held, there) = (rustix::fs::fstat(&found)?, rustix::fs::lstat(&path)?);
                Ok((held.st_dev, held.st_ino) == (there.st_dev, there.st_ino))
            };
            match there().and_then(|there| Ok(there.then_some(cage.read(&path)?))) {
                Ok(Some(place)) => return Ok(Self::At(place)),
                Err(error) if is_dir => return Err(error),
                _ if is_dir => return Err(io::ErrorKind::NotFound.into()),
                // A file without a name has nothing to be found by.
                _ => {}
            }
        }
        walk::open_again(&found).map(Self::Open)
    }
}
