//! Hostile layer tars: each is harmless or gives an error that names the entry, and nothing outside
//! of the layer is read or changed.

use std::collections::BTreeMap;
use std::fs;

use serde_json::json;
use testkit::need;
use unionfs::layer_tar::Limits;
use unionfs::oci::Digest;

use super::archives::{assert_whole, load_bytes, tar_of};
use super::tarball::{Site, Tar, pax_text};
use super::writable::Own;

/// Unpacks a tar that must be refused; returns the message.
fn refused(site: &Site, tar: &[u8]) -> String {
    let (done, _) = site.unpack(tar);
    site.assert_outside_untouched();
    match done {
        Ok(_) => panic!("unpacked"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in ["../x", "a/../../x", "/../x", "..", "../outside/secret"] {
        for kind in *b"01256" {
            let tar = Tar::default()
                .entry(kind, name.as_bytes(), b"secret", b"")
                .end();
            let error = refused(&Site::new(), &tar);
            assert!(error.contains(name) && error.contains("refused"), "{error}");
        }
    }
    let pax = Tar::default()
        .pax(&[("path", b"../x")])
        .file("ok", b"x")
        .end();
    assert!(refused(&Site::new(), &pax).contains("../x"));
    let site = Site::new();
    let long = format!("{}outside/secret", "../".repeat(60));
    refused(&site, &Tar::default().file(&long, b"x").end());
}

#[test]
fn absolute_names_start_at_the_layer() {
    let site = Site::new();
    let secret = site.outside.join("secret").to_str().unwrap().to_owned();
    site.round(&Tar::default().file(&secret, b"mine").end());
    site.assert_outside_untouched();
    assert_eq!(fs::read(site.path(&secret[1..])).unwrap(), b"mine");
}

#[test]
fn symlinks_lead_nowhere_else() {
    for up in [
        "../../outside",
        "../../../../../../../../../../etc",
        "/proc/self/root/tmp",
    ] {
        let site = Site::new();
        for target in [up.to_owned(), site.outside.to_str().unwrap().to_owned()] {
            let tar = Tar::default()
                .symlink("d", &target)
                .file("d/secret", b"!")
                .end();
            let error = refused(&Site::new(), &tar);
            assert!(error.contains("d/secret"), "{error}");
            let tar = Tar::default().symlink("d", &target).dir("d/new").end();
            refused(&Site::new(), &tar);
            let tar = Tar::default()
                .symlink("d", &target)
                .link("x", "d/secret")
                .end();
            refused(&Site::new(), &tar);
            let tar = Tar::default()
                .symlink("d", &target)
                .file("d/.wh.secret", b"")
                .end();
            refused(&Site::new(), &tar);
            let tar = Tar::default()
                .symlink("d", &target)
                .file("d/.wh..wh..opq", b"")
                .end();
            refused(&Site::new(), &tar);
        }
        // A directory entry over the symlink replaces it.
        let site = Site::new();
        site.round(
            &Tar::default()
                .symlink("d", up)
                .dir("d")
                .file("d/secret", b"!")
                .end(),
        );
        site.assert_outside_untouched();
        assert!(site.stat("d").is_dir());
    }
    // A loop, and a link to its own name.
    let tar = Tar::default()
        .symlink("a", "b")
        .symlink("b", "a")
        .file("a/x", b"")
        .end();
    assert!(refused(&Site::new(), &tar).contains("\"a/x\""));
}

#[test]
fn a_directory_turned_symlink_does_not_carry_its_mode_out() {
    let site = Site::new();
    let before = fs::metadata(&site.outside).unwrap();
    let target = site.outside.to_str().unwrap();
    let tar = Tar::default()
        .block(b'5', b"d", b"", b"", |h| h.set_mode(0))
        .symlink("d", target)
        .end();
    site.round(&tar);
    site.assert_outside_untouched();
    assert_eq!(
        fs::metadata(&site.outside).unwrap().permissions(),
        before.permissions()
    );
}

#[test]
fn hard_links_to_outside_are_refused() {
    let site = Site::new();
    let secret = site.outside.join("secret").to_str().unwrap().to_owned();
    for target in ["../../outside/secret", "..", "", &secret, "missing", "d"] {
        let tar = Tar::default().dir("d").link("hard", target).end();
        let error = refused(&Site::new(), &tar);
        assert!(error.contains("\"hard\""), "{error}");
    }
}

#[test]
fn malformed_entries_are_named() {
    let bad_number = |h: &mut tar::Header| h.as_old_mut().size = *b"zzzzzzzzzzz\0";
    let negative = |h: &mut tar::Header| h.as_old_mut().size = [0xff; 12];
    let owner = |h: &mut tar::Header| h.as_old_mut().uid = [0xff; 8];
    let letter = |h: &mut tar::Header| h.set_entry_type(tar::EntryType::new(b'V'));
    let cases: [(Tar, &str); 9] = [
        (
            Tar::default().block(b'0', b"e", b"", b"", bad_number),
            "size",
        ),
        (Tar::default().block(b'0', b"e", b"", b"", negative), "size"),
        (Tar::default().block(b'0', b"e", b"", b"", owner), "user ID"),
        (
            Tar::default().block(b'0', b"e", b"", b"", letter),
            "unknown type",
        ),
        (Tar::default().file("e/.wh.", b""), "whiteout of nothing"),
        (Tar::default().file("e/.wh...", b""), "whiteout of nothing"),
        (Tar::default().symlink("/", "x"), "root"),
        (
            Tar::default().file(&"e".repeat(300), b""),
            "File name too long",
        ),
        (Tar::default().symlink("e", ""), "No such file"),
    ];
    for (tar, text) in cases {
        let error = refused(&Site::new(), &tar.end());
        assert!(
            error.contains(text) && error.contains("entry \""),
            "{text}: {error}"
        );
    }
}

#[test]
fn malformed_streams_say_where() {
    let whole = Tar::default().file("a", &[1; 3000]).file("b", b"2").end();
    for (cut, text) in [
        (100, "within a header"),
        (700, "truncated"),
        (3584 + 100, "header"),
    ] {
        let error = refused(&Site::new(), &whole[..cut]);
        assert!(
            error.contains(text) && error.contains("at byte"),
            "{cut}: {error}"
        );
    }
    let mut flipped = whole.clone();
    flipped[3584 + 3] ^= 1;
    assert!(refused(&Site::new(), &flipped).contains("checksum"));
    let mut ended = whole.clone();
    ended[3584..4096].fill(0);
    assert!(refused(&Site::new(), &ended).contains("end mark"));
    let huge = Tar::default().block(b'L', b"x", b"", b"", |h| h.set_size(1 << 40));
    assert!(refused(&Site::new(), &huge.end()).contains("1 MiB"));
    let pax = Tar::default()
        .block(b'x', b"x", b"", b"99 path=y\n", |_| {})
        .file("a", b"");
    assert!(refused(&Site::new(), &pax.end()).contains("PAX"));
    let mut many = Tar::default();
    let text = pax_text(&[("comment", &vec![b'x'; 1_000_000])]);
    for _ in 0..40 {
        many = many.block(b'x', b"x", b"", &text, |_| {});
    }
    assert!(refused(&Site::new(), &many.file("a", b"").end()).contains("extensions"));
}

#[test]
fn what_is_expanded_is_bounded() {
    let site = Site::new();
    let tar = Tar::default().file("a", &[0; 5000]).file("b", b"").end();
    let limit = |bytes, entries| site.unpack_within(&tar, &Limits { bytes, entries }).0;
    let error = limit(4000, 10).unwrap_err().to_string();
    assert!(error.contains("4000 bytes"), "{error}");
    fs::remove_file(site.path("a")).unwrap();
    let error = limit(1 << 20, 1).unwrap_err().to_string();
    assert!(error.contains("1 entries"), "{error}");
    // A sparse file of an exabyte, and an endless one.
    for size in [&b"1000000000000000000"[..], b"99999999999999999999", b"-1"] {
        let tar = Tar::default()
            .pax(&[("GNU.sparse.size", size), ("GNU.sparse.map", b"0,1")])
            .file("s", b"x")
            .end();
        refused(&Site::new(), &tar);
    }
    for map in [
        &b"0,9"[..],
        b"5,1,0,0",
        b"0",
        b"18446744073709551615,1",
        b"x",
    ] {
        let tar = Tar::default()
            .pax(&[("GNU.sparse.size", b"10"), ("GNU.sparse.map", map)])
            .file("s", b"x")
            .end();
        refused(&Site::new(), &tar);
    }
}

#[test]
fn a_deep_directory_is_not_taken_down_level_by_level() {
    let replaced = |depth: usize| {
        let deep = vec!["d"; depth].join("/");
        Tar::default().dir(&deep).symlink("d", "x").end()
    };
    Site::new().round(&replaced(200));
    let error = refused(&Site::new(), &replaced(300));
    assert!(error.contains("hundreds of levels deep"), "{error}");
}

/// A device without a driver: opening it would give another error.
#[test]
fn a_device_in_place_of_a_file_is_not_opened() {
    need!(need::is_root());
    let site = Site::new();
    let (_, split) = site.round(&Tar::default().file("f", b"content").end());
    fs::remove_file(site.path("f")).unwrap();
    let device = rustix::fs::makedev(240, 0xfff);
    let char_device = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        site.path("f"),
        char_device,
        0o666.into(),
        device,
    )
    .unwrap();
    let (_, damage) = site.damage(&split);
    assert_eq!(damage.len(), 1);
    assert_eq!(damage[0].what, "is a character device, not a file");
}

/// `verify` expects what is unpacked, whatever later entries replace.
#[test]
fn what_replaces_other_entries_is_verified() {
    let tars = [
        // A directory with an empty file, which a symlink, a file and a directory replace in turn.
        Tar::default()
            .dir("s")
            .file("s/t", b"")
            .file("s/.wh.gone", b"")
            .file("s/.wh..wh..opq", b"")
            .dir("s/d")
            .symlink("s", "elsewhere")
            .end(),
        Tar::default()
            .dir("s")
            .file("s/t", b"")
            .file("s", b"text")
            .end(),
        Tar::default()
            .file("s/t/u", b"")
            .file("s", b"")
            .dir("s")
            .file("s/v", b"")
            .end(),
        // Whiteouts through a symlink.
        Tar::default()
            .dir("./")
            .symlink("s", "/")
            .file("s/.wh.gone", b"")
            .file("s/.wh..wh..opq", b"")
            .end(),
        // Capabilities that the kernel would never return.
        Tar::default()
            .pax(&[("SCHILY.xattr.security.capability", b"")])
            .file("f", b"text")
            .end(),
        // A whiteout as a device, then the name that it hides.
        Tar::default().entry(b'3', b"d", b"", b"").dir("d").end(),
        // Files that remain under the names of hard links to them.
        Tar::default()
            .file("a", b"")
            .link("b", "a")
            .link("c", "b")
            .link("a", "b")
            .file("a", b"text")
            .end(),
        Tar::default()
            .dir("s")
            .file("s/a", b"")
            .link("b", "s/a")
            .symlink("s", "elsewhere")
            .end(),
        // Two names of a symlink, one of which is replaced.
        Tar::default()
            .symlink("s", "somewhere else")
            .link("h", "s")
            .dir("h")
            .end(),
    ];
    for tar in tars {
        let own = Own::new();
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(&tar).to_string()]},
        });
        let manifest = json!([{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["l.tar"]}]);
        let archive = tar_of(&BTreeMap::from([
            ("c.json".to_owned(), config.to_string().into_bytes()),
            ("l.tar".to_owned(), tar),
            (
                "manifest.json".to_owned(),
                manifest.to_string().into_bytes(),
            ),
        ]));
        load_bytes(&own, &archive).unwrap();
        assert_whole(&own);
    }
}

