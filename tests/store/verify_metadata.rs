//! `verify` compares every file with the headers of its layer's tar: each kind of difference is
//! found and reported with its path, and other changes are not reported.

use std::fs::{self, File, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat, removexattr, setxattr};
use tar::{EntryType, Header};
use testkit::need;
use testkit::store::builder::whiteout;
use unionfs::layer_tar::Limits;
use unionfs::oci::Digest;

use super::discover;
use super::writable::Own;

const WHEN: u64 = 1_000_000_000;

/// Returns a tar with one of each kind of entry, with a PAX header for values that ustar cannot
/// represent.
fn everything() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind: EntryType, link: &str, data: &str| {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory {
            0o755
        } else {
            0o640
        });
        header.set_mtime(WHEN);
        header.set_uid(7);
        header.set_gid(8);
        header.set_size(data.len() as u64);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        if name == "dir/file" {
            let records = [
                ("SCHILY.xattr.user.note", &b"value"[..]),
                ("mtime", b"1000000000.25"),
            ];
            tar.append_pax_extensions(records).unwrap();
        }
        match link {
            "" => tar.append_data(&mut header, name, data.as_bytes()).unwrap(),
            link => tar.append_link(&mut header, name, link).unwrap(),
        }
    };
    add("./", EntryType::Directory, "", "");
    add("dir/", EntryType::Directory, "", "");
    add("dir/file", EntryType::Regular, "", "content");
    add("dir/hard", EntryType::Link, "dir/file", "");
    add("dir/other", EntryType::Regular, "", "content");
    add("empty", EntryType::Regular, "", "");
    add("symlink", EntryType::Symlink, "dir/file", "");
    add("null", EntryType::Char, "", "");
    add("loop", EntryType::Block, "", "");
    add("fifo", EntryType::Fifo, "", "");
    add("opaque/", EntryType::Directory, "", "");
    add("opaque/.wh..wh..opq", EntryType::Regular, "", "");
    add(".wh.hidden", EntryType::Regular, "", "");
    // Its directories are not in the tar.
    add("made/on/the/way", EntryType::Regular, "", "");
    add("made/.wh.gone", EntryType::Regular, "", "");
    // Through a symlink.
    add("to-dir", EntryType::Symlink, "dir", "");
    add("to-dir/through", EntryType::Regular, "", "");
    tar.into_inner().unwrap()
}

struct Layer {
    own: Own,
    diff: PathBuf,
}

impl Layer {
    fn new(tar: &[u8]) -> Self {
        let own = Own::new();
        let store = own.open();
        let store = store.lock().unwrap();
        let mut staged = store.stage_layer(None).unwrap();
        let diff = staged.diff_path();
        let unpacked = staged.unpack(tar, &Limits::default()).unwrap();
        staged.commit(unpacked.diff_id, unpacked.size).unwrap();
        Self { own, diff }
    }

    fn problems(&self) -> Vec<String> {
        let report = discover(&self.own.root).unwrap();
        let report = report.verify(None, &mut |_| ()).unwrap();
        let problems = report.problems.into_iter();
        problems.map(|problem| problem.what).collect()
    }
}

/// Asserts that after `damage` there is exactly one problem, of `path`, whose text has `words`.
/// Attributes that change with it, such as a directory's time, are restored.
#[track_caller]
fn finds(path: &str, words: &[&str], damage: impl FnOnce(&Path)) {
    let layer = Layer::new(&everything());
    assert_eq!(layer.problems(), [""; 0]);
    let target = layer.diff.join(path);
    let parent = target.parent().unwrap().to_owned();
    damage(&target);
    // For the layer's own directory a tar of another program need not have the time.
    set_time(&parent, WHEN);
    let problems = layer.problems();
    let told: Vec<&String> = problems
        .iter()
        .filter(|p| !p.contains("bytes of files"))
        .collect();
    assert_eq!(told.len(), 1, "{path}: {problems:#?}");
    let name = format!("file \"{path}\" ");
    for word in words.iter().chain([&name.as_str()]) {
        assert!(told[0].contains(word), "no {word:?} in {told:?}");
    }
}

fn set_time(path: &Path, seconds: u64) {
    let time = UNIX_EPOCH + Duration::from_secs(seconds);
    File::open(path).unwrap().set_modified(time).unwrap();
}

/// Changes a file's content or its type, and restores its time.
fn timed(path: &Path, change: impl FnOnce(&Path)) {
    let time = path.metadata().unwrap().modified().unwrap();
    change(path);
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_modified(time)
        .unwrap();
}

fn replace(path: &Path, make: impl FnOnce(&Path)) {
    if path.symlink_metadata().unwrap().is_dir() {
        fs::remove_dir_all(path).unwrap();
    } else {
        fs::remove_file(path).unwrap();
    }
    make(path);
}

