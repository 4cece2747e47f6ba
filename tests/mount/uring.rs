//! The transport over io_uring: how it is selected, which requests do not block others, and every
//! way it ends. The suites run with `UNIONFS_TEST_TRANSPORT=uring` (ci/test.sh does so) test that
//! it serves all operations.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testkit::fixture::Fixture;
use testkit::layers::{self, Form, Layer};
use testkit::mount::{Fs, Mounted, Scratch, Stack, poll};
use testkit::need::has_uring;
use testkit::task::{bind, tasks};
use testkit::uring::Switch;
use testkit::{need, need_mounts, program};

const URING: Fs = Fs::Unionfs("transport=uring");
/// Longer than any operation that is not stuck takes.
const LONG: Duration = Duration::from_secs(20);

fn standard(fs: &Fs) -> Fixture {
    Fixture::with(fs, &layers::standard(), Form::Kernel, true)
}

/// Returns the transport of a mount by its `stats`.
fn transport_of(mnt: &Path) -> String {
    let mut command = Command::new(program());
    let output = command
        .arg("stats")
        .arg(mnt)
        .arg("--json")
        .output()
        .unwrap();
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    json["mount"]["transport"].as_str().unwrap().to_owned()
}

fn signal(server: u32, signal: Signal) {
    let pid = Pid::from_raw(server as i32).unwrap();
    kill_process(pid, signal).unwrap();
}

