//! The owner of a layer of root's mount exchanges its content between the lookup of a name and the
//! operation on it. Nothing outside of the layers, and no replaced object, is read, changed or
//! opened, and nothing hangs. The tests run every operation on every type of file, in the upper and
//! in a lower.
//!
//! inotify watches the objects that must not be touched. It reports each open, read and change, but
//! not O_PATH.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, StatxFlags, Timespec,
    Timestamps, XattrFlags, inotify,
};
use testkit::mount::{Fs, Mounted, Scratch, Stack};
use testkit::need_mounts;
use testkit::without::{self, Lack};

/// The owner of the layer and of the work directory.
const USER: u32 = 4711;
/// The content that nobody may read.
const SECRET: &[u8] = b"SECRET of root";
/// The time after which an operation counts as hanging: no limit of its speed.
const PATIENCE: Duration = Duration::from_secs(60);

/// The visible result of an operation.
type Shown = Vec<u8>;
/// An operation on `path`; `new` is a name that does not exist yet.
type Run = fn(&Path, &Path) -> std::io::Result<Shown>;

fn done(result: rustix::io::Result<()>) -> std::io::Result<Shown> {
    result?;
    Ok(Shown::new())
}

fn open(path: &Path, flags: OFlags) -> std::io::Result<File> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

fn read(path: &Path, flags: OFlags) -> std::io::Result<Shown> {
    let mut shown = Shown::new();
    open(path, OFlags::RDONLY | flags)?.read_to_end(&mut shown)?;
    Ok(shown)
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) -> std::io::Result<Shown> {
    done(rustix::fs::lsetxattr(
        path,
        name,
        value,
        XattrFlags::empty(),
    ))
}

fn get_xattr(path: &Path, name: &str) -> std::io::Result<Shown> {
    let mut value = vec![0; 1 << 16];
    let len = rustix::fs::lgetxattr(path, name, &mut value)?;
    Ok(value[..len].to_vec())
}

fn rename(from: &Path, to: &Path, flags: RenameFlags) -> std::io::Result<Shown> {
    done(rustix::fs::renameat_with(CWD, from, CWD, to, flags))
}

fn stat(path: &Path) -> std::io::Result<Shown> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
    let stat = rustix::fs::statx(CWD, path, flags, StatxFlags::BASIC_STATS)?;
    // No other file has the length and the owner of the secret.
    let told = stat.stx_size == SECRET.len() as u64 && stat.stx_uid == 0;
    Ok(if told { SECRET.to_vec() } else { Shown::new() })
}

/// Opens a directory, and returns a path that leads to it, whatever has its name.
fn enter(dir: &Path) -> std::io::Result<(rustix::fd::OwnedFd, PathBuf)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let held = rustix::fs::open(dir, flags, Mode::empty())?;
    let path = format!("/proc/self/fd/{}", held.as_raw_fd());
    Ok((held, path.into()))
}

/// Like [`enter`], with a name in the directory.
fn within(dir: &Path, name: &str) -> std::io::Result<(rustix::fd::OwnedFd, PathBuf)> {
    let (held, dir) = enter(dir)?;
    Ok((held, dir.join(name)))
}

/// Makes the object that has the name by now a set-user-ID program, without following symlinks.
fn chmod(path: &Path) -> std::io::Result<Shown> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let held = rustix::fs::open(path, flags, Mode::empty())?;
    let path = format!("/proc/self/fd/{}", held.as_raw_fd());
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o4777)).map(|()| Shown::new())
}

