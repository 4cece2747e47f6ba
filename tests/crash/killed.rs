//! SIGKILL while several threads change the tree.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use testkit::layers::{self, Form};
use testkit::mount::{Fs, KERNEL, Scratch, Stack, UNIONFS, poll};
use testkit::need_mounts;
use testkit::tree::{self, Mask};

const DIRS: [&str; 4] = [".", "merged", "merged/sub", "deep/a"];
const ROUNDS: u64 = 4;

/// Generates names by a small generator. There are few names, so the threads collide.
struct Names<'a>(&'a Path, u64);

impl Names<'_> {
    fn number(&mut self, below: u64) -> u64 {
        // Knuth's MMIX constants.
        self.1 = self
            .1
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.1 >> 33) % below
    }

    fn path(&mut self) -> PathBuf {
        let dir = DIRS[self.number(DIRS.len() as u64) as usize];
        let known = ["plain.txt", "h1", "h2", "over", "top", "sub", "both.txt"];
        let name = match self.number(12) {
            n if (n as usize) < known.len() => known[n as usize].to_owned(),
            n => format!("new{n}"),
        };
        self.0.join(dir).join(name)
    }
}

/// Makes one random change. Most changes fail, and all do once the server is dead.
fn change(names: &mut Names<'_>) -> std::io::Result<()> {
    let (a, b) = (names.path(), names.path());
    match names.number(8) {
        0 => fs::write(a, vec![b'x'; 5000]),
        1 => fs::remove_file(a),
        2 => fs::rename(a, b),
        3 => fs::create_dir(a),
        4 => fs::remove_dir(a),
        5 => fs::hard_link(a, b),
        6 => fs::set_permissions(a, std::os::unix::fs::PermissionsExt::from_mode(0o640)),
        _ => fs::OpenOptions::new()
            .write(true)
            .open(a)?
            .write_all_at(b"changed", 1),
    }
}

#[test]
fn the_tree_is_whole_and_the_kernels_too() {
    need_mounts!();
    kill_in_the_middle(&UNIONFS, &KERNEL);
}

#[test]
fn metacopies_are_whole_and_the_kernels_too() {
    need_mounts!();
    let kernel = Fs::Kernel("index=on,redirect_dir=on,metacopy=on,xino=auto");
    kill_in_the_middle(&Fs::Unionfs("metacopy=on"), &kernel);
}

fn kill_in_the_middle(union: &Fs, kernel: &Fs) {
    let scratch = Scratch::disk();
    let stack = Stack {
        lowers: layers::write_all(&layers::standard(), scratch.path(), Form::Kernel),
        upper: Some((scratch.dir("upper"), scratch.dir("work"))),
        mnt: scratch.dir("mnt"),
    };
    let lowers: Vec<_> = stack.lowers.iter().map(|l| tree::list_raw(l)).collect();
    for round in 0..ROUNDS {
        let mounted = union.mount(&stack);
        let servers = mounted.servers().to_vec();
        let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (stack, stop, done) = (&stack, &stop, &done);
                scope.spawn(move || {
                    let mut names = Names(&stack.mnt, round * 100 + thread);
                    while !stop.load(Ordering::Relaxed) {
                        done.fetch_add(u64::from(change(&mut names).is_ok()), Ordering::Relaxed);
                    }
                });
            }
            assert!(
                poll(|| done.load(Ordering::Relaxed) > 50),
                "no change ever succeeds"
            );
            std::thread::sleep(Duration::from_millis(50 * round));
            for pid in servers {
                let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
        drop(mounted);
        let mounted = union.mount(&stack);
        let ours = tree::list(mounted.path());
        mounted.unmount();
        let overlay = kernel.mount(&stack);
        let theirs = tree::list(overlay.path());
        overlay.unmount();
        tree::assert_same(&format!("round {round}"), &theirs, &ours, &Mask::ALL);
        let staging = stack.upper.as_ref().unwrap().1.join("work");
        let left = fs::read_dir(staging).unwrap().count();
        assert_eq!(left, 0, "staging is swept at mount");
    }
    let after: Vec<_> = stack.lowers.iter().map(|l| tree::list_raw(l)).collect();
    assert!(lowers == after, "a lower has changed");
}
