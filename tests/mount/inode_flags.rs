//! Inode flags, compared with kernel overlayfs on the same layers: what lsattr shows, what chattr
//! does and for whom, and which operations immutable and append-only files and directories refuse.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, IFlags, Mode, OFlags, RenameFlags, Timespec, Timestamps,
};
use rustix::fs::{UTIME_NOW, XattrFlags, ioctl_getflags, ioctl_setflags, renameat_with};
use testkit::fixture::Fixture;
use testkit::mount::{Fs, KERNEL, Scratch, Stack};
use testkit::without::{self, Lack};
use testkit::{errno_name, need, need_mounts};

/// The two flags, alone and together.
pub const FLAGS: [(&str, IFlags); 3] = [
    ("i", IFlags::IMMUTABLE),
    ("a", IFlags::APPEND),
    ("ai", IFlags::IMMUTABLE.union(IFlags::APPEND)),
];

/// Removes the protection on drop, also after a failed test, so that the files can be deleted.
pub struct Unprotected<'a>(pub &'a Path);

impl Drop for Unprotected<'_> {
    fn drop(&mut self) {
        let chattr = Command::new("chattr")
            .args(["-R", "-f", "-ia"])
            .arg(self.0)
            .output();
        if let Err(error) = chattr {
            eprintln!("chattr: {error}");
        }
    }
}

pub fn set(path: &Path, flags: IFlags) -> io::Result<()> {
    let file = File::open(path)?;
    Ok(ioctl_setflags(&file, ioctl_getflags(&file)? | flags)?)
}

fn clear(path: &Path, flags: IFlags) -> io::Result<()> {
    let file = File::open(path)?;
    Ok(ioctl_setflags(&file, ioctl_getflags(&file)? - flags)?)
}

/// Makes the objects of each kind: a file, and a directory with a file and a directory in it.
pub fn fill(root: &Path, place: &str) {
    for (name, _) in FLAGS {
        fs::write(root.join(format!("{place}-file-{name}")), "content").unwrap();
        let dir = root.join(format!("{place}-dir-{name}"));
        fs::create_dir_all(dir.join("sub")).unwrap();
        fs::write(dir.join("x"), "in it").unwrap();
    }
}

pub fn protect(root: &Path, place: &str) {
    for (name, flags) in FLAGS {
        set(&root.join(format!("{place}-file-{name}")), flags).unwrap();
        set(&root.join(format!("{place}-dir-{name}")), flags).unwrap();
    }
}

/// Makes the same layers for each implementation: protected in the lower, and merged and protected
/// in the lower.
fn stack(scratch: &Scratch) -> Stack {
    let lowers = [scratch.dir("l0"), scratch.dir("l1")];
    for lower in &lowers {
        fill(lower, "merged");
        fs::create_dir(lower.join("plain")).unwrap();
    }
    fill(&lowers[1], "lower");
    fs::write(lowers[1].join("other"), "other").unwrap();
    protect(&lowers[0], "merged");
    protect(&lowers[1], "lower");
    Stack::writable(scratch, lowers.to_vec())
}

pub type Answers = Vec<(String, String)>;

pub fn answer<T>(result: io::Result<T>) -> String {
    match result {
        Ok(_) => "done".into(),
        Err(error) => errno_name(error.raw_os_error().unwrap_or(0)),
    }
}

pub fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    Ok(rustix::fs::open(path, flags, Mode::from_raw_mode(0o600))?.into())
}

fn times(path: &Path, nsec: [i64; 2]) -> io::Result<()> {
    let time = |tv_nsec| Timespec { tv_sec: 5, tv_nsec };
    let times = Timestamps {
        last_access: time(nsec[0]),
        last_modification: time(nsec[1]),
    };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::empty())?)
}