/// An ACL that gives user 4711 everything.
const ACL: &[u8] = &[
    2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 7, 0, 0x67, 0x12, 0, 0, 4, 0, 7, 0, 255, 255,
    255, 255, 16, 0, 7, 0, 255, 255, 255, 255, 32, 0, 7, 0, 255, 255, 255, 255,
];
/// cap_net_raw=ep, revision 2.
const CAPABILITY: &[u8] = &[
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];
const TIMES: Timestamps = {
    let time = Timespec {
        tv_sec: 1,
        tv_nsec: 2,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
};

/// Every operation of the union.
const OPERATIONS: &[(&str, Run)] = &[
    ("statx", |p, _| stat(p)),
    ("chmod", |p, _| chmod(p)),
    ("chown", |p, _| {
        std::os::unix::fs::lchown(p, Some(USER), Some(USER)).map(|()| Shown::new())
    }),
    ("utimes", |p, _| {
        done(rustix::fs::utimensat(
            CWD,
            p,
            &TIMES,
            AtFlags::SYMLINK_NOFOLLOW,
        ))
    }),
    ("truncate", |p, _| {
        open(p, OFlags::WRONLY | OFlags::NOFOLLOW)?
            .set_len(3)
            .map(|()| Shown::new())
    }),
    ("read", |p, _| read(p, OFlags::NOFOLLOW)),
    ("read past the cache", |p, _| {
        read(p, OFlags::NOFOLLOW | OFlags::DIRECT)
    }),
    ("write", |p, _| {
        let mut file = open(p, OFlags::WRONLY | OFlags::NOFOLLOW)?;
        file.write_all(b"changed").map(|()| Shown::new())
    }),
    ("append", |p, _| {
        let mut file = open(p, OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW)?;
        file.write_all(b"changed").map(|()| Shown::new())
    }),
    ("open to truncate", |p, _| {
        open(p, OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW).map(|_| Shown::new())
    }),
    ("fallocate", |p, _| {
        let file = open(p, OFlags::WRONLY | OFlags::NOFOLLOW)?;
        done(rustix::fs::fallocate(
            file,
            FallocateFlags::empty(),
            0,
            9000,
        ))
    }),
    ("copy_file_range from", |p, new| {
        let (from, mut to) = (open(p, OFlags::RDONLY | OFlags::NOFOLLOW)?, other(new)?);
        rustix::fs::copy_file_range(&from, None, &to, None, 100)?;
        let mut shown = Shown::new();
        to.seek(SeekFrom::Start(0))?;
        to.read_to_end(&mut shown)?;
        Ok(shown)
    }),
    ("copy_file_range to", |p, new| {
        let (to, from) = (open(p, OFlags::WRONLY | OFlags::NOFOLLOW)?, other(new)?);
        rustix::fs::copy_file_range(&from, None, &to, None, 4)?;
        Ok(Shown::new())
    }),
    ("lseek", |p, _| {
        let file = open(p, OFlags::RDONLY | OFlags::NOFOLLOW)?;
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0))?;
        Ok(rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0))?
            .to_string()
            .into())
    }),
    ("mmap", |p, _| {
        let file = open(p, OFlags::RDWR | OFlags::NOFOLLOW)?;
        let map = testkit::map::Map::shared(&file, true)?;
        let shown = map.read(0, 4)?;
        map.write(0, b"changed")?;
        Ok(shown)
    }),
    ("fsync", |p, _| {
        open(p, OFlags::RDONLY | OFlags::NOFOLLOW)?
            .sync_all()
            .map(|()| Shown::new())
    }),
    ("getxattr", |p, _| get_xattr(p, "user.secret")),
    ("get ACL", |p, _| get_xattr(p, "system.posix_acl_access")),
    ("listxattr", |p, _| {
        let mut names = vec![0; 1 << 16];
        let len = rustix::fs::llistxattr(p, &mut names)?;
        Ok(names[..len].to_vec())
    }),
    ("setxattr", |p, _| set_xattr(p, "user.new", b"new")),
    ("set trusted xattr", |p, _| {
        set_xattr(p, "trusted.new", b"new")
    }),
    ("set ACL", |p, _| {
        set_xattr(p, "system.posix_acl_access", ACL)
    }),
    ("set default ACL", |p, _| {
        set_xattr(p, "system.posix_acl_default", ACL)
    }),
    ("set capability", |p, _| {
        set_xattr(p, "security.capability", CAPABILITY)
    }),
    ("removexattr", |p, _| {
        done(rustix::fs::lremovexattr(p, "user.secret"))
    }),
    ("remove ACL", |p, _| {
        done(rustix::fs::lremovexattr(p, "system.posix_acl_access"))
    }),
    ("readlink", |p, _| {
        Ok(std::fs::read_link(p)?.into_os_string().into_encoded_bytes())
    }),
    ("readdir", |p, _| {
        let mut shown = Shown::new();
        let (_held, dir) = enter(p)?;
        for entry in std::fs::read_dir(dir)? {
            shown.extend(entry?.file_name().into_encoded_bytes());
        }
        Ok(shown)
    }),
    ("read in it", |p, _| {
        let (_held, inner) = within(p, "inner")?;
        read(&inner, OFlags::NOFOLLOW)
    }),
    ("chmod in it", |p, _| {
        let (_held, inner) = within(p, "inner")?;
        chmod(&inner)
    }),
    ("unlink in it", |p, _| {
        let (_held, inner) = within(p, "inner")?;
        std::fs::remove_file(inner).map(|()| Shown::new())
    }),
    ("create in it", |p, _| {
        let (_held, made) = within(p, "made")?;
        std::fs::write(made, "x").map(|()| Shown::new())
    }),
    ("mkdir in it", |p, _| {
        let (_held, made) = within(p, "made")?;
        std::fs::create_dir(made).map(|()| Shown::new())
    }),
    ("mknod in it", |p, _| {
        let (_held, made) = within(p, "made")?;
        let mode = Mode::from_raw_mode(0o644);
        done(rustix::fs::mknodat(CWD, made, FileType::Fifo, mode, 0))
    }),
    ("symlink in it", |p, _| {
        let (_held, made) = within(p, "made")?;
        done(rustix::fs::symlink("to", made))
    }),
    ("link into it", |p, new| {
        let (_held, made) = within(p, "made")?;
        other(new)?;
        std::fs::hard_link(new, made).map(|()| Shown::new())
    }),
    ("rename into it", |p, new| {
        let (_held, made) = within(p, "made")?;
        other(new)?;
        rename(new, &made, RenameFlags::empty())
    }),
    ("unnamed file in it", |p, _| {
        let (_held, made) = within(p, "made")?;
        let flags = OFlags::TMPFILE | OFlags::RDWR;
        let file = rustix::fs::open(p, flags, Mode::from_raw_mode(0o644))?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        done(rustix::fs::linkat(
            CWD,
            path,
            CWD,
            made,
            AtFlags::SYMLINK_FOLLOW,
        ))
    }),
    ("fsync of the directory", |p, _| {
        open(p, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)?
            .sync_all()
            .map(|()| Shown::new())
    }),
    ("link", |p, new| {
        std::fs::hard_link(p, new)?;
        chmod(new)?;
        read(new, OFlags::NOFOLLOW)
    }),
    ("rename", |p, new| {
        rename(p, new, RenameFlags::empty())?;
        let _ = chmod(new);
        read(new, OFlags::NOFOLLOW)
    }),
    ("rename without replacing", |p, new| {
        rename(p, new, RenameFlags::NOREPLACE)
    }),
    ("rename over it", |p, new| {
        other(new)?;
        rename(new, p, RenameFlags::empty())
    }),
    ("rename a directory over it", |p, new| {
        std::fs::create_dir(new)?;
        rename(new, p, RenameFlags::empty())
    }),
    ("exchange", |p, new| {
        other(new)?;
        rename(p, new, RenameFlags::EXCHANGE)?;
        read(new, OFlags::NOFOLLOW)
    }),
    ("rename with a whiteout", |p, new| {
        rename(p, new, RenameFlags::WHITEOUT)
    }),
    ("unlink", |p, _| {
        std::fs::remove_file(p).map(|()| Shown::new())
    }),
    ("unlink of an open file", |p, _| {
        let file = open(p, OFlags::RDONLY | OFlags::NOFOLLOW)?;
        let removed = std::fs::remove_file(p);
        let _ = file.set_permissions(PermissionsExt::from_mode(0o4777));
        let mut shown = vec![0; 100];
        let len = file.read_at(&mut shown, 0)?;
        removed.map(|()| shown[..len].to_vec())
    }),
    ("rmdir", |p, _| {
        std::fs::remove_dir(p).map(|()| Shown::new())
    }),
    ("mkdir over it", |p, _| {
        std::fs::create_dir(p).map(|()| Shown::new())
    }),
    ("create over it", |p, _| {
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create_new(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(p);
        file.map(|_| Shown::new())
    }),
    ("statfs", |p, _| {
        rustix::fs::statfs(p)?;
        Ok(Shown::new())
    }),
];

