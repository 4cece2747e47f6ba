//! `io=shared`: files of lowers are passed through to readers, also on a mount that can be written.
//! Who opens such a file before it is written for the first time keeps the data of the lower, as a
//! mapping does on overlayfs. Who opens it later sees the new data.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{
    DirEntryExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use testkit::caches;
use testkit::fixture::Fixture;
use testkit::map::Map;
use testkit::mount::{Fs, Scratch, Stack, poll};
use testkit::need_mounts;
use testkit::stats::requests_of;
use unionfs::sys::handle::{FileHandle, name_to_handle, open_by_handle};

use crate::handles::forget_everything;

const OLD: &[u8] = b"data of the lower";

/// A way to write to a file that exists.
type Write = fn(&Path) -> std::io::Result<()>;

/// Returns a writable mount of root over a lower with these files.
fn mounted(names: &[impl AsRef<Path>]) -> Fixture {
    over(&Fs::Unionfs("io=shared"), names)
}

fn over(fs: &Fs, names: &[impl AsRef<Path>]) -> Fixture {
    let scratch = Scratch::disk();
    let stack = Stack::writable(&scratch, vec![scratch.dir("lower")]);
    for name in names {
        std::fs::write(stack.lowers[0].join(name), OLD).unwrap();
    }
    Fixture::over(fs, scratch, stack)
}

/// Returns the names of this number of files.
fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("file{number}")).collect()
}

/// Calls truncate(2), which opens no file.
fn truncated(path: &Path) -> std::io::Result<()> {
    let script = "import os, sys\n\
        try: os.truncate(sys.argv[1], 3)\n\
        except OSError as error: sys.exit(error.errno)";
    let mut python = Command::new("python3");
    let status = python.args(["-c", script]).arg(path).status()?;
    match status.code().unwrap() {
        0 => Ok(()),
        errno => Err(std::io::Error::from_raw_os_error(errno)),
    }
}

/// Returns the text of the lower's file, which nothing may change.
fn lower(f: &Fixture, name: &str) -> Vec<u8> {
    std::fs::read(f.stack.lowers[0].join(name)).unwrap()
}

#[test]
fn readers_send_no_messages_for_data() {
    need_mounts!();
    let f = mounted(&["file"]);
    let sent = requests_of(f.root(), || {
        for flags in [0, libc::O_DIRECT] {
            let mut options = OpenOptions::new();
            let file = options.read(true).custom_flags(flags).open(f.at("file"));
            let mut file = file.unwrap();
            let mut text = Vec::new();
            if flags == 0 {
                file.read_to_end(&mut text).unwrap();
                assert_eq!(text, OLD);
            }
        }
    });
    assert!(!sent.contains_key("READ"), "{sent:?}");
    let stats = Command::new(testkit::program())
        .arg("stats")
        .arg(f.root())
        .output();
    let text = String::from_utf8(stats.unwrap().stdout).unwrap();
    let line = text.lines().find(|line| line.starts_with("io ")).unwrap();
    assert_eq!(line.split_whitespace().nth(1), Some("shared"), "{text}");
}

/// The ways to write to a file that exists, with the data afterwards.
const WAYS: [(&str, Write, &[u8]); 3] = [
    (
        "open",
        |path| OpenOptions::new().append(true).open(path)?.write_all(b"!"),
        b"data of the lower!",
    ),
    (
        "create",
        |path| File::create(path)?.write_all(b"new"),
        b"new",
    ),
    ("truncate", truncated, b"dat"),
];

#[test]
fn readers_keep_the_old_data_and_writers_do_not_wait() {
    need_mounts!();
    let f = mounted(&WAYS.map(|way| way.0));
    for (name, write, expected) in WAYS {
        let path = f.at(name);
        let mut reader = File::open(&path).unwrap();
        let number = reader.metadata().unwrap().ino();
        write(&path).unwrap();
        let mut text = Vec::new();
        reader.read_to_end(&mut text).unwrap();
        assert_eq!(text, OLD, "{name}");
        let mut later = File::open(&path).unwrap();
        text.clear();
        later.read_to_end(&mut text).unwrap();
        assert_eq!(text, expected, "{name}");
        // Both are the same file.
        for file in [&reader, &later] {
            let meta = file.metadata().unwrap();
            assert_eq!(meta.len(), expected.len() as u64, "{name}");
            assert_eq!(meta.ino(), number, "{name}");
        }
        assert_eq!(lower(&f, name), OLD, "{name}");
    }
}

