//! Names of 255 bytes in every operation, and longer ones, which are refused as the backing file
//! system does.

use testkit::fixture::Fixture;
use testkit::layers::Layer;
use testkit::mount::KERNEL;
use testkit::need_mounts;
use testkit::tree::{self, Mask};

use crate::{same_as_kernel, same_on_standard};

fn long(c: char) -> String {
    c.to_string().repeat(255)
}

#[test]
fn names_of_255_bytes_in_every_operation() {
    need_mounts!();
    let (a, b, c, d, e) = (long('a'), long('b'), long('c'), long('d'), long('e'));
    let (top, sub) = (long('T'), long('S'));
    let lower = Layer::new()
        .file(&a, "a\n")
        .file(&b, "b\n")
        .link(&c, &b)
        .dir(&top)
        .dir(format!("{top}/{sub}"))
        .file(format!("{top}/{sub}/{d}"), "d\n")
        .symlink(&e, &a);
    let middle = Layer::new().dir(&top).file(format!("{top}/{a}"), "a\n");
    let (x, y, z) = (long('x'), long('y'), long('z'));
    let text = format!(
        "write {a} 0 copied-up
         write {c} 0 through-a-link
         unlink {b}
         create {b} 600
         unlink {a}
         rename {top}/{sub}/{d} {d}
         rename {top}/{a} {top}/{x}
         rename {top} {y}
         mkdir {z} 755
         rename {y}/{x} {z}/{x}
         link {c} {x}
         symlink {e} {y}/{e}
         unlink {e}
         mknod {e} 10644 0 0
         setxattr {c} user.a 1
         rename {x} {d} exchange
         mkdir {a} 755
         create {a}/{a} 644
         readdir .
         readdir {y}
         unlink {a}/{a}
         rmdir {a}
         unlink {c}
         unlink {x}"
    );
    same_as_kernel(&[middle, lower], &text, false);
}

/// A redirect longer than the kernel writes (256 bytes) and one as long as it reads; the kernel
/// shows the same afterwards.
#[test]
fn redirects_longer_than_the_kernels() {
    need_mounts!();
    let deep = |n: usize| vec![long('d'); n].join("/");
    let mut layer = Layer::new();
    for n in 1..=12 {
        layer = layer
            .dir(deep(n))
            .file(format!("{}/f", deep(n)), format!("{n}\n"));
    }
    let mut f = Fixture::new(&[layer]);
    // From the bottom up: each rename moves the directories below it.
    f.ok(&format!(
        "rename {} moved12\nrename {} moved3",
        deep(12),
        deep(3)
    ));
    assert_eq!(std::fs::read(f.at("moved12/f")).unwrap(), b"12\n");
    let before = f.tree();
    f.remount();
    tree::assert_same("remounted", &before, &f.tree(), &Mask::ALL);
    f.unmount();
    let kernel = KERNEL.mount(&f.stack);
    let theirs = tree::list(kernel.path());
    kernel.unmount();
    tree::assert_same("mounted by the kernel", &before, &theirs, &Mask::ALL);
}

#[test]
fn longer_names_are_refused() {
    need_mounts!();
    let long = "n".repeat(256);
    let operations = [
        "create {n} 644",
        "mkdir {n} 755",
        "mknod {n} 10644 0 0",
        "symlink x {n}",
        "link plain.txt {n}",
        "link {n} x",
        "rename plain.txt {n}",
        "rename {n} plain.txt",
        "rename plain.txt {n} exchange",
        "unlink {n}",
        "rmdir {n}",
        "stat {n}",
        "stat merged/{n}/x",
        "read {n}",
        "readlink {n}",
        "truncate {n} 0",
        "chmod {n} 644",
        "setxattr {n} user.a 1",
        "listxattr {n}",
        "utimens {n} 1.1 1.1",
    ];
    same_on_standard(&operations.join("\n").replace("{n}", &long));
}

/// The caller's kernel checks PATH_MAX (4096 bytes with the terminating NUL); the server handles a
/// link target of 4095 bytes.
#[test]
fn long_paths_and_targets() {
    need_mounts!();
    let target = |len: usize| "t".repeat(len);
    let path = |len: usize| "./".repeat(len / 2);
    let text = format!(
        "symlink {} s4095
         readlink s4095
         symlink {} s4096
         symlink {} s1000
         rename s4095 merged/s
         readlink merged/s
         unlink s1000
         stat {}plain.txt
         stat {}plain.txt
         create {}new 644",
        target(4095),
        target(4096),
        target(1000),
        path(3000),
        path(4400),
        path(4400),
    );
    // On tmpfs: ext4 accepts no target longer than a block less one.
    same_as_kernel(&testkit::layers::standard(), &text, true);
}

/// Attribute values and names at the limits of the backing file system.
#[test]
fn long_attributes() {
    need_mounts!();
    let (name, value) = ("n".repeat(250), "v".repeat(3000));
    let longer = "n".repeat(251);
    same_on_standard(&format!(
        "setxattr plain.txt user.{name} {value}
         getxattr plain.txt user.{name}
         setxattr plain.txt user.{longer} 1
         setxattr plain.txt user.a {}
         setxattr plain.txt user.b {}
         removexattr plain.txt user.{name}
         listxattr plain.txt",
        "v".repeat(65536),
        "v".repeat(65537),
    ));
}
