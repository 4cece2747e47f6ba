//! Mounts as values: kernel overlayfs, unionfs and fuse-overlayfs over the same
//! kind of stack, unmounted when dropped (also when the test fails), and scratch
//! directories to put them in.

use std::ffi::CString;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags};

use super::uring::Switch;
use super::without;
use crate::program;

/// f_type of a FUSE file system (Linux `include/uapi/linux/magic.h`).
const FUSE_SUPER_MAGIC: i64 = 0x6573_5546;
/// f_type of overlayfs.
const OVERLAYFS_SUPER_MAGIC: i64 = 0x794c_7630;
/// How long polling waits for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// Polls `done` until it returns true. Returns false if the time is up.
pub fn poll(mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    loop {
        if done() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Gives the calling thread, and the threads and processes that it starts, a mount namespace of its
/// own. A container that is started elsewhere meanwhile begins with a copy of its starter's
/// namespace. A mount in a copy lives on after its unmount here: servers would not end, and uppers
/// would stay busy.
pub fn own_namespace() {
    use rustix::mount::{MountPropagationFlags, mount_change};
    thread_local! {
        static DONE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    }
    if DONE.replace(true) {
        return;
    }
    #[expect(
        deprecated,
        reason = "the safe form; mounts and CLONE_FS cannot invalidate memory"
    )]
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS).unwrap();
    let propagation = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    mount_change("/", propagation).unwrap();
    let_go_of_others();
}

/// Detaches the copies of unions and overlays that tests in other processes have mounted. Their
/// servers would not end as long as this namespace has the copies.
fn let_go_of_others() {
    let mounts = std::fs::read_to_string("/proc/thread-self/mounts").unwrap();
    let scratch = std::env::temp_dir();
    // Upper mounts are detached before the mounts below them.
    for line in mounts.lines().rev() {
        let mut words = line.split(' ').skip(1);
        let (Some(target), Some(kind)) = (words.next(), words.next()) else {
            continue;
        };
        if Path::new(target).starts_with(&scratch)
            && (kind.starts_with("fuse") || kind == "overlay")
        {
            // The mount stays if its owner has removed it, or if its name has an octal escape and
            // is not found.
            let _ = rustix::mount::unmount(target, UnmountFlags::DETACH);
        }
    }
}

/// A directory, on the disk or on a tmpfs of its own, that is removed with its contents on drop.
pub struct Scratch {
    dir: tempfile::TempDir,
    tmpfs: bool,
}

impl Scratch {
    /// Creates a directory on the file system of `$TMPDIR`: a real disk in CI and on developers'
    /// machines.
    pub fn disk() -> Self {
        Self::beneath(&std::env::temp_dir())
    }

    /// Creates a directory in `parent`.
    pub fn beneath(parent: &Path) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("unionfs-test.")
            .tempdir_in(parent)
            .unwrap();
        // Scripts also run as other users, who need access.
        chmod(dir.path(), 0o755);
        Self { dir, tmpfs: false }
    }

    /// Creates a tmpfs for the directory, so that unmounting an overlay has no disk to sync.
    pub fn tmpfs() -> Self {
        let mut scratch = Self::disk();
        rustix::mount::mount(
            "tmpfs",
            scratch.path(),
            "tmpfs",
            MountFlags::empty(),
            Some(c"mode=755"),
        )
        .unwrap();
        scratch.tmpfs = true;
        scratch
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Creates a directory in it, mode 0755.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        chmod(&path, 0o755);
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.tmpfs {
            // A failed test may still have files open in it.
            let _ = rustix::mount::unmount(self.path(), UnmountFlags::DETACH);
        }
    }
}

/// Sets permission bits.
pub fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A layer stack with a place to mount it.
#[derive(Clone, Debug)]
pub struct Stack {
    /// Lower directories, top first.
    pub lowers: Vec<PathBuf>,
    /// Upper and work directory.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// The mountpoint.
    pub mnt: PathBuf,
}

impl Stack {
    /// Returns a stack of these lowers with a new upper, work directory and mountpoint in
    /// `scratch`.
    pub fn writable(scratch: &Scratch, lowers: Vec<PathBuf>) -> Self {
        Self {
            lowers,
            upper: Some((scratch.dir("upper"), scratch.dir("work"))),
            mnt: scratch.dir("mnt"),
        }
    }

