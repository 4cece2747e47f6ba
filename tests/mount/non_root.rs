//! A plain user mounts their own directories through fusermount3. /dev/fuse may be closed to users
//! here, so the test enters a mount namespace of its own and puts an open node over it; the mount
//! starts and ends there.

use std::path::Path;
use std::process::Command;

use testkit::mount::{Scratch, chmod};
use testkit::need::{Needed, has_tools};
use testkit::{need, need_mounts, tree};

/// Runs `script` as uid and gid 1000 in `dir`; returns its output.
fn as_user(dir: &Path, script: &str) -> String {
    let outer = format!(
        "set -e
        mknod -m 666 fuse-node c 10 229
        mount --bind fuse-node /dev/fuse
        exec setpriv --reuid=1000 --regid=1000 --clear-groups --inh-caps=-all \
            env HOME={home} XDG_RUNTIME_DIR={home} sh -ec '{script}'",
        home = dir.display(),
    );
    let output = Command::new("unshare")
        .args(["--mount", "--propagation=private", "sh", "-c", &outer])
        .current_dir(dir)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

fn prepare() -> Needed<Scratch> {
    has_tools(&["unshare", "setpriv", "fusermount3"])?;
    let scratch = Scratch::disk();
    for dir in ["low", "low/d", "upper", "work", "mnt"] {
        scratch.dir(dir);
    }
    let low = scratch.path().join("low");
    std::fs::write(low.join("f"), "lower\n").unwrap();
    std::fs::write(low.join("d/g"), "lower\n").unwrap();
    // The build directory may be closed to other users.
    let program = scratch.path().join("unionfs");
    std::fs::copy(testkit::program(), &program).unwrap();
    chmod(&program, 0o755);
    for path in [
        "", "low", "low/f", "low/d", "low/d/g", "upper", "work", "mnt",
    ] {
        let path = scratch.path().join(path);
        std::os::unix::fs::chown(&path, Some(1000), Some(1000)).unwrap();
    }
    Ok(scratch)
}

const MOUNT: &str = "./unionfs -o lowerdir=low,upperdir=upper,workdir=work mnt";

#[test]
fn a_user_mounts_changes_and_unmounts() {
    need_mounts!();
    let scratch = need!(prepare());
    let script = format!(
        "{MOUNT}
        cat mnt/f
        echo changed > mnt/f; rm mnt/d/g; rmdir mnt/d; mkdir mnt/d; echo new > mnt/d/n
        ls mnt/d; stat -c %u:%g mnt/d/n
        fusermount3 -u mnt
        {MOUNT}
        cat mnt/f; ls mnt/d
        grep -o \"fuse.unionfs [^ ]*\" /proc/mounts | tr , \"\\n\" | grep -xE \"nosuid|nodev\" | sort
        fusermount3 -u mnt"
    );
    let text = as_user(scratch.path(), &script);
    assert_eq!(text, "lower\nn\n1000:1000\nchanged\nn\nnodev\nnosuid\n");
    let lower = std::fs::read_to_string(scratch.path().join("low/f")).unwrap();
    assert_eq!(lower, "lower\n");
}

/// Kernel overlayfs with `userxattr` reads the upper of an unprivileged mount.
#[test]
fn markers_are_user_xattrs() {
    need_mounts!();
    let scratch = need!(prepare());
    let script = format!("{MOUNT}\nrm -r mnt/d; mkdir mnt/d\nfusermount3 -u mnt");
    as_user(scratch.path(), &script);
    let opaque = tree::xattr(&scratch.path().join("upper/d"), b"user.overlay.opaque");
    assert_eq!(opaque, Ok(b"y".to_vec()));
}

/// A file that its owner may not read is still shown, and the owner can restore its permissions.
#[test]
fn files_without_permissions_can_be_looked_up() {
    need_mounts!();
    let scratch = need!(prepare());
    scratch.dir("low/closed");
    scratch.dir("low/e");
    scratch.dir("low/ro");
    let own = |path| std::os::unix::fs::chown(scratch.path().join(path), Some(1000), Some(1000));
    own("low/closed").unwrap();
    own("low/e").unwrap();
    own("low/ro").unwrap();
    chmod(&scratch.path().join("low/ro"), 0o555);
    chmod(&scratch.path().join("low/closed"), 0);
    // A hard-linked file that may only be read.
    let (low, d) = (scratch.path().join("low"), scratch.path().join("low/d"));
    std::fs::hard_link(d.join("g"), low.join("g2")).unwrap();
    chmod(&low.join("g2"), 0o444);
    let script = format!(
        "{MOUNT}
        rmdir mnt/e; mkdir mnt/e; echo more >> mnt/f; echo x > mnt/d/x
        chmod 000 mnt/e mnt/f; chmod 311 mnt/d
        fusermount3 -u mnt
        {MOUNT}
        stat -c %a mnt/e mnt/f mnt/closed; cat mnt/d/x mnt/d/g
        ln mnt/g2 mnt/g3; rm -f mnt/g2; stat -c \"%a %h\" mnt/g3
        chmod 755 mnt/e mnt/f mnt/closed
        cat mnt/f; ls mnt/e; stat -c %a mnt/closed
        rmdir mnt/ro; mkdir -m 500 mnt/ro; rmdir mnt/ro
        fusermount3 -u mnt"
    );
    let text = as_user(scratch.path(), &script);
    let expected = "0\n0\n0\nx\nlower\n444 2\nlower\nmore\n755\n";
    assert_eq!(text, expected);
}