/// A change of metadata copies the file up, and its readers stay. The writer comes later.
#[test]
fn a_file_that_was_copied_up_for_its_metadata_is_written() {
    need_mounts!();
    let f = mounted(&["file"]);
    let readers = [(); 2].map(|()| {
        let reader = File::open(f.at("file")).unwrap();
        std::fs::set_permissions(f.at("file"), Permissions::from_mode(0o600)).unwrap();
        reader
    });
    assert!(f.upper("file").exists());
    std::fs::write(f.at("file"), "new").unwrap();
    for reader in &readers {
        let mut text = vec![0; OLD.len()];
        reader.read_exact_at(&mut text, 0).unwrap();
        assert_eq!(text, OLD);
    }
    // Later changes by either descriptor are seen by all.
    let mode = |meta: std::fs::Metadata| meta.mode() & 0o7777;
    readers[0]
        .set_permissions(Permissions::from_mode(0o640))
        .unwrap();
    assert_eq!(mode(std::fs::metadata(f.at("file")).unwrap()), 0o640);
    std::fs::set_permissions(f.at("file"), Permissions::from_mode(0o604)).unwrap();
    assert_eq!(mode(readers[1].metadata().unwrap()), 0o604);
    assert_eq!(mode(std::fs::metadata(f.at("file")).unwrap()), 0o604);
}

/// Several first writers come at once, while a reader stays. None has to wait for the reader.
#[test]
fn first_writers_at_once_are_all_admitted() {
    need_mounts!();
    let names = numbered(40);
    let f = mounted(&names);
    for name in &names {
        let path = f.at(name);
        let reader = File::open(&path).unwrap();
        let start = Barrier::new(4);
        std::thread::scope(|scope| {
            for at in 0..4 {
                let (path, start) = (&path, &start);
                scope.spawn(move || {
                    start.wait();
                    let file = OpenOptions::new()
                        .read(true)
                        .write(true)
                        .open(path)
                        .unwrap();
                    file.write_all_at(b"n", at).unwrap();
                });
            }
        });
        assert_eq!(std::fs::read(&path).unwrap()[..4], *b"nnnn", "{name}");
        let mut text = vec![0; OLD.len()];
        reader.read_exact_at(&mut text, 0).unwrap();
        assert_eq!(text, OLD, "{name}");
        assert_eq!(lower(&f, name), OLD, "{name}");
    }
}

/// Returns the path by which the process can open its descriptor again.
fn again(file: &impl AsRawFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// No name leads to the number by which the reader knows the file.
#[test]
fn a_descriptor_of_a_reader_is_opened_again() {
    need_mounts!();
    let f = mounted(&["file"]);
    let reader = File::open(f.at("file")).unwrap();
    let mut options = OpenOptions::new();
    let path = options
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(f.at("file"))
        .unwrap();
    // Nobody has written yet.
    assert_eq!(std::fs::read(again(&reader)).unwrap(), OLD);
    std::fs::write(f.at("file"), "new").unwrap();
    // What is read is what the descriptor has.
    assert_eq!(std::fs::read(again(&reader)).unwrap(), OLD);
    let busy = OpenOptions::new()
        .write(true)
        .open(again(&reader))
        .unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::ExecutableFileBusy);
    let busy = truncated(&PathBuf::from(format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        reader.as_raw_fd()
    )));
    assert_eq!(busy.unwrap_err().kind(), ErrorKind::ExecutableFileBusy);
    assert_eq!(std::fs::read(f.at("file")).unwrap(), b"new");
    drop(reader);
    // The kernel tells the server of the last close a little later; the writer waits for it.
    OpenOptions::new()
        .append(true)
        .open(again(&path))
        .unwrap()
        .write_all(b"er")
        .unwrap();
    assert_eq!(std::fs::read(again(&path)).unwrap(), b"newer");
    assert_eq!(std::fs::read(f.at("file")).unwrap(), b"newer");
    assert_eq!(lower(&f, "file"), OLD);
}

/// The kernel looks only the name up again that a writer uses. So readers of a file with other names
/// get no file of a lower, and see the change.
#[test]
fn a_file_with_several_names_is_not_passed_through() {
    need_mounts!();
    let scratch = Scratch::disk();
    let stack = Stack::writable(&scratch, vec![scratch.dir("lower")]);
    std::fs::write(stack.lowers[0].join("one"), OLD).unwrap();
    std::fs::hard_link(stack.lowers[0].join("one"), stack.lowers[0].join("two")).unwrap();
    let f = Fixture::over(&Fs::Unionfs("io=shared"), scratch, stack);
    let mut reader = File::open(f.at("one")).unwrap();
    std::fs::write(f.at("one"), "new").unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "new");
}

/// As above, with a name that comes while readers have the file open.
#[test]
fn a_writer_waits_for_readers_of_a_file_that_gets_another_name() {
    need_mounts!();
    let f = mounted(&["file"]);
    let reader = File::open(f.at("file")).unwrap();
    std::fs::hard_link(f.at("file"), f.at("other")).unwrap();
    let busy = std::fs::write(f.at("other"), "new").unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::ExecutableFileBusy);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| std::fs::write(f.at("file"), "new"));
        std::thread::sleep(Duration::from_millis(100));
        assert!(!writer.is_finished());
        let mut text = vec![0; OLD.len()];
        reader.read_exact_at(&mut text, 0).unwrap();
        assert_eq!(text, OLD);
        drop(reader);
        writer.join().unwrap().unwrap();
    });
    for name in ["file", "other"] {
        assert_eq!(std::fs::read(f.at(name)).unwrap(), b"new", "{name}");
    }
    assert_eq!(lower(&f, "file"), OLD);
}

