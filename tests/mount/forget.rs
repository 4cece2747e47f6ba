//! Inodes that the kernel forgets leave the inode table.

use testkit::caches::{self, drop_names_and_inodes};
use testkit::fixture::Fixture;
use testkit::layers::{self, Form, Layer};
use testkit::mount::{Fs, Scratch, Stack, chmod, poll, subject};
use testkit::need_mounts;
use testkit::stats::stats;

fn inodes(f: &Fixture) -> u64 {
    stats(f.root()).union["inodes"]
}

fn assert_shrinks_to_root(f: &Fixture) {
    let empty = poll(|| {
        drop_names_and_inodes();
        inodes(f) == 1
    });
    assert!(empty, "{} inodes left after dropping caches", inodes(f));
}

#[test]
fn table_shrinks_to_the_root_after_a_walk() {
    need_mounts!();
    let _alone = caches::alone();
    let f = Fixture::standard();
    let entries = f.tree().len() as u64;
    // Three names share an inode.
    assert!(
        inodes(&f) >= entries - 2,
        "walk of {entries}: {}",
        inodes(&f)
    );
    assert_shrinks_to_root(&f);
    assert_eq!(f.tree().len() as u64, entries, "still all there");
}

/// Returns the resident memory of the server in KiB.
fn resident(f: &Fixture) -> u64 {
    let server = f.mounted().servers()[0];
    let status = std::fs::read_to_string(format!("/proc/{server}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.unwrap().trim_end_matches("kB").trim().parse().unwrap()
}

/// Most of the memory of a long walk goes back to the system when the kernel has forgotten the
/// inodes.
#[test]
fn memory_is_given_back() {
    need_mounts!();
    let _alone = caches::alone();
    let names = (0..40_000).fold(Layer::new().dir("d"), |layer, n| {
        layer.file(format!("d/a-name-of-some-length-{n}"), "")
    });
    let f = Fixture::new(&[names]);
    let before = resident(&f);
    for n in 0..40_000 {
        f.at(format!("d/a-name-of-some-length-{n}"))
            .metadata()
            .unwrap();
    }
    let grown = resident(&f) - before;
    assert!(grown > 8 << 10, "{grown} KiB");
    assert_shrinks_to_root(&f);
    let left = || resident(&f).saturating_sub(before);
    assert!(
        poll(|| left() < grown / 2),
        "{} of {grown} KiB left",
        left()
    );
}

#[test]
fn table_shrinks_to_the_root_after_changes() {
    need_mounts!();
    let _alone = caches::alone();
    let f = Fixture::standard();
    for round in 0..20 {
        f.ok(&format!(
            "create f{round} 644
             mkdir d{round} 755
             create d{round}/x 644
             link f{round} d{round}/l
             rename d{round} e{round}
             rename f{round} merged/f{round}
             unlink e{round}/x
             symlink x s{round}
             unlink s{round}"
        ));
    }
    f.ok("write plain.txt 0 X\nrename merged m2\nunlink h1\nreaddir m2");
    assert_shrinks_to_root(&f);
}

#[test]
fn an_open_unlinked_file_is_forgotten_at_close() {
    need_mounts!();
    let _alone = caches::alone();
    let f = Fixture::standard();
    let file = std::fs::File::open(f.at("plain.txt")).unwrap();
    std::fs::remove_file(f.at("plain.txt")).unwrap();
    drop(file);
    assert_shrinks_to_root(&f);
}

/// A metacopy whose data was copied up is an ordinary file, also after the kernel has forgotten the
/// file and looks it up again.
#[test]
fn a_completed_metacopy_stays_complete() {
    need_mounts!();
    let _alone = caches::alone();
    let scratch = Scratch::disk();
    let stack = Stack {
        lowers: layers::write_all(
            &[Layer::new().file("f", "old data")],
            scratch.path(),
            Form::Kernel,
        ),
        upper: Some((scratch.dir("upper"), scratch.dir("work"))),
        mnt: scratch.dir("mnt"),
    };
    let kernel = Fs::Kernel("index=on,redirect_dir=on,metacopy=on").mount(&stack);
    chmod(&stack.mnt.join("f"), 0o600);
    kernel.unmount();
    let f = Fixture::over(&subject(), scratch, stack);
    f.ok("write f 0 new");
    assert_shrinks_to_root(&f);
    assert_eq!(std::fs::read(f.at("f")).unwrap(), b"new data");
    f.ok("write f 4 DATA");
    assert_eq!(std::fs::read(f.upper("f")).unwrap(), b"new DATA");
}
