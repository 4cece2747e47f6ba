//! Finds the user and the command in the root file system. A confined copy of this process looks:
//! every path is resolved with the root file system as root, so that no symlink leads out of it.

use std::io::Read as _;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use anyhow::{Context as _, bail};
use rustix::fs::{FileType, Mode as FileMode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::apt;
use super::settings::Settings;
use crate::cli::confined_queries::ask;
use unionfs::sandbox::Mode;
use unionfs::sandbox::command::Command;
use unionfs::sys::openat2::openat2;

/// The bytes of `/etc/passwd` and `/etc/group` that are read.
const MAX_FILE: u64 = 4 << 20;
/// The maximum number of groups that a user gets.
const MAX_GROUPS: usize = 1024;
/// The maximum number of tries to open a file.
const MAX_TRIES: u32 = 10_000;
/// The maximum length of the answer.
const MAX_ANSWER: u64 = 64 << 10;

/// Who runs the command, and whether it can run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Wanted {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
    pub(super) executable: Executable,
    pub(super) has_apt: bool,
}

/// Whether there is a file that can be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Executable {
    Found,
    Missing,
    Forbidden,
}

/// Looks into the root file system.
pub(super) fn in_rootfs(rootfs: &Path, settings: &Settings, mode: Mode) -> anyhow::Result<Wanted> {
    let mut sandbox = Command::new(mode);
    let failed = || format!("cannot open {rootfs:?}");
    sandbox.read(rootfs).with_context(failed)?;
    let answer = ask(sandbox, MAX_ANSWER, || {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(rootfs, flags, FileMode::empty()).with_context(failed)?;
        let mut wanted = user(root.as_fd(), &settings.user)?;
        wanted.executable = executable(root.as_fd(), settings);
        wanted.has_apt = at(root.as_fd(), apt::PROGRAM) == Executable::Found;
        Ok(serde_json::to_vec(&wanted)?)
    })?;
    serde_json::from_slice(&answer).context("the process that reads the image gave no answer")
}

/// Opens a path of the root file system.
fn open(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> rustix::io::Result<std::fs::File> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::CLOEXEC;
    let mut result = Err(Errno::AGAIN);
    // The kernel gives up on `..` while somebody renames or mounts anything.
    for _ in 0..MAX_TRIES {
        result = openat2(root, path, flags, FileMode::empty(), resolve);
        if !matches!(result, Err(Errno::AGAIN | Errno::INTR)) {
            break;
        }
        std::thread::yield_now();
    }
    result.map(Into::into)
}

/// Returns the lines of a file, each split at its colons; none if there is no such file.
fn records(root: BorrowedFd<'_>, path: &str) -> anyhow::Result<Vec<Vec<String>>> {
    let file = match open(
        root,
        path,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
    ) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Vec::new()),
        Err(errno) => {
            return Err(errno).with_context(|| format!("cannot open {path} of the image"));
        }
    };
    if !file.metadata()?.is_file() {
        bail!("{path} of the image is no file");
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let fields = |line: &str| line.split(':').map(str::to_owned).collect();
    Ok(text.lines().map(fields).collect())
}

