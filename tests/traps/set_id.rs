//! Set-user-ID, set-group-ID and `security.capability`: dropped by write, truncate, chown,
//! fallocate and copy_file_range when the kernel drops them, kept by copy-up.

use std::fmt::Write as _;
use std::process::Command;

use testkit::fixture::Fixture;
use testkit::layers::{Form, Layer, net_raw_capability, standard};
use testkit::map::Map;
use testkit::mount::{Fs, KERNEL};
use testkit::{need_mounts, tree};

use crate::{same_as_kernel, same_on_standard};

/// Operations that may drop the bits of file `f`.
const CHANGES: [&str; 9] = [
    "write {f} 0 x",
    "write {f} 0 x a",
    "write {f} 0 x t",
    "truncate {f} 1",
    "truncate {f} 100",
    "fallocate {f} 0 0 8192",
    "fallocate {f} 3 0 4096",
    "copyrange source 0 {f} 0 4",
    "chown {f} 1000 1000",
];

/// With and without group execution, which decides what setgid means.
const MODES: [u32; 7] = [0o6777, 0o4711, 0o2711, 0o2745, 0o6766, 0o2666, 0o6700];

fn files(modes: &[u32], capable: bool) -> Vec<Layer> {
    let mut layer = Layer::new().file("source", "source\n");
    for (n, mode) in modes.iter().enumerate() {
        for m in 0..CHANGES.len() {
            // Owned by the user that changes them below.
            layer = layer
                .file(format!("f{n}-{m}"), "content\n")
                .own(1000, 1000)
                .mode(*mode);
            if capable {
                layer = layer.xattr("security.capability", net_raw_capability());
            }
        }
    }
    vec![layer]
}

fn script(who: &str) -> String {
    let mut text = format!("chmod source 666\n{who}\n");
    for n in 0..MODES.len() {
        for (m, change) in CHANGES.iter().enumerate() {
            let file = format!("f{n}-{m}");
            let change = change.replace("{f}", &file);
            // The first change copies up, the second finds the file in the upper.
            for _ in 0..2 {
                write!(
                    text,
                    "{change}
                     stat {file}
                     getxattr {file} security.capability
                     "
                )
                .unwrap();
            }
        }
    }
    text
}

#[test]
fn dropped_for_the_owner() {
    need_mounts!();
    same_as_kernel(&files(&MODES, true), &script("as 1000 1000"), false);
}

/// `mount/differences` tests files with both a capability and set-id bits.
#[test]
fn dropped_for_root() {
    need_mounts!();
    same_as_kernel(&files(&MODES, false), &script("umask 22"), false);
    same_as_kernel(&files(&[0o755; 7], true), &script("umask 22"), false);
}

/// Changes by a user who may write because of the mode.
#[test]
fn dropped_for_others() {
    need_mounts!();
    same_as_kernel(&files(&MODES, true), &script("as 1001 1001"), false);
}

#[test]
fn kept_by_changes_of_names_and_attributes() {
    need_mounts!();
    same_on_standard(
        "utimens suid 1.1 2.2
         stat suid
         setxattr suid user.a 1
         stat suid
         rename suid merged/suid
         stat merged/suid
         link merged/suid s2
         stat s2
         chmod merged/suid 6711
         stat s2
         setxattr caps user.a 1
         rename caps merged/caps
         link merged/caps c2
         getxattr c2 security.capability
         as 1000 1000
         chmod of-1000/f 6755
         stat of-1000/f
         chmod of-1000/f 2755
         stat of-1000/f",
    );
}

/// The server gets a mapped write as any other, and its write drops the bits; it gets no message
/// for passed-through writes.
#[test]
fn a_mapped_write_drops_capabilities() {
    need_mounts!();
    let capabilities = |fs: &Fs| {
        let mut f = Fixture::with(fs, &standard(), Form::Kernel, true);
        let mut options = std::fs::OpenOptions::new();
        let file = options.read(true).write(true).open(f.at("caps")).unwrap();
        Map::shared(&file, true).unwrap().write(0, b"X").unwrap();
        drop(file);
        f.remount();
        assert_eq!(std::fs::read(f.at("caps")).unwrap()[0], b'X');
        tree::xattr(&f.at("caps"), b"security.capability").is_ok()
    };
    assert!(capabilities(&KERNEL));
    assert!(!capabilities(&Fs::Unionfs("io=cached")));
}

/// A program with a capability from a lower works, also as a copy and after a remount.
#[test]
fn setcap_programs_work() {
    need_mounts!();
    let program = std::fs::read("/bin/cat").unwrap();
    // cap_dac_override+ep: it reads a file that its caller may not read.
    let mut capability = net_raw_capability();
    capability[4..8].copy_from_slice(&(1u32 << 1).to_le_bytes());
    let layer = Layer::new()
        .file("reader", program)
        .mode(0o755)
        .xattr("security.capability", capability)
        .file("secret", "secret\n")
        .mode(0o600);
    let mut f = Fixture::new(&[layer]);
    let read = |f: &Fixture| {
        let mut command = Command::new(f.at("reader"));
        let command = command.arg(f.at("secret"));
        std::os::unix::process::CommandExt::uid(command, 65534);
        std::os::unix::process::CommandExt::gid(command, 65534);
        command.output().unwrap().stdout
    };
    assert_eq!(read(&f), b"secret\n", "from the lower");
    f.ok("utimens reader 1.1 2.2");
    assert_eq!(read(&f), b"secret\n", "from the upper");
    f.remount();
    assert_eq!(read(&f), b"secret\n", "after a remount");
    f.ok("write reader 0 \\x7f");
    assert_eq!(
        tree::xattr(&f.at("reader"), b"security.capability").err(),
        Some(rustix::io::Errno::NODATA),
        "a write drops it"
    );
}