/// Opens a further file, which was not exchanged.
fn other(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    let mut file = options.read(true).write(true).create_new(true).open(path)?;
    file.write_all(b"other")?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

/// The object that replaces a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Swap {
    SymlinkToFile,
    SymlinkToDir,
    Fifo,
    Device,
    /// A directory of root with files in it.
    Directory,
    /// A hard link to a file of root.
    HardLink,
    Absent,
}

const SWAPS: [Swap; 7] = [
    Swap::SymlinkToFile,
    Swap::SymlinkToDir,
    Swap::Fifo,
    Swap::Device,
    Swap::Directory,
    Swap::HardLink,
    Swap::Absent,
];

/// The targets of operations: names in the directory that each operation has of its own.
const SUBJECTS: [&str; 3] = ["file", "dir", "link"];

/// Makes the objects of each operation in a layer.
fn populate(layer: &Path) {
    let own = |path: &Path| std::os::unix::fs::lchown(path, Some(USER), Some(USER)).unwrap();
    own(layer);
    for n in 0..OPERATIONS.len() {
        let dir = layer.join(n.to_string());
        std::fs::create_dir_all(dir.join("dir")).unwrap();
        std::fs::write(dir.join("file"), "what the user wrote").unwrap();
        std::fs::write(dir.join("dir/inner"), "the user's").unwrap();
        std::os::unix::fs::symlink("to nothing", dir.join("link")).unwrap();
        for name in ["", "dir", "dir/inner", "file", "link"] {
            own(&dir.join(name));
        }
    }
}

