//! The message budget: the tests count requests and measure no time. The fastest message is the one
//! never sent.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use testkit::caches;
use testkit::fixture::Fixture;
use testkit::layers::{self, Form};
use testkit::mount::Fs;
use testkit::stats::requests_of;
use testkit::{need, need_mounts, without};

// Linux requests the access time of a directory again after each READDIR (fs/fuse,
// `fuse_invalidate_atime`), unless the mount is read-only. A walk that reads it (opendir(3) does by
// its fstat) therefore sends one GETATTR for each directory after the first walk, and none from
// then on. So there are three tests: a walk that does not read access times, an ordinary one on a
// read-only union, and an ordinary one that has settled.

/// Walks as programs do: opendir(3), readdir(3), lstat(2).
fn walk(path: &Path) -> usize {
    let mut entries = 0;
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        entries += 1;
        if path.symlink_metadata().unwrap().is_dir() {
            entries += walk(&path);
        }
    }
    entries
}

/// Walks by system calls that do not read the access time.
fn walk_without_atime(path: &Path) -> usize {
    use rustix::fs::{AtFlags, Mode, OFlags, RawDir, StatxFlags};
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(path, flags, Mode::empty()).unwrap();
    let mask = StatxFlags::BASIC_STATS.difference(StatxFlags::ATIME);
    let mut entries = 0;
    let mut buf = Vec::with_capacity(32768);
    let mut listing = RawDir::new(&dir, buf.spare_capacity_mut());
    while let Some(entry) = listing.next() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        entries += 1;
        let stat = rustix::fs::statx(&dir, name, AtFlags::SYMLINK_NOFOLLOW, mask).unwrap();
        if u32::from(stat.stx_mode) & libc::S_IFMT == libc::S_IFDIR {
            let name = std::ffi::OsStr::from_bytes(name.to_bytes());
            entries += walk_without_atime(&path.join(name));
        }
    }
    entries
}

/// Opens, reads to the end and closes, without the stat that `std::fs::read` does.
fn open_read_close(path: &Path) -> Vec<u8> {
    let file = std::fs::File::open(path).unwrap();
    let mut data = Vec::new();
    let mut buf = [0; 16384];
    loop {
        let n = std::os::unix::fs::FileExt::read_at(&file, &mut buf, data.len() as u64).unwrap();
        if n == 0 {
            return data;
        }
        data.extend(&buf[..n]);
    }
}

/// Runs `action` twice on a fresh union and asserts that the second run sends no request. Memory
/// pressure from other processes may evict the kernel's caches: the assertion fails only if three
/// unions in a row fail.
fn assert_silent_again(what: &str, make: fn() -> Fixture, action: impl Fn(&Fixture)) {
    let _undisturbed = caches::undisturbed();
    let mut sent = BTreeMap::new();
    for _ in 0..3 {
        let f = make();
        action(&f);
        sent = requests_of(f.root(), || action(&f));
        if sent.is_empty() {
            return;
        }
    }
    panic!("{what} once more sent {sent:?}");
}

/// Proves that the counters count. Otherwise all other tests would pass on a server that counts
/// nothing.
#[test]
fn a_first_lookup_is_counted() {
    need_mounts!();
    need!(without::has_everything());
    let f = Fixture::standard();
    let sent = requests_of(f.root(), || {
        f.at("plain.txt").symlink_metadata().unwrap();
    });
    assert!(sent.get("LOOKUP").is_some_and(|n| *n >= 1), "{sent:?}");
}

fn read_only() -> Fixture {
    Fixture::read_only(&layers::standard())
}

/// Mounts a union that needs no messages for opens.
fn cached() -> Fixture {
    Fixture::with(
        &Fs::Unionfs("io=cached"),
        &layers::standard(),
        Form::Kernel,
        true,
    )
}

