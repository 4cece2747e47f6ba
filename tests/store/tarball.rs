//! Layer tars through `unpack` and `rebuild`: what comes back is the same tar, whatever
//! it holds, and hostile ones stay inside.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use unionfs::layer::Dialect;
use unionfs::store::tarball::{self, Limits, Unpacked};
use unionfs::store::{Digest, Result};

/// A directory to unpack into, with something beside it that must not change.
struct Site {
    _dir: tempfile::TempDir,
    diff: PathBuf,
    outside: PathBuf,
}

impl Site {
    fn new() -> Self {
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

    fn unpack(&self, tar: &[u8]) -> (Result<Unpacked>, Vec<u8>) {
        let mut split = Vec::new();
        let diff = File::open(&self.diff).unwrap();
        let limits = Limits::default();
        let done = tarball::unpack(tar, diff.as_fd(), Dialect::KERNEL, &mut split, &limits);
        (done, split)
    }

    fn rebuild(&self, split: &[u8]) -> Result<(Digest, Vec<u8>)> {
        let diff = File::open(&self.diff).unwrap();
        let mut tar = Vec::new();
        let digest = tarball::rebuild(split, diff.as_fd(), &mut tar)?;
        Ok((digest, tar))
    }

    /// Unpacks and rebuilds.
    fn round(&self, tar: &[u8]) -> Unpacked {
        let (done, split) = self.unpack(tar);
        let done = done.unwrap();
        assert_eq!(done.diff_id, Digest::of(tar));
        let (digest, again) = self.rebuild(&split).unwrap();
        assert_eq!(digest, done.diff_id);
        assert!(again == tar, "the rebuilt tar differs");
        done
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.diff.join(name)
    }

    fn assert_outside_untouched(&self) {
        let names: Vec<_> = fs::read_dir(&self.outside).unwrap().collect();
        assert_eq!(names.len(), 1);
        let secret = self.outside.join("secret");
        assert_eq!(fs::read(&secret).unwrap(), b"secret");
        assert_eq!(fs::metadata(&secret).unwrap().nlink(), 1);
        let above = fs::read_dir(self.diff.parent().unwrap()).unwrap().count();
        assert_eq!(above, 1);
    }
}
