//! Containers of buildah: the content that it writes with the kernel's overlay, with fuse-overlayfs
//! or with unionfs as its mount program is the same with each of the others.

use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::mount::{Scratch, fuse_overlayfs};
use testkit::need::has_tools;
use testkit::tree::{self, Mask, Tree};
use testkit::{exec, need, need_mounts, program, script};

const BASE: &str = "
    mkdir d 755
    create d/f 644
    write d/f 0 old
    mkdir d/sub 755
    create d/sub/g 600
    create gone 644
    symlink d link
    create tool 4755
    mkdir emptied 1777
    create emptied/x 644";

const CHANGES: &str = "
    unlink gone
    unlink d/f
    unlink d/sub/g
    rmdir d/sub
    rmdir d
    mkdir d 700
    create d/new 644
    write tool 0 changed
    unlink emptied/x
    unlink link
    mkdir link 755
    create link/inside 644";

/// A storage root of buildah.
struct Buildah {
    scratch: Scratch,
}

impl Buildah {
    fn call(&self, program: Option<&str>, args: &[&str]) -> String {
        // With this file buildah would look for fuse-overlayfs and use it instead of the kernel.
        if program.is_none() {
            let mark = self.scratch.path().join("root/overlay/.has-mount-program");
            let _ = std::fs::remove_file(mark);
        }
        let mut command = Command::new("buildah");
        for (option, dir) in [("--root", "root"), ("--runroot", "run")] {
            command.arg(option).arg(self.scratch.path().join(dir));
        }
        command.args(["--storage-driver", "overlay"]);
        if let Some(program) = program {
            command.args(["--storage-opt", &format!("overlay.mount_program={program}")]);
        }
        let output = command.args(args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "buildah {args:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Mounts a container, runs a script that must succeed, returns the listing, and unmounts.
    fn visit(&self, program: Option<&str>, container: &str, text: &str) -> Tree {
        let root = PathBuf::from(self.call(program, &["mount", container]));
        let ops = script::parse(text);
        for (op, answer) in ops.iter().zip(exec::run(&root, &ops)) {
            assert!(answer.is_ok(), "{program:?}: {op}: {answer:?}");
        }
        let tree = tree::list(&root);
        self.call(program, &["umount", container]);
        tree
    }
}

impl Drop for Buildah {
    fn drop(&mut self) {
        // The driver bind-mounts its directory on itself; a failed test leaves containers mounted.
        let base = self.scratch.path().to_str().unwrap().to_owned();
        let mounts = std::fs::read_to_string("/proc/thread-self/mounts").unwrap();
        let points = mounts.lines().filter_map(|l| l.split(' ').nth(1));
        for point in points
            .filter(|p| p.starts_with(&base))
            .collect::<Vec<_>>()
            .iter()
            .rev()
        {
            let _ = rustix::mount::unmount(Path::new(point), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

#[test]
fn containers_show_the_same_with_every_mount_program() {
    need_mounts!();
    need!(has_tools(&["buildah"]));
    let fuse_overlayfs = need!(fuse_overlayfs());
    let programs = [None, fuse_overlayfs.to_str(), Some(program())];
    for writer in programs {
        let buildah = Buildah {
            scratch: Scratch::disk(),
        };
        buildah.call(writer, &["from", "--name", "base", "scratch"]);
        buildah.visit(writer, "base", BASE);
        buildah.call(writer, &["commit", "--quiet", "base", "image"]);
        buildah.call(writer, &["from", "--name", "work", "image"]);
        let written = buildah.visit(writer, "work", CHANGES);
        // Pairs of the other two are not tested: the kernel reads no opaque directory of
        // fuse-overlayfs 2.0.
        let ours = Some(program());
        let readers = programs.into_iter();
        for reader in readers.filter(|r| *r == ours || writer == ours) {
            let shown = buildah.visit(reader, "work", "");
            let what = format!("written with {writer:?}, shown by {reader:?}");
            let mask = Mask::ALL;
            tree::assert_same(&what, &written, &shown, &mask);
        }
    }
}