fn is_running(pid: u32) -> bool {
    // A zombie only waits for its parent, which may be this process.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Returns the CPUs that the server's threads of a name may use.
fn threads(server: u32, name: &str) -> Vec<String> {
    let named = tasks(server).into_iter().filter(|t| t.name == name);
    named.map(|t| t.cpus).collect()
}

#[test]
fn it_is_chosen_where_it_is_offered() {
    need_mounts!();
    need!(has_uring());
    for (fs, transport) in [
        (URING, "uring"),
        (Fs::Unionfs("transport=classic"), "classic"),
    ] {
        let f = standard(&fs);
        assert_eq!(transport_of(f.root()), transport);
    }
    let output = Command::new(program()).args(["ps"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("TRANSPORT"));
}

#[test]
fn without_the_switch_it_is_an_error_that_names_it() {
    need_mounts!();
    need!(has_uring());
    let scratch = Scratch::disk();
    let stack = Stack {
        lowers: layers::write_all(&layers::standard(), scratch.path(), Form::Kernel),
        upper: None,
        mnt: scratch.dir("mnt"),
    };
    let _off = Switch::set("N");
    let mount = |transport: &str| {
        let options = format!("{},transport={transport}", stack.options());
        let mut command = Command::new(program());
        command
            .args(["-o", &options])
            .arg(&stack.mnt)
            .output()
            .unwrap()
    };
    let output = mount("uring");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && text.contains("enable_uring"),
        "{text}"
    );
    assert!(mount("carrier-pigeon").status.code() == Some(2));
    // The fallback is silent, because io_uring was not requested.
    assert!(mount("auto").status.success());
    assert_eq!(transport_of(&stack.mnt), "classic");
    rustix::mount::unmount(&stack.mnt, UnmountFlags::DETACH).unwrap();
}

/// Each CPU's thread stays on its CPU; the threads that it starts for slow work do not.
#[test]
fn threads_are_pinned_and_slow_work_is_not() {
    need_mounts!();
    need!(has_uring());
    let f = standard(&URING);
    let server = f.mounted().servers()[0];
    // A copy-up, by a thread of each CPU.
    f.ok("write plain.txt 0 changed");
    let all = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    assert_eq!(threads(server, "unionfs-cpu0")[0], "0");
    let slow = threads(server, "unionfs-slow");
    assert!(
        !slow.is_empty() && slow.iter().all(|cpus| *cpus == all.trim()),
        "{slow:?}"
    );
}

/// A mount whose lower is served by another mount, which can be stopped.
struct Stuck {
    below: Fixture,
    top: Option<Mounted>,
    scratch: Scratch,
    mnt: PathBuf,
}

impl Stuck {
    fn new(files: usize) -> Self {
        let lower = (0..files).fold(Layer::new(), |l, n| l.file(format!("f{n}"), format!("{n}")));
        let below = Fixture::with(
            &Fs::Unionfs("transport=classic"),
            &[lower],
            Form::Kernel,
            false,
        );
        let scratch = Scratch::disk();
        let stack = Stack::writable(&scratch, vec![below.root().to_owned()]);
        let top = URING.mount(&stack);
        fs::write(stack.mnt.join("upper"), "here").unwrap();
        // The names are cached; the content of the files is not.
        for entry in fs::read_dir(&stack.mnt).unwrap() {
            entry.unwrap().metadata().unwrap();
        }
        Self {
            below,
            top: Some(top),
            scratch,
            mnt: stack.mnt,
        }
    }

    /// Stops the server; returns when none of its threads can take another request.
    fn stop(&self) {
        let server = self.below.mounted().servers()[0];
        signal(server, Signal::STOP);
        let stopped = |task: std::io::Result<fs::DirEntry>| {
            let stat = fs::read_to_string(task.unwrap().path().join("stat"));
            stat.unwrap().contains(") T ")
        };
        let tasks = || fs::read_dir(format!("/proc/{server}/task")).unwrap();
        assert!(poll(|| tasks().all(stopped)), "it does not stop");
    }

    fn go_on(&self) {
        signal(self.below.mounted().servers()[0], Signal::CONT);
    }

    /// Starts threads on the first CPU that read the files, each its own. They start one after the
    /// other, as soon as there is a place: the kernel hands out a queued request only with an
    /// answer, and here no request is answered (docs/ARCHITECTURE.md, "Two ways").
    fn readers(&self, files: usize) -> mpsc::Receiver<std::io::Result<String>> {
        let (sender, results) = mpsc::channel();
        for n in 0..files {
            assert!(poll(|| self.has_idle_place()), "no place for reader {n}");
            // A thread that only just waits may not have its entry with the kernel yet; a request
            // that comes before stays in the queue.
            std::thread::sleep(Duration::from_millis(20));
            assert!(poll(|| self.has_idle_place()), "no place for reader {n}");
            let (path, sender) = (self.mnt.join(format!("f{n}")), sender.clone());
            std::thread::spawn(move || {
                bind(0);
                let _ = sender.send(fs::read_to_string(path));
            });
            // Its READ has a place, and there is a further one for the next request.
            assert!(poll(|| self.places() > n + 1));
        }
        assert!(poll(|| self.has_idle_place()));
        results
    }

    /// Tells whether a thread of the first CPU waits for requests.
    fn has_idle_place(&self) -> bool {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.server())).unwrap();
        tasks.filter_map(Result::ok).any(|task| {
            let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
            read("comm").trim() == "unionfs-cpu0" && read("wchan") == "io_cqring_wait"
        })
    }

    /// Returns the number of threads that serve requests of the first CPU. The overflow thread may
    /// have had an entry open; it passes its requests on to the pool.
    fn places(&self) -> usize {
        let of = |name| threads(self.server(), name).len();
        of("unionfs-cpu0") + of("unionfs-slow")
    }

    fn server(&self) -> u32 {
        self.top.as_ref().unwrap().servers()[0]
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        self.go_on();
        drop(self.top.take());
    }
}