#[test]
fn attributes_are_compared() {
    need!(need::is_root());
    let mode =
        |mode| move |path: &Path| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    finds("dir/other", &["has mode 0600, not 0640"], mode(0o600));
    finds("fifo", &["has mode 4640, not 0640"], mode(0o4640));
    finds("dir", &["has mode 0700, not 0755"], mode(0o700));
    finds("null", &["belongs to 0:8, not 7:8"], |path| {
        chown(path, Some(0), None).unwrap();
    });
    finds("symlink", &["belongs to 7:0, not 7:8"], |path| {
        lchown(path, None, Some(0)).unwrap();
    });
    finds(
        "empty",
        &["was changed at 5.000000000, not 1000000000.0"],
        |path| set_time(path, 5),
    );
    finds(
        "dir/file",
        &["was changed at 1000000000.5", "not 1000000000.25"],
        |path| {
            let time = UNIX_EPOCH + Duration::from_millis(WHEN * 1000 + 500);
            File::open(path).unwrap().set_modified(time).unwrap();
        },
    );
    finds("opaque", &["was changed at 6"], |path| set_time(path, 6));
}

#[test]
fn types_devices_and_targets_are_compared() {
    need!(need::is_root());
    finds("empty", &["is a directory, not a file"], |path| {
        replace(path, |p| fs::create_dir(p).unwrap());
    });
    finds("symlink", &["is a file, not a symbolic link"], |path| {
        replace(path, |p| fs::write(p, "x").unwrap());
    });
    finds("opaque", &["is a file, not a directory"], |path| {
        replace(path, |p| fs::write(p, "").unwrap());
    });
    finds("dir/other", &["is a symbolic link, not a file"], |path| {
        replace(path, |p| symlink("x", p).unwrap());
    });
    finds(
        "symlink",
        &["leads to \"elsewhere\", not to \"dir/file\"", "was changed"],
        |path| {
            replace(path, |p| symlink("elsewhere", p).unwrap());
        },
    );
    let node = |kind, major, minor| {
        move |path: &Path| {
            replace(path, |p| {
                mknodat(
                    CWD,
                    p,
                    kind,
                    Mode::from_raw_mode(0o640),
                    makedev(major, minor),
                )
                .unwrap();
                chown(p, Some(7), Some(8)).unwrap();
            });
        }
    };
    finds(
        "null",
        &["is device 1:5, not 1:3"],
        node(FileType::CharacterDevice, 1, 5),
    );
    finds(
        "loop",
        &["is a character device, not a block device"],
        node(FileType::CharacterDevice, 1, 3),
    );
    finds("empty", &["is missing"], |path| {
        fs::remove_file(path).unwrap();
    });
    // A directory without an entry in the tar is reported by its content.
    finds("made/on/the/way", &["is missing"], |path| {
        let dir = path.parent().unwrap();
        fs::remove_dir_all(dir).unwrap();
        fs::create_dir(dir).unwrap();
    });
}

#[test]
fn content_links_and_xattrs_are_compared() {
    need!(need::is_root());
    finds("dir/other", &["content is damaged"], |path| {
        timed(path, |p| fs::write(p, "CONTENT").unwrap());
    });
    finds("dir/other", &["has 3 bytes, not 7"], |path| {
        timed(path, |p| fs::write(p, "con").unwrap());
    });
    finds(
        "dir/other",
        &["content is damaged", "was changed"],
        |path| fs::write(path, "CONTENT").unwrap(),
    );
    finds(
        "dir/hard",
        &["is not a hard link to \"dir/file\" any more"],
        |path| {
            replace(path, |p| fs::write(p, "content").unwrap());
        },
    );
    finds(
        "empty",
        &["is a hard link to \"dir/other\"", "has 7 bytes, not 0"],
        |path| {
            replace(path, |p| {
                fs::hard_link(p.with_file_name("dir").join("other"), p).unwrap();
            });
        },
    );
    let set = |name: &'static str, value: &'static [u8]| {
        move |path: &Path| setxattr(path, name, value, XattrFlags::empty()).unwrap()
    };
    finds(
        "dir/file",
        &["has another xattr \"user.note\""],
        set("user.note", b"VALUE"),
    );
    finds(
        "dir/file",
        &["has an xattr \"user.more\""],
        set("user.more", b""),
    );
    finds("dir/file", &["has no xattr \"user.note\""], |path| {
        removexattr(path, "user.note").unwrap();
    });
    finds(
        "dir/other",
        &["has an xattr \"security.capability\""],
        |path| {
            let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            setxattr(
                path,
                "security.capability",
                &capability,
                XattrFlags::empty(),
            )
            .unwrap();
        },
    );
}