/// Root's objects, and the inotify instance that watches them.
struct Guarded {
    dir: PathBuf,
    watch: rustix::fd::OwnedFd,
}

impl Guarded {
    fn new(dir: PathBuf) -> Self {
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        let guarded = Self { dir, watch };
        guarded.secret(&guarded.dir.join("secret"));
        guarded.directory(&guarded.dir.join("closed"));
        guarded
    }

    /// Reports everything that is done to `path` from now on.
    fn watch(&self, path: &Path) {
        use inotify::WatchFlags as W;
        let all = W::OPEN | W::ACCESS | W::MODIFY | W::ATTRIB | W::CREATE | W::DELETE;
        let all = all | W::MOVED_FROM | W::MOVED_TO | W::DONT_FOLLOW;
        inotify::add_watch(&self.watch, path, all).unwrap();
    }

    fn secret(&self, path: &Path) {
        std::fs::write(path, SECRET).unwrap();
        rustix::fs::setxattr(path, "user.secret", SECRET, XattrFlags::empty()).unwrap();
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
        self.watch(path);
    }

    /// Makes a directory of root with the names that every operation uses.
    fn directory(&self, path: &Path) {
        std::fs::create_dir_all(path.join("dir")).unwrap();
        for name in ["inner", "file", "link", "dir/inner", "SECRET"] {
            self.secret(&path.join(name));
        }
        for name in ["dir", ""] {
            let dir = path.join(name);
            std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o700)).unwrap();
            self.watch(&dir);
        }
    }

    /// Replaces `name` with another object.
    fn swap(&self, name: &Path, swap: Swap, n: &str) {
        match std::fs::remove_file(name) {
            Ok(()) => {}
            Err(_) => std::fs::rename(name, self.dir.join(format!("away {n}"))).unwrap(),
        }
        let mode = Mode::from_raw_mode(0o666);
        let node = |kind, dev| rustix::fs::mknodat(CWD, name, kind, mode, dev).unwrap();
        match swap {
            Swap::SymlinkToFile => {
                std::os::unix::fs::symlink(self.dir.join("secret"), name).unwrap();
            }
            Swap::SymlinkToDir => {
                std::os::unix::fs::symlink(self.dir.join("closed"), name).unwrap();
            }
            Swap::Fifo => node(FileType::Fifo, 0),
            // /dev/null.
            Swap::Device => node(FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
            Swap::Directory => {
                let dir = self.dir.join(format!("dir {n}"));
                self.directory(&dir);
                std::fs::rename(dir, name).unwrap();
            }
            Swap::HardLink => std::fs::hard_link(self.dir.join("secret"), name).unwrap(),
            Swap::Absent => {}
        }
        if matches!(swap, Swap::Fifo | Swap::Device) {
            self.watch(name);
        }
    }

    /// Returns the events since the last call.
    fn events(&self) -> Vec<String> {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 1 << 14];
        let mut reader = inotify::Reader::new(&self.watch, &mut buffer);
        let mut events = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => events.push(format!("{:?} {:?}", event.events(), event.file_name())),
                Err(rustix::io::Errno::AGAIN) => return events,
                Err(e) => panic!("{e}"),
            }
        }
    }
}

