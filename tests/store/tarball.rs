//! Layer tars through `unpack` and `rebuild`: the files agree with the tar, and rebuilding gives
//! the same tar, whatever it holds. The hostile tests also use `Site` and `Tar`.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use unionfs::layer::Dialect;
use unionfs::layer_tar::{self, Damage, Limits, Result, Unpacked};
use unionfs::oci::Digest;

/// A directory to unpack into, with a file beside it that must not change.
pub(crate) struct Site {
    _dir: tempfile::TempDir,
    pub(crate) diff: PathBuf,
    pub(crate) outside: PathBuf,
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns the dialect that this process would use in a store of its own.
fn dialect() -> Dialect {
    if is_root() {
        Dialect::KERNEL
    } else {
        Dialect::KERNEL_USERXATTR
    }
}

fn opaque() -> &'static str {
    if is_root() {
        "trusted.overlay.opaque"
    } else {
        "user.overlay.opaque"
    }
}

impl Site {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let diff = dir.path().join("layer/diff");
        let outside = dir.path().join("outside");
        fs::create_dir_all(&diff).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "secret").unwrap();
        Self {
            _dir: dir,
            diff,
            outside,
        }
    }

    pub(crate) fn unpack_within(&self, tar: &[u8], limits: &Limits) -> (Result<Unpacked>, Vec<u8>) {
        let mut split = Vec::new();
        let diff = File::open(&self.diff).unwrap();
        let done = layer_tar::unpack(tar, diff.as_fd(), dialect(), &mut split, limits);
        (done, split)
    }

    pub(crate) fn unpack(&self, tar: &[u8]) -> (Result<Unpacked>, Vec<u8>) {
        self.unpack_within(tar, &Limits::default())
    }

    pub(crate) fn rebuild(&self, split: &[u8]) -> Result<(Digest, Vec<u8>)> {
        let diff = File::open(&self.diff).unwrap();
        let mut tar = Vec::new();
        let digest = layer_tar::rebuild(split, diff.as_fd(), &mut tar)?;
        Ok((digest, tar))
    }

    /// Unpacks and rebuilds; returns the tar-split too.
    pub(crate) fn round(&self, tar: &[u8]) -> (Unpacked, Vec<u8>) {
        let (done, split) = self.unpack(tar);
        let done = done.unwrap();
        assert_eq!(done.diff_id, Digest::of(tar));
        assert_eq!(done.bytes, tar.len() as u64);
        let (digest, again) = self.rebuild(&split).unwrap();
        assert_eq!(digest, done.diff_id);
        assert!(again == tar, "the rebuilt tar differs");
        (done, split)
    }

    /// Returns the findings of `check`.
    pub(crate) fn damage(&self, split: &[u8]) -> (Digest, Vec<Damage>) {
        let diff = File::open(&self.diff).unwrap();
        let mut found = Vec::new();
        let digest = layer_tar::check(split, diff.as_fd(), |d| found.push(d), |_| {}).unwrap();
        (digest, found)
    }

    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.diff.join(name)
    }

    pub(crate) fn stat(&self, name: impl AsRef<Path>) -> fs::Metadata {
        let path = self.path(name);
        fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"))
    }

    fn xattr(&self, name: &str, xattr: &str) -> Option<Vec<u8>> {
        let mut value = vec![0; 256];
        let len = rustix::fs::lgetxattr(self.path(name), xattr, &mut value[..]).ok()?;
        value.truncate(len);
        Some(value)
    }

    pub(crate) fn assert_outside_untouched(&self) {
        let names: Vec<_> = fs::read_dir(&self.outside).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
        let secret = self.outside.join("secret");
        assert_eq!(fs::read(&secret).unwrap(), b"secret");
        assert_eq!(fs::metadata(&secret).unwrap().nlink(), 1);
        let above = fs::read_dir(self.diff.parent().unwrap()).unwrap().count();
        assert_eq!(above, 1);
    }
}