#[test]
fn whiteouts_and_files_that_the_tar_has_not_are_found() {
    need!(need::is_root());
    finds("extra", &["is not in the layer's tar"], |path| {
        fs::write(path, "").unwrap();
    });
    finds("made/on/extra", &["is not in the layer's tar"], |path| {
        fs::write(path, "").unwrap();
    });
    finds("dir/extra", &["is not in the layer's tar"], |path| {
        whiteout(path).unwrap();
    });
    finds("dir/extra", &["is not in the layer's tar"], |path| {
        fs::hard_link(path.with_file_name("file"), path).unwrap();
    });
    finds("hidden", &["was a whiteout, which is missing"], |path| {
        fs::remove_file(path).unwrap();
    });
    finds("made/gone", &["is a file, not a whiteout"], |path| {
        replace(path, |p| fs::write(p, "").unwrap());
    });
    finds("opaque", &["is not opaque any more"], |path| {
        removexattr(path, "trusted.overlay.opaque").unwrap();
    });
    finds("dir", &["is opaque"], |path| {
        setxattr(path, "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    });
}

/// Markers that an overlay leaves in lowers are not compared with the tar.
#[test]
fn what_an_overlay_notes_is_no_damage() {
    need!(need::is_root());
    let layer = Layer::new(&everything());
    for name in ["origin", "impure", "uuid"] {
        let name = format!("trusted.overlay.{name}");
        setxattr(layer.diff.join("dir"), name, b"x", XattrFlags::empty()).unwrap();
    }
    assert_eq!(layer.problems(), [""; 0]);
}

/// The headers are part of the digest: a change of them in tar-split is still found.
#[test]
fn headers_that_were_changed_with_their_files_are_found() {
    need!(need::is_root());
    let layer = Layer::new(&everything());
    let other = String::from_utf8_lossy(&everything()).contains("dir/other");
    assert!(other);
    let changed = {
        let mut tar = everything();
        // The mode of the first entry.
        tar[100..107].copy_from_slice(b"0000700");
        let sum: u32 = tar[..512]
            .iter()
            .enumerate()
            .map(|(at, byte)| match at {
                148..156 => u32::from(b' '),
                _ => u32::from(*byte),
            })
            .sum();
        tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        Layer::new(&tar)
    };
    assert_eq!(changed.problems(), [""; 0]);
    let record = |layer: &Layer| {
        let dir = layer.own.root.join("image/overlay2/layerdb/sha256");
        super::children(&dir)[0].clone()
    };
    fs::copy(
        record(&changed).join("tar-split.json.gz"),
        record(&layer).join("tar-split.json.gz"),
    )
    .unwrap();
    fs::set_permissions(&layer.diff, Permissions::from_mode(0o700)).unwrap();
    let problems = layer.problems();
    let digest = Digest::of(&everything()).to_string();
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert!(
        problems[0].contains("is damaged") && problems[0].contains(&digest),
        "{problems:?}"
    );
}

/// Headers and tar-split that claim exabytes, truncated and garbled ones: the answer comes at once.
#[test]
fn hostile_headers_neither_hang_nor_panic() {
    need!(need::is_root());
    let layer = Layer::new(&everything());
    let dir = layer.own.root.join("image/overlay2/layerdb/sha256");
    let split = super::children(&dir)[0].join("tar-split.json.gz");
    let write = |lines: &[u8]| {
        let file = File::create(&split).unwrap();
        let mut out = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        out.write_all(lines).unwrap();
        out.finish().unwrap();
    };
    let mut header = Header::new_gnu();
    header.set_path("dir/other").unwrap();
    header.set_size(u64::MAX >> 1);
    header.set_cksum();
    let huge = format!(
        "{{\"type\":2,\"payload\":\"{}\",\"position\":0}}\n\
         {{\"type\":1,\"name\":\"dir/other\",\"size\":{},\"payload\":null,\"position\":1}}\n",
        BASE64.encode(header.as_bytes()),
        u64::MAX >> 1,
    );
    write(huge.as_bytes());
    let problems = layer.problems();
    assert!(
        problems[0].contains("has 7 bytes, not 9223372036854775807"),
        "{problems:#?}"
    );
    let good = {
        let mut lines = Vec::new();
        let record = Layer::new(&everything());
        let dir = record.own.root.join("image/overlay2/layerdb/sha256");
        let file = File::open(super::children(&dir)[0].join("tar-split.json.gz")).unwrap();
        flate2::read::GzDecoder::new(file)
            .read_to_end(&mut lines)
            .unwrap();
        lines
    };
    for at in (0..good.len()).step_by(good.len() / 40) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 7);
        write(&bad);
        layer.problems();
        write(&good[..at]);
        assert_ne!(layer.problems(), [""; 0], "cut at {at}");
    }
}

/// A directory with two entries has the attributes of the last one.
#[test]
fn the_last_entry_of_a_directory_counts() {
    let mut tar = tar::Builder::new(Vec::new());
    for (mode, mtime) in [(0o500, 5), (0o755, 6)] {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Directory);
        header.set_mode(mode);
        header.set_mtime(mtime);
        header.set_size(0);
        tar.append_data(&mut header, "dir/", std::io::empty())
            .unwrap();
    }
    let layer = Layer::new(&tar.into_inner().unwrap());
    let meta = layer.diff.join("dir").metadata().unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o755);
    assert_eq!(
        meta.modified().unwrap(),
        UNIX_EPOCH + Duration::from_secs(6)
    );
    assert_eq!(layer.problems(), [""; 0]);
}