/// Runs one operation as a user on `name` in a directory of the mount, and asserts that it ends. A
/// user who follows a symlink of the mount gets to any place that the user may enter; no operation
/// here follows one.
fn run(
    operation: Run,
    (user, dir): (u32, PathBuf),
    name: &'static str,
    what: &str,
) -> std::io::Result<Shown> {
    let (send, receive) = mpsc::channel();
    testkit::map::memory();
    std::thread::spawn(move || {
        rustix::thread::set_thread_groups(&[]).unwrap();
        let (uid, gid) = (
            rustix::fs::Uid::from_raw(user),
            rustix::fs::Gid::from_raw(user),
        );
        rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        let result = enter(&dir)
            .and_then(|(_held, dir)| operation(&dir.join(name), &dir.join(format!("new {name}"))));
        let _ = send.send(result);
    });
    receive
        .recv_timeout(PATIENCE)
        .unwrap_or_else(|_| panic!("{what} hangs"))
}

/// The name that is exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The name of the target.
    Name,
    /// The directory of the target.
    Parent,
}

fn mount(options: &'static str, side: &str) -> (Scratch, Stack, Mounted) {
    let scratch = Scratch::disk();
    let stack = Stack::writable(&scratch, vec![scratch.dir("lower")]);
    let (upper, work) = stack.upper.as_ref().unwrap();
    populate(&scratch.path().join(side));
    for dir in [upper, work] {
        std::os::unix::fs::chown(dir, Some(USER), Some(USER)).unwrap();
    }
    let mounted = Fs::Unionfs(options).mount(&stack);
    (scratch, stack, mounted)
}

fn look_up(mnt: &Path) {
    for n in 0..OPERATIONS.len() {
        for name in ["", "file", "dir", "link", "dir/inner", "dir/made"] {
            let _ = mnt.join(n.to_string()).join(name).symlink_metadata();
        }
    }
}