/// Tries all operations on a file, most of which are refused here.
fn on_file(root: &Path, path: &Path, all: &mut Answers) {
    let name = path.file_name().unwrap().to_str().unwrap();
    let mut say = |what: &str, result: io::Result<()>| {
        all.push((format!("{what} {name}"), answer(result)));
    };
    let append = OFlags::WRONLY | OFlags::APPEND;
    say("read", fs::read(path).map(drop));
    say(
        "chmod",
        fs::set_permissions(path, PermissionsExt::from_mode(0o640)),
    );
    say("chown", chown(path, Some(7), Some(7)));
    say("set times", times(path, [1, 1]));
    say(
        "one time now",
        times(path, [UTIME_NOW, rustix::fs::UTIME_OMIT]),
    );
    say("touch", times(path, [UTIME_NOW, UTIME_NOW]));
    say(
        "truncate",
        rustix::fs::open(path, OFlags::WRONLY | OFlags::TRUNC, Mode::empty())
            .map(drop)
            .map_err(Into::into),
    );
    say(
        "write",
        open(path, OFlags::WRONLY)
            .and_then(|f| f.write_at(b"X", 0))
            .map(drop),
    );
    say(
        "write both",
        open(path, OFlags::RDWR)
            .and_then(|f| f.write_at(b"X", 0))
            .map(drop),
    );
    say(
        "append",
        open(path, append).and_then(|mut f| f.write_all(b" and more")),
    );
    say(
        "append, truncate",
        open(path, append).and_then(|f| f.set_len(2)),
    );
    let allocate =
        |mode| open(path, append).and_then(|f| Ok(rustix::fs::fallocate(&f, mode, 0, 100)?));
    say("allocate", allocate(FallocateFlags::KEEP_SIZE));
    say(
        "punch",
        allocate(FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE),
    );
    let attr = |name: &str| rustix::fs::setxattr(path, name, b"v", XattrFlags::empty());
    say("set xattr", attr("user.some").map_err(Into::into));
    say(
        "remove xattr",
        rustix::fs::removexattr(path, "user.none").map_err(Into::into),
    );
    say("link", fs::hard_link(path, root.join("plain/link")));
    say("rename", fs::rename(path, root.join("plain/moved")));
    say(
        "replace",
        fs::write(root.join("plain/new"), "")
            .and_then(|()| fs::rename(root.join("plain/new"), path)),
    );
    let exchange = renameat_with(
        CWD,
        root.join("plain/new"),
        CWD,
        path,
        RenameFlags::EXCHANGE,
    );
    say("exchange", exchange.map_err(Into::into));
    say("unlink", fs::remove_file(path));
    let data = fs::read(path).unwrap_or_default();
    all.push((format!("content {name}"), String::from_utf8(data).unwrap()));
}

fn on_dir(root: &Path, dir: &Path, all: &mut Answers) {
    let name = dir.file_name().unwrap().to_str().unwrap();
    let mut say = |what: &str, result: io::Result<()>| {
        all.push((format!("{what} {name}"), answer(result)));
    };
    say(
        "chmod",
        fs::set_permissions(dir, PermissionsExt::from_mode(0o711)),
    );
    say("touch", times(dir, [UTIME_NOW, UTIME_NOW]));
    say("set times", times(dir, [1, 1]));
    say("create", fs::write(dir.join("new"), "new"));
    say("mkdir", fs::create_dir(dir.join("newdir")));
    say("symlink", symlink("x", dir.join("newlink")));
    say(
        "link into",
        fs::hard_link(root.join("other"), dir.join("linked")),
    );
    say(
        "unnamed",
        open(dir, OFlags::TMPFILE | OFlags::RDWR).map(drop),
    );
    say(
        "write in it",
        OpenOptions::new()
            .append(true)
            .open(dir.join("x"))
            .and_then(|mut f| f.write_all(b"!")),
    );
    say(
        "chmod in it",
        fs::set_permissions(dir.join("x"), PermissionsExt::from_mode(0o600)),
    );
    say("unlink in it", fs::remove_file(dir.join("x")));
    say("rmdir in it", fs::remove_dir(dir.join("sub")));
    say("rename in it", fs::rename(dir.join("x"), dir.join("y")));
    say(
        "rename out",
        fs::rename(dir.join("x"), root.join("plain/out")),
    );
    say(
        "rename into",
        fs::write(root.join("plain/in"), "")
            .and_then(|()| fs::rename(root.join("plain/in"), dir.join("in"))),
    );
    say(
        "replace in it",
        fs::write(root.join("plain/in"), "")
            .and_then(|()| fs::rename(root.join("plain/in"), dir.join("x"))),
    );
    say("rename", fs::rename(dir, root.join("plain/dir")));
    say("rmdir", fs::remove_dir(dir));
    let attr = rustix::fs::setxattr(dir, "user.some", b"v", XattrFlags::empty());
    say("set xattr", attr.map_err(Into::into));
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    all.push((format!("names {name}"), format!("{names:?}")));
}

