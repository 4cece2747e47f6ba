//! The actions of one step of an actor: the operations of the script language, and further ones
//! that only these tests need because they check rights.

#![allow(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, StatxFlags};
use testkit::descriptor::HOp;
use testkit::exec::{Answer, Runner, answer, show};
use testkit::script::{Op, P, word};
use unionfs::sys::handle::{name_to_handle, open_by_handle};

use crate::actor::Who;
use crate::behind::{Thing, flip, swap};
use crate::data::{Way, change};

/// One action of an actor.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) who: Who,
    pub(crate) act: Act,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Do(Op),
    /// Changes the data of a file and returns its mode afterwards.
    Change(Way, P),
    /// Runs a program, which reports its own identity.
    Exec(P),
    /// Reads the mode alone, by a statx that refreshes no other attribute.
    Mode(P),
    /// Opens a file by its handle and reads it.
    Handle(P),
    /// Sets O_APPEND and O_DIRECT of a kept descriptor.
    Fcntl(usize, bool, bool),
    /// Calls flock(2) without waiting: shared, exclusive, unlock.
    Flock(usize, u8),
    /// Takes or releases a POSIX lock on bytes: read, write, unlock.
    Lock(usize, u8, i64),
    /// Sets FS_NODUMP_FL with FS_IOC_SETFLAGS.
    Nodump(P),
    /// Runs the action below a new root.
    Chroot(P, Box<Self>),
    Cd(P),
    /// Runs the operation with paths that start at the working directory.
    Here(Op),
    /// Sets a marker that must be refused, whatever kernel overlayfs answers.
    Forge(P, Vec<u8>, Vec<u8>),
    /// Puts another object at a name.
    Swap(P, Thing),
    /// Exchanges two names repeatedly for a moment.
    Flip(P, P),
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Do(op) => write!(f, "{op}"),
            Self::Change(way, p) => write!(f, "change {} {way:?}", word(p)),
            Self::Exec(p) => write!(f, "exec {}", word(p)),
            Self::Mode(p) => write!(f, "mode {}", word(p)),
            Self::Handle(p) => write!(f, "handle {}", word(p)),
            Self::Fcntl(h, append, direct) => {
                write!(f, "fcntl {h} append={append} direct={direct}")
            }
            Self::Flock(h, kind) => write!(f, "flock {h} {kind}"),
            Self::Lock(h, kind, at) => write!(f, "lock {h} {kind} {at}"),
            Self::Nodump(p) => write!(f, "chattr +d {}", word(p)),
            Self::Chroot(p, act) => write!(f, "chroot {} {act}", word(p)),
            Self::Cd(p) => write!(f, "cd {}", word(p)),
            Self::Here(op) => write!(f, "here {op}"),
            Self::Swap(p, thing) => write!(f, "swap {} {thing:?}", word(p)),
            Self::Flip(a, b) => write!(f, "flip {} {}", word(a), word(b)),
            Self::Forge(p, n, v) => write!(f, "forge {} {} {}", word(p), word(n), word(v)),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.who.name, self.act)
    }
}

/// The state that an actor keeps between steps.
pub(crate) struct Hands {
    runner: Runner,
    here: Runner,
}

fn done(result: rustix::io::Result<()>) -> io::Result<String> {
    Ok(result.map(|()| String::new())?)
}

/// Returns the mode of a file as the caches have it.
pub(crate) fn mode(path: &Path) -> io::Result<String> {
    mode_with(path, AtFlags::SYMLINK_NOFOLLOW)
}

fn mode_with(path: &Path, flags: AtFlags) -> io::Result<String> {
    let stat = rustix::fs::statx(CWD, path, flags, StatxFlags::MODE)?;
    Ok(format!("mode {:o}", stat.stx_mode))
}