    /// Returns `lowerdir=…,upperdir=…,workdir=…`. The paths contain no character that needs
    /// escaping.
    pub fn options(&self) -> String {
        let lowers: Vec<_> = self.lowers.iter().map(|p| p.to_str().unwrap()).collect();
        let mut options = format!("lowerdir={}", lowers.join(":"));
        if let Some((upper, work)) = &self.upper {
            options += &format!(",upperdir={},workdir={}", upper.display(), work.display());
        }
        options
    }
}

/// An implementation of overlay mounts.
#[derive(Clone, Debug)]
pub enum Fs {
    /// Kernel overlayfs with the given options.
    Kernel(&'static str),
    /// The program under test, with further options.
    Unionfs(&'static str),
    /// As [`Fs::Unionfs`], with a catalog of the lowers, made anew for each mount.
    Catalogued(&'static str),
    /// As [`Fs::Catalogued`], with a catalog of all lowers but the topmost one, if there are two.
    CataloguedBelow(&'static str),
    /// A program with the options of fuse-overlayfs.
    Program(PathBuf),
}

impl Fs {
    /// Returns its options; another program has none.
    pub fn options(&self) -> &'static str {
        match self {
            Self::Kernel(options)
            | Self::Unionfs(options)
            | Self::Catalogued(options)
            | Self::CataloguedBelow(options) => options,
            Self::Program(_) => "",
        }
    }

    /// Whether an option is among its options.
    pub fn has(&self, option: &str) -> bool {
        self.options().split(',').any(|o| o == option)
    }
}

/// The oracle: unionfs promises to be equal to this.
pub const KERNEL: Fs = Fs::Kernel("index=on,redirect_dir=on,metacopy=off,xino=auto");
/// unionfs without further options.
pub const UNIONFS: Fs = Fs::Unionfs("");

/// Returns the implementation that the tests test: unionfs. To check a test's own expectations, or
/// to test another program, `UNIONFS_TEST_AS` selects another one: `kernel` is kernel overlayfs,
/// `catalog` is unionfs with a catalog of the lowers, and any other value is the path of a program
/// with the options of fuse-overlayfs.
pub fn subject() -> Fs {
    match std::env::var_os("UNIONFS_TEST_AS") {
        None => UNIONFS,
        Some(name) if name == "catalog" => Fs::Catalogued(""),
        Some(name) if name == "kernel" => KERNEL,
        Some(program) => Fs::Program(program.into()),
    }
}

/// Returns the I/O policy that `UNIONFS_TEST_IO` sets for all mounts that do not name one
/// themselves.
pub fn io_policy() -> Option<String> {
    std::env::var("UNIONFS_TEST_IO").ok()
}

/// Returns further options for a mount of unionfs with `options`: [`io_policy`], and the transport
/// that `UNIONFS_TEST_TRANSPORT` names (`uring`, `classic`, `fuser`), unless `options` name them.
/// The transport is always set, because the default depends on whether the administrator has
/// switched io_uring on, and the counts of a test depend on it. `fuser` passes no files through, so
/// mounts with passthrough do not get it.
fn asked_of_all(options: &str) -> String {
    let mut transport = std::env::var("UNIONFS_TEST_TRANSPORT").unwrap_or("classic".into());
    if transport == "fuser" && options.contains("io=passthrough") {
        transport = "classic".into();
    }
    [("io", io_policy()), ("transport", Some(transport))]
        .into_iter()
        .filter(|(key, _)| !options.contains(&format!("{key}=")))
        .filter_map(|(key, value)| Some(format!(",{key}={}", value?)))
        .collect()
}

/// Returns the path of fuse-overlayfs: Debian's, or the program that `UNIONFS_TEST_FUSE_OVERLAYFS`
/// names, such as a newer version.
pub fn fuse_overlayfs() -> Result<PathBuf, String> {
    let named = std::env::var_os("UNIONFS_TEST_FUSE_OVERLAYFS");
    let path = PathBuf::from(named.unwrap_or_else(|| "/usr/bin/fuse-overlayfs".into()));
    if path.exists() {
        Ok(path)
    } else {
        Err(format!("{} is not installed", path.display()))
    }
}

impl Fs {
    /// Mounts. The error is the reason why that is impossible.
    pub fn try_mount(&self, stack: &Stack) -> Result<Mounted, String> {
        let mut options = stack.options();
        let more = self.options();
        let program = match self {
            Self::Kernel(_) => None,
            Self::Program(path) => Some(path.clone()),
            Self::Unionfs(_) | Self::Catalogued(_) | Self::CataloguedBelow(_) => {
                Some(PathBuf::from(program()))
            }
        };
        let described = match self {
            Self::Catalogued(_) => Some(&stack.lowers[..]),
            Self::CataloguedBelow(_) if stack.lowers.len() > 1 => Some(&stack.lowers[1..]),
            _ => None,
        };
        if let Some(lowers) = described {
            let catalog = make_catalog(stack, lowers)?;
            options += &format!(",catalog={}", catalog.display());
        }
        if !more.is_empty() {
            options += &format!(",{more}");
        }
        if self.is_ours() {
            options += &asked_of_all(more);
        }
        let _switch = (options.contains("transport=uring")).then(|| Switch::set("Y"));
        let Some(program) = program else {
            return mount_kernel(stack, &options);
        };
        let lacks = if self.is_ours() {
            without::asked()
        } else {
            Vec::new()
        };
        let mut command = Command::new(&program);
        command.args(["-o", &options]).arg(&stack.mnt);
        let output = without::output(&mut command, &lacks)
            .map_err(|e| format!("{}: {e}", program.display()))?;
        if !output.status.success() {
            return Err(describe(&program, &output));
        }
        // The mount of unionfs is live when the program returns; that of fuse-overlayfs 2.0 is not.
        let is_live = || magic(&stack.mnt) == FUSE_SUPER_MAGIC;
        let live = if self.is_ours() {
            is_live()
        } else {
            poll(is_live)
        };
        if !live {
            let why = describe(&program, &output);
            return Err(format!("not live after its return: {why}"));
        }
        Ok(Mounted::new(&stack.mnt, true))
    }

    /// Whether it is the program under test.
    fn is_ours(&self) -> bool {
        !matches!(self, Self::Kernel(_) | Self::Program(_))
    }

    /// Mounts. A failure fails the test.
    pub fn mount(&self, stack: &Stack) -> Mounted {
        match self.try_mount(stack) {
            Ok(mounted) => mounted,
            Err(e) => panic!("mount {self:?} {}: {e}", stack.options()),
        }
    }
}

/// Creates a catalog of these lowers of a stack beside its mountpoint.
fn make_catalog(stack: &Stack, lowers: &[PathBuf]) -> Result<PathBuf, String> {
    let file = stack.mnt.with_extension("catalog");
    let lowers = Stack {
        upper: None,
        lowers: lowers.to_vec(),
        ..stack.clone()
    };
    let output = Command::new(program())
        .args(["catalog", "build", "-o", &lowers.options()])
        .arg(&file)
        .output();
    match output {
        Ok(output) if output.status.success() => Ok(file),
        Ok(output) => Err(describe(Path::new("catalog build"), &output)),
        Err(e) => Err(e.to_string()),
    }
}

/// How long other processes may keep an unmounted overlay alive.
const BUSY_PATIENCE: Duration = Duration::from_secs(20);

/// The maximum length of the options of mount(2), in bytes.
const PAGE: usize = 4096;

/// Mounts kernel overlayfs layer by layer (`lowerdir+`, Linux 6.5), so that the number of layers
/// has no limit.
fn mount_long(stack: &Stack, options: &str) -> rustix::io::Result<()> {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};
    use rustix::mount::{fsconfig_create, fsconfig_set_string, fsmount, fsopen, move_mount};
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, value: &Path| fsconfig_set_string(context.as_fd(), key, value);
    for lower in &stack.lowers {
        set("lowerdir+", lower)?;
    }
    for option in options.split(',').filter(|o| !o.starts_with("lowerdir=")) {
        let (key, value) = option.split_once('=').unwrap();
        set(key, Path::new(value))?;
    }
    fsconfig_create(context.as_fd())?;
    let (flags, attributes) = (FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty());
    let mount = fsmount(context.as_fd(), flags, attributes)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(mount.as_fd(), "", rustix::fs::CWD, &stack.mnt, flags)
}

fn mount_kernel(stack: &Stack, options: &str) -> Result<Mounted, String> {
    // An option of every mount, which overlayfs itself does not accept.
    let is_noatime = |option: &&str| *option == "noatime";
    let (of_mount, own): (Vec<_>, Vec<_>) = options.split(',').partition(is_noatime);
    let options = own.join(",");
    let data = CString::new(&*options).unwrap();
    let mnt = &stack.mnt;
    let flags = if of_mount.is_empty() {
        MountFlags::empty()
    } else {
        MountFlags::NOATIME
    };
    let mount = || {
        if options.len() >= PAGE {
            return mount_long(stack, &options);
        }
        rustix::mount::mount("overlay", mnt, "overlay", flags, Some(data.as_c_str()))
    };
    // With the index an upper is busy as long as an unmounted overlay lives on in a mount namespace
    // that another process made a copy of.
    let start = Instant::now();
    let mut mounted = mount();
    while mounted == Err(rustix::io::Errno::BUSY) && start.elapsed() < BUSY_PATIENCE {
        std::thread::sleep(Duration::from_millis(20));
        mounted = mount();
    }
    mounted.map_err(|e| format!("kernel overlayfs: {e}"))?;
    Ok(Mounted::new(&stack.mnt, false))
}

fn describe(program: &Path, output: &Output) -> String {
    format!(
        "{} ended with {}, stderr: {}",
        program.display(),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    )
}

fn magic(path: &Path) -> i64 {
    // A dead mount returns ENOTCONN and counts as "not live".
    rustix::fs::statfs(path).map_or(0, |s| s.f_type)
}

/// Whether kernel overlayfs is mounted at `path`.
pub fn is_kernel_overlay(path: &Path) -> bool {
    magic(path) == OVERLAYFS_SUPER_MAGIC
}

/// A live mount.
pub struct Mounted {
    mnt: PathBuf,
    /// The processes that serve it.
    servers: Vec<u32>,
    live: bool,
}

impl Mounted {
    /// Takes over the mount at `mnt`. `served` says whether processes serve it that have `mnt`
    /// among their arguments.
    pub fn new(mnt: &Path, served: bool) -> Self {
        Self {
            mnt: mnt.to_path_buf(),
            servers: if served { servers_of(mnt) } else { Vec::new() },
            live: true,
        }
    }

    /// Returns the mountpoint.
    pub fn path(&self) -> &Path {
        &self.mnt
    }

    /// Returns the server's process IDs; empty for kernel overlayfs.
    pub fn servers(&self) -> &[u32] {
        &self.servers
    }

    /// Unmounts and waits until the server has ended, so that its upper is free.
    pub fn unmount(mut self) {
        if let Err(e) = self.end() {
            panic!("{e}");
        }
    }

    fn end(&mut self) -> Result<(), String> {
        if !std::mem::take(&mut self.live) {
            return Ok(());
        }
        // A reply that is under way, or an inode that is not forgotten yet, keeps it busy for a
        // moment.
        let mut last = Ok(());
        let end = Instant::now() + Duration::from_secs(2);
        loop {
            last = match rustix::mount::unmount(&self.mnt, UnmountFlags::empty()) {
                Err(e) if e == rustix::io::Errno::BUSY && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                }
                other => other.and(last),
            };
            break;
        }
        if let Err(e) = last {
            let _ = rustix::mount::unmount(&self.mnt, UnmountFlags::DETACH);
            return Err(format!("unmount {}: {e}", self.mnt.display()));
        }
        let servers = std::mem::take(&mut self.servers);
        if poll(|| !servers.iter().any(|pid| serves(*pid, &self.mnt))) {
            Ok(())
        } else {
            Err(format!(
                "server {servers:?} still there after the unmount of {}",
                self.mnt.display()
            ))
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(e) = self.end() {
            eprintln!("{e}");
        }
    }
}

/// Returns the processes with the mountpoint among their arguments. The server keeps the command
/// line of its start.
fn servers_of(mnt: &Path) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc").unwrap().filter_map(|e| {
        let name = e.ok()?.file_name();
        name.to_str()?.parse().ok()
    });
    pids.filter(|pid| *pid != std::process::id() && serves(*pid, mnt))
        .collect()
}

fn serves(pid: u32, mnt: &Path) -> bool {
    let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
        return false;
    };
    line.split(|b| *b == 0)
        .any(|arg| arg == mnt.as_os_str().as_bytes())
}
