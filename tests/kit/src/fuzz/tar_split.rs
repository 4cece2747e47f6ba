//! tar-split. Whatever its lines contain, rebuilding reads regular files of the layer and nothing
//! else. The first byte chooses: 0 are the lines unchanged, else lines with correct positions.

use std::cell::RefCell;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::symlink;

use unionfs::layer::Dialect;
use unionfs::layer_tar::{self, Limits};
use unionfs::oci::Digest;

use super::{one_line, tar_built};

thread_local! {
    static LAYER: RefCell<Layer> = RefCell::new(Layer::new());
}

const SECRET: &[u8] = b"a secret beside the layer";

/// A layer with files, and entries that must not be read as files.
struct Layer {
    _dir: tempfile::TempDir,
    diff: File,
}

impl Layer {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let diff = dir.path().join("diff");
        fs::write(dir.path().join("secret"), SECRET).unwrap();
        fs::create_dir_all(diff.join("d")).unwrap();
        fs::write(diff.join("a"), "hello").unwrap();
        fs::write(diff.join("d/b"), [b'x'; 1000]).unwrap();
        fs::write(diff.join("empty"), "").unwrap();
        symlink("../secret", diff.join("out")).unwrap();
        symlink("..", diff.join("up")).unwrap();
        symlink("/d", diff.join("s")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, diff.join("fifo"), 0o600.into()).unwrap();
        Self {
            diff: File::open(diff).unwrap(),
            _dir: dir,
        }
    }
}

pub fn run(bytes: &[u8]) {
    let Some((mode, bytes)) = bytes.split_first() else {
        return;
    };
    let split = match mode {
        0 => bytes.to_vec(),
        _ => numbered(bytes),
    };
    LAYER.with_borrow_mut(|layer| {
        let diff = layer.diff.as_fd();
        let mut tar = Vec::new();
        let rebuilt = layer_tar::rebuild(&split[..], diff, &mut tar);
        assert!(!tar.windows(SECRET.len()).any(|part| part == SECRET));
        let mut damage = Vec::new();
        let checked = layer_tar::check(&split[..], diff, |d| damage.push(d), |_| {});
        for damage in &damage {
            assert!(!damage.what.contains('\n'), "{}", damage.what);
        }
        match (rebuilt, checked) {
            (Ok(rebuilt), Ok(checked)) => {
                assert_eq!((rebuilt, checked), (Digest::of(&tar), rebuilt));
                assert_eq!(damage, []);
            }
            (Ok(_), Err(error)) => panic!("rebuilt, but {error}"),
            (Err(error), Ok(_)) => {
                one_line(&error);
                assert_ne!(damage, []);
            }
            (Err(error), Err(other)) => {
                one_line(&error);
                one_line(&other);
            }
        }
    });
}

/// Returns the lines with the number of each as its position.
fn numbered(bytes: &[u8]) -> Vec<u8> {
    const KEY: &[u8] = b"\"position\":";
    let mut split = Vec::new();
    for (number, line) in bytes.split_inclusive(|&b| b == b'\n').enumerate() {
        match line.windows(KEY.len()).position(|part| part == KEY) {
            None => split.extend_from_slice(line),
            Some(at) => {
                let (head, tail) = line.split_at(at + KEY.len());
                let digits = tail.iter().take_while(|b| b.is_ascii_digit()).count();
                split.extend_from_slice(head);
                split.extend_from_slice(number.to_string().as_bytes());
                split.extend_from_slice(&tail[digits..]);
            }
        }
    }
    split
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for tar in tar_built::samples() {
        let dir = tempfile::tempdir().unwrap();
        let diff = File::open(dir.path()).unwrap();
        let mut split = vec![1];
        let limits = Limits::default();
        let dialect = Dialect::KERNEL_USERXATTR;
        let _ = layer_tar::unpack(&tar[..], diff.as_fd(), dialect, &mut split, &limits);
        seeds.push(split);
    }
    let mut lines = vec![1];
    for name in [
        "a",
        "d/b",
        "out",
        "up/secret",
        "s/b",
        "fifo",
        "d",
        "../secret",
        "none",
    ] {
        let size = if name == "a" { 5 } else { 1000 };
        lines.extend(format!("{{\"type\":2,\"payload\":\"AAAA\",\"position\":0}}\n{{\"type\":1,\"name\":\"{name}\",\"size\":{size},\"payload\":null,\"position\":1}}\n").into_bytes());
        seeds.push(lines.clone());
        if name != "d/b" {
            lines.truncate(1);
        }
    }
    seeds.push(b"\x01{\"type\":1,\"name_raw\":\"YQ==\",\"size\":5,\"payload\":\"AAAAAAAAAAA=\",\"position\":0}\n{\"type\":1,\"name\":\"empty\",\"payload\":\"\",\"position\":1}\n".to_vec());
    seeds
}
