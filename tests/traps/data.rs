//! Data: holes, copies, descriptors on unlinked files, direct I/O, mappings kept across copy-up.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::process::Command;

use rustix::fs::{SeekFrom, XattrFlags};
use testkit::fixture::Fixture;
use testkit::layers::{Form, Layer, Node, big_data, standard};
use testkit::map::Map;
use testkit::mount::{KERNEL, UNIONFS};
use testkit::need::has_tools;
use testkit::stats::requests_of;
use testkit::{errno, errno_name, need, need_mounts};

use crate::same_on_standard;

/// Returns the offsets at which data and holes begin.
fn map(file: &File) -> Vec<(u64, u64)> {
    let (mut map, mut at) = (Vec::new(), 0);
    while let Ok(data) = rustix::fs::seek(file, SeekFrom::Data(at)) {
        at = rustix::fs::seek(file, SeekFrom::Hole(data)).unwrap();
        map.push((data, at));
    }
    map
}

/// 64 MiB with two data ranges: the copy has the same holes and costs only the data.
#[test]
fn holes_cost_nothing() {
    need_mounts!();
    const MIB: u64 = 1 << 20;
    let islands = vec![(MIB, vec![b'a'; 4096]), (63 * MIB, vec![b'b'; 4096])];
    let layer = Layer::new()
        .add("islands", Node::Sparse(64 * MIB, islands))
        .add("hole", Node::Sparse(64 * MIB, Vec::new()));
    let mut f = Fixture::new(&[layer]);
    for (name, blocks) in [("islands", 16), ("hole", 0)] {
        let before = map(&File::open(f.at(name)).unwrap());
        assert_eq!(before.is_empty(), name == "hole");
        f.ok(&format!("chmod {name} 600"));
        for _ in 0..2 {
            let copy = std::fs::metadata(f.upper(name)).unwrap();
            assert_eq!((copy.size(), copy.blocks()), (64 * MIB, blocks), "{name}");
            assert_eq!(map(&File::open(f.at(name)).unwrap()), before, "{name}");
            f.remount();
        }
    }
}

/// A file that its own creator may not open for writing again is still filled.
#[test]
fn copies_of_read_only_files_by_a_user() {
    need_mounts!();
    same_on_standard(
        "as 1000 1000
         open 1 of-1000/copy wcx 444
         hwrite 1 0 data
         htruncate 1 100
         hwrite 1 50 more
         hread 1 0 10
         hchmod 1 400
         hwrite 1 60 still
         hstat 1
         close 1
         read of-1000/copy
         write of-1000/copy 0 refused
         open 2 of-1000/none wcx 0
         hwrite 2 0 data
         close 2
         read of-1000/none
         stat of-1000/none",
    );
}

/// copy_file_range and cp(1) into the mount, out of it and within it.
#[test]
fn copies_both_ways() {
    need_mounts!();
    let mut f = Fixture::standard();
    let outside = f.scratch.path().join("outside");
    std::fs::write(&outside, big_data()).unwrap();
    assert_eq!(std::fs::copy(&outside, f.at("in")).unwrap(), 300_000);
    assert_eq!(
        std::fs::copy(f.at("big.bin"), f.at("within")).unwrap(),
        300_000
    );
    let back = f.scratch.path().join("back");
    std::fs::copy(f.at("big.bin"), &back).unwrap();
    assert!(std::fs::read(back).unwrap() == big_data());
    let cp = |from: &str, to: &str| {
        let mut cp = Command::new("cp");
        let cp = cp
            .args(["-a", "--sparse=auto"])
            .arg(f.at(from))
            .arg(f.at(to));
        assert!(cp.status().unwrap().success(), "{from}");
    };
    cp("big.bin", "cp");
    cp("sparse.bin", "cp-sparse");
    f.remount();
    for name in ["in", "within", "cp"] {
        assert!(std::fs::read(f.at(name)).unwrap() == big_data(), "{name}");
    }
    let sparse = |name| std::fs::read(f.at(name)).unwrap();
    assert!(sparse("sparse.bin") == sparse("cp-sparse"));
}

/// Operations on a descriptor of a file that has lost its name.
#[test]
fn everything_on_an_unlinked_file() {
    need_mounts!();
    let mut f = Fixture::standard();
    f.ok("create upper 644\nwrite upper 0 upper-file");
    for name in ["plain.txt", "upper", "h1"] {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).open(f.at(name)).unwrap();
        std::fs::remove_file(f.at(name)).unwrap();
        let len = file.metadata().unwrap().len();
        let mut buf = vec![0; len as usize];
        file.read_exact_at(&mut buf, 0).unwrap();
        rustix::fs::fsetxattr(&file, c"user.a", b"1", XattrFlags::empty()).unwrap();
        let mut value = [0; 8];
        assert_eq!(
            rustix::fs::fgetxattr(&file, c"user.a", &mut value[..]),
            Ok(1)
        );
        file.write_all_at(b"XYZ", len).unwrap();
        let mut both = vec![0; len as usize + 3];
        file.read_exact_at(&mut both, 0).unwrap();
        assert_eq!(
            (&both[..len as usize], &both[len as usize..]),
            (&buf[..], &b"XYZ"[..])
        );
        let mapped = Map::shared(&file, true).unwrap();
        assert_eq!(mapped.read(0, both.len()).unwrap(), both, "{name} mapped");
        mapped.write(len, b"MAP").unwrap();
        file.read_exact_at(&mut both[..3], len).unwrap();
        assert_eq!(both[..3], b"MAP"[..], "{name} written mapped");
        file.set_len(3).unwrap();
        rustix::fs::fchmod(&file, rustix::fs::Mode::RUSR).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!((meta.len(), meta.mode() & 0o7777), (3, 0o400), "{name}");
        file.sync_all().unwrap();
        rustix::fs::fremovexattr(&file, c"user.a").unwrap();
    }
    f.remount();
    for name in ["plain.txt", "upper", "h1"] {
        assert!(
            std::fs::symlink_metadata(f.at(name)).is_err(),
            "{name} is back"
        );
    }
    assert_eq!(
        std::fs::read(f.at("h2")).unwrap()[..3],
        b"har"[..],
        "its other name"
    );
}

