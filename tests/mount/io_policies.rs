//! The I/O policies: the same answers under `cached` and `passthrough`, no write to a lower, no
//! open that fails because of another open, and under `passthrough` no message for data.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use rustix::process::{Pid, Signal, kill_process};
use testkit::fixture::Fixture;
use testkit::layers::{self, Form};
use testkit::mount::{Fs, Mounted, Scratch, Stack, poll};
use testkit::need::has_tools;
use testkit::stats::requests_of;
use testkit::strace::Trace;
use testkit::{need, need_mounts, program};

const PASSTHROUGH: &str = "io=passthrough";

/// Returns a union for each policy.
fn each() -> [Fixture; 3] {
    ["io=cached", "io=cached,writeback", PASSTHROUGH].map(|io| mounted(io, true))
}

fn mounted(io: &'static str, writable: bool) -> Fixture {
    Fixture::with(
        &Fs::Unionfs(io),
        &layers::standard(),
        Form::Kernel,
        writable,
    )
}

fn read_write() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options
}

fn content(file: &File) -> String {
    let mut data = vec![0; 4096];
    let len = file.read_at(&mut data, 0).unwrap();
    data.truncate(len);
    String::from_utf8(data).unwrap()
}

#[test]
fn descriptors_from_before_copy_up_see_later_writes() {
    need_mounts!();
    for f in each() {
        let path = f.at("plain.txt");
        let early = File::open(&path).unwrap();
        let old = content(&early);
        let writer = read_write().open(&path).unwrap();
        writer.write_all_at(b"LATER", 0).unwrap();
        let expected = format!("LATER{}", &old[5..]);
        let late = File::open(&path).unwrap();
        for file in [&early, &writer, &late] {
            assert_eq!(content(file), expected);
        }
        // Truncated by an open, and written by a later one.
        drop(File::create(&path).unwrap());
        assert_eq!(content(&early), "");
        drop((early, writer, late));
        std::fs::write(&path, "again").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"again");
        assert_eq!(std::fs::read(f.upper("plain.txt")).unwrap(), b"again");
    }
}

/// The first open decides how an inode is served; no order of opens makes one fail.
#[test]
fn opens_of_all_kinds_live_together() {
    need_mounts!();
    let flags = [
        libc::O_RDONLY,
        libc::O_WRONLY,
        libc::O_RDWR,
        libc::O_RDWR | libc::O_APPEND,
        libc::O_RDONLY | libc::O_DIRECT,
        libc::O_RDWR | libc::O_DIRECT | libc::O_SYNC,
    ];
    let open = |path: &Path, flags: i32| {
        let access = flags & libc::O_ACCMODE;
        OpenOptions::new()
            .read(access != libc::O_WRONLY)
            .write(access != libc::O_RDONLY)
            .custom_flags(flags & !libc::O_ACCMODE)
            .open(path)
    };
    for f in each() {
        for (n, first) in flags.into_iter().enumerate() {
            // A file of a lower, one of the upper, and one copied up in between.
            for path in ["big.bin", "new", "plain.txt"] {
                let path = f.at(path);
                if path.ends_with("new") {
                    std::fs::write(&path, [7; 8192]).unwrap();
                }
                let held = open(&path, first).unwrap();
                for second in flags {
                    let other = open(&path, second).unwrap_or_else(|e| {
                        panic!("{}: {second:#o} after {first:#o}: {e}", path.display())
                    });
                    if second == libc::O_RDWR {
                        let byte = [b'0' + n as u8];
                        other.write_all_at(&byte, 3).unwrap();
                        let mut seen = [0];
                        let reader = File::open(&path).unwrap();
                        reader.read_exact_at(&mut seen, 3).unwrap();
                        assert_eq!(seen, byte);
                    }
                }
                drop(held);
            }
        }
    }
}

#[test]
fn what_one_opens_while_others_copy_up_is_never_refused() {
    need_mounts!();
    for f in each() {
        let path = f.at("big.bin");
        std::thread::scope(|scope| {
            for n in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    for round in 0..50u8 {
                        if n < 2 {
                            let file = read_write().open(path).unwrap();
                            file.write_all_at(&[round; 16], n * 16).unwrap();
                        } else {
                            let mut buf = [0; 64];
                            File::open(path)
                                .unwrap()
                                .read_exact_at(&mut buf, 0)
                                .unwrap();
                        }
                    }
                });
            }
        });
        let data = std::fs::read(&path).unwrap();
        assert!(data[..32].iter().all(|b| *b == 49));
        assert!(std::fs::read(f.upper("big.bin")).unwrap() == data);
    }
}

