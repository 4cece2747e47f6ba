//! Writes a layer directory as Docker's layer tar, and that tar as tar-split.
//!
//! In the tar a whiteout is an empty file `.wh.NAME`, and an opaque directory contains
//! `.wh..wh..opq` (OCI image specification, layer.md). tar-split has a line of JSON per piece: type
//! 2 is a segment of raw bytes, type 1 is the position of a file with its size and the CRC-64 (ISO
//! 3309) of its bytes.

use std::collections::HashMap;
use std::io::{self, Cursor};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;
use tar::{EntryType, Header};

/// Returns the tar of a layer directory with overlayfs markers.
pub fn tar_of(diff: &Path) -> io::Result<Vec<u8>> {
    let mut writer = Writer {
        tar: tar::Builder::new(Vec::new()),
        diff,
        links: HashMap::new(),
    };
    writer.dir(Path::new(""))?;
    writer.tar.into_inner()
}

struct Writer<'d> {
    tar: tar::Builder<Vec<u8>>,
    diff: &'d Path,
    links: HashMap<(u64, u64), PathBuf>,
}

impl Writer<'_> {
    fn dir(&mut self, relative: &Path) -> io::Result<()> {
        for name in sorted(&self.diff.join(relative))? {
            self.entry(&relative.join(name))?;
        }
        Ok(())
    }

    fn entry(&mut self, relative: &Path) -> io::Result<()> {
        let path = self.diff.join(relative);
        let meta = path.symlink_metadata()?;
        let kind = meta.file_type();
        let mut header = Header::new_gnu();
        header.set_mode(meta.mode() & 0o7777);
        header.set_uid(meta.uid().into());
        header.set_gid(meta.gid().into());
        header.set_mtime(u64::try_from(meta.mtime()).unwrap_or(0));
        header.set_size(0);
        if kind.is_char_device() && meta.rdev() == 0 {
            let mut name = std::ffi::OsString::from(".wh.");
            name.push(relative.file_name().unwrap_or_default());
            header.set_entry_type(EntryType::Regular);
            let marker = relative.with_file_name(name);
            return self.tar.append_data(&mut header, marker, io::empty());
        }
        let first = (!kind.is_dir() && meta.nlink() > 1)
            .then(|| self.links.get(&(meta.dev(), meta.ino())).cloned())
            .flatten();
        if let Some(first) = first {
            header.set_entry_type(EntryType::Link);
            return self.tar.append_link(&mut header, relative, first);
        }
        self.links
            .insert((meta.dev(), meta.ino()), relative.to_owned());
        self.xattrs(&path)?;
        if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            let target = std::fs::read_link(&path)?;
            return self.tar.append_link(&mut header, relative, target);
        }
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            self.tar
                .append_data(&mut header, relative.join(""), io::empty())?;
            if is_opaque(&path) {
                header.set_entry_type(EntryType::Regular);
                header.set_mode(0);
                let marker = relative.join(".wh..wh..opq");
                self.tar.append_data(&mut header, marker, io::empty())?;
            }
            return self.dir(relative);
        }
        if kind.is_fifo() {
            header.set_entry_type(EntryType::Fifo);
            return self.tar.append_data(&mut header, relative, io::empty());
        }
        header.set_entry_type(EntryType::Regular);
        header.set_size(meta.len());
        let file = std::fs::File::open(&path)?;
        self.tar.append_data(&mut header, relative, file)
    }

    /// Writes the user xattrs of the next entry, in the form of GNU tar and Docker.
    fn xattrs(&mut self, path: &Path) -> io::Result<()> {
        let value = get_xattr(path, "user.sample");
        let pairs = value
            .iter()
            .map(|v| ("SCHILY.xattr.user.sample", v.as_slice()));
        if value.is_none() {
            return Ok(());
        }
        self.tar.append_pax_extensions(pairs)
    }
}

fn is_opaque(dir: &Path) -> bool {
    ["trusted.overlay.opaque", "user.overlay.opaque"]
        .iter()
        .any(|name| get_xattr(dir, name).as_deref() == Some(b"y"))
}

fn get_xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

fn sorted(dir: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    let names = std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name()));
    let mut names = names.collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// Returns the size of a layer in bytes as Docker's overlay2 counts it: every inode but
/// directories, once.
pub fn size_of(diff: &Path) -> io::Result<u64> {
    let mut inodes = HashMap::new();
    let mut todo = vec![diff.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let meta = path.symlink_metadata()?;
            if meta.is_dir() {
                todo.push(path);
            } else {
                inodes.insert(meta.ino(), meta.len());
            }
        }
    }
    Ok(inodes.values().sum())
}

/// Returns the tar-split lines of a tar.
pub fn split_of(tar: &[u8]) -> io::Result<Vec<u8>> {
    let mut lines = Vec::new();
    let mut position = 0;
    let mut line = |mut value: serde_json::Value| {
        value["position"] = json!(position);
        position += 1;
        lines.extend_from_slice(value.to_string().as_bytes());
        lines.push(b'\n');
    };
    let slice = |from: usize, to: usize| tar.get(from..to).unwrap_or_default();
    let offset = |at: u64| usize::try_from(at).map_err(io::Error::other);
    let mut done = 0;
    for entry in tar::Archive::new(Cursor::new(tar)).entries()? {
        let entry = entry?;
        let start = offset(entry.raw_file_position())?;
        let end = start + offset(entry.size())?;
        line(json!({"type": 2, "payload": BASE64.encode(slice(done, start))}));
        let name = entry.path_bytes();
        let mut file = json!({"type": 1, "payload": null});
        match std::str::from_utf8(&name) {
            Ok(name) => file["name"] = json!(name),
            Err(_) => file["name_raw"] = json!(BASE64.encode(&name)),
        }
        if end > start {
            file["size"] = json!(end - start);
            file["payload"] = json!(BASE64.encode(crc64(slice(start, end)).to_be_bytes()));
        }
        line(file);
        done = end;
    }
    line(json!({"type": 2, "payload": BASE64.encode(slice(done, tar.len()))}));
    Ok(lines)
}

/// Returns the CRC-64 with the ISO 3309 polynomial, reflected, as Go's hash/crc64 computes it.
fn crc64(bytes: &[u8]) -> u64 {
    let step = |crc: u64| (crc >> 1) ^ (0xd800_0000_0000_0000 & (crc & 1).wrapping_neg());
    let fold = |crc: u64, byte: &u8| (0..8).fold(crc ^ u64::from(*byte), |crc, _| step(crc));
    !bytes.iter().fold(!0, fold)
}