/// A tar made by hand, which refuses no entry.
#[derive(Default)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

impl Tar {
    /// Adds an entry unchanged; names over 100 bytes get a GNU long name.
    pub(crate) fn entry(mut self, kind: u8, name: &[u8], link: &[u8], data: &[u8]) -> Self {
        for (letter, text) in [(b'L', name), (b'K', link)] {
            if text.len() > 100 {
                self = self.block(letter, b"././@LongLink", b"", text, |_| {});
            }
        }
        self.block(kind, name, link, data, |_| {})
    }

    pub(crate) fn block(
        mut self,
        kind: u8,
        name: &[u8],
        link: &[u8],
        data: &[u8],
        change: impl FnOnce(&mut tar::Header),
    ) -> Self {
        let mut header = tar::Header::new_gnu();
        let owner = rustix::process::getuid().as_raw();
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_uid(u64::from(owner));
        header.set_gid(u64::from(rustix::process::getgid().as_raw()));
        header.set_mtime(1_500_000_000);
        header.set_size(data.len() as u64);
        header.set_entry_type(tar::EntryType::new(kind));
        let old = header.as_old_mut();
        let (name, link) = (&name[..name.len().min(100)], &link[..link.len().min(100)]);
        old.name[..name.len()].copy_from_slice(name);
        old.linkname[..link.len()].copy_from_slice(link);
        change(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(b'0', name.as_bytes(), b"", data)
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.entry(b'5', name.as_bytes(), b"", b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name.as_bytes(), target.as_bytes(), b"")
    }

    pub(crate) fn link(self, name: &str, target: &str) -> Self {
        self.entry(b'1', name.as_bytes(), target.as_bytes(), b"")
    }

    /// Adds a PAX header for the next entry.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let text = pax_text(records);
        self.block(b'x', b"PaxHeaders/x", b"", &text, |_| {})
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

pub(crate) fn pax_text(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        text.extend_from_slice(format!("{length} {key}=").as_bytes());
        text.extend_from_slice(value);
        text.push(b'\n');
    }
    text
}

#[test]
fn files_are_what_the_tar_says() {
    let long = "d/".to_owned() + &"n".repeat(200);
    let tar = Tar::default()
        .block(
            b'g',
            b"pax_global_header",
            b"",
            &pax_text(&[("comment", b"x")]),
            |_| {},
        )
        .block(b'5', b"./", b"", b"", |h| h.set_mode(0o711))
        .block(b'5', b"d/", b"", b"", |h| h.set_mode(0o555))
        .pax(&[
            ("mtime", b"1234.000000005"),
            ("SCHILY.xattr.user.a", b"1\0\n2"),
        ])
        .block(b'0', b"d/f", b"", b"content", |h| h.set_mode(0o4751))
        .link("d/hard", "d/f")
        .symlink("d/soft", "/nowhere")
        .block(b'6', b"d/fifo", b"", b"", |h| h.set_mode(0o600))
        .file(&long, b"long")
        .entry(b'0', b"d/\xff\xfe", b"", b"raw")
        .pax(&[("path", b"implicit/parent/p"), ("mtime", b"-1.5")])
        .file("x", b"")
        .end();
    let site = Site::new();
    let (done, split) = site.round(&tar);
    assert_eq!((done.entries, done.lost_xattrs), (10, 0));
    assert_eq!(done.size, 7 + 8 + 4 + 3);
    assert_eq!(site.stat("").mode() & 0o7777, 0o711);
    let d = site.stat("d");
    // A user other than root must be able to remove its content.
    let mode = if is_root() { 0o555 } else { 0o755 };
    assert_eq!((d.mode() & 0o7777, d.mtime()), (mode, 1_500_000_000));
    let f = site.stat("d/f");
    assert_eq!((f.mode() & 0o7777, f.nlink()), (0o4751, 2));
    assert_eq!((f.mtime(), f.mtime_nsec()), (1234, 5));
    assert_eq!(site.stat("d/hard").ino(), f.ino());
    assert_eq!(site.xattr("d/f", "user.a").unwrap(), b"1\0\n2");
    assert_eq!(
        fs::read_link(site.path("d/soft")).unwrap(),
        Path::new("/nowhere")
    );
    assert!(site.stat("d/fifo").file_type().is_fifo());
    assert_eq!(fs::read(site.path(&long)).unwrap(), b"long");
    let raw = Path::new("d").join(OsStr::from_bytes(b"\xff\xfe"));
    assert_eq!(fs::read(site.path(raw)).unwrap(), b"raw");
    let p = site.stat("implicit/parent/p");
    assert_eq!((p.mtime(), p.mtime_nsec()), (-2, 500_000_000));
    assert_eq!(site.stat("implicit").mode() & 0o7777, 0o755);
    let text = String::from_utf8(split).unwrap();
    assert!(text.contains(r#""name_raw":"ZC///g==""#), "{text}");
}

#[test]
fn whiteouts_are_markers_and_markers_are_not_taken() {
    let tar = Tar::default()
        .file(".wh.gone", b"")
        .file("d/.wh..wh..opq", b"")
        .file(".wh..wh.aufs", b"notes of aufs")
        .dir(".wh..wh.plnk")
        .file(".wh..wh.plnk/1.2", b"more notes")
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.fuseoverlayfs.opaque", b"y"),
        ])
        .dir("plain")
        // A whiteout applies to the layers below, whatever the order in the tar.
        .dir("first")
        .file(".wh.first", b"")
        .file(".wh.second", b"")
        .dir("second")
        .file("third", b"data")
        .file(".wh.third", b"")
        // No file system supports this xattr.
        .pax(&[("SCHILY.xattr.user.x", b"y")])
        .symlink("fourth", "t")
        .end();
    let site = Site::new();
    let (done, _) = site.round(&tar);
    assert_eq!(done.lost_xattrs, 1);
    assert_eq!(done.size, 4 + 1 + 10);
    let gone = site.stat("gone");
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    for dir in ["d", "first", "second"] {
        assert_eq!(
            site.xattr(dir, opaque()).as_deref(),
            Some(&b"y"[..]),
            "{dir}"
        );
    }
    for marker in [
        "trusted.overlay.opaque",
        "user.overlay.opaque",
        "user.fuseoverlayfs.opaque",
    ] {
        assert_eq!(site.xattr("plain", marker), None);
    }
    assert_eq!(fs::read(site.path("third")).unwrap(), b"data");
    // As in Docker: hard links may refer to it.
    let note = fs::read(site.path(".wh..wh.plnk/1.2")).unwrap();
    assert_eq!(note, b"more notes");
    assert_eq!(fs::read_dir(&site.diff).unwrap().count(), 8);
}

#[test]
fn owners_devices_and_capabilities_need_root() {
    let tar = Tar::default()
        .pax(&[(
            "SCHILY.xattr.security.capability",
            b"\x01\0\0\x02\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        )])
        .block(b'0', b"tool", b"", b"x", |h| {
            h.set_uid(12345);
            h.set_gid(3_000_000);
        })
        .block(b'3', b"null", b"", b"", |h| {
            h.set_device_major(1).unwrap();
            h.set_device_minor(3).unwrap();
        })
        .end();
    let site = Site::new();
    if !is_root() {
        let done = site.round(&tar).0;
        assert_eq!(done.kept_devices, 1);
        assert!(site.stat("null").is_file());
        return testkit::need::skip(&"needs root for the rest");
    }
    assert_eq!(site.round(&tar).0.lost_xattrs, 0);
    let tool = site.stat("tool");
    assert_eq!((tool.uid(), tool.gid()), (12345, 3_000_000));
    assert!(site.xattr("tool", "security.capability").is_some());
    assert_eq!(site.stat("null").rdev(), rustix::fs::makedev(1, 3));
}

#[test]
fn a_symlink_on_the_way_stays_in_the_layer() {
    let tar = Tar::default()
        .dir("usr/lib")
        .symlink("lib", "/usr/lib")
        .file("lib/so", b"library")
        .link("lib/so.1", "lib/so")
        .end();
    let site = Site::new();
    site.round(&tar);
    assert_eq!(fs::read(site.path("usr/lib/so")).unwrap(), b"library");
    assert_eq!(site.stat("usr/lib/so.1").nlink(), 2);
    assert!(site.stat("lib").file_type().is_symlink());
}

#[test]
fn entries_that_come_twice() {
    let tar = Tar::default()
        .dir("d")
        .file("d/f", b"")
        .dir("d")
        .file("d/f", b"later wins")
        .symlink("s", "a")
        .symlink("s", "bb")
        .dir("was-dir/empty")
        .symlink("was-dir", "d")
        .file("was-dir/g", b"through it")
        .end();
    let site = Site::new();
    let (done, split) = site.round(&tar);
    assert_eq!(fs::read(site.path("d/f")).unwrap(), b"later wins");
    assert_eq!(fs::read(site.path("d/g")).unwrap(), b"through it");
    assert_eq!(done.size, 10 + 2 + 1 + 10);
    // Docker's reader refuses a path with two lines.
    let text = String::from_utf8(split).unwrap();
    assert_eq!(text.matches(r#""name":"d/f""#).count(), 1, "{text}");
    // Input that the tar-split could not reproduce is refused.
    let base = || {
        Tar::default()
            .dir("d")
            .file("d/f", b"one")
            .link("d/hard", "d/f")
    };
    for lost in [
        base().file("d/f", b"two"),
        base().symlink("d/f", "x"),
        base().symlink("d", "x"),
        base().symlink("s", "d").file("s/g", b"1").symlink("s", "e"),
    ] {
        let error = Site::new().unpack(&lost.end()).0.unwrap_err().to_string();
        assert!(error.contains("replaces"), "{error}");
    }
    Site::new().round(&base().link("d/hard", "d/f").link("d/hard", "d/hard").end());
}

#[test]
fn the_last_entry_of_a_directory_counts() {
    let dir = |tar: Tar, mode: u32, time: u64| {
        tar.block(b'5', b"d", b"", b"", |h| {
            h.set_mode(mode);
            h.set_mtime(time);
        })
    };
    let tar = dir(Tar::default(), 0o500, 1_000);
    let tar = dir(tar.dir("d/in").file("d/in/f", b"x"), 0o750, 2_000);
    let site = Site::new();
    site.round(&tar.end());
    let stat = site.stat("d");
    assert_eq!((stat.mode() & 0o7777, stat.mtime()), (0o750, 2_000));
    assert_eq!(site.stat("d/in").mtime(), 1_500_000_000);
}

#[test]
fn every_damaged_file_is_named() {
    let mut tar = Tar::default();
    for i in 0..6 {
        tar = tar.file(&format!("f{i}"), b"content");
    }
    let tar = tar.end();
    let site = Site::new();
    let (done, split) = site.round(&tar);
    assert_eq!(site.damage(&split), (done.diff_id, Vec::new()));
    fs::write(site.path("f0"), b"Content").unwrap();
    fs::write(site.path("f1"), b"contents").unwrap();
    fs::remove_file(site.path("f2")).unwrap();
    fs::remove_file(site.path("f3")).unwrap();
    std::os::unix::fs::symlink("f5", site.path("f3")).unwrap();
    fs::remove_file(site.path("f4")).unwrap();
    fs::create_dir(site.path("f4")).unwrap();
    let (_, damage) = site.damage(&split);
    let names: Vec<&[u8]> = damage.iter().map(|d| d.path.as_slice()).collect();
    assert_eq!(names, [b"f0", b"f1", b"f2", b"f3", b"f4"]);
    let error = site.rebuild(&split).unwrap_err().to_string();
    assert!(
        error.contains("\"f0\"") && error.contains("damaged"),
        "{error}"
    );
}
