//! Users as processes of their own, because a user namespace belongs to a process. Each process is
//! forked from the test, takes its identity, and runs the steps whose numbers it receives. Each
//! step has a time limit; a process that does not answer in time is killed.

#![allow(unsafe_code)]

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Gid, Pid, Signal, Uid};
use rustix::thread::UnshareFlags;
use testkit::exec::Answer;
use testkit::map;

use crate::act::{Hands, Step};

/// The time limit of one step, on a machine that is busy with other work.
const LIMIT: Duration = Duration::from_secs(30);

/// The answer of a step that exceeded the time limit.
pub(crate) const HANG: &str = "HANG";

/// The identity of an actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Who {
    pub(crate) name: &'static str,
    pub(crate) uid: u32,
    groups: &'static [u32],
    /// The actor is root of a user namespace of its own and has all capabilities there.
    user_ns: bool,
    mount_ns: bool,
    /// The actor acts on the layers and not on the mount.
    pub(crate) behind: bool,
}

const fn who(name: &'static str, uid: u32, groups: &'static [u32], ns: (bool, bool)) -> Who {
    Who {
        name,
        uid,
        groups,
        user_ns: ns.0,
        mount_ns: ns.1,
        behind: false,
    }
}

/// All actors; the upper belongs to `one`.
pub(crate) const ALL: [Who; 6] = [
    who("root", 0, &[], (false, false)),
    who("one", 1000, &[2000, 2001], (false, false)),
    who("two", 1001, &[2000], (false, false)),
    who("root-in-ns", 0, &[], (true, true)),
    who("one-in-ns", 1000, &[2000, 2001], (true, false)),
    who("two-in-ns", 1001, &[2000], (true, true)),
];

/// The actor that acts on the layers, below the directory that holds all of them.
pub(crate) const BEHIND: Who = Who {
    behind: true,
    ..who("behind", OWNER, &[2000, 2001], (false, false))
};

/// The owner of the upper.
pub(crate) const OWNER: u32 = 1000;

/// A process that acts as one user.
pub(crate) struct Actor {
    pid: Pid,
    socket: UnixStream,
}

impl Actor {
    /// Starts an actor that knows `script` and acts below `root`.
    pub(crate) fn start(who: Who, root: &Path, script: &[Step]) -> Self {
        let (socket, theirs) = UnixStream::pair().unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        // SAFETY: the child has this thread only. It takes no lock that another thread could hold
        // (the allocator is glibc's, which is consistent after a fork) and leaves by _exit.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
        if pid == 0 {
            let serve = || serve(who, root, script, theirs);
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(serve));
            // SAFETY: ends the child at once, without the parent's destructors.
            unsafe { libc::_exit(0) };
        }
        let pid = Pid::from_raw(pid).unwrap();
        Self { pid, socket }
    }

    /// Runs step `number` in the actor.
    pub(crate) fn run(&mut self, number: usize) -> Answer {
        self.send(number);
        self.receive()
    }

    /// Starts step `number` in the actor. If the actor is gone, the answer says so.
    pub(crate) fn send(&mut self, number: usize) {
        let _ = self.socket.write_all(&(number as u32).to_le_bytes());
    }

    /// Returns the answer of the step that was sent.
    pub(crate) fn receive(&mut self) -> Answer {
        match self.read() {
            Ok(answer) => answer,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                self.kill();
                Err(HANG.into())
            }
            Err(e) => Err(format!("the actor is gone: {e}")),
        }
    }

    fn read(&mut self) -> std::io::Result<Answer> {
        let mut head = [0; 5];
        self.socket.read_exact(&mut head)?;
        let len = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
        let mut text = vec![0; len as usize];
        self.socket.read_exact(&mut text)?;
        let text = String::from_utf8_lossy(&text).into_owned();
        Ok(if head[0] == 0 { Ok(text) } else { Err(text) })
    }

    fn kill(&self) {
        let _ = rustix::process::kill_process(self.pid, Signal::KILL);
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.kill();
        // A process that waits in the kernel for a server ends when the server ends.
        let options = rustix::process::WaitOptions::NOHANG;
        let gone = || !matches!(rustix::process::waitpid(Some(self.pid), options), Ok(None));
        testkit::mount::poll(gone);
    }
}

/// Runs the child until the parent closes the socket.
fn serve(who: Who, root: &Path, script: &[Step], mut socket: UnixStream) {
    close_others(socket.as_raw_fd());
    map::memory();
    limit();
    // Done before rights and namespaces change: relative paths never refer to the machine's root.
    let entered = std::env::set_current_dir(root);
    let identity = entered.and_then(|()| become_user(who));
    let mut hands = Hands::new(root);
    let mut number = [0; 4];
    while socket.read_exact(&mut number).is_ok() {
        let step = &script[u32::from_le_bytes(number) as usize];
        let run = std::panic::AssertUnwindSafe(|| hands.run(&step.act));
        let answer = match &identity {
            Ok(()) => std::panic::catch_unwind(run).unwrap_or(Err("panic".into())),
            Err(e) => Err(format!("cannot act as {}: {e}", who.name)),
        };
        let (kind, text) = match answer {
            Ok(text) => (0, text),
            Err(text) => (1, text),
        };
        let mut message = vec![kind];
        message.extend((text.len() as u32).to_le_bytes());
        message.extend(text.as_bytes());
        if socket.write_all(&message).is_err() {
            break;
        }
    }
}

/// Closes the descriptors that other threads of the test had open.
fn close_others(keep: RawFd) {
    let keep = keep as u32;
    // SAFETY: nothing in this process uses these descriptors any more.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3, keep - 1, 0);
        libc::syscall(libc::SYS_close_range, keep + 1, u32::MAX, 0);
    }
}

/// Limits the run time, so that a broken program ends.
fn limit() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let seconds = Rlimit {
        current: Some(10),
        maximum: Some(10),
    };
    let _ = setrlimit(Resource::Cpu, seconds);
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let _ = setrlimit(Resource::Core, none);
}

fn become_user(who: Who) -> std::io::Result<()> {
    let groups: Vec<_> = who.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    let (uid, gid) = (Uid::from_raw(who.uid), Gid::from_raw(who.uid));
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    // The process must keep access to its own /proc/self, and must not outlive the test.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    if !who.user_ns {
        return Ok(());
    }
    let mut flags = UnshareFlags::NEWUSER;
    if who.mount_ns {
        flags |= UnshareFlags::NEWNS;
    }
    #[expect(
        deprecated,
        reason = "the safe form; namespaces cannot invalidate memory"
    )]
    rustix::thread::unshare(flags)?;
    let one = format!("0 {} 1", who.uid);
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", &one)?;
    std::fs::write("/proc/self/gid_map", &one)
}
