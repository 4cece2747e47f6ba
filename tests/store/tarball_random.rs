//! Random tars are rebuilt byte for byte; random bytes as a tar or a tar-split neither panic nor
//! change anything outside.

use proptest::prelude::*;
use unionfs::oci::Digest;

use super::tarball::{Site, Tar};

/// One random entry: each has a name of its own, so that none replaces another.
#[derive(Clone, Debug)]
enum Entry {
    File(Vec<u8>),
    Dir,
    Symlink(String),
    Link,
    Fifo,
    Whiteout,
    Opaque,
}

fn entry() -> impl Strategy<Value = (Entry, u64, Option<Vec<u8>>)> {
    let kind = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..2000).prop_map(Entry::File),
        2 => Just(Entry::Dir),
        1 => "[a-z./]{1,150}".prop_map(Entry::Symlink),
        1 => Just(Entry::Link),
        1 => Just(Entry::Fifo),
        1 => Just(Entry::Whiteout),
        1 => Just(Entry::Opaque),
    ];
    let xattr = prop::option::of(prop::collection::vec(any::<u8>(), 1..40));
    (kind, 0..0o100000u64, xattr)
}

/// Returns a valid, unique name; together the names need every way of writing names.
fn name(i: usize, style: u64) -> Vec<u8> {
    let plain = format!("d{}/n{i}", style % 3).into_bytes();
    match style % 5 {
        0 => [b"./".as_slice(), &plain].concat(),
        1 => [plain.as_slice(), &[b'x'; 150]].concat(),
        2 => [plain.as_slice(), b"\xff<&>\""].concat(),
        3 => [b"/".as_slice(), &plain, "é".as_bytes()].concat(),
        _ => plain,
    }
}

fn make(entries: &[(Entry, u64, Option<Vec<u8>>)], tail: &[u8]) -> Vec<u8> {
    let mut tar = Tar::default().file("first", b"the target of links");
    for (i, (entry, style, xattr)) in entries.iter().enumerate() {
        let name = name(i, *style);
        if let Some(value) = xattr
            && !matches!(entry, Entry::Symlink(_) | Entry::Fifo)
        {
            tar = tar.pax(&[("SCHILY.xattr.user.x", value), ("mtime", b"99.123456789")]);
        }
        let mode = *style as u32 % 0o10000;
        tar = match entry {
            Entry::File(data) if name.len() <= 100 => {
                tar.block(b'0', &name, b"", data, |h| h.set_mode(mode))
            }
            Entry::File(data) => tar.entry(b'0', &name, b"", data),
            Entry::Dir => tar.entry(b'5', &name, b"", b""),
            Entry::Symlink(to) => tar.entry(b'2', &name, to.as_bytes(), b""),
            Entry::Link => tar.entry(b'1', &name, b"first", b""),
            Entry::Fifo => tar.entry(b'6', &name, b"", b""),
            Entry::Whiteout => tar.file(&format!("w/.wh.w{i}"), b""),
            Entry::Opaque => tar.file(&format!("o{i}/.wh..wh..opq"), b""),
        };
    }
    [tar.end(), tail.to_vec()].concat()
}

/// Returns a configuration of 48 cases, or of as many as `$PROPTEST_CASES` says.
fn few() -> ProptestConfig {
    let mut config = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 48;
    }
    config
}

proptest! {
    #![proptest_config(few())]

    #[test]
    fn a_random_tar_comes_back(
        entries in prop::collection::vec(entry(), 0..30),
        tail in prop::collection::vec(any::<u8>(), 0..2000),
    ) {
        let tar = make(&entries, &tail);
        let site = Site::new();
        let (done, _) = site.round(&tar);
        prop_assert_eq!(done.diff_id, Digest::of(&tar));
        site.assert_outside_untouched();
    }

    /// A damaged tar that still unpacks must still be rebuilt.
    #[test]
    fn a_damaged_tar_is_an_error_or_comes_back(
        entries in prop::collection::vec(entry(), 0..12),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        fix in any::<bool>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut tar = make(&entries, b"");
        for (at, byte) in &changes {
            // Mostly in the part of a header that has the most fields.
            let at = at.index(tar.len());
            let at = if byte % 4 > 0 { at - at % 512 + at % 160 } else { at };
            tar[at] = *byte;
            if fix {
                seal(&mut tar, at - at % 512);
            }
        }
        if changes.is_empty() {
            tar.truncate(cut.index(tar.len()));
        }
        let site = Site::new();
        let (done, split) = site.unpack(&tar);
        site.assert_outside_untouched();
        if let Ok(done) = done {
            let (digest, again) = site.rebuild(&split).unwrap();
            prop_assert_eq!(digest, done.diff_id);
            prop_assert!(again == tar);
        }
    }

    #[test]
    fn garbage_is_no_tar(bytes in prop::collection::vec(any::<u8>(), 1..3000)) {
        let site = Site::new();
        let (done, _) = site.unpack(&bytes);
        prop_assert!(done.is_err());
        site.assert_outside_untouched();
    }

    #[test]
    fn garbage_as_tar_split_is_an_error(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        text in "[\\[\\]{}\":,a-z0-9/.\n]{0,200}",
    ) {
        let site = Site::new();
        let tar = Tar::default().file("a", b"content").dir("d").file("d/b", b"more").end();
        let (_, mut split) = site.round(&tar);
        for (at, byte) in changes {
            let at = at.index(split.len());
            split[at] = byte;
        }
        // Either an error or other bytes, never the panic that this test looks for.
        if let Ok((digest, again)) = site.rebuild(&split) {
            prop_assert_eq!(digest, Digest::of(&again));
        }
        let one_line = text.trim().is_empty();
        prop_assert!(site.rebuild(text.as_bytes()).is_err() || one_line);
        site.assert_outside_untouched();
    }
}

/// Corrects the checksum of a header.
fn seal(tar: &mut [u8], at: usize) {
    let Some(block) = tar.get_mut(at..at + 512) else {
        return;
    };
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// A split that names files outside gets none of their bytes.
#[test]
fn a_tar_split_cannot_read_outside() {
    let site = Site::new();
    let crc = "null";
    for name in [
        "../../outside/secret",
        "/../../outside/secret",
        "out/secret",
    ] {
        std::os::unix::fs::symlink(&site.outside, site.path("out")).ok();
        let split = format!(
            "{{\"type\":1,\"name\":\"{name}\",\"size\":6,\"payload\":{crc},\"position\":0}}\n"
        );
        let error = site.rebuild(split.as_bytes()).unwrap_err().to_string();
        assert!(
            error.contains("secret") && !error.contains("content"),
            "{error}"
        );
    }
}