/// Reads the flags of everything as lsattr does, and in the wider form.
pub fn flags_of(root: &Path, all: &mut Answers) {
    let mut names: Vec<_> = fs::read_dir(root)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    names.sort();
    for path in names {
        let output = Command::new("lsattr")
            .arg("-d")
            .arg(&path)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let flags = text.split_whitespace().next().unwrap_or("none").to_owned();
        all.push((
            format!("lsattr {}", path.file_name().unwrap().display()),
            flags,
        ));
        let output = Command::new("xfs_io")
            .args(["-r", "-c", "lsattr"])
            .arg(&path)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let flags = text.split_whitespace().next().unwrap_or("none").to_owned();
        all.push((
            format!("xfs_io {}", path.file_name().unwrap().display()),
            flags,
        ));
    }
}

fn answers(f: &mut Fixture) -> Answers {
    let mut all = Vec::new();
    let root = f.root().to_owned();
    fill(&root, "upper");
    protect(&root, "upper");
    // An object of the lower that becomes protected in the union.
    set(&root.join("other"), IFlags::IMMUTABLE).unwrap();
    all.push((
        "write other".into(),
        answer(fs::remove_file(root.join("other"))),
    ));
    clear(&root.join("other"), IFlags::IMMUTABLE).unwrap();
    set(&root.join("other"), IFlags::NOATIME | IFlags::NODUMP).unwrap();
    flags_of(&root, &mut all);
    for round in ["", "again "] {
        let mut answers = Vec::new();
        for place in ["lower", "merged", "upper"] {
            for (name, _) in FLAGS {
                on_file(
                    &root,
                    &root.join(format!("{place}-file-{name}")),
                    &mut answers,
                );
                on_dir(
                    &root,
                    &root.join(format!("{place}-dir-{name}")),
                    &mut answers,
                );
            }
        }
        all.extend(
            answers
                .into_iter()
                .map(|(what, answer)| (format!("{round}{what}"), answer)),
        );
        flags_of(&root, &mut all);
        if round.is_empty() {
            f.remount();
        }
    }
    for place in ["lower", "merged", "upper"] {
        for (name, flags) in FLAGS {
            for kind in ["file", "dir"] {
                let path = root.join(format!("{place}-{kind}-{name}"));
                all.push((
                    format!("clear {}", path.display()).replace(root.to_str().unwrap(), ""),
                    answer(clear(&path, flags)),
                ));
                let freed = fs::set_permissions(&path, PermissionsExt::from_mode(0o777));
                all.push((format!("freed {place}-{kind}-{name}"), answer(freed)));
            }
        }
    }
    flags_of(&root, &mut all);
    all
}

/// Returns the protection markers in the upper, by name.
fn marks(upper: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    let mut todo = vec![upper.to_owned()];
    while let Some(path) = todo.pop() {
        let mut value = vec![0; 64];
        let len = rustix::fs::lgetxattr(&path, "trusted.overlay.protattr", &mut value);
        if let Ok(len) = len {
            value.truncate(len);
            all.push((path.strip_prefix(upper).unwrap().to_owned(), value));
        }
        if path.symlink_metadata().unwrap().is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
    }
    all.sort();
    all
}

fn run(fs: &Fs) -> (Answers, Vec<(PathBuf, Vec<u8>)>) {
    let scratch = Scratch::disk();
    let path = scratch.path().to_owned();
    let _unprotected = Unprotected(&path);
    let stack = stack(&scratch);
    let mut f = Fixture::over(fs, scratch, stack);
    let all = answers(&mut f);
    f.unmount();
    let marks = marks(&f.upper(""));
    // Before the fixture ends, which checks that its lowers are unchanged.
    drop(f);
    (all, marks)
}

#[test]
fn protected_files_refuse_what_the_kernels_do() {
    need_mounts!();
    need!(without::has_statx());
    need!(without::has(&[Lack::UnnamedFiles]));
    let (expected, marked) = run(&KERNEL);
    assert!(expected.len() > 700, "{}", expected.len());
    assert!(
        expected
            .iter()
            .filter(|(_, answer)| answer == "EPERM")
            .count()
            > 200
    );
    for options in ["io=passthrough", "io=cached", "transport=fuser"] {
        let (mut got, marks) = run(&Fs::Unionfs(options));
        assert_eq!(got.len(), expected.len());
        if options == "transport=fuser" {
            // The crate has no O_TMPFILE.
            let unnamed = got.iter_mut().zip(&expected);
            for (got, expected) in unnamed.filter(|(got, _)| got.0.contains("unnamed ")) {
                assert_eq!(got.1, "EOPNOTSUPP");
                got.1.clone_from(&expected.1);
            }
        }
        let wrong: Vec<_> = expected
            .iter()
            .zip(&got)
            .filter(|(expected, got)| expected != got)
            .collect();
        assert!(wrong.is_empty(), "{options}: {wrong:#?}");
        assert_eq!(marks, marked, "{options}");
    }
}
