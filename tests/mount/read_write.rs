//! Reading and writing: content, descriptors across copy-up, append, direct I/O,
//! shared mappings.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;

use testkit::fixture::Fixture;
use testkit::layers::big_data;
use testkit::mount::{Scratch, Stack, subject};
use testkit::need::has_tools;
use testkit::{need, need_mounts};

#[test]
fn writes_change_the_upper_only() {
    need_mounts!();
    let mut f = Fixture::standard();
    f.ok("write big.bin 100000 CHANGED");
    let mut expected = big_data();
    expected[100_000..100_007].copy_from_slice(b"CHANGED");
    assert!(std::fs::read(f.at("big.bin")).unwrap() == expected);
    f.remount();
    assert!(std::fs::read(f.at("big.bin")).unwrap() == expected);
    assert!(std::fs::read(f.upper("big.bin")).unwrap() == expected);
    assert!(std::fs::read(f.stack.lowers[2].join("big.bin")).unwrap() == big_data());
}

#[test]
fn a_descriptor_from_before_copy_up_sees_later_writes() {
    need_mounts!();
    let f = Fixture::standard();
    let early = File::open(f.at("plain.txt")).unwrap();
    let mut buf = [0; 5];
    early.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(&buf, b"plain");
    f.ok("write plain.txt 0 LATER");
    early.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(&buf, b"LATER");
    f.ok("truncate plain.txt 3");
    assert_eq!(early.metadata().unwrap().len(), 3);
}

#[test]
fn append_goes_to_the_end() {
    need_mounts!();
    let f = Fixture::standard();
    for n in 0..3 {
        let file = OpenOptions::new().append(true).open(f.at("top.txt"));
        std::io::Write::write_all(&mut file.unwrap(), format!("line {n}\n").as_bytes()).unwrap();
    }
    let text = std::fs::read_to_string(f.at("top.txt")).unwrap();
    assert_eq!(text, "top\nline 0\nline 1\nline 2\n");
}

#[test]
fn two_appenders_lose_nothing() {
    need_mounts!();
    let f = Fixture::standard();
    let path = f.at("top.txt");
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut file = OpenOptions::new().append(true).open(&path).unwrap();
                for _ in 0..200 {
                    std::io::Write::write_all(&mut file, b"0123456789").unwrap();
                }
            });
        }
    });
    assert_eq!(path.metadata().unwrap().len(), 4 + 2 * 200 * 10);
}

#[test]
fn holes_read_as_zeros() {
    need_mounts!();
    let f = Fixture::standard();
    f.ok("create s 644\nwrite s 1000000 end");
    let data = std::fs::read(f.at("s")).unwrap();
    assert!(data[..1_000_000].iter().all(|b| *b == 0));
    assert_eq!(&data[1_000_000..], b"end");
}

#[test]
fn direct_io() {
    need_mounts!();
    let f = Fixture::standard();
    let open = |write| {
        let mut options = OpenOptions::new();
        options.read(true).write(write).custom_flags(libc::O_DIRECT);
        options.open(f.at("big.bin")).unwrap()
    };
    // An aligned window of a larger buffer.
    let mut space = vec![0u8; 3 * 4096];
    let start = space.as_ptr().align_offset(4096);
    let window = &mut space[start..start + 4096];
    open(false).read_exact_at(window, 8192).unwrap();
    assert!(window == &big_data()[8192..12288]);
    window.fill(b'd');
    open(true).write_all_at(window, 4096).unwrap();
    let data = std::fs::read(f.at("big.bin")).unwrap();
    assert!(data[4096..8192].iter().all(|b| *b == b'd'));
    assert!(data[8192..] == big_data()[8192..]);
}

/// Returns the number of pages of a file that the kernel holds in memory.
fn resident(path: &Path) -> u64 {
    let fincore = Command::new("fincore")
        .args(["--bytes", "--noheadings", "--output", "PAGES"])
        .arg(path)
        .output()
        .unwrap();
    let text = String::from_utf8(fincore.stdout).unwrap();
    text.trim().parse().unwrap()
}

fn evict(path: &Path) {
    let file = File::open(path).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

/// O_DIRECT bypasses the page cache of the backing file too, so a benchmark or a database measures
/// the disk.
#[test]
fn direct_io_is_direct() {
    need_mounts!();
    let scratch = Scratch::disk();
    let stack = Stack::writable(&scratch, vec![scratch.dir("lower")]);
    let lower = stack.lowers[0].join("f");
    std::fs::write(&lower, vec![7u8; 1 << 20]).unwrap();
    evict(&lower);
    let mounted = subject().mount(&stack);
    let mut space = vec![0u8; (1 << 20) + 4096];
    let start = space.as_ptr().align_offset(4096);
    let window = &mut space[start..start + (1 << 20)];
    let open = |write| {
        let mut options = OpenOptions::new();
        options.read(true).write(write).custom_flags(libc::O_DIRECT);
        options.open(mounted.path().join("f")).unwrap()
    };
    open(false).read_exact_at(window, 0).unwrap();
    assert!(window.iter().all(|b| *b == 7));
    assert_eq!(resident(&lower), 0, "a direct read filled the cache");
    let file = open(true);
    window.fill(8);
    file.write_all_at(window, 0).unwrap();
    let upper = scratch.path().join("upper/f");
    evict(&upper);
    file.write_all_at(window, 0).unwrap();
    assert_eq!(resident(&upper), 0, "a direct write filled the cache");
    // A misaligned read, with the answer of the disk's file system.
    let odd = file.read_exact_at(&mut window[..100], 1).unwrap_err();
    assert_eq!(odd.raw_os_error(), Some(libc::EINVAL));
    // Both ways show the same file.
    let cached = std::fs::read(mounted.path().join("f")).unwrap();
    assert!(cached.len() == 1 << 20 && cached.iter().all(|b| *b == 8));
    assert!(resident(&upper) > 0, "this test cannot see the cache");
    drop(file);
    mounted.unmount();
}

/// fio checks what it wrote through a shared mapping, on a copied-up lower file.
#[test]
fn shared_mappings() {
    need_mounts!();
    need!(has_tools(&["fio"]));
    let f = Fixture::standard();
    f.ok("chmod big.bin 666");
    let fio = Command::new("fio")
        .current_dir(f.scratch.path())
        .args(["--name=m", "--ioengine=mmap", "--rw=randwrite", "--bs=4k"])
        .args(["--size=256k", "--verify=crc32c", "--fsync=8", "--minimal"])
        .arg(format!("--filename={}", f.at("big.bin").display()))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&fio.stderr);
    assert!(fio.status.success(), "{text}");
    let data = std::fs::read(f.at("big.bin")).unwrap();
    assert!(
        data[..256 << 10] != big_data()[..256 << 10],
        "nothing was written"
    );
    assert!(data[256 << 10..] == big_data()[256 << 10..]);
}

/// A private mapping of a program: the program runs from the union.
#[test]
fn programs_run() {
    need_mounts!();
    let f = Fixture::standard();
    std::fs::copy("/bin/true", f.at("true")).unwrap();
    assert!(Command::new(f.at("true")).status().unwrap().success());
}