/// A writer, a mapping, and the size and times that the system reports agree.
#[test]
fn mappings_and_attributes_follow_writes() {
    need_mounts!();
    for f in each() {
        let path = f.at("mapped");
        let file = read_write()
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        file.write_all_at(&[b'a'; 8192], 0).unwrap();
        assert_eq!(path.metadata().unwrap().len(), 8192);
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        file.set_modified(old).unwrap();
        assert_eq!(path.metadata().unwrap().modified().unwrap(), old);
        map_and_write(&file, b"MAPPED");
        assert_eq!(&std::fs::read(&path).unwrap()[..6], b"MAPPED");
        assert!(path.metadata().unwrap().modified().unwrap() > old);
        // Read through a descriptor that was opened before another one's write.
        let reader = File::open(&path).unwrap();
        file.write_all_at(b"written", 0).unwrap();
        assert_eq!(&content(&reader)[..7], "written");
        assert_eq!(path.metadata().unwrap().len(), 8192);
        file.set_len(3).unwrap();
        assert_eq!(
            (content(&reader), reader.metadata().unwrap().len()),
            ("wri".into(), 3)
        );
        let mut append = OpenOptions::new().append(true).open(&path).unwrap();
        std::io::Write::write_all(&mut append, b"tten").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"written");
        assert_eq!(std::fs::read(f.upper("mapped")).unwrap(), b"written");
    }
}