/// The file that a handle means is found under both numbers, also after the kernel has forgotten it.
#[test]
fn handles_of_both_numbers() {
    need_mounts!();
    let _alone = caches::alone();
    let f = mounted(&["file"]);
    let root = File::open(f.root()).unwrap();
    let old = name_to_handle(&root, c"file").unwrap();
    let reader = File::open(f.at("file")).unwrap();
    std::fs::write(f.at("file"), "new").unwrap();
    let new = name_to_handle(&root, c"file").unwrap();
    assert_ne!(old.bytes, new.bytes);
    let read = |handle: &FileHandle| {
        // The kernel tells the server of a close by the other number a little later.
        assert!(poll(|| open_by_handle(&root, handle).is_ok()));
        let file = open_by_handle(&root, handle).unwrap();
        std::fs::read(again(&file)).unwrap()
    };
    assert_eq!(read(&new), b"new");
    drop(reader);
    for _ in 0..2 {
        forget_everything(&f);
        for handle in [&new, &old, &new] {
            assert_eq!(read(handle), b"new");
        }
        std::fs::write(f.at("file"), "new").unwrap();
    }
    // It is open by its first number.
    forget_everything(&f);
    let file = File::open(f.at("file")).unwrap();
    assert_eq!(open_by_handle(&root, &new).unwrap_err(), Errno::STALE);
    drop(file);
}

/// A handle can have any number. A directory never gets a second inode of the kernel.
#[test]
fn a_handle_of_a_directory_has_no_second_number() {
    need_mounts!();
    for io in ["io=shared", "io=passthrough", "io=cached"] {
        let f = over(&Fs::Unionfs(io), &["file"]);
        std::fs::create_dir(f.at("dir")).unwrap();
        let inside = File::open(f.at("dir")).unwrap();
        let root = File::open(f.root()).unwrap();
        for name in [c"dir", c"."] {
            let mut handle = name_to_handle(&root, name).unwrap();
            assert!(open_by_handle(&root, &handle).is_ok(), "{io} {name:?}");
            // The upper half of the number comes first.
            handle.bytes[3] |= 0x80;
            assert_eq!(
                open_by_handle(&root, &handle).unwrap_err(),
                Errno::STALE,
                "{io} {name:?}"
            );
        }
        let (name, open) = (
            std::fs::metadata(f.at("dir")).unwrap(),
            inside.metadata().unwrap(),
        );
        assert_eq!(name.ino(), open.ino(), "{io}");
    }
}

/// The number of the file does not change in listings, and each number is forgotten.
#[test]
fn listings_and_forgotten_files() {
    need_mounts!();
    let _alone = caches::alone();
    let names = numbered(50);
    let f = mounted(&names);
    let listed = || {
        let mut all: Vec<_> = std::fs::read_dir(f.root())
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let meta = entry.metadata().unwrap();
                assert_eq!(meta.ino(), entry.ino());
                (entry.file_name(), meta.ino(), meta.len())
            })
            .collect();
        all.sort();
        all
    };
    let before = listed();
    for _ in 0..3 {
        let readers: Vec<File> = names
            .iter()
            .map(|name| File::open(f.at(name)).unwrap())
            .collect();
        for name in &names {
            std::fs::write(f.at(name), OLD).unwrap();
        }
        assert_eq!(listed(), before);
        drop(readers);
        caches::drop_names_and_inodes();
        assert_eq!(listed(), before);
    }
}

/// A mapping is one of the lower's file, and outlives the open.
#[test]
fn a_mapping_keeps_the_data_that_it_began_with_as_on_overlayfs() {
    need_mounts!();
    for fs in [Fs::Unionfs("io=shared"), Fs::Kernel("")] {
        let f = over(&fs, &["file"]);
        let file = File::open(f.at("file")).unwrap();
        let mapped = Map::shared(&file, false).unwrap();
        drop(file);
        std::fs::write(f.at("file"), "new").unwrap();
        assert_eq!(mapped.read(0, OLD.len()).unwrap(), OLD);
        assert_eq!(std::fs::read(f.at("file")).unwrap(), b"new");
        assert_eq!(lower(&f, "file"), OLD);
    }
}

/// Readers come and go while the file is written for the first time. Each sees the old or the new
/// data, and one that opens it later sees the new.
#[test]
fn readers_and_first_writers_at_once() {
    need_mounts!();
    let names = numbered(40);
    let f = mounted(&names);
    for name in &names {
        let path = f.at(name);
        let written = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    loop {
                        let is_new = written.load(Ordering::SeqCst);
                        let text = std::fs::read(&path).unwrap();
                        // In place: a reader may see a part of the new data.
                        assert_eq!(text.len(), OLD.len(), "{name}");
                        if is_new {
                            assert_eq!(text, [b'n'; 17], "{name}");
                            return;
                        }
                    }
                });
            }
            let file = OpenOptions::new().read(true).write(true).open(&path);
            file.unwrap().write_all_at(&[b'n'; 17], 0).unwrap();
            written.store(true, Ordering::SeqCst);
        });
        assert_eq!(lower(&f, name), OLD, "{name}");
    }
}
