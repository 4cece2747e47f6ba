//! SIGINT, SIGTERM and SIGHUP in the middle of commands that move images: the process dies of the
//! signal and leaves nothing. The next command removes what SIGKILL leaves.

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use serde_json::json;
use testkit::home::{Home, kill, wait_until};
use testkit::need::can_mount;
use testkit::{need, program};
use unionfs::oci::{Digest, Reference};
use unionfs::store::Writable;

const SIGNALS: [Signal; 3] = [Signal::INT, Signal::TERM, Signal::HUP];
/// A size that no command processes before the signal comes, and for which there is room; the file has
/// holes and zeros.
const LARGE: u64 = 4 << 30;

fn entries(dir: &Path) -> usize {
    std::fs::read_dir(dir).into_iter().flatten().count()
}

/// Returns the number of files and directories that are in the own store while a command takes
/// something in.
fn staged(home: &Home) -> usize {
    let of = |name: &str| entries(&home.path("own").join(name));
    let links = of("overlay2/l");
    of("image/overlay2/layerdb/tmp") + of("unionfs/tmp") + of("overlay2") + links
}

/// Starts the command, waits until it is `begun`, and sends it each signal; asserts that nothing is
/// left.
fn ends_clean(home: &Home, start: impl Fn() -> Child, begun: impl Fn() -> bool) {
    let before = home.json(["df", "--json"]);
    let was = staged(home);
    for signal in SIGNALS {
        let mut child = start();
        // What ends by itself has said why.
        let ended = |child: &mut Child| child.try_wait().unwrap().is_some();
        wait_until("it has begun", || begun() || ended(&mut child));
        kill(i32::try_from(child.id()).unwrap(), signal);
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.signal(), Some(signal.as_raw()), "{text}");
        assert!(text.contains("unionfs: interrupted"), "{text}");
        assert_eq!(staged(home), was, "{signal:?} left something");
        assert_eq!(home.json(["df", "--json"]), before);
        let report = home.json(["prune", "-n", "--json"]);
        assert_eq!(report["items"], json!([]), "{signal:?}");
    }
}

fn command(home: &Home, args: &[&str]) -> Command {
    let mut command = home.signalled(program());
    command
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Tells whether the process has the thread that waits for signals.
fn handles_signals(process: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task"));
    let mut tasks = tasks.into_iter().flatten().flatten();
    tasks.any(|task| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name == "signals\n")
    })
}

/// Returns the beginning of a tar of one large file.
fn beginning() -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_path("large").unwrap();
    header.set_mode(0o644);
    header.set_size(2 << 20);
    header.set_cksum();
    [header.as_bytes().as_slice(), &[7; 1 << 20]].concat()
}

/// Starts a command that reads from a pipe into which nothing more is written.
fn piped(home: &Home, args: &[&str]) -> Child {
    let mut child = command(home, args).stdin(Stdio::piped()).spawn().unwrap();
    child
        .stdin
        .as_mut()
        .unwrap()
        .write_all(&beginning())
        .unwrap();
    child
}

/// Returns a home whose store has an image `small:1`.
fn home() -> Home {
    let home = Home::new();
    home.dirs(&["rootfs", "mnt"]);
    std::fs::write(home.path("rootfs/file"), "file").unwrap();
    home.run(["import", "-q", "rootfs", "small:1"]).ok();
    home
}

#[test]
fn import() {
    let home = home();
    let was = staged(&home);
    let begun = || staged(&home) > was + 2;
    let args = ["import", "-", "made:1"];
    // The command waits for its pipe, which stays open as long as the child is not waited for.
    let pipes = std::sync::Mutex::new(Vec::new());
    let start = || {
        let mut child = piped(&home, &args);
        pipes.lock().unwrap().push(child.stdin.take());
        child
    };
    ends_clean(&home, start, begun);
    // The signal comes in the middle of a large file of a directory.
    let file = std::fs::File::create(home.path("rootfs/large")).unwrap();
    file.set_len(LARGE).unwrap();
    let start = || {
        command(&home, &["import", "rootfs", "made:1"])
            .spawn()
            .unwrap()
    };
    ends_clean(&home, start, begun);
}

