//! The sandbox of commands: what a parser that an attacker controls could still do. Each probe is a
//! process of its own. It runs inside of the sandbox or, to show that it has an effect at all,
//! outside.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions};
use testkit::home::Home;
use testkit::need;
use testkit::need::{can_mount, has_tools};
use unionfs::sandbox::{self, command};

/// The expected end of a probe inside of the sandbox.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Done,
    Fails(Errno),
    Killed,
}

/// The sandbox in which a probe runs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Inside {
    /// No sandbox.
    Nothing,
    /// The sandbox of a command that may change a store.
    Store,
    /// The same, with the network.
    Network,
    /// The sandbox of a command that may only read a store.
    Reading,
    /// The same for a process that only looks something up: without a mount namespace.
    Looking,
}

impl Inside {
    /// Returns the expected end of a probe in this sandbox.
    fn expected(self, name: &str, in_store: End) -> End {
        let changes = [
            "its work",
            "make outside",
            "remove outside",
            "chmod outside",
            "chown outside",
            "xattr outside",
            "chmod what is read",
            "xattr of what is read",
            "a device",
            "a symlink outwards",
        ];
        let opens = [
            "write outside",
            "write from the store upwards",
            "read outside",
            "write what is read",
            "memory by way of proc",
            "the root of the root",
            "what another process is",
        ];
        let sockets = ["a socket of this machine", "a socket of the kernel"];
        match self {
            Self::Network if name == "a socket" || name == "new code" => End::Done,
            Self::Network if sockets.contains(&name) => End::Fails(Errno::AFNOSUPPORT),
            Self::Reading | Self::Looking if changes.contains(&name) => End::Fails(Errno::ROFS),
            Self::Looking if opens.contains(&name) => End::Fails(Errno::ACCESS),
            _ => in_store,
        }
    }
}

type Probe = fn(&Path) -> io::Result<()>;

/// The probes by name, and their end in the sandbox of a store that may be changed.
const PROBES: [(&str, Probe, End); 36] = [
    ("its work", work, End::Done),
    ("threads", threads, End::Done),
    (
        "write outside",
        |_| fs::write(outside(), "x"),
        End::Fails(Errno::NOENT),
    ),
    (
        "write from the store upwards",
        upwards,
        End::Fails(Errno::NOENT),
    ),
    (
        "write what was inherited",
        inherited,
        End::Fails(Errno::BADF),
    ),
    (
        "make outside",
        |home| fs::create_dir(home.join("made")),
        End::Fails(Errno::ROFS),
    ),
    (
        "remove outside",
        |_| fs::remove_file(outside()),
        End::Fails(Errno::NOENT),
    ),
    (
        "read outside",
        |_| fs::read(outside()).map(drop),
        End::Fails(Errno::NOENT),
    ),
    (
        "chmod outside",
        |_| mode(&outside()),
        End::Fails(Errno::NOENT),
    ),
    (
        "chown outside",
        |_| chown(outside(), Some(1), None),
        End::Fails(Errno::NOENT),
    ),
    (
        "xattr outside",
        |_| xattr(&outside(), "user.x"),
        End::Fails(Errno::NOENT),
    ),
    (
        "write what is read",
        |home| write_open(&home.join("input")),
        End::Fails(Errno::ROFS),
    ),
    (
        "chmod what is read",
        |home| mode(&home.join("input")),
        End::Fails(Errno::ROFS),
    ),
    (
        "xattr of what is read",
        |home| xattr(&home.join("input"), "user.x"),
        End::Fails(Errno::ROFS),
    ),
    (
        "memory by way of proc",
        |_| write_open(Path::new("/proc/self/mem")),
        End::Fails(Errno::ROFS),
    ),
    (
        "the root of the root",
        |_| write_open(&Path::new("/proc/self/root").join(outside().strip_prefix("/").unwrap())),
        End::Fails(Errno::NOENT),
    ),
    (
        "what another process is",
        |_| fs::read("/proc/1/status").map(drop),
        End::Fails(Errno::NOENT),
    ),
    ("a device", device, End::Fails(Errno::ACCESS)),
    ("a symlink outwards", link_out, End::Fails(Errno::NOENT)),
    (
        "a file by its handle",
        |_| call(libc::SYS_open_by_handle_at, [0; 5]),
        End::Fails(Errno::NOSYS),
    ),
    (
        "a new mount",
        |_| call(libc::SYS_mount, [0; 5]),
        End::Killed,
    ),
    (
        "a clone of a mount",
        |_| call(libc::SYS_open_tree, [0; 5]),
        End::Killed,
    ),
    ("unmount", |_| call(libc::SYS_umount2, [0; 5]), End::Killed),
    (
        "another namespace",
        |_| call(libc::SYS_unshare, [libc::CLONE_NEWNS as usize, 0, 0, 0, 0]),
        End::Killed,
    ),
    (
        "another's namespace",
        |_| call(libc::SYS_setns, [0; 5]),
        End::Killed,
    ),
    (
        "another root",
        |_| call(libc::SYS_chroot, [0; 5]),
        End::Killed,
    ),
    (
        "a program",
        |_| Command::new("/bin/true").status().map(drop),
        End::Killed,
    ),
    (
        "a process",
        |_| call(libc::SYS_clone, [libc::SIGCHLD as usize, 0, 0, 0, 0]),
        End::Killed,
    ),
    (
        "trace",
        |_| call(libc::SYS_ptrace, [libc::PTRACE_ATTACH as usize, 0, 0, 0, 0]),
        End::Killed,
    ),
    (
        "memory of another",
        |_| call(libc::SYS_process_vm_writev, [1, 0, 0, 0, 0]),
        End::Killed,
    ),
    (
        "a signal to another",
        |_| call(libc::SYS_kill, [1, 0, 0, 0, 0]),
        End::Killed,
    ),
    (
        "a program for the kernel",
        |_| call(libc::SYS_bpf, [0; 5]),
        End::Killed,
    ),
    ("a socket", |_| socket(libc::AF_INET), End::Killed),
    (
        "a socket of this machine",
        |_| socket(libc::AF_UNIX),
        End::Killed,
    ),
    (
        "a socket of the kernel",
        |_| {
            let (family, kind) = (libc::AF_NETLINK as usize, libc::SOCK_RAW as usize);
            let diagnosis = libc::NETLINK_SOCK_DIAG as usize;
            call(libc::SYS_socket, [family, kind, diagnosis, 0, 0])
        },
        End::Killed,
    ),
    ("new code", code, End::Killed),
];