/// Writes `data` at the start of a shared mapping of `file`, and syncs it.
#[allow(unsafe_code)]
fn map_and_write(file: &File, data: &[u8]) {
    // SAFETY: the file has at least `data.len()` bytes, nothing truncates it meanwhile, and the
    // mapping is used within this block only.
    unsafe {
        let (protection, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let fd = file.as_raw_fd();
        let at = libc::mmap(std::ptr::null_mut(), 4096, protection, shared, fd, 0);
        assert_ne!(at, libc::MAP_FAILED);
        std::ptr::copy_nonoverlapping(data.as_ptr(), at.cast(), data.len());
        assert_eq!(libc::msync(at, 4096, libc::MS_SYNC), 0);
        assert_eq!(libc::munmap(at, 4096), 0);
    }
}

#[test]
fn data_passed_through_costs_no_messages() {
    need_mounts!();
    let f = mounted(PASSTHROUGH, true);
    let sent = requests_of(f.root(), || {
        let file = read_write().create_new(true).open(f.at("new")).unwrap();
        for n in 0..100 {
            file.write_all_at(&[1; 4096], n * 4096).unwrap();
        }
        let mut buf = vec![0; 100 * 4096];
        file.read_exact_at(&mut buf, 0).unwrap();
    });
    let count = |name: &str| sent.get(name).copied().unwrap_or(0);
    assert_eq!(
        (count("CREATE"), count("OPEN"), count("MKNOD")),
        (1, 0, 0),
        "{sent:?}"
    );
    assert_eq!((count("READ"), count("WRITE")), (0, 0), "{sent:?}");
    assert!(sent.values().sum::<u64>() <= 8, "{sent:?}");
    let f = mounted(PASSTHROUGH, false);
    let sent = requests_of(f.root(), || {
        assert_eq!(std::fs::read(f.at("big.bin")).unwrap().len(), 300_000);
    });
    assert!(!sent.contains_key("READ"), "{sent:?}");
}

/// Readahead of 1 MiB: the kernel's own 128 KiB would be 64 messages.
#[test]
fn large_files_are_read_by_large_requests() {
    need_mounts!();
    let scratch = Scratch::disk();
    let stack = Stack {
        lowers: vec![scratch.dir("low")],
        upper: None,
        mnt: scratch.dir("mnt"),
    };
    std::fs::write(stack.lowers[0].join("large"), vec![1; 8 << 20]).unwrap();
    let f = Fixture::over(&Fs::Unionfs("io=cached"), scratch, stack);
    let sent = requests_of(f.root(), || {
        assert_eq!(std::fs::read(f.at("large")).unwrap().len(), 8 << 20);
    });
    let reads = sent.get("READ").copied().unwrap_or(0);
    assert!((1..=16).contains(&reads), "{sent:?}");
}

/// Collected writes are sent when the file is closed, and in few messages.
#[test]
fn writeback_collects_writes() {
    need_mounts!();
    let f = mounted("io=cached,writeback", true);
    let sent = requests_of(f.root(), || {
        let mut file = File::create(f.at("new")).unwrap();
        for _ in 0..256 {
            std::io::Write::write_all(&mut file, &[1; 4096]).unwrap();
        }
        drop(file);
        assert_eq!(f.upper("new").metadata().unwrap().len(), 1 << 20);
    });
    let writes = sent.get("WRITE").copied().unwrap_or(0);
    assert!((1..=16).contains(&writes), "{sent:?}");
}

/// Not even the access times of lowers change, which the kernel would set for a file it reads
/// itself.
#[test]
fn lowers_are_left_alone() {
    need_mounts!();
    for writable in [true, false] {
        let mut f = mounted(PASSTHROUGH, writable);
        let low = f.stack.lowers[2].join("big.bin");
        let past = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let times = std::fs::FileTimes::new().set_accessed(past);
        File::options()
            .write(true)
            .open(&low)
            .unwrap()
            .set_times(times)
            .unwrap();
        f.remount();
        assert_eq!(std::fs::read(f.at("big.bin")).unwrap().len(), 300_000);
        assert_eq!(low.metadata().unwrap().accessed().unwrap(), past);
        let change = read_write().open(f.at("big.bin"));
        if writable {
            change.unwrap().write_all_at(b"changed", 0).unwrap();
        } else {
            assert_eq!(change.unwrap_err().raw_os_error(), Some(libc::EROFS));
        }
        assert!(std::fs::read(&low).unwrap() == layers::big_data());
        f.lowers_are_changed_by_the_test();
    }
}

#[test]
fn set_id_bits_fall_for_those_who_may_not_keep_them() {
    need_mounts!();
    for f in each() {
        let path = f.at("program");
        std::fs::write(&path, "x").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o6777)).unwrap();
        let append = |prefix: &[&str]| {
            let script = format!("echo more >> {}", path.display());
            let mut all = prefix.to_vec();
            all.extend(["sh", "-c", &script]);
            assert!(
                Command::new(all[0])
                    .args(&all[1..])
                    .status()
                    .unwrap()
                    .success()
            );
            path.metadata().unwrap().mode() & 0o7777
        };
        assert_eq!(append(&["env"]), 0o6777, "root keeps them");
        let user = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"];
        assert_eq!(append(&user), 0o777);
        assert_eq!(
            f.upper("program").metadata().unwrap().mode() & 0o7777,
            0o777
        );
    }
}

/// Every file that is registered with the kernel is unregistered, and one registration serves all
/// openers.
#[test]
fn registrations_are_given_back() {
    need_mounts!();
    need!(has_tools(&["strace"]));
    // Over io_uring the number of descriptors grows with the number of threads.
    let f = mounted("io=passthrough,transport=classic", true);
    let server = f.mounted().servers()[0];
    let descriptors = || {
        std::fs::read_dir(format!("/proc/{server}/fd"))
            .unwrap()
            .count()
    };
    std::fs::write(f.at("file"), "x").unwrap();
    drop(File::open(f.at("file")).unwrap());
    let before = descriptors();
    let trace = Trace::of(&f, &["-e", "trace=ioctl"]);
    for _ in 0..500 {
        let all = [(); 2].map(|()| File::open(f.at("file")).unwrap());
        drop(all);
    }
    // _IOW(229, 1, 16 bytes) and _IOW(229, 2, 4 bytes).
    let calls = |number: &str| {
        let is_it = |line: &&str| line.contains(number) && !line.contains("resumed");
        trace.text().lines().filter(is_it).count()
    };
    let opened = || calls("_IOC(_IOC_WRITE, 0xe5, 0x1, 0x10)");
    let closed = || calls("_IOC(_IOC_WRITE, 0xe5, 0x2, 0x4)");
    assert!(
        poll(|| opened() > 0 && opened() == closed()),
        "{} {}",
        opened(),
        closed()
    );
    let opened = opened();
    trace.end();
    assert!(opened <= 500, "{opened} for 1000 opens, two at a time");
    assert!(
        poll(|| descriptors() <= before + 1),
        "{} after {before}",
        descriptors()
    );
}