#[test]
fn nothing_waits_behind_a_request_that_blocks() {
    need_mounts!();
    need!(has_uring());
    let stuck = Stuck::new(8);
    stuck.stop();
    let results = stuck.readers(8);
    assert!(
        results.recv_timeout(Duration::from_millis(300)).is_err(),
        "they are stuck"
    );
    let (sender, done) = mpsc::channel();
    let file = stuck.mnt.join("upper");
    std::thread::spawn(move || {
        bind(0);
        for n in 0..20 {
            fs::write(&file, format!("{n}")).unwrap();
        }
        let _ = sender.send(fs::read_to_string(&file));
    });
    let written = done.recv_timeout(LONG).expect("stalled behind the readers");
    assert_eq!(written.unwrap(), "19");
    assert!(results.try_recv().is_err(), "the readers are still stuck");
    let places = stuck.places();
    assert!((9..20).contains(&places), "{places} threads");
    stuck.go_on();
    let read: Vec<_> = (0..8)
        .map(|_| results.recv_timeout(LONG).unwrap().unwrap())
        .collect();
    assert_eq!(read.iter().map(String::len).sum::<usize>(), 8);
    let first = threads(stuck.server(), "unionfs-cpu0");
    assert!(first.iter().all(|cpus| cpus == "0"), "{first:?}");
}

/// Aborts as `fusectl` does, also while the server handles requests.
#[test]
fn an_aborted_connection_ends_at_once_and_so_does_its_server() {
    need_mounts!();
    need!(has_uring());
    let stuck = Stuck::new(3);
    stuck.stop();
    let results = stuck.readers(3);
    assert!(results.recv_timeout(Duration::from_millis(300)).is_err());
    let control = stuck.scratch.dir("control");
    rustix::mount::mount("fusectl", &control, "fusectl", MountFlags::empty(), None).unwrap();
    // Answered from the cache, without a request.
    let minor = rustix::fs::minor(fs::metadata(stuck.mnt.join("upper")).unwrap().dev());
    fs::write(control.join(format!("{minor}/abort")), "1").unwrap();
    rustix::mount::unmount(&control, UnmountFlags::DETACH).unwrap();
    for _ in 0..3 {
        results.recv_timeout(LONG).expect("not let go").unwrap_err();
    }
    let server = stuck.server();
    stuck.go_on();
    assert!(poll(|| !is_running(server)), "the server still runs");
}

#[test]
fn a_killed_server_leaves_nobody_waiting() {
    need_mounts!();
    need!(has_uring());
    for busy in [false, true] {
        let stuck = Stuck::new(3);
        let results = busy.then(|| {
            stuck.stop();
            let results = stuck.readers(3);
            assert!(results.recv_timeout(Duration::from_millis(300)).is_err());
            results
        });
        let server = stuck.server();
        signal(server, Signal::KILL);
        // A process that waits for the stopped server can be killed, too.
        assert!(poll(|| !is_running(server)), "busy: {busy}");
        if let Some(results) = results {
            for _ in 0..3 {
                results.recv_timeout(LONG).expect("not let go").unwrap_err();
            }
        }
        let (sender, answer) = mpsc::channel();
        let path = stuck.mnt.join("unknown");
        std::thread::spawn(move || drop(sender.send(fs::metadata(path))));
        answer.recv_timeout(LONG).expect("hangs").unwrap_err();
    }
}

#[test]
fn unmounting_and_sigterm_end_it_under_load() {
    need_mounts!();
    need!(has_uring());
    for by_signal in [false, true] {
        let f = standard(&URING);
        let server = f.mounted().servers()[0];
        let (root, (stop, stopped)) = (f.root().to_owned(), mpsc::channel::<()>());
        let load = std::thread::spawn(move || {
            let mut rounds = 0;
            while stopped.try_recv().is_err() {
                // This ends the loop as well: the write fails once the mount is gone.
                let _ = fs::write(root.join(format!("new{}", rounds % 7)), "data");
                let _ = fs::remove_file(root.join(format!("new{}", (rounds + 3) % 7)));
                rounds += 1;
            }
            rounds
        });
        std::thread::sleep(Duration::from_millis(100));
        if by_signal {
            signal(server, Signal::TERM);
        } else {
            rustix::mount::unmount(f.root(), UnmountFlags::DETACH).unwrap();
        }
        assert!(poll(|| !is_running(server)), "by signal: {by_signal}");
        stop.send(()).unwrap();
        assert!(load.join().unwrap() > 0);
    }
}