impl Hands {
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            runner: Runner::new(root),
            here: Runner::new(Path::new(".")),
        }
    }

    pub(crate) fn run(&mut self, act: &Act) -> Answer {
        match act {
            Act::Do(op) => {
                let done = self.runner.step(op);
                match self.written(op) {
                    None => done,
                    Some(mode) => Ok(format!("{done:?}, {mode:?}")),
                }
            }
            Act::Here(op) => self.here.step(op),
            Act::Chroot(p, act) => self.chroot(p, act),
            other => answer(self.act(other)),
        }
    }

    /// Returns the mode of the file that an operation writes to, which is compared at once.
    fn written(&self, op: &Op) -> Option<Answer> {
        match op {
            Op::Write(p, ..) | Op::Truncate(p, _) | Op::Fallocate(p, ..) => {
                Some(answer(mode_with(&self.runner.at(p), AtFlags::empty())))
            }
            Op::Chown(p, ..) => Some(answer(mode(&self.runner.at(p)))),
            Op::Open(h, ..) | Op::Held(h, HOp::Reopen(..)) => Some(self.held_mode(*h)),
            Op::Held(_, HOp::CopyRange(_, to, ..)) => Some(self.held_mode(*to)),
            Op::Held(
                h,
                HOp::Write(..)
                | HOp::Put(_)
                | HOp::Append(_)
                | HOp::MapWrite(..)
                | HOp::Truncate(_)
                | HOp::Fallocate(..),
            ) => Some(self.held_mode(*h)),
            _ => None,
        }
    }

    fn held_mode(&self, h: usize) -> Answer {
        let look = |file: &File| {
            let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MODE)?;
            Ok(format!("mode {:o}", stat.stx_mode))
        };
        answer(self.runner.handle(h).and_then(look))
    }

    fn act(&mut self, act: &Act) -> io::Result<String> {
        match act {
            Act::Change(way, p) => {
                let path = self.runner.at(p);
                let source = self.runner.at(b"pub/source");
                let changed = answer(change(*way, &path, &source));
                // The mode of the changed file, not of a symlink to it.
                let after = answer(mode_with(&path, AtFlags::empty()));
                Ok(format!("{changed:?}, {after:?}"))
            }
            Act::Exec(p) => exec(&self.runner.at(p)),
            Act::Mode(p) => mode(&self.runner.at(p)),
            Act::Handle(p) => by_handle(&self.runner.at(b""), &self.runner.at(p)),
            Act::Fcntl(h, append, direct) => {
                let mut flags = OFlags::NONBLOCK;
                flags.set(OFlags::APPEND, *append);
                flags.set(OFlags::DIRECT, *direct);
                done(rustix::fs::fcntl_setfl(self.runner.handle(*h)?, flags))
            }
            Act::Flock(h, kind) => {
                use FlockOperation as F;
                let kinds = [
                    F::NonBlockingLockShared,
                    F::NonBlockingLockExclusive,
                    F::NonBlockingUnlock,
                ];
                let kind = kinds[usize::from(*kind)];
                done(rustix::fs::flock(self.runner.handle(*h)?, kind))
            }
            Act::Swap(p, thing) => swap(&self.runner.at(p), thing),
            Act::Flip(a, b) => Ok(flip(&self.runner.at(a), &self.runner.at(b))),
            Act::Lock(h, kind, at) => posix_lock(self.runner.handle(*h)?, *kind, *at),
            Act::Nodump(p) => nodump(&self.runner.at(p)),
            Act::Cd(p) => std::env::set_current_dir(self.runner.at(p)).map(|()| String::new()),
            Act::Forge(p, name, value) => {
                let (path, flags) = (self.runner.at(p), rustix::fs::XattrFlags::empty());
                done(rustix::fs::lsetxattr(path, &name[..], value, flags))
            }
            other => panic!("no act: {other}"),
        }
    }

    /// Runs the action in a child, because a process cannot leave a chroot again.
    fn chroot(&mut self, root: &[u8], act: &Act) -> Answer {
        let root = self.runner.at(root);
        let (mut from, mut to) = io::pipe().unwrap();
        // SAFETY: this process has one thread; the child leaves by _exit.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let entered = rustix::process::chroot(&root).map_err(io::Error::from);
            let entered = entered.and_then(|()| std::env::set_current_dir("/"));
            let found = match entered {
                Ok(()) => Self::new(Path::new("/")).run(act),
                Err(e) => answer(Err(e)).map_err(|e| format!("chroot: {e}")),
            };
            let _ = to.write_all(format!("{found:?}").as_bytes());
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(0) };
        }
        drop(to);
        let mut text = String::new();
        from.read_to_string(&mut text).unwrap();
        let child = rustix::process::Pid::from_raw(child).unwrap();
        let options = rustix::process::WaitOptions::empty();
        rustix::process::waitpid(Some(child), options).unwrap();
        Ok(text)
    }
}

/// Runs a program with its own status as input, and returns its identity. The program is a copy of
/// `cat`.
fn exec(path: &Path) -> io::Result<String> {
    let mut command = Command::new(path);
    command.arg("/proc/self/status").stdin(Stdio::null());
    let output = command.stderr(Stdio::null()).output()?;
    if let Some(signal) = output.status.signal() {
        return Ok(format!("signal {signal}"));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let keys = ["Uid:", "Gid:", "Groups:", "CapPrm:", "CapEff:"];
    let lines = text
        .lines()
        .filter(|l| keys.iter().any(|k| l.starts_with(k)));
    let lines: Vec<_> = lines.map(|l| l.replace('\t', " ")).collect();
    Ok(lines.join(", "))
}

fn by_handle(root: &Path, path: &Path) -> io::Result<String> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    let handle = name_to_handle(&file, c"")?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mount = rustix::fs::open(root, flags, Mode::empty())?;
    let found: OwnedFd = open_by_handle(&mount, &handle)?;
    let link = format!("/proc/self/fd/{}", found.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(link, flags, Mode::empty())?);
    let mut data = Vec::new();
    file.read_to_end(&mut data)?;
    Ok(show(&data))
}

fn posix_lock(file: &File, kind: u8, at: i64) -> io::Result<String> {
    let kinds = [libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK];
    // SAFETY: plain numbers, of which zero is one.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kinds[usize::from(kind)] as i16;
    (lock.l_start, lock.l_len) = (at, 2);
    // SAFETY: F_SETLK reads one struct flock.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw const lock) } {
        0 => Ok(String::new()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn nodump(path: &Path) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty())?;
    let flags = rustix::fs::ioctl_getflags(&fd)? | rustix::fs::IFlags::NODUMP;
    done(rustix::fs::ioctl_setflags(&fd, flags))
}

/// Returns a pipe that has data in it.
pub(crate) fn filled_pipe(data: &[u8]) -> io::Result<OwnedFd> {
    let mut ends = [0; 2];
    // SAFETY: pipe2 writes two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both descriptors are new, and nothing else owns them.
    let (from, to) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    File::from(to).write_all(data)?;
    Ok(from)
}
