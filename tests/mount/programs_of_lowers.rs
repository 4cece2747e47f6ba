//! Programs that run from a file of a lower, on a mount that can be written. The kernel passes such
//! a file through, since nobody may write a file from which a program runs.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use testkit::fixture::Fixture;
use testkit::mount::{Fs, Scratch, Stack};
use testkit::need_mounts;
use testkit::stats::requests_of;

const YES: &str = "/bin/true";
const NO: &str = "/bin/false";

/// Returns a writable mount of root over a lower with copies of these programs.
fn mounted(programs: &[(&str, &str)]) -> Fixture {
    let scratch = Scratch::disk();
    let stack = Stack::writable(&scratch, vec![scratch.dir("lower")]);
    for (name, program) in programs {
        std::fs::copy(program, stack.lowers[0].join(name)).unwrap();
    }
    Fixture::over(&Fs::Unionfs("io=passthrough"), scratch, stack)
}

/// Starts a program that waits for the end of its input.
fn start(program: &Path) -> Child {
    let mut command = Command::new(program);
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = pipes.spawn().unwrap();
    // It runs when it has answered once.
    child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    let mut answer = [0];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut answer)
        .unwrap();
    child
}

fn end(mut child: Child) {
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

fn opened_to_write(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).open(path)
}

#[test]
fn they_are_read_without_messages() {
    need_mounts!();
    for io in ["io=passthrough", "io=auto"] {
        let scratch = Scratch::disk();
        let stack = Stack::writable(&scratch, vec![scratch.dir("lower")]);
        std::fs::copy("/bin/cat", stack.lowers[0].join("cat")).unwrap();
        let f = Fixture::over(&Fs::Unionfs(io), scratch, stack);
        let sent = requests_of(f.root(), || end(start(&f.at("cat"))));
        assert!(!sent.contains_key("READ"), "{io}: {sent:?}");
        // What is read afterwards is the same file.
        let read = std::fs::read(f.at("cat")).unwrap();
        assert!(read == std::fs::read("/bin/cat").unwrap(), "{io}");
    }
}

#[test]
fn nobody_writes_them_until_the_last_reader_is_gone() {
    need_mounts!();
    let f = mounted(&[("cat", "/bin/cat")]);
    let path = f.at("cat");
    // Read elsewhere: an earlier open of this file would decide for the program too.
    let old = std::fs::read("/bin/cat").unwrap();
    let program = start(&path);
    let busy = |result: std::io::Result<File>| {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::ExecutableFileBusy);
    };
    busy(opened_to_write(&path));
    // The kernel reads it through the layer for this one too.
    let mut reader = File::open(&path).unwrap();
    end(program);
    busy(opened_to_write(&path));
    busy(File::create(&path));
    let python = format!(
        "import os; os.truncate({:?}, 3)",
        path.display().to_string()
    );
    let cut = Command::new("python3")
        .args(["-c", &python])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&cut.stderr);
    assert!(stderr.contains("Text file busy"), "{stderr}");
    // A copy-up for another reason changes no data.
    std::fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
    assert!(f.upper("cat").exists());
    let mut data = Vec::new();
    reader.read_to_end(&mut data).unwrap();
    assert!(data == old && std::fs::read(&path).unwrap() == old);
    drop(reader);
    // The kernel tells the server of the last close a little later.
    let written = || match opened_to_write(&path) {
        Ok(mut file) => file.write_all(b"new").map(|()| true).unwrap(),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ExecutableFileBusy);
            false
        }
    };
    assert!(testkit::mount::poll(written));
    assert!(std::fs::read(&path).unwrap().starts_with(b"new"));
    assert!(std::fs::read(f.stack.lowers[0].join("cat")).unwrap() == old);
}

/// An execution that begins while the file is replaced in place fails with ETXTBSY, or runs the old
/// or the new program. One that begins later runs the new program.
#[test]
fn an_execution_beside_writers_runs_what_is_there() {
    need_mounts!();
    const FILES: usize = 60;
    let names: Vec<_> = (0..FILES).map(|n| format!("program{n}")).collect();
    let programs: Vec<_> = names.iter().map(|name| (name.as_str(), YES)).collect();
    let f = mounted(&programs);
    let new = std::fs::read(NO).unwrap();
    for (n, name) in names.iter().enumerate() {
        let path = f.at(name);
        let written = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    loop {
                        let is_new = written.load(Ordering::SeqCst);
                        match Command::new(&path).status() {
                            Ok(status) if is_new => {
                                assert_eq!(status.code(), Some(1), "{name}");
                                return;
                            }
                            Ok(status) => assert!(status.code().is_some(), "{name}"),
                            // A part of the new program may be no program.
                            Err(error) => assert!(
                                matches!(error.raw_os_error(), Some(libc::ETXTBSY | libc::ENOEXEC)),
                                "{name}: {error}"
                            ),
                        }
                    }
                });
            }
            loop {
                // Both ways to open a file for a new content.
                let opened = match n % 2 {
                    0 => File::create(&path),
                    _ => opened_to_write(&path),
                };
                match opened {
                    Ok(mut file) => {
                        file.write_all(&new).unwrap();
                        file.set_len(new.len() as u64).unwrap();
                        break;
                    }
                    Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ETXTBSY)),
                }
            }
            written.store(true, Ordering::SeqCst);
        });
        assert!(std::fs::read(&path).unwrap() == new, "{name}");
    }
}