const HOME: &str = "UNIONFS_TEST_PROBE_HOME";
const PROBE: &str = "UNIONFS_TEST_PROBE";
const INSIDE: &str = "UNIONFS_TEST_PROBE_INSIDE";
/// The line before the outcome.
const MARK: &str = "outcome of the probe:";

fn home_of_probe() -> PathBuf {
    std::env::var_os(HOME).unwrap().into()
}

fn outside() -> PathBuf {
    home_of_probe().join("outside/file")
}

fn store() -> PathBuf {
    home_of_probe().join("own")
}

#[allow(unsafe_code)]
fn call(number: libc::c_long, arguments: [usize; 5]) -> io::Result<()> {
    let [a, b, c, d, e] = arguments;
    // SAFETY: the arguments are numbers, and every pointer is null: nothing is read or written.
    match unsafe { libc::syscall(number, a, b, c, d, e) } {
        // A new process continues here.
        0 if number == libc::SYS_clone => std::process::exit(0),
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn socket(family: i32) -> io::Result<()> {
    call(
        libc::SYS_socket,
        [family as usize, libc::SOCK_STREAM as usize, 0, 0, 0],
    )
}

fn mode(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o4777))
}

fn xattr(path: &Path, name: &str) -> io::Result<()> {
    Ok(rustix::fs::setxattr(path, name, b"x", XattrFlags::empty())?)
}

fn write_open(path: &Path) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(path).map(drop)
}

/// Does all that unpacking does.
fn work(_: &Path) -> io::Result<()> {
    let dir = store().join("work");
    fs::create_dir(&dir)?;
    let at = |name: &str| dir.join(name);
    fs::write(at("file"), "text")?;
    chown(at("file"), Some(1000), Some(2000))?;
    mode(&at("file"))?;
    assert_eq!(at("file").metadata()?.mode() & 0o7777, 0o4777);
    xattr(&dir, "trusted.overlay.opaque")?;
    rustix::fs::setxattr(
        at("file"),
        "security.capability",
        b"\x01\0\0\x02\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        XattrFlags::empty(),
    )?;
    rustix::fs::mknodat(CWD, at("gone"), FileType::CharacterDevice, Mode::empty(), 0)?;
    rustix::fs::mknodat(CWD, at("pipe"), FileType::Fifo, Mode::RUSR, 0)?;
    symlink("/anywhere", at("link"))?;
    fs::hard_link(at("file"), at("hard"))?;
    fs::rename(at("hard"), store().join("moved"))?;
    tempfile::tempfile_in(&dir)?.write_all(b"x")?;
    fs::read_link("/proc/self/fd/1")?;
    fs::remove_dir_all(&dir)?;
    fs::remove_file(store().join("moved"))
}

