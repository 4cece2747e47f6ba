//! Commands that read untrusted input enter their sandbox here, before its first byte and before
//! there is a second thread. Directories that were opened before are closed. Later paths are
//! absolute and have no symlinks, since the working directory changes.
//!
//! Invariant: nothing is granted that the command's row in [`super::sandbox_access`] does not have.

use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::fs::FileType;

use super::environment;
use super::error::Usage;
use super::live_mounts::Mounted;
use super::sandbox_access::{self, Reach, Use};
use super::{confined_queries, interrupt, own_store, warn};
use unionfs::catalog::directory;
use unionfs::layer::dir::path_of;
use unionfs::sandbox::Mode;
use unionfs::sandbox::command::Command;
use unionfs::store::{ImageName, Places, Stores, UnnamedLayer, Writable};
use unionfs::sys::walk::{self, Trust};

const VARIABLE: &str = "UNIONFS_SANDBOX";

/// The files from which libc learns the addresses of hosts, and the modules that it loads for that.
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
    // The name of the program that downloads a blob, for a message.
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

/// The option that chooses the sandbox of a command.
#[derive(Debug, Default, clap::Args)]
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

/// What to do with a missing directory.
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
    /// Whether signals wait until unfinished work has been removed.
    moves_images: bool,
}

impl SandboxArgs {
    /// Creates an empty sandbox for a command that has a row in the table.
    pub(super) fn cage(&self, command: &str) -> anyhow::Result<Cage> {
        let reach = sandbox_access::of(command).filter(|row| row.confined);
        Ok(Cage {
            sandbox: Command::new(self.mode()?),
            reach: reach.with_context(|| format!("no sandbox is known for {command}"))?,
            moves_images: false,
        })
    }

    /// Enters the sandbox of a command that only reads stores, and opens them.
    /// `images` are the names that the command is given.
    pub(super) fn stores(
        &self,
        command: &str,
        root: Option<&Path>,
        images: &[&str],
    ) -> anyhow::Result<Stores> {
        let mut cage = self.cage(command)?;
        let places = cage.stores(root, images)?;
        cage.enter_with_stores(places)
    }

    /// Returns the option as a user writes it.
    pub(super) fn word(&self) -> Option<String> {
        let mode = match self.sandbox? {
            Mode::Off => "off",
            Mode::Strict => "strict",
            _ => "auto",
        };
        Some(format!("--sandbox={mode}"))
    }