/// Runs all operations, each on a name of its own, after `swap` has replaced it.
fn attack(user: u32, options: &'static str, side: &str, (place, swap): (Place, Swap)) {
    let (scratch, stack, mounted) = mount(options, side);
    let guarded = Guarded::new(scratch.dir("outside"));
    look_up(&stack.mnt);
    let layer = scratch.path().join(side);
    for n in 0..OPERATIONS.len() {
        let dir = layer.join(n.to_string());
        match place {
            Place::Parent => guarded.swap(&dir, swap, &n.to_string()),
            Place::Name => SUBJECTS
                .iter()
                .for_each(|name| guarded.swap(&dir.join(name), swap, &format!("{n} {name}"))),
        }
    }
    guarded.events();
    for (n, (operation, action)) in OPERATIONS.iter().enumerate() {
        for name in SUBJECTS {
            let what = format!("{operation} of a {name}");
            let what = format!("{what} by {user}: {options} {side} {place:?} {swap:?}");
            let dir = stack.mnt.join(n.to_string());
            let shown = run(*action, (user, dir), name, &what).unwrap_or_default();
            let told = shown.windows(6).any(|part| part == b"SECRET");
            assert!(!told, "{what}: {}", String::from_utf8_lossy(&shown));
            let mut events = guarded.events();
            // Without RENAME_NOREPLACE the object is moved by a link, which changes its link count.
            if without::has(&[Lack::RenameFlags]).is_err() {
                events.retain(|event| event != "ReadFlags(ATTRIB) None");
            }
            assert!(events.is_empty(), "{what}: {events:?}");
        }
    }
    mounted.unmount();
    assert_eq!(
        guarded.events(),
        [""; 0],
        "{options} {side} {place:?} {swap:?}: at the end"
    );
    let secret = scratch.path().join("outside/secret").metadata().unwrap();
    assert_eq!((secret.mode() & 0o7777, secret.uid()), (0o600, 0));
}

fn attack_all(options: &'static str, side: &str) {
    for place in [Place::Name, Place::Parent] {
        for swap in SWAPS {
            attack(USER, options, side, (place, swap));
            // Root may read an object that is in the layer by now.
            if !matches!(swap, Swap::Directory | Swap::HardLink) {
                attack(0, options, side, (place, swap));
            }
        }
    }
}

#[test]
fn in_the_upper() {
    need_mounts!();
    attack_all("", "upper");
}

#[test]
fn in_the_upper_with_data_through_the_server() {
    need_mounts!();
    attack_all("io=cached", "upper");
}

#[test]
fn in_a_lower() {
    need_mounts!();
    attack_all("", "lower");
}

#[test]
fn in_a_lower_with_data_through_the_server() {
    need_mounts!();
    attack_all("io=cached", "lower");
}

/// The same while names change all the time, so that some change in the middle of an operation.
#[test]
fn while_an_operation_goes_on() {
    need_mounts!();
    for options in ["io=passthrough", "io=cached"] {
        for swap in SWAPS {
            flip(options, swap);
        }
    }
}

