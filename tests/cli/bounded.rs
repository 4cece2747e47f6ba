//! Costs that do not depend on the size of an image: `diff` reads what was changed and not the
//! whole image, and layers are processed in a fixed amount of memory.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::json;
use testkit::home::Home;
use testkit::need::{can_mount, has_tools};
use testkit::{need, program, strace};
use unionfs::oci::{Digest, Reference};
use unionfs::store::Writable;

/// Makes an image `big:1` with `count` files, a thousand in each directory.
fn image(root: &Path, count: usize) {
    let store = Writable::open(root).unwrap();
    let store = store.lock().unwrap();
    let mut staged = store.stage_layer(None).unwrap();
    for n in 0..count {
        let dir = staged.diff_path().join(format!("dir{}", n / 1000));
        if n % 1000 == 0 {
            std::fs::create_dir(&dir).unwrap();
        }
        std::fs::File::create(dir.join(format!("file{n}"))).unwrap();
    }
    staged.split().write_all(b"{}\n").unwrap();
    let diff_id = Digest::of(&count.to_ne_bytes());
    staged.commit(diff_id, 0).unwrap();
    let config = json!({"rootfs": {"type": "layers", "diff_ids": [diff_id]}});
    let id = store.register_image(config.to_string().as_bytes()).unwrap();
    store.tag(&Reference::parse("big:1").unwrap(), &id).unwrap();
}

