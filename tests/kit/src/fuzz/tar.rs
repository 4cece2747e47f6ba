//! Layer tars. Whatever they contain, unpacking stays in its directory, and every accepted tar is
//! rebuilt byte for byte. The same bytes are also indexed as an image archive.
//!
//! The first byte chooses: 0 is a tar with these bytes, with corrected checksums (`fixed`); 1 is a
//! tar that is built from the bytes (`tar_built`). With its second bit, the user has no trusted
//! xattrs.

use std::cell::RefCell;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use unionfs::archive::{Source, images};
use unionfs::layer::Dialect;
use unionfs::layer_tar::{self, Limits};
use unionfs::oci::Digest;
use unionfs::store::writable::Staging;

use super::{one_line, tar_built};

const BLOCK: usize = 512;
const LIMITS: Limits = Limits {
    bytes: 1 << 20,
    entries: 1000,
};

thread_local! {
    static SITE: RefCell<Site> = RefCell::new(Site::new());
}

pub fn run(bytes: &[u8]) {
    let Some((mode, bytes)) = bytes.split_first() else {
        return;
    };
    let tar = match mode & 1 {
        0 => fixed(bytes),
        _ => tar_built::tar(bytes),
    };
    let dialect = match mode & 2 {
        0 if rustix::process::geteuid().is_root() => Dialect::KERNEL,
        _ => Dialect::KERNEL_USERXATTR,
    };
    SITE.with_borrow_mut(|site| {
        site.unpack(&tar, dialect);
        site.index(&tar);
    });
}

/// A directory to unpack into, beside files that must not change.
struct Site {
    dir: tempfile::TempDir,
    diff: PathBuf,
    archive: PathBuf,
    outside: [Outside; 2],
}

/// The attributes that any change to a file or directory changes.
#[derive(Debug, PartialEq, Eq)]
struct Outside {
    ctime: (i64, i64),
    links: u64,
    size: u64,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let diff = dir.path().join("layer/diff");
        let archive = dir.path().join("archives/archive");
        fs::create_dir_all(&diff).unwrap();
        fs::create_dir(dir.path().join("archives")).unwrap();
        fs::write(dir.path().join("canary"), "canary").unwrap();
        fs::write(&archive, "").unwrap();
        let mut site = Self {
            dir,
            diff,
            archive,
            outside: [0, 1].map(|_| Outside {
                ctime: (0, 0),
                links: 0,
                size: 0,
            }),
        };
        site.outside = site.look();
        site
    }

    fn look(&self) -> [Outside; 2] {
        ["", "canary"].map(|name| {
            let stat = self.dir.path().join(name).symlink_metadata().unwrap();
            Outside {
                ctime: (stat.ctime(), stat.ctime_nsec()),
                links: stat.nlink(),
                size: stat.size(),
            }
        })
    }

    fn unpack(&mut self, tar: &[u8], dialect: Dialect) {
        let diff = File::open(&self.diff).unwrap();
        let mut split = Vec::new();
        let unpacked = layer_tar::unpack(tar, diff.as_fd(), dialect, &mut split, &LIMITS);
        match unpacked {
            Err(error) => one_line(&error),
            Ok(done) => {
                assert_eq!(done.diff_id, Digest::of(tar));
                assert_eq!(done.bytes, tar.len() as u64);
                let mut again = Vec::new();
                let digest = layer_tar::rebuild(&split[..], diff.as_fd(), &mut again);
                assert_eq!(digest.unwrap(), done.diff_id);
                assert!(again == tar, "the rebuilt tar differs");
                let damaged = |damage| panic!("{damage:?}");
                layer_tar::check(&split[..], diff.as_fd(), damaged, |_| {}).unwrap();
            }
        }
        assert_eq!(self.look(), self.outside);
        let layer = self.diff.parent().unwrap();
        assert_eq!(fs::read_dir(layer).unwrap().count(), 1);
        fs::remove_dir_all(&self.diff).unwrap();
        fs::create_dir(&self.diff).unwrap();
    }

    fn index(&self, tar: &[u8]) {
        fs::write(&self.archive, tar).unwrap();
        match Source::open(&self.archive, &Staging::temporary(), LIMITS.bytes) {
            Ok(source) => match images(&source, None) {
                Ok(images) => assert!(images.len() < tar.len()),
                Err(error) => one_line(&error),
            },
            Err(error) => one_line(&error),
        }
    }
}

/// Returns the tar with the correct checksum in each header.
pub fn fixed(bytes: &[u8]) -> Vec<u8> {
    let mut tar = bytes.to_vec();
    let mut at = 0;
    while let Some(block) = tar.get_mut(at..at + BLOCK) {
        at += BLOCK;
        if block.iter().all(|&b| b == 0) {
            continue;
        }
        let mut header = ::tar::Header::new_old();
        header.as_mut_bytes().copy_from_slice(block);
        header.set_cksum();
        block.copy_from_slice(header.as_bytes());
        if !matches!(header.entry_type().as_byte(), b'1'..=b'6') {
            let size = header.entry_size().unwrap_or(0).min(1 << 20) as usize;
            at += size.next_multiple_of(BLOCK);
        }
    }
    tar
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for tar in tar_built::samples() {
        seeds.push([&[0][..], &tar].concat());
        seeds.push([&[2][..], &tar].concat());
    }
    // Any bytes build a tar.
    for step in [1u8, 3, 7, 31, 53, 101, 151, 211] {
        let bytes = (0..200u8).map(|n| n.wrapping_mul(step).rotate_left(u32::from(n % 3)));
        seeds.push([1].into_iter().chain(bytes).collect());
    }
    seeds
}