/// Exchanges each name with its replacement repeatedly.
fn flip(options: &'static str, swap: Swap) {
    let (scratch, stack, mounted) = mount(options, "upper");
    let guarded = Guarded::new(scratch.dir("outside"));
    look_up(&stack.mnt);
    let layer = scratch.path().join("upper");
    let mut pairs = Vec::new();
    for n in 0..OPERATIONS.len() {
        for name in SUBJECTS {
            let (own, other) = (
                layer.join(format!("{n}/{name}")),
                layer.join(format!("{n}.{name}")),
            );
            std::fs::write(&other, "").unwrap();
            guarded.swap(&other, swap, &format!("{n} {name}"));
            pairs.push((own, other));
        }
    }
    guarded.events();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for (own, other) in &pairs {
                    // Operations remove names.
                    let _ = rename(own, other, RenameFlags::EXCHANGE);
                    if swap == Swap::Absent {
                        let _ = rename(own, other, RenameFlags::NOREPLACE);
                        let _ = rename(other, own, RenameFlags::NOREPLACE);
                    }
                }
            }
        });
        for (n, (operation, action)) in OPERATIONS.iter().enumerate() {
            for name in SUBJECTS {
                let what = format!("{operation} of a {name}: {options} {swap:?}");
                let dir = stack.mnt.join(n.to_string());
                let shown = run(*action, (USER, dir), name, &what).unwrap_or_default();
                let told = shown.windows(6).any(|part| part == b"SECRET");
                if told {
                    stop.store(true, std::sync::atomic::Ordering::Relaxed);
                }
                assert!(!told, "{what}: {}", String::from_utf8_lossy(&shown));
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    mounted.unmount();
    // The user removes names in the upper. That changes the link count of a file of root, or
    // removes the replacement, and nothing else.
    let links_only = |event: &String| match swap {
        Swap::HardLink => event.contains("ATTRIB"),
        Swap::Fifo | Swap::Device => event.contains("ATTRIB") || event.contains("IGNORED"),
        _ => false,
    };
    // A lookup may find the replacement, which then is in the layer: rmdir and rename check whether
    // it is empty. Its content is shown nowhere, see above.
    let is_list = |event: &String| {
        let looks = event.contains("OPEN") || event.contains("ACCESS");
        swap == Swap::Directory && event.contains("ISDIR") && looks
    };
    let events: Vec<_> = guarded
        .events()
        .into_iter()
        .filter(|e| !links_only(e) && !is_list(e))
        .collect();
    assert!(events.is_empty(), "{options} {swap:?}: {events:?}");
    let secret = scratch.path().join("outside/secret");
    let stat = secret.metadata().unwrap();
    assert_eq!(
        (stat.mode() & 0o7777, stat.uid()),
        (0o600, 0),
        "{options} {swap:?}"
    );
    assert_eq!(std::fs::read(secret).unwrap(), SECRET);
}

/// Exchanges the work directory and its content, which belong to the upper's owner.
#[test]
fn the_work_directory() {
    need_mounts!();
    for part in ["", "work", "index"] {
        for swap in SWAPS {
            let (scratch, stack, mounted) = mount("", "lower");
            let guarded = Guarded::new(scratch.dir("outside"));
            let work = scratch.path().join("work");
            // This creates the index.
            std::fs::write(scratch.path().join("lower/0/other"), "").unwrap();
            look_up(&stack.mnt);
            let place = match part {
                "" => work.clone(),
                part => work.join(part),
            };
            if place.exists() {
                guarded.swap(&place, swap, "w");
            } else {
                std::fs::create_dir(&place).unwrap();
                guarded.swap(&place, swap, "w");
            }
            guarded.events();
            for (n, (operation, action)) in OPERATIONS.iter().enumerate() {
                for name in SUBJECTS {
                    let what = format!("{operation} of a {name}: work/{part} {swap:?}");
                    let dir = stack.mnt.join(n.to_string());
                    let _ = run(*action, (0, dir), name, &what);
                    let events = guarded.events();
                    assert!(events.is_empty(), "{what}: {events:?}");
                }
            }
            mounted.unmount();
            // The next mount finds the replacement. The path of the work directory itself is root's
            // choice.
            if part.is_empty() {
                continue;
            }
            let again = Fs::Unionfs("").try_mount(&stack);
            let events = guarded.events();
            let what = format!("mounted again: work/{part} {swap:?}");
            match (part, swap) {
                // The server stages there now. The existing content stays.
                ("work", Swap::Directory) => {
                    for name in ["file", "dir/inner", "SECRET"] {
                        assert_eq!(std::fs::read(place.join(name)).unwrap(), SECRET, "{what}");
                    }
                }
                _ => assert!(events.is_empty(), "{what}: {events:?}"),
            }
            drop(again);
        }
    }
}

/// The owner of the work directory cannot reach staged files, whoever made the directory and its
/// content.
#[test]
fn nobody_else_reaches_what_is_staged() {
    need_mounts!();
    let scratch = Scratch::disk();
    let stack = Stack::writable(&scratch, vec![scratch.dir("lower")]);
    let (upper, work) = stack.upper.clone().unwrap();
    let staging = work.join("work");
    std::fs::create_dir_all(staging.join("deep/er/still")).unwrap();
    std::fs::write(staging.join("deep/er/still/secret"), SECRET).unwrap();
    std::fs::create_dir_all(staging.join("#deep/er/still")).unwrap();
    std::fs::write(staging.join("#left"), "").unwrap();
    for dir in [&upper, &work, &staging] {
        std::os::unix::fs::chown(dir, Some(USER), Some(USER)).unwrap();
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o777)).unwrap();
    }
    let mounted = Fs::Unionfs("").mount(&stack);
    let stat = staging.metadata().unwrap();
    assert_eq!((stat.uid(), stat.mode() & 0o7777), (0, 0o700));
    // An object that is deeper than any staged one is not the server's, and stays.
    let kept = std::fs::read(staging.join("deep/er/still/secret")).unwrap();
    assert_eq!(kept, SECRET);
    assert!(staging.join("#deep/er/still").exists());
    assert!(!staging.join("#left").exists());
    mounted.unmount();
}