/// A read-only descriptor changes the attributes of a lower file without a name; the kernel would
/// copy the file up to its name, where the whiteout is.
#[test]
fn attributes_of_an_unlinked_lower_file() {
    need_mounts!();
    for (fs, chown) in [(KERNEL, Err("EEXIST")), (UNIONFS, Ok(()))] {
        let mut f = Fixture::with(&fs, &standard(), Form::Kernel, true);
        let file = File::open(f.at("plain.txt")).unwrap();
        std::fs::remove_file(f.at("plain.txt")).unwrap();
        let answer = std::os::unix::fs::fchown(&file, Some(1), None);
        assert_eq!(errno_name(errno(answer)), chown.err().unwrap_or("errno 0"));
        let owner = if chown.is_ok() { 1 } else { 1000 };
        assert_eq!(file.metadata().unwrap().uid(), owner, "{fs:?}");
        drop(file);
        f.remount();
        assert!(!f.at("plain.txt").exists());
    }
}

/// O_DIRECT bypasses the union's page cache: each read is a request to the server, although the
/// pages are cached, and cached readers see a direct write at once.
#[test]
fn direct_io_passes_the_cache() {
    need_mounts!();
    let f = Fixture::standard();
    let cached = File::open(f.at("big.bin")).unwrap();
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).custom_flags(libc::O_DIRECT);
    let direct = options.open(f.at("big.bin")).unwrap();
    let mut space = vec![0; 3 * 4096];
    let start = space.as_ptr().align_offset(4096);
    let window = &mut space[start..start + 4096];
    let mut buf = [0; 4096];
    cached.read_exact_at(&mut buf, 0).unwrap();
    let reads = requests_of(f.root(), || cached.read_exact_at(&mut buf, 0).unwrap());
    assert_eq!(reads.get("READ"), None, "cached");
    for _ in 0..2 {
        let reads = requests_of(f.root(), || direct.read_exact_at(window, 0).unwrap());
        assert_eq!(reads.get("READ"), Some(&1), "direct");
    }
    assert_eq!(window[..], buf[..]);
    window.fill(b'd');
    direct.write_all_at(window, 0).unwrap();
    assert_eq!(
        std::fs::read(f.upper("big.bin")).unwrap()[..4096],
        [b'd'; 4096]
    );
    cached.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(buf, [b'd'; 4096]);
}

/// Mappings made before the copy-up, of a reader and of a writer: both show later writes, and data
/// written through them is in the file.
const MAPPINGS: &str = "
import mmap, os, sys
path = sys.argv[1]
reader = os.open(path, os.O_RDONLY)
writer = os.open(path, os.O_RDWR)
seen = mmap.mmap(reader, 0, prot=mmap.PROT_READ)
shared = mmap.mmap(writer, 0)
private = mmap.mmap(reader, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
other = os.open(path, os.O_WRONLY)
os.pwrite(other, b'written!', 0)
assert seen[:8] == b'written!', seen[:8]
assert shared[:8] == b'written!', shared[:8]
shared[8192:8200] = b'mapped!!'
assert os.pread(reader, 8, 8192) == b'mapped!!'
assert seen[8192:8200] == b'mapped!!'
private[16384:16392] = b'private!'
assert os.pread(reader, 8, 16384) != b'private!'
os.rename(path, path + '.moved')
shared[12288:12296] = b'renamed!'
shared.flush()
assert os.pread(reader, 8, 12288) == b'renamed!'
";

#[test]
fn mappings_are_kept_across_copy_up() {
    need_mounts!();
    need!(has_tools(&["python3"]));
    let mut f = Fixture::standard();
    let mut python = Command::new("/usr/bin/python3");
    let output = python.args(["-c", MAPPINGS]).arg(f.at("big.bin"));
    let output = output.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let mut expected = big_data();
    expected[..8].copy_from_slice(b"written!");
    expected[8192..8200].copy_from_slice(b"mapped!!");
    expected[12288..12296].copy_from_slice(b"renamed!");
    f.remount();
    assert!(std::fs::read(f.at("big.bin.moved")).unwrap() == expected);
}