fn threads(_: &Path) -> io::Result<()> {
    let (mut reader, mut writer) = io::pipe()?;
    let thread = std::thread::spawn(move || writer.write_all(b"x"));
    let mut byte = [0];
    io::Read::read_exact(&mut reader, &mut byte)?;
    thread.join().unwrap()
}

fn upwards(_: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let dir = rustix::fs::open(store(), flags, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::CREATE;
    let mode = Mode::from_raw_mode(0o644);
    Ok(rustix::fs::openat(dir.as_fd(), "../outside/file", flags, mode).map(drop)?)
}

/// The descriptor of an open file outside, as a caller may have left it.
const INHERITED: i32 = 99;

#[allow(unsafe_code)]
fn inherit() {
    // The descriptor is not close-on-exec.
    let file = rustix::fs::open(outside(), OFlags::RDWR, Mode::empty()).unwrap();
    // SAFETY: nothing else uses the number.
    let done = unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&file), INHERITED) };
    assert_eq!(done, INHERITED, "{}", io::Error::last_os_error());
}

#[allow(unsafe_code)]
fn inherited(_: &Path) -> io::Result<()> {
    // SAFETY: the descriptor is only written to, and the kernel reports if it is not open.
    let file = unsafe { std::os::fd::BorrowedFd::borrow_raw(INHERITED) };
    Ok(rustix::io::write(file, b"x").map(drop)?)
}

fn link_out(_: &Path) -> io::Result<()> {
    let link = store().join("link-out");
    let _ = fs::remove_file(&link);
    symlink(outside(), &link)?;
    let done = write_open(&link);
    fs::remove_file(link)?;
    done
}

/// Opens /dev/zero, which stands for a disk.
fn device(_: &Path) -> io::Result<()> {
    let node = store().join("zero");
    let number = rustix::fs::makedev(1, 5);
    rustix::fs::mknodat(CWD, &node, FileType::CharacterDevice, Mode::RUSR, number)?;
    assert!(node.symlink_metadata()?.file_type().is_char_device());
    let opened = fs::File::open(&node).map(drop);
    fs::remove_file(node)?;
    opened
}

#[allow(unsafe_code)]
fn code(_: &Path) -> io::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_EXEC;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: the mapping is new and nothing else refers to it.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Runs the probe in a process of its own, which forks to have one thread. The other thread belongs
/// to the harness and holds no lock while it waits for this one.
#[allow(unsafe_code)]
fn be_a_probe(name: &str) {
    // SAFETY: see above.
    let pid = unsafe { libc::fork() };
    assert_ne!(pid, -1, "{}", io::Error::last_os_error());
    if pid == 0 {
        try_it(name);
        std::process::exit(0);
    }
    let pid = Pid::from_raw(pid);
    let (_, status) = rustix::process::waitpid(pid, WaitOptions::empty())
        .unwrap()
        .unwrap();
    if let Some(signal) = status.terminating_signal() {
        println!("\n{MARK}\nsignal{signal}");
    }
    assert!(
        status.terminating_signal().is_some() || status.exit_status() == Some(0),
        "{status:?}"
    );
}

/// Enters the sandbox and runs the probe.
fn try_it(name: &str) {
    let (home, inside) = (home_of_probe(), std::env::var(INSIDE).unwrap());
    inherit();
    if inside != "Nothing" {
        let mode = match std::env::var_os("UNIONFS_TEST_PROBE_AUTO") {
            Some(_) => sandbox::Mode::Auto,
            None => sandbox::Mode::Strict,
        };
        let mut command = match inside.as_str() {
            "Looking" => command::Command::quick(sandbox::Mode::Auto),
            _ => command::Command::new(mode),
        };
        match inside.as_str() {
            "Reading" | "Looking" => command.read(&store()).unwrap(),
            _ => command.write(&store()).unwrap(),
        }
        command.read(&home.join("input")).unwrap();
        if inside == "Network" {
            command.talk();
        }
        command.enter().unwrap();
    }
    let (_, probe, _) = PROBES.iter().find(|(probe, ..)| *probe == name).unwrap();
    let code = match probe(&home) {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().unwrap(),
    };
    println!("\n{MARK}\n{code}");
}