/// Finds a user of the form `USER[:GROUP]`, each a name or a number.
fn user(root: BorrowedFd<'_>, text: &str) -> anyhow::Result<Wanted> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let passwd = records(root, "etc/passwd")?;
    let field = |record: &[String], at: usize| record.get(at).cloned().unwrap_or_default();
    let number = |record: &[String], at| field(record, at).parse::<u32>().ok();
    let id = user.parse::<u32>().ok();
    let named = passwd.iter().find(|record| field(record, 0) == user);
    let record = named.or_else(|| {
        let id = id?;
        passwd.iter().find(|record| number(record, 2) == Some(id))
    });
    let uid = match record.and_then(|record| number(record, 2)).or(id) {
        Some(uid) if uid != u32::MAX => uid,
        _ => bail!("the image has no user {user:?}: give another one with -u"),
    };
    let groups = records(root, "etc/group")?;
    let mut wanted = Wanted {
        uid,
        gid: record.and_then(|record| number(record, 3)).unwrap_or(0),
        groups: Vec::new(),
        home: record.map_or_else(String::new, |record| field(record, 5)),
        executable: Executable::Missing,
        has_apt: false,
    };
    if !wanted.home.starts_with('/') {
        wanted.home = if uid == 0 { "/root" } else { "/" }.to_owned();
    }
    if let Some(group) = group {
        let named = groups.iter().find(|record| field(record, 0) == group);
        let gid = named.and_then(|record| number(record, 2));
        let gid = gid.or_else(|| group.parse().ok());
        let gid = gid.filter(|gid| *gid != u32::MAX);
        wanted.gid =
            gid.with_context(|| format!("the image has no group {group:?}: give another with -u"))?;
        wanted.groups.push(wanted.gid);
        return Ok(wanted);
    }
    let name = record.map(|record| field(record, 0)).unwrap_or_default();
    let is_member = |record: &&Vec<String>| {
        !name.is_empty() && field(record, 3).split(',').any(|member| member == name)
    };
    let members = groups.iter().filter(is_member);
    let mut more: Vec<u32> = members.filter_map(|record| number(record, 2)).collect();
    more.retain(|gid| *gid != wanted.gid && *gid != u32::MAX);
    more.truncate(MAX_GROUPS);
    if !text.is_empty() {
        // As with initgroups(3), and in podman.
        more.push(wanted.gid);
    }
    wanted.groups = more;
    Ok(wanted)
}

/// Searches for the command as execvp(3) does.
fn executable(root: BorrowedFd<'_>, settings: &Settings) -> Executable {
    let command = settings.arguments.first().map_or("", String::as_str);
    let in_directory = |directory: &str| format!("{directory}/{command}");
    if command.starts_with('/') {
        return at(root, command);
    }
    if command.contains('/') {
        return at(root, &in_directory(&settings.directory));
    }
    let mut found = Executable::Missing;
    for directory in settings.path().split(':') {
        match at(root, &in_directory(directory)) {
            Executable::Missing => {}
            Executable::Found => return Executable::Found,
            Executable::Forbidden => found = Executable::Forbidden,
        }
    }
    found
}

fn at(root: BorrowedFd<'_>, path: &str) -> Executable {
    let stat = open(root, path, OFlags::PATH).and_then(rustix::fs::fstat);
    match stat {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile => {
            Executable::Forbidden
        }
        Ok(stat) if stat.st_mode & 0o111 == 0 => Executable::Forbidden,
        Ok(_) => Executable::Found,
        Err(Errno::ACCESS) => Executable::Forbidden,
        Err(_) => Executable::Missing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_those_of_the_image_and_no_symlink_leads_out_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let etc = dir.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        let passwd = "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:\n77:x:5:6::/:\nbad\n";
        std::fs::write(etc.join("passwd"), passwd).unwrap();
        std::fs::write(
            etc.join("group"),
            "app:x:1001:\nmore:x:50:x,app\nlast:x:51:app\n",
        )
        .unwrap();
        let root = std::fs::File::open(dir.path()).unwrap();
        let find = |text: &str| {
            let found = user(root.as_fd(), text).ok()?;
            Some((found.uid, found.gid, found.groups, found.home))
        };
        let home = |text: &str| text.to_owned();
        assert_eq!(find(""), Some((0, 0, vec![], home("/root"))));
        assert_eq!(
            find("app"),
            Some((1000, 1001, vec![50, 51, 1001], home("/home/app")))
        );
        assert_eq!(
            find("1000"),
            Some((1000, 1001, vec![50, 51, 1001], home("/home/app")))
        );
        assert_eq!(
            find("app:more"),
            Some((1000, 50, vec![50], home("/home/app")))
        );
        assert_eq!(find("app:9"), Some((1000, 9, vec![9], home("/home/app"))));
        // A name of digits is a name first.
        assert_eq!(find("77"), Some((5, 6, vec![6], home("/"))));
        assert_eq!(find("4000"), Some((4000, 0, vec![0], home("/"))));
        for none in ["nobody", "app:none", "-1", "4294967295"] {
            assert_eq!(find(none), None, "{none}");
        }
        std::fs::remove_file(etc.join("passwd")).unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("passwd"), "root:x:7:7::/:\n").unwrap();
        std::os::unix::fs::symlink(outside.path().join("passwd"), etc.join("passwd")).unwrap();
        assert_eq!(find("root"), None);
    }
}