/// Written data is in the upper, also if the server is killed.
#[test]
fn a_killed_server_takes_no_data_with_it() {
    need_mounts!();
    let mut f = mounted(PASSTHROUGH, true);
    let file = read_write().create_new(true).open(f.at("new")).unwrap();
    file.write_all_at(b"before", 0).unwrap();
    let server = i32::try_from(f.mounted().servers()[0]).unwrap();
    kill_process(Pid::from_raw(server).unwrap(), Signal::KILL).unwrap();
    let dead = || {
        f.root()
            .metadata()
            .is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN))
    };
    assert!(poll(dead));
    drop(file);
    f.remount();
    assert_eq!(std::fs::read(f.at("new")).unwrap(), b"before");
}

/// A policy that is requested by name works or the mount fails; a mount without a request never
/// fails because of it.
#[test]
fn without_the_privilege_there_is_no_passthrough() {
    need_mounts!();
    let f = mounted("io=auto", true);
    let stack = &f.stack;
    let low = &stack.lowers[0];
    let mnt = f.scratch.dir("mnt2");
    let output = Command::new("setpriv")
        .args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"])
        .arg(program())
        .arg("-o")
        .arg(format!("lowerdir={},io=passthrough", low.display()))
        .arg(&mnt)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("io=passthrough"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[test]
fn the_policy_is_shown() {
    need_mounts!();
    for (io, shown) in [("io=cached", "cached"), (PASSTHROUGH, "passthrough")] {
        assert_eq!(policy_of(mounted(io, true).root()), shown);
    }
}

/// Returns the policy that a mount reports.
fn policy_of(mnt: &Path) -> String {
    let output = Command::new(program()).arg("stats").arg(mnt).output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    let line = text.lines().find(|line| line.starts_with("io ")).unwrap();
    line.split_whitespace().nth(1).unwrap().into()
}

/// The automatic policy is passthrough if the kernel allows it and files are written, and never
/// where it would fail.
#[test]
fn auto_passes_through_what_can_be_written() {
    need_mounts!();
    assert_eq!(policy_of(mounted("io=auto", true).root()), "passthrough");
    assert_eq!(policy_of(mounted("io=auto", false).root()), "cached");
    let writeback = mounted("io=auto,writeback", true);
    assert_eq!(policy_of(writeback.root()), "cached");
    // On another union, which leaves no room for a third.
    let (scratch, below) = (Scratch::disk(), mounted("io=auto", true));
    for name in ["upper", "work"] {
        std::fs::create_dir(below.at(name)).unwrap();
    }
    let stack = Stack {
        lowers: vec![scratch.dir("lower")],
        upper: Some((below.at("upper"), below.at("work"))),
        mnt: scratch.dir("mnt"),
    };
    let above = Fixture::over(&Fs::Unionfs("io=auto"), scratch, stack);
    assert_eq!(policy_of(above.root()), "cached");
    std::fs::write(above.at("file"), "data").unwrap();
    assert_eq!(std::fs::read(below.at("upper/file")).unwrap(), b"data");
}

/// Returns a union for each policy whose upper is on a disk, where O_DIRECT has rules.
fn each_on_disk() -> [Fixture; 2] {
    ["io=cached", PASSTHROUGH].map(|io| {
        let scratch = Scratch::disk();
        let stack = Stack::writable(&scratch, vec![scratch.dir("lower")]);
        Fixture::over(&Fs::Unionfs(io), scratch, stack)
    })
}

/// fcntl(2) removes O_APPEND and O_DIRECT from an open file, as dd does before its last block.
#[test]
fn flags_taken_away_are_gone() {
    need_mounts!();
    for f in each_on_disk() {
        std::fs::write(f.at("log"), "0123456789").unwrap();
        let mut log = OpenOptions::new().append(true).open(f.at("log")).unwrap();
        std::io::Write::write_all(&mut log, b"Y").unwrap();
        rustix::fs::fcntl_setfl(&log, rustix::fs::OFlags::empty()).unwrap();
        // pwrite(2) appends as long as O_APPEND is set.
        log.write_all_at(b"X", 1).unwrap();
        assert_eq!(std::fs::read(f.at("log")).unwrap(), b"0X23456789Y");
        assert_eq!(std::fs::read(f.upper("log")).unwrap(), b"0X23456789Y");
        let data: Vec<u8> = (0..300_001u32).map(|n| (n % 251) as u8).collect();
        std::fs::write(f.scratch.path().join("source"), &data).unwrap();
        let dd = Command::new("dd")
            .args(["bs=64k", "oflag=direct", "status=none"])
            .arg(format!("if={}", f.scratch.path().join("source").display()))
            .arg(format!("of={}", f.at("copy").display()))
            .output()
            .unwrap();
        assert!(dd.status.success(), "{dd:?}");
        assert!(std::fs::read(f.upper("copy")).unwrap() == data);
    }
}

/// Also for a program that does not request the access time, which the kernel requests anyway.
#[test]
fn a_mapping_of_a_known_file_moves_its_time() {
    need_mounts!();
    let mtime = |path: &Path| {
        let (at, mask) = (rustix::fs::AtFlags::empty(), rustix::fs::StatxFlags::MTIME);
        let stat = rustix::fs::statx(rustix::fs::CWD, path, at, mask).unwrap();
        (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec)
    };
    for f in each_on_disk() {
        let path = f.at("known");
        std::fs::write(&path, [b'a'; 8192]).unwrap();
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_modified(old).unwrap();
        drop(file);
        assert_eq!(mtime(&path), (1_000_000, 0));
        let file = read_write().open(&path).unwrap();
        map_and_write(&file, b"MAPPED");
        drop(file);
        assert!(poll(|| mtime(&path) > (1_000_000, 0)));
    }
}

/// A kernel that offers passthrough and then refuses every file, as a security module could make
/// it.
#[test]
fn auto_does_without_what_is_refused_later() {
    need_mounts!();
    need!(has_tools(&["strace"]));
    let scratch = Scratch::disk();
    let stack = Stack::writable(&scratch, vec![scratch.dir("lower")]);
    let (mnt, upper) = (&stack.mnt, scratch.path().join("upper"));
    std::fs::write(stack.lowers[0].join("file"), "from below").unwrap();
    let options = stack.options() + ",io=auto";
    let mut server = Command::new("strace")
        .args([
            "-f",
            "-qq",
            "-e",
            "trace=ioctl",
            "-e",
            "inject=ioctl:error=EPERM",
            "-o",
        ])
        .args([Path::new("/dev/null"), Path::new(program())])
        .args(["-f", "-o", &options])
        .arg(mnt)
        .spawn()
        .unwrap();
    assert!(poll(|| mnt.join("file").exists()));
    let mounted = Mounted::new(mnt, false);
    std::fs::write(mnt.join("file"), "new").unwrap();
    std::fs::write(mnt.join("file"), "").unwrap();
    assert_eq!(std::fs::read(upper.join("file")).unwrap(), b"");
    std::fs::write(mnt.join("file"), "longer").unwrap();
    let reader = File::open(mnt.join("file")).unwrap();
    std::fs::write(mnt.join("file"), "less").unwrap();
    assert_eq!(content(&reader), "less");
    assert_eq!(std::fs::read(upper.join("file")).unwrap(), b"less");
    drop(reader);
    drop(mounted);
    // The exit status may be a failure: the server may not have checked yet whether the mount
    // answers.
    server.wait().unwrap();
}

#[test]
fn auto_does_without_the_privilege() {
    need_mounts!();
    let scratch = Scratch::disk();
    let stack = Stack::writable(&scratch, vec![scratch.dir("lower")]);
    let options = stack.options() + ",io=auto";
    // Root of a user namespace has the capability there only.
    let script = r#""$1" -o "$2" "$3" && echo data >"$3/file" && "$1" stats "$3" && umount "$3""#;
    let output = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--mount",
            "bash",
            "-ec",
            script,
            "-",
        ])
        .arg(program())
        .arg(options)
        .arg(&stack.mnt)
        .output()
        .unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{stdout}{stderr}");
    let line = stdout.lines().find(|line| line.starts_with("io ")).unwrap();
    assert!(line.ends_with("cached"), "{line}");
    assert_eq!(
        std::fs::read(scratch.path().join("upper/file")).unwrap(),
        b"data\n"
    );
}