fn calls_of_one_diff(home: &Home) -> usize {
    let mut command = home.command("strace");
    command.args(["-f", "-qq", "-o", "calls", program(), "diff", "work"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let changes = String::from_utf8(output.stdout).unwrap();
    // The three directories are listed too.
    assert_eq!(changes.lines().count(), 10 + 3, "{changes}");
    strace::text(&home.path("calls")).lines().count()
}

/// Returns the system calls of `unionfs diff` after ten changes to an image of `count` files: the
/// minimum of several runs.
fn calls_of_diff(count: usize) -> usize {
    let home = Home::new();
    home.dirs(&["mnt"]);
    image(&home.path("own"), count);
    home.run(["mount", "--name", "work", "big:1", "mnt"]).ok();
    let mnt = home.path("mnt");
    for n in 0..5 {
        std::fs::write(mnt.join(format!("dir0/new{n}")), "new").unwrap();
    }
    for n in 0..3 {
        std::fs::remove_file(mnt.join(format!("dir1/file{}", 1000 + n))).unwrap();
    }
    for n in 0..2 {
        std::fs::write(mnt.join(format!("dir2/file{}", 2000 + n)), "changed").unwrap();
    }
    home.run(["umount", "mnt"]).ok();
    let started = std::time::Instant::now();
    // Some of the calls read the mount table, which has the mounts of all tests.
    let calls = (0..5).map(|_| calls_of_one_diff(&home)).min().unwrap();
    let plain = std::time::Instant::now();
    home.run(["diff", "work"]).ok();
    eprintln!(
        "diff of ten changes in {count} files: {calls} system calls, {:?} ({:?} five times under strace)",
        plain.elapsed(),
        started.elapsed()
    );
    calls
}

#[test]
fn a_diff_costs_what_was_changed() {
    need!(can_mount());
    need!(has_tools(&["strace"]));
    let (few, many) = (calls_of_diff(3_000), calls_of_diff(100_000));
    // 97,000 more files cost no further call, except for the variation of the allocator and the
    // linker.
    assert!(
        many <= few + 20,
        "{few} calls with few files, {many} with many"
    );
    // The sandbox and the processes outside of it make some 300 of them.
    assert!(many < 1500, "{many} calls for ten changes");
}

/// Runs a command to its end; returns its peak memory in KiB (VmHWM of proc(5)).
fn peak_memory(command: &mut Command) -> u64 {
    let (peak, ended, said) = peak_of(command);
    assert!(ended.success(), "{command:?}: {said}");
    peak
}

/// Like [`peak_memory`]; also returns the exit status and the output, which is short.
fn peak_of(command: &mut Command) -> (u64, ExitStatus, String) {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let ended = loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let now = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        peak = peak.max(now.unwrap_or(0));
        match child.try_wait().unwrap() {
            Some(ended) => break ended,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    assert!(peak > 0);
    let mut said = String::new();
    if let Some(mut output) = child.stdout.take() {
        output.read_to_string(&mut said).unwrap();
    }
    (peak, ended, said)
}

/// Returns the peak memory of commit, save and load with one file of `bytes` zeros.
fn peaks(bytes: u64) -> [(&'static str, u64); 3] {
    let home = Home::new();
    home.dirs(&["mnt", "rootfs"]);
    std::fs::write(home.path("rootfs/file"), "").unwrap();
    home.run(["import", "-q", "rootfs", "base:1"]).ok();
    home.run(["mount", "--name", "work", "base:1", "mnt"]).ok();
    let file = std::fs::File::create(home.path("mnt/big")).unwrap();
    file.set_len(bytes).unwrap();
    drop(file);
    home.run(["umount", "mnt"]).ok();
    let peak = |args: &[&str]| peak_memory(home.command(program()).args(args));
    let commit = peak(&["commit", "-q", "work", "big:1"]);
    let save = peak(&["save", "-q", "-o", "big.tar", "big:1"]);
    home.run(["rm", "work"]).ok();
    home.run(["rmi", "big:1"]).ok();
    let load = peak(&["load", "-q", "-i", "big.tar"]);
    let size = home.path("big.tar").metadata().unwrap().len();
    assert!(size > bytes);
    [("commit", commit), ("save", save), ("load", load)]
}

/// A layer of a gigabyte takes no more memory than one of sixteen megabytes.
#[test]
fn memory_does_not_grow_with_a_layer() {
    need!(can_mount());
    for ((what, small), (_, large)) in peaks(16 << 20).into_iter().zip(peaks(1 << 30)) {
        eprintln!("{what}: {small} KiB for 16 MiB, {large} KiB for 1 GiB");
        assert!(
            large < small + (16 << 10),
            "{what}: {small} KiB, then {large} KiB"
        );
        assert!(large < 64 << 10, "{what}: {large} KiB");
    }
}

/// Returns the peak memory of importing a layer of `count` directories with long names.
fn peak_of_directories(count: usize) -> u64 {
    let home = Home::new();
    let file = std::fs::File::create(home.path("dirs.tar")).unwrap();
    let mut tar = tar::Builder::new(std::io::BufWriter::new(file));
    let long = "x".repeat(200);
    let filler = format!("{long}/{long}/{long}");
    for n in 0..count {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o700 | (n as u32 & 0o77));
        header.set_mtime(n as u64);
        header.set_size(0);
        let name = format!("{:03}/{filler}{n}", n / 1000);
        tar.append_data(&mut header, name, std::io::empty())
            .unwrap();
    }
    tar.into_inner().unwrap().flush().unwrap();
    let peak = peak_memory(
        home.command(program())
            .args(["import", "-q", "dirs.tar", "dirs:1"]),
    );
    // The entries that were written to a temporary file were applied.
    let layers = home.json(["inspect", "--json", "dirs:1"])[0].clone();
    let layer = std::path::PathBuf::from(layers["layers"][0]["path"].as_str().unwrap());
    for n in [0, count / 2, count - 1] {
        use std::os::unix::fs::MetadataExt as _;
        let path = layer.join(format!("{:03}/{filler}{n}", n / 1000));
        let meta = path.symlink_metadata().unwrap();
        assert_eq!(meta.mtime(), n as i64, "{n}");
        assert_eq!(meta.mode() & 0o7777, 0o700 | (n as u32 & 0o77), "{n}");
    }
    peak
}

/// Data that is kept for each directory until the end goes to a temporary file if there are many
/// directories.
#[test]
fn memory_does_not_grow_with_directories() {
    let (few, many) = (peak_of_directories(10_000), peak_of_directories(40_000));
    eprintln!("{few} KiB for 10,000 directories, {many} KiB for 40,000");
    assert!(many < few + (24 << 10), "{few} KiB, then {many} KiB");
}

/// Writes an empty entry of a tar, with its path and target as PAX records that follow other
/// records.
fn entry(tar: &mut impl std::io::Write, kind: u8, name: &str, link: &str, pax: &[(&str, &[u8])]) {
    let mut tar = tar::Builder::new(tar);
    let records = [("path", name.as_bytes()), ("linkpath", link.as_bytes())];
    let records = records.iter().filter(|(_, value)| !value.is_empty());
    tar.append_pax_extensions(records.chain(pax).copied())
        .unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_path("short").unwrap();
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_mode(0o644);
    header.set_size(0);
    header.set_cksum();
    tar.append(&header, std::io::empty()).unwrap();
    // The end of the tar is written after all entries.
    std::mem::forget(tar);
}

/// Returns the peak memory of `verify`, its exit and its output, for a layer with these entries.
fn verify(fill: impl FnOnce(&mut dyn std::io::Write)) -> (u64, bool, String) {
    let home = Home::new();
    let mut file = std::io::BufWriter::new(std::fs::File::create(home.path("l.tar")).unwrap());
    fill(&mut file);
    file.write_all(&[0; 1024]).unwrap();
    file.flush().unwrap();
    home.run(["import", "-q", "l.tar", "l:1"]).ok();
    let (peak, ended, said) = peak_of(home.command(program()).args(["verify", "l:1"]));
    (peak, ended.success(), said)
}

/// Writes `count` empty files with long names; every second one has two names.
fn many_names(tar: &mut dyn std::io::Write, count: usize) {
    let long = "x".repeat(240);
    for n in 0..count {
        let name = format!("{long}/{long}/{long}{n}");
        let last = format!("{long}/{long}/{long}{}", n.saturating_sub(1));
        match n % 2 {
            0 => entry(&mut &mut *tar, b'0', &name, "", &[]),
            _ => entry(&mut &mut *tar, b'1', &name, &last, &[]),
        }
    }
}

/// Writes `count` entries with the longest PAX headers: xattrs that no layer gets, and maps of
/// sparse files.
fn long_headers(tar: &mut dyn std::io::Write, count: usize) {
    let value = vec![b'v'; (1 << 20) - 200];
    let extents: Vec<String> = (0..92_000).map(|n| format!("{},0", 512 * n)).collect();
    let map = extents.join(",");
    assert!((900_000..1 << 20).contains(&map.len()), "{}", map.len());
    for n in 0..count {
        let name = format!("f{n}");
        let xattr = [("SCHILY.xattr.trusted.overlay.none", &value[..])];
        let sparse = [
            ("GNU.sparse.size", &b"48000000"[..]),
            ("GNU.sparse.map", map.as_bytes()),
        ];
        match n % 10 {
            0 => entry(&mut &mut *tar, b'0', &name, "", &sparse),
            _ => entry(&mut &mut *tar, b'0', &name, "", &xattr),
        }
    }
}

/// The headers of a layer are processed in a fixed amount of memory too.
#[test]
fn memory_of_verify_does_not_grow_with_headers() {
    type Shape = fn(&mut dyn std::io::Write, usize);
    let shapes = [
        ("names", many_names as Shape, 20_000),
        ("long headers", long_headers, 60),
    ];
    for (what, shape, count) in shapes {
        let (few, many) = [count / 20, count]
            .map(|count| {
                let (peak, whole, said) = verify(|tar| shape(tar, count));
                assert!(whole, "{what}: {said}");
                peak
            })
            .into();
        eprintln!("verify, {what}: {few} KiB for few, {many} KiB for {count}");
        assert!(
            many < few + (24 << 10),
            "{what}: {few} KiB, then {many} KiB"
        );
        assert!(many < 128 << 10, "{what}: {many} KiB");
    }
}

/// A file that is replaced and still has another hard link needs all headers at once. That works
/// for layers up to a certain size only.
#[test]
fn layers_that_replace_linked_files_are_verified_up_to_a_limit() {
    let target = "t".repeat(4000);
    let replaced = |tar: &mut dyn std::io::Write, count| {
        entry(&mut &mut *tar, b'0', "a", "", &[]);
        entry(&mut &mut *tar, b'1', "b", "a", &[]);
        for n in 0..count {
            entry(&mut &mut *tar, b'2', &format!("s{n}"), &target, &[]);
        }
        entry(&mut &mut *tar, b'2', "a", "elsewhere", &[]);
    };
    let (few, whole, said) = verify(|tar| replaced(tar, 100));
    assert!(whole, "{said}");
    let (many, whole, said) = verify(|tar| replaced(tar, 9_000));
    assert!(
        !whole && said.contains("more than 67108864 bytes"),
        "{said}"
    );
    eprintln!("verify, replaced: {few} KiB for few, {many} KiB for many");
    assert!(many < 160 << 10, "{many} KiB");
}