/// A file that cannot be opened by its path could not be read back, so it is refused.
#[test]
fn paths_are_no_longer_than_any_can_be() {
    let path = |length: usize| {
        let mut path = "a/".repeat(length / 2);
        path.truncate(length - 1);
        path.push('f');
        path
    };
    let tar = |length| {
        Tar::default()
            .pax(&[("path", path(length).as_bytes())])
            .file("x", b"x")
            .end()
    };
    let site = Site::new();
    site.round(&tar(4095));
    let error = refused(&Site::new(), &tar(4096));
    assert!(error.contains("longer"), "{error}");
}

/// Holes of a file cost nothing when it is read back, whatever their length.
#[test]
fn holes_are_not_read_again() {
    let size = 100u64 << 30;
    let tar = Tar::default()
        .pax(&[
            ("GNU.sparse.size", size.to_string().as_bytes()),
            ("GNU.sparse.map", format!("0,5,{},5", size - 5).as_bytes()),
        ])
        .file("f", b"hello12345")
        .end();
    let site = Site::new();
    let (_, split) = site.round(&tar);
    assert_eq!(site.damage(&split).1, []);
    let file = fs::OpenOptions::new()
        .write(true)
        .open(site.path("f"))
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"x", size / 2).unwrap();
    assert_eq!(site.damage(&split).1.len(), 1);
}