    pub(super) fn mode(&self) -> anyhow::Result<Mode> {
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
    /// Creates the sandbox of a process that takes an image from an archive into the own store.
    pub(super) fn to_take_in(mode: Mode) -> anyhow::Result<Self> {
        let reach = sandbox_access::of("load").context("no sandbox is known for load")?;
        Ok(Self {
            sandbox: Command::new(mode),
            reach,
            moves_images: false,
        })
    }

    /// Returns the sandbox with the own store at `root`, which may be changed, for a process that enters it.
    pub(super) fn into_sandbox(mut self, root: &Path) -> anyhow::Result<Command> {
        self.require(self.reach.own, Use::Write, "our own store")?;
        let failed = || format!("cannot open {root:?}");
        self.sandbox.write(root).with_context(failed)?;
        Ok(self.sandbox)
    }

    /// Returns the sandbox as it is, for a process that enters it to answer a question.
    pub(super) fn into_queries(self) -> Command {
        self.sandbox
    }

    /// Returns the mode.
    pub(super) fn mode(&self) -> Mode {
        self.sandbox.mode()
    }

    /// Marks a command that may run for long and leave something unfinished.
    pub(super) fn moves_images(mut self) -> Self {
        self.moves_images = true;
        self
    }

    /// Allows reading a path. Returns the path to use from then on, which is absolute and has no
    /// symlinks.
    pub(super) fn read(&mut self, path: &Path) -> io::Result<PathBuf> {
        self.sandbox.read(path)?;
        Ok(path.to_owned())
    }

    /// Allows changing a directory that the user names as the destination, and everything beneath.
    /// The path is absolute and has no symlinks.
    pub(super) fn change(&mut self, dir: &Path) -> io::Result<()> {
        self.sandbox.write(dir)
    }

    fn require(&self, granted: Use, wanted: Use, what: &str) -> anyhow::Result<()> {
        let command = self.reach.command;
        anyhow::ensure!(granted >= wanted, "{command} has no access to {what}");
        Ok(())
    }

    /// Allows reading the stores in which images are searched. `root`: only this store. `images` are
    /// the names that the command is given: they may name a store.
    pub(super) fn stores(
        &mut self,
        root: Option<&Path>,
        images: &[&str],
    ) -> anyhow::Result<Places> {
        self.require(self.reach.stores, Use::Read, "stores")?;
        let places = find_places(root, images)?;
        for place in places.roots() {
            self.read_store(place)?;
        }
        Ok(places)
    }

    /// As [`Self::stores`], with the stores below the read-write layers of these, and the records of
    /// containers in run roots.
    pub(super) fn stores_of_containers(
        &mut self,
        root: Option<&Path>,
        images: &[&str],
    ) -> anyhow::Result<Places> {
        let mut places = self.stores(root, images)?;
        places.open_run_lists(&environment());
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

    /// Allows using the catalogs as the row of the command says. Returns the root of the own store,
    /// in which they are. `None`: there are none, and the directory is not to be made.
    pub(super) fn catalogs(&mut self, missing: Missing) -> anyhow::Result<Option<PathBuf>> {
        self.require(self.reach.catalogs, Use::Read, "catalogs")?;
        let own = environment().own_root().ok();
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

    /// As [`Self::catalogs`], and allows reading the stores that the catalogs describe.
    pub(super) fn catalogs_with_stores(&mut self) -> anyhow::Result<Option<PathBuf>> {
        let own = self.catalogs(Missing::Leave)?;
        if let Some(own) = &own {
            for store in confined_queries::catalogued(own, self.mode())? {
                self.read_store(&store)?;
            }
        }
        Ok(own)
    }

    /// Allows replacing a file and all others in its directory. Returns the path to use from then
    /// on. `missing` says what to do if the directory does not exist.
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

    /// Allows filling a directory that the user names, which is made if it does not exist. Returns the path
    /// to use from then on.
    pub(super) fn directory_to_fill(&mut self, path: &Path) -> anyhow::Result<PathBuf> {
        let failed = || format!("cannot write to {path:?}");
        let dir = walk::make_directory(path, Trust::of_root(), 0o755).with_context(failed)?;
        let dir = path_of(dir).with_context(failed)?;
        self.sandbox.write(&dir).with_context(failed)?;
        Ok(dir)
    }

    /// Allows reading the own store, if it exists. Returns its root.
    pub(super) fn read_own(&mut self, root: Option<&Path>) -> anyhow::Result<Option<PathBuf>> {
        self.require(self.reach.own, Use::Read, "our own store")?;
        let Some(store) = own_store::looked_at(root)? else {
            return Ok(None);
        };
        self.read_store(store.root())?;
        Ok(Some(store.root().to_owned()))
    }

    /// Allows reading the changes of mounts without a name in the own store, if there are any. Returns
    /// its root.
    pub(super) fn read_changes(&mut self, root: Option<&Path>) -> anyhow::Result<Option<PathBuf>> {
        self.require(self.reach.own, Use::Read, "our own store")?;
        let own = match (root, environment().own_root()) {
            (Some(root), _) => root.to_owned(),
            (None, Ok(own)) => own,
            (None, Err(_)) => return Ok(None),
        };
        let Some(place) = UnnamedLayer::place(&own) else {
            return Ok(None);
        };
        self.read_store(&place)?;
        Ok(place.parent().map(Path::to_owned))
    }

    /// Allows connections to servers.
    pub(super) fn talk(&mut self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.reach.network,
            "{} talks to no servers",
            self.reach.command
        );
        self.sandbox.talk();
        for (paths, code) in [(&ADDRESSES[..], false), (&LIBRARIES, true)] {
            for path in paths.iter().map(Path::new) {
                // A missing file needs no permission.
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

    /// Enters the sandbox.
    pub(super) fn enter(self) -> anyhow::Result<()> {
        let in_force = self.sandbox.enter()?;
        tracing::debug!(%in_force, "sandbox entered");
        if self.moves_images {
            interrupt::watch();
        }
        Ok(())
    }

    /// Enters the sandbox and opens the stores.
    pub(super) fn enter_with_stores(self, places: Places) -> anyhow::Result<Stores> {
        self.enter()?;
        open(places)
    }

    /// Enters the sandbox with the own store, which may be changed.
    pub(super) fn enter_with_own(mut self, store: Writable) -> anyhow::Result<Writable> {
        self.require(self.reach.own, Use::Write, "our own store")?;
        let root = store.root().to_owned();
        // The opened store holds directories.
        drop(store);
        let failed = || format!("cannot open {root:?}");
        self.sandbox.write(&root).with_context(failed)?;
        self.enter()?;
        Ok(Writable::open(&root)?)
    }

    /// As [`Self::enter_with_own`], with the store locked, and the live mounts, which are not seen
    /// inside.
    pub(super) fn enter_with_mounts(
        self,
        store: Writable,
    ) -> anyhow::Result<(Writable, File, Mounted)> {
        let lock = own_store::lock(&store)?.into_lock();
        let mounted = Mounted::watched()?;
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

/// Finds the places of stores: that of `root`, or all, and those that the names of images name.
pub(super) fn find_places(root: Option<&Path>, images: &[&str]) -> anyhow::Result<Places> {
    let mut places = Places::find(root, &environment())?;
    for &image in images {
        let name = ImageName::parse(image).map_err(|error| Usage(error.to_string()))?;
        let Some(store) = name.store() else { continue };
        if root.is_some() {
            let text = format!("--root names a store and {image:?} another: leave one of them out");
            return Err(Usage(text).into());
        }
        let failed = || format!("cannot open the store of {image:?}");
        places.add_named(store).with_context(failed)?;
    }
    Ok(places)
}

/// Warns once about what keeps stores from being found.
pub(super) fn warn_of(places: &mut Places) {
    for problem in places.take_skipped() {
        warn(problem);
    }
}

/// Opens the stores that were found, and warns about those that cannot be read.
pub(super) fn open(places: Places) -> anyhow::Result<Stores> {
    let stores = Stores::open(places)?;
    for problem in stores.skipped() {
        warn(problem);
    }
    Ok(stores)
}

/// The input of a command.
#[derive(Debug)]
pub(super) enum Input {
    Stdin,
    /// A file or a directory. It is opened inside of the sandbox.
    At(PathBuf),
    /// A FIFO, a device, or a descriptor from the shell.
    Open(File),
}

impl Input {
    /// Opens the input at `path`; without a path, and for `-`, standard input. `typed` is the
    /// message if that is a terminal.
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

    /// Another user may not redirect a path that root gives: symlinks of other users are not
    /// followed.
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
                // A file without a name cannot be found by a path.
                _ => {}
            }
        }
        walk::open_again(&found).map(Self::Open)
    }
}
