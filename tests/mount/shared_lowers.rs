//! `io=shared`: files of lowers are passed through to readers, also on a mount that can be written.
//! While a reader has such a file open, nobody writes it: a writer waits, or gets ETXTBSY.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use testkit::fixture::Fixture;
use testkit::map::Map;
use testkit::mount::{Fs, Scratch, Stack};
use testkit::need_mounts;
use testkit::stats::requests_of;

const OLD: &[u8] = b"data of the lower";

/// A way to write to a file that exists.
type Write = fn(&Path) -> std::io::Result<()>;

/// Returns a writable mount of root over a lower with these files.
fn mounted(names: &[&str]) -> Fixture {
    let scratch = Scratch::disk();
    let stack = Stack::writable(&scratch, vec![scratch.dir("lower")]);
    for name in names {
        std::fs::write(stack.lowers[0].join(name), OLD).unwrap();
    }
    Fixture::over(&Fs::Unionfs("io=shared"), scratch, stack)
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

#[test]
fn a_writer_waits_for_a_reader_that_ends() {
    need_mounts!();
    let f = mounted(&["open", "create", "truncate"]);
    let ways: [(&str, Write); 3] = [
        ("open", |path| {
            OpenOptions::new().append(true).open(path)?.write_all(b"!")
        }),
        ("create", |path| File::create(path)?.write_all(b"new")),
        ("truncate", truncated),
    ];
    for (name, write) in ways {
        let path = f.at(name);
        let mut reader = File::open(&path).unwrap();
        let written = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                write(&path).unwrap();
                written.store(true, Ordering::SeqCst);
            });
            std::thread::sleep(Duration::from_millis(100));
            assert!(!written.load(Ordering::SeqCst), "{name}");
            let mut text = Vec::new();
            reader.read_to_end(&mut text).unwrap();
            assert_eq!(text, OLD, "{name}");
            drop(reader);
            writer.join().unwrap();
        });
        let expected: &[u8] = match name {
            "open" => b"data of the lower!",
            "create" => b"new",
            _ => b"dat",
        };
        assert_eq!(std::fs::read(&path).unwrap(), expected, "{name}");
        assert_eq!(lower(&f, name), OLD, "{name}");
    }
}

#[test]
fn a_writer_is_refused_while_a_reader_stays() {
    need_mounts!();
    let f = mounted(&["open", "create", "truncate"]);
    let readers = ["open", "create", "truncate"].map(|name| File::open(f.at(name)).unwrap());
    let busy = |result: std::io::Result<()>| {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::ExecutableFileBusy);
    };
    let open = |name: &str| OpenOptions::new().write(true).open(f.at(name)).map(drop);
    std::thread::scope(|scope| {
        scope.spawn(|| busy(open("open")));
        scope.spawn(|| busy(File::create(f.at("create")).map(drop)));
        scope.spawn(|| busy(truncated(&f.at("truncate"))));
    });
    // A copy-up for another reason changes no data, and the readers stay.
    std::fs::set_permissions(f.at("open"), Permissions::from_mode(0o600)).unwrap();
    assert!(f.upper("open").exists());
    busy(open("open"));
    let mut text = vec![0; OLD.len()];
    readers[0].read_exact_at(&mut text, 0).unwrap();
    assert_eq!(text, OLD);
    drop(readers);
    for name in ["open", "create", "truncate"] {
        // The kernel tells the server of the last close a little later; the writer waits for it.
        std::fs::write(f.at(name), "new").unwrap();
        assert_eq!(std::fs::read(f.at(name)).unwrap(), b"new", "{name}");
        assert_eq!(lower(&f, name), OLD, "{name}");
    }
}

/// A mapping is one of the lower's file, and outlives the open.
#[test]
fn a_mapping_keeps_the_data_that_it_began_with_as_on_overlayfs() {
    need_mounts!();
    for fs in [Fs::Unionfs("io=shared"), Fs::Kernel("")] {
        let scratch = Scratch::disk();
        let stack = Stack::writable(&scratch, vec![scratch.dir("lower")]);
        std::fs::write(stack.lowers[0].join("file"), OLD).unwrap();
        let f = Fixture::over(&fs, scratch, stack);
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
    let names: Vec<String> = (0..40).map(|number| format!("file{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let f = mounted(&names);
    for name in names {
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
            // Readers in a loop give way to it.
            let file = OpenOptions::new().read(true).write(true).open(&path);
            file.unwrap().write_all_at(&[b'n'; 17], 0).unwrap();
            written.store(true, Ordering::SeqCst);
        });
        assert_eq!(lower(&f, name), OLD, "{name}");
    }
}