#[test]
fn load() {
    let home = home();
    // With a pipe the store has nothing yet, with a file it has a layer.
    let pipes = std::sync::Mutex::new(Vec::new());
    let start = || {
        let mut child = piped(&home, &["load"]);
        pipes.lock().unwrap().push(child.stdin.take());
        wait_until("signals are waited for", || handles_signals(child.id()));
        child
    };
    ends_clean(&home, start, || true);
    // The layer is small only as long as it is compressed.
    let mut layer = zstd::Encoder::new(Vec::new(), 1).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_path("large").unwrap();
    header.set_mode(0o644);
    header.set_size(4 << 30);
    header.set_cksum();
    layer.write_all(header.as_bytes()).unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..4 << 10 {
        layer.write_all(&zeros).unwrap();
    }
    let layer = layer.finish().unwrap();
    let diff_id = Digest::of(b"never reached");
    let config = json!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff_id]}});
    let manifest =
        json!([{"Config": "config.json", "RepoTags": ["large:1"], "Layers": ["layer.tar"]}]);
    let mut tar = tar::Builder::new(std::fs::File::create(home.path("large.tar")).unwrap());
    for (name, data) in [
        ("config.json", config.to_string().as_bytes()),
        ("layer.tar", &layer),
        ("manifest.json", manifest.to_string().as_bytes()),
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, data).unwrap();
    }
    tar.into_inner().unwrap();
    let was = staged(&home);
    let start = || {
        command(&home, &["load", "-i", "large.tar"])
            .spawn()
            .unwrap()
    };
    ends_clean(&home, start, || staged(&home) > was + 2);
}

#[test]
fn commit() {
    need!(can_mount());
    let home = home();
    home.run(["mount", "--name", "work", "small:1", "mnt"]).ok();
    let file = std::fs::File::create(home.path("mnt/large")).unwrap();
    file.set_len(LARGE).unwrap();
    drop(file);
    home.run(["umount", "mnt"]).ok();
    let was = staged(&home);
    let start = || {
        command(&home, &["commit", "work", "made:1"])
            .spawn()
            .unwrap()
    };
    ends_clean(&home, start, || staged(&home) > was + 2);
}

/// Makes an image whose layer is one large empty file.
fn large_image(home: &Home) {
    let store = Writable::open(&home.path("own")).unwrap();
    let store = store.lock().unwrap();
    let mut staged = store.stage_layer(None).unwrap();
    let file = std::fs::File::create(staged.diff_path().join("large")).unwrap();
    file.set_len(LARGE).unwrap();
    let line = json!({"type": 1, "name": "large", "size": LARGE, "payload": null, "position": 0});
    writeln!(staged.split(), "{line}").unwrap();
    let diff_id = Digest::of(b"large");
    staged.commit(diff_id, LARGE).unwrap();
    let config = json!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff_id]}});
    let id = store.register_image(config.to_string().as_bytes()).unwrap();
    store
        .tag(&Reference::parse("large:1").unwrap(), &id)
        .unwrap();
}

#[test]
fn save_and_push() {
    let home = home();
    large_image(&home);
    home.dirs(&["out"]);
    let out = home.path("out");
    let begun = || {
        let files = std::fs::read_dir(&out).unwrap();
        files
            .flatten()
            .any(|file| file.metadata().is_ok_and(|meta| meta.len() > 1 << 20))
    };
    let args = ["save", "large:1", "-o", "out/large.tar"];
    ends_clean(&home, || command(&home, &args).spawn().unwrap(), begun);
    assert_eq!(entries(&out), 0);
    // The listener accepts the connection and sends nothing.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("{}/large:1", listener.local_addr().unwrap());
    let (sender, asked) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if sender.send(stream).is_err() {
                return;
            }
        }
    });
    let streams = std::sync::Mutex::new(Vec::new());
    let begun = || {
        let stream = asked
            .recv_timeout(std::time::Duration::from_secs(10))
            .unwrap();
        streams.lock().unwrap().push(stream);
        true
    };
    let args = ["push", "large:1", &name];
    ends_clean(&home, || command(&home, &args).spawn().unwrap(), begun);
}

#[test]
fn what_a_kill_leaves_the_next_command_sweeps_away() {
    let home = home();
    let was = staged(&home);
    let mut child = piped(&home, &["import", "-", "made:1"]);
    wait_until("it has begun", || staged(&home) > was + 2);
    kill(i32::try_from(child.id()).unwrap(), Signal::KILL);
    child.wait().unwrap();
    assert!(staged(&home) > was);
    // A command that only reads changes nothing.
    let report = home.json(["prune", "-n", "--json"]);
    assert_ne!(report["items"], json!([]));
    home.run(["import", "-q", "rootfs", "small:2"]).ok();
    let report = home.json(["prune", "-n", "--json"]);
    assert_eq!(report["items"], json!([]));
}

/// A signal that the caller ignores stays ignored, as with nohup(1).
#[test]
fn an_ignored_signal_stays_ignored() {
    let home = home();
    let was = staged(&home);
    let mut child = home
        .command("sh")
        .args([
            "-c",
            "trap '' HUP; exec \"$0\" import -q - made:1",
            program(),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    pipe.write_all(&beginning()).unwrap();
    wait_until("it has begun", || staged(&home) > was + 2);
    kill(i32::try_from(child.id()).unwrap(), Signal::HUP);
    std::thread::sleep(std::time::Duration::from_millis(300));
    pipe.write_all(&[7; 1 << 20]).unwrap();
    pipe.write_all(&[0; 1024]).unwrap();
    drop(pipe);
    assert!(child.wait().unwrap().success());
}
