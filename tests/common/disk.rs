//! File systems of a test's own, on images.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{UnmountFlags, unmount};

/// ext4 on an image file, mounted until dropped.
pub struct Ext4 {
    image: PathBuf,
    path: PathBuf,
}

impl Ext4 {
    /// Makes an image `NAME.img` in `dir`, of so many MiB, and mounts it on `NAME`, with further
    /// mount options; why it cannot, if it cannot.
    pub fn new(dir: &Path, name: &str, size: u64, options: &str) -> Result<Self, String> {
        let image = dir.join(format!("{name}.img"));
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(size << 20).unwrap();
        let made = Command::new("mkfs.ext4").arg("-q").arg(&image).status();
        if !made.is_ok_and(|status| status.success()) {
            return Err("needs mkfs.ext4".into());
        }
        Self::mount(&image, &dir.join(name), options)
    }

    /// Mounts an image on a directory that is made for it.
    pub fn mount(image: &Path, path: &Path, options: &str) -> Result<Self, String> {
        std::fs::create_dir(path).unwrap();
        let mut mount = Command::new("mount");
        let mount = mount.args(["-t", "ext4", "-o", &format!("loop,{options}")]);
        let output = mount.arg(image).arg(path).output().unwrap();
        match output.status.success() {
            true => Ok(Self {
                image: image.to_owned(),
                path: path.to_owned(),
            }),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What a power cut at this moment would leave, mounted beside it on `name`.
    pub fn cut(&self, name: &str) -> Self {
        let (image, path) = (
            self.image.with_file_name(format!("{name}.img")),
            self.path.with_file_name(name),
        );
        let mut cp = Command::new("cp");
        let cp = cp.arg("--sparse=always").arg(&self.image).arg(&image);
        assert!(cp.status().unwrap().success());
        Self::mount(&image, &path, "rw").unwrap_or_else(|e| panic!("{e}"))
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let _ = unmount(&self.path, UnmountFlags::DETACH);
    }
}