/// A mount in the work directory is neither read nor removed.
#[test]
fn sweeping_stays_on_its_file_system() {
    need_mounts!();
    let scratch = Scratch::disk();
    let stack = Stack::writable(&scratch, vec![scratch.dir("lower")]);
    let (outside, place) = (scratch.dir("outside"), scratch.dir("work/work/mounted"));
    std::fs::write(outside.join("secret"), SECRET).unwrap();
    rustix::mount::mount_bind(&outside, &place).unwrap();
    let mounted = Fs::Unionfs("").try_mount(&stack);
    let read = std::fs::read(outside.join("secret"));
    rustix::mount::unmount(&place, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(read.unwrap(), SECRET);
    mounted.unwrap().unmount();
}

/// A file that is open stays the one that the union knows, as on overlayfs. What has its name in the
/// upper by now is neither changed nor shown.
#[test]
fn metadata_of_an_open_file_is_its_own() {
    need_mounts!();
    for fs in [Fs::Kernel(""), Fs::Unionfs(""), Fs::Unionfs("io=cached")] {
        let scratch = Scratch::disk();
        let stack = Stack::writable(&scratch, vec![scratch.dir("lower")]);
        let upper = stack.upper.as_ref().unwrap().0.clone();
        let _mounted = fs.mount(&stack);
        let file = File::create(stack.mnt.join("file")).unwrap();
        (&file).write_all(b"known").unwrap();
        std::fs::rename(upper.join("file"), upper.join("moved")).unwrap();
        std::fs::write(upper.join("file"), "another").unwrap();
        let of_other = || upper.join("file").metadata().unwrap();
        let before = (of_other().mode(), of_other().mtime());
        rustix::fs::fchmod(&file, Mode::from_raw_mode(0o751)).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH)
            .unwrap();
        rustix::fs::fsetxattr(&file, "user.kept", b"x", XattrFlags::empty()).unwrap();
        assert_eq!(
            rustix::fs::fgetxattr(&file, "user.kept", &mut [0; 4][..]),
            Ok(1)
        );
        let shown = file.metadata().unwrap();
        assert_eq!(
            (shown.mode() & 0o777, shown.mtime(), shown.len()),
            (0o751, 0, 5)
        );
        assert_eq!((of_other().mode(), of_other().mtime()), before);
        assert!(get_xattr(&upper.join("file"), "user.kept").is_err());
        assert_eq!(get_xattr(&upper.join("moved"), "user.kept").unwrap(), b"x");
        let moved = upper.join("moved").metadata().unwrap();
        assert_eq!((moved.mode() & 0o777, moved.mtime()), (0o751, 0));
    }
}
