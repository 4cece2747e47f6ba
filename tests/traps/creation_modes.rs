//! Modes of new files, directories, FIFOs and devices under every umask, in plain directories, in
//! setgid ones, below a default ACL, and below both.

use std::fmt::Write as _;

use testkit::layers::{Layer, acl};
use testkit::need_mounts;

use crate::same_as_kernel;

/// Returns a directory of each kind, in a lower: the first creation copies it up.
fn directories() -> Vec<Layer> {
    let default = acl(6, &[(1000, 5)], 4, 7, 1);
    let layer = Layer::new()
        .dir("plain")
        .mode(0o777)
        .dir("setgid")
        .mode(0o2777)
        .own(0, 1234)
        .dir("acl")
        .mode(0o777)
        .xattr("system.posix_acl_default", &default)
        .dir("both")
        .mode(0o2777)
        .own(0, 1234)
        .xattr("system.posix_acl_default", &default);
    vec![layer]
}

/// Adds the creation of each kind under `umask`, checked by stat and by the inherited ACL. Together
/// the modes request every bit.
fn probe(text: &mut String, umask: u32) {
    writeln!(text, "umask {umask:o}").unwrap();
    for dir in ["plain", "setgid", "acl", "both"] {
        for (n, kind) in [
            "create {p} 666",
            "create {p} 6751",
            "mkdir {p} 777",
            "mknod {p} 10666 0 0",
            "mknod {p} 20620 1 3",
            "mknod {p} 100660 0 0",
        ]
        .iter()
        .enumerate()
        {
            // A few stay, for the trees and the remounts.
            let keep = umask.is_multiple_of(73);
            let path = if keep {
                format!("{dir}/{umask:o}-{n}")
            } else {
                format!("{dir}/x")
            };
            let create = kind.replace("{p}", &path);
            writeln!(text, "{create}\nstat {path}").unwrap();
            if dir != "plain" && dir != "setgid" {
                writeln!(text, "getxattr {path} system.posix_acl_access").unwrap();
            }
            if !keep {
                let remove = if create.starts_with("mkdir") {
                    "rmdir"
                } else {
                    "unlink"
                };
                writeln!(text, "{remove} {path}").unwrap();
            }
        }
    }
}

#[test]
fn every_umask() {
    need_mounts!();
    let mut text = String::new();
    for umask in 0..0o1000 {
        probe(&mut text, umask);
    }
    same_as_kernel(&directories(), &text, true);
}

/// As a user who is not in the directory's group: files lose setgid.
#[test]
fn every_umask_of_a_user() {
    need_mounts!();
    let mut text = String::from("as 1000 1000\n");
    for umask in (0..0o1000).step_by(7) {
        // Only root can make a device: the answer is EPERM on both.
        probe(&mut text, umask);
    }
    same_as_kernel(&directories(), &text, true);
}

/// Directories inherit setgid and the default ACL, and pass them on.
#[test]
fn inheritance_goes_down() {
    need_mounts!();
    let mut text = String::new();
    for dir in ["setgid", "acl", "both"] {
        write!(
            text,
            "umask 027
             mkdir {dir}/d 700
             mkdir {dir}/d/e 777
             umask 077
             create {dir}/d/e/f 644
             symlink x {dir}/d/e/s
             stat {dir}/d/e
             stat {dir}/d/e/f
             stat {dir}/d/e/s
             getxattr {dir}/d/e system.posix_acl_default
             getxattr {dir}/d/e/f system.posix_acl_access
             "
        )
        .unwrap();
    }
    same_as_kernel(&directories(), &text, false);
}