/// Runs a probe, through other programs if requested.
fn ends(home: &Home, through: &[&str], name: &str, inside: Inside, auto: bool) -> End {
    let this = std::env::current_exe().unwrap();
    let test = "probes::nothing_outside_is_reached";
    let mut words: Vec<&std::ffi::OsStr> = through.iter().map(|word| word.as_ref()).collect();
    words.push(this.as_os_str());
    let mut command = Command::new(words[0]);
    command
        .args(&words[1..])
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(HOME, home.path(""))
        .env(PROBE, name)
        .env(INSIDE, format!("{inside:?}"))
        .stdin(Stdio::null());
    if auto {
        command.env("UNIONFS_TEST_PROBE_AUTO", "1");
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let code = text
        .split_once(MARK)
        .and_then(|(_, rest)| rest.split_whitespace().next());
    match code {
        Some("0") => End::Done,
        Some(code) if code == format!("signal{}", libc::SIGSYS) => End::Killed,
        Some(code) => End::Fails(Errno::from_raw_os_error(code.parse().unwrap())),
        None => panic!("{name}: {output:?}"),
    }
}

fn home_of_probes() -> Home {
    let home = Home::new();
    home.dirs(&["outside"]);
    for name in ["outside/file", "input"] {
        fs::write(home.path(name), "outside").unwrap();
    }
    home
}

#[test]
fn nothing_outside_is_reached() {
    if let Ok(name) = std::env::var(PROBE) {
        return be_a_probe(&name);
    }
    need!(can_mount());
    let home = home_of_probes();
    for (name, _, expected) in PROBES {
        for inside in [
            Inside::Store,
            Inside::Network,
            Inside::Reading,
            Inside::Looking,
        ] {
            assert_eq!(
                ends(&home, &[], name, inside, false),
                inside.expected(name, expected),
                "{name}, {inside:?}"
            );
        }
    }
    assert_eq!(fs::read(home.path("outside/file")).unwrap(), b"outside");
    assert_eq!(
        home.path("outside/file").metadata().unwrap().mode() & 0o7777,
        0o644
    );
    assert!(!home.path("made").exists());
    // Without the sandbox all probes have an effect.
    for (name, ..) in PROBES {
        let end = ends(&home, &[], name, Inside::Nothing, false);
        assert!(
            !matches!(
                end,
                End::Killed | End::Fails(Errno::NOENT | Errno::ROFS | Errno::ACCESS | Errno::NOSYS)
            ),
            "{name}: {end:?}"
        );
        for name in ["outside/file", "input"] {
            fs::write(home.path(name), "outside").unwrap();
        }
        let _ = fs::remove_dir(home.path("made"));
    }
}

/// For a plain user, Landlock and the filter of system calls are in effect.
#[test]
fn a_plain_user_is_confined_too() {
    need!(can_mount());
    need!(has_tools(&["setpriv", "sh"]));
    let home = home_of_probes();
    for name in ["", "own", "outside", "outside/file", "input"] {
        chown(home.path(name), Some(65534), Some(65534)).unwrap();
    }
    let user = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all",
    ];
    for (name, _, expected) in PROBES {
        let expected = match name {
            // The probe sees the file but cannot open it.
            "write outside"
            | "write from the store upwards"
            | "make outside"
            | "remove outside"
            | "read outside"
            | "write what is read"
            | "memory by way of proc"
            | "the root of the root"
            | "a symlink outwards" => End::Fails(Errno::ACCESS),
            // Landlock does not cover these operations; others need root.
            "chmod outside"
            | "chown outside"
            | "xattr outside"
            | "chmod what is read"
            | "xattr of what is read"
            | "its work"
            | "what another process is"
            | "a device" => continue,
            _ => expected,
        };
        assert_eq!(
            ends(&home, &user, name, Inside::Store, true),
            expected,
            "{name}"
        );
    }
}