/// The figures of docs/BUDGETS.md for a mount whose files the kernel writes itself.
#[test]
fn files_passed_through_send_what_they_must() {
    need_mounts!();
    need!(without::has_everything());
    const FILES: u64 = 20;
    let _undisturbed = caches::undisturbed();
    let passthrough = Fs::Unionfs("io=passthrough");
    let f = Fixture::with(&passthrough, &layers::standard(), Form::Kernel, true);
    std::fs::create_dir(f.at("new")).unwrap();
    let all = || (0..FILES).map(|n| f.at(format!("new/{n}")));
    let sent = requests_of(f.root(), || {
        all().for_each(|path| std::fs::write(path, "data").unwrap());
    });
    let a_file = ["GETATTR", "LOOKUP", "CREATE", "GETXATTR", "RELEASE"];
    for (request, count) in &sent {
        let allowed = match request {
            request if a_file.contains(&request.as_str()) => FILES + 1,
            _ => 1,
        };
        assert!(*count <= allowed, "{request} of {sent:?}");
    }
    // No process can have mapped them for writing, so the kernel keeps their attributes.
    let stat_all = || {
        let mask = rustix::fs::StatxFlags::BASIC_STATS;
        for path in all() {
            let at = rustix::fs::AtFlags::empty();
            rustix::fs::statx(rustix::fs::CWD, &path, at, mask).unwrap();
        }
    };
    stat_all();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let sent = requests_of(f.root(), stat_all);
    assert!(sent.is_empty(), "{sent:?}");
}

#[test]
fn a_second_walk_sends_nothing() {
    need_mounts!();
    need!(without::has_everything());
    let walk = |f: &Fixture| assert!(walk_without_atime(f.root()) > 30);
    assert_silent_again("a walk", Fixture::standard, walk);
    assert_silent_again("a walk, read-only", read_only, walk);
}

#[test]
fn a_second_ordinary_walk_of_a_read_only_union_sends_nothing() {
    need_mounts!();
    need!(without::has_everything());
    let walk = |f: &Fixture| assert!(walk(f.root()) > 30);
    assert_silent_again("an ordinary walk, read-only", read_only, walk);
}

#[test]
fn ordinary_walks_settle() {
    need_mounts!();
    need!(without::has_everything());
    assert_silent_again("two ordinary walks", Fixture::standard, |f| {
        walk(f.root());
        walk(f.root());
    });
}

#[test]
fn a_second_read_of_a_lower_file_sends_nothing() {
    need_mounts!();
    need!(without::has_everything());
    for (path, size) in [
        ("plain.txt", 23),
        ("big.bin", 300_000),
        ("deep/a/b/c/leaf", 5),
    ] {
        assert_silent_again(path, cached, |f| {
            assert_eq!(open_read_close(&f.at(path)).len(), size);
        });
    }
}

#[test]
fn a_repeated_failing_lookup_sends_nothing() {
    need_mounts!();
    need!(without::has_everything());
    for path in ["no", "removed.txt", "merged/gone", "deep/a/no"] {
        assert_silent_again(path, Fixture::standard, |f| {
            for _ in 0..10 {
                assert!(f.at(path).symlink_metadata().is_err());
            }
        });
    }
}

#[test]
fn a_second_readlink_sends_nothing() {
    need_mounts!();
    need!(without::has_everything());
    assert_silent_again("readlink", Fixture::standard, |f| {
        let target = std::fs::read_link(f.at("link-rel")).unwrap();
        assert_eq!(target.as_os_str(), "plain.txt");
    });
}

/// A change invalidates what it concerns, and the other cached answers stay valid.
#[test]
fn a_second_walk_after_a_change_sends_nothing() {
    need_mounts!();
    need!(without::has_everything());
    assert_silent_again("a walk after a change", Fixture::standard, |f| {
        let new = f.at("deep/new");
        if new.symlink_metadata().is_err() {
            walk_without_atime(f.root());
            std::fs::write(&new, "x").unwrap();
            // This also requests the birth time (STATX), which a walk does not.
            new.symlink_metadata().unwrap();
        }
        walk_without_atime(f.root());
    });
}
