//! File systems on image files, each for one test.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{UnmountFlags, unmount};

/// ext4, xfs or btrfs on an image file, mounted until dropped.
pub struct Disk {
    image: PathBuf,
    mountpoint: PathBuf,
    kind: &'static str,
    /// The directory of its files: the mountpoint, or a subvolume.
    path: PathBuf,
}

impl Disk {
    /// Creates an image `NAME.img` of ext4 in `dir`, of `size` MiB, and mounts it on `NAME` with
    /// further mount options. The error is the reason why that is impossible.
    pub fn new(dir: &Path, name: &str, size: u64, options: &str) -> Result<Self, String> {
        Self::make("ext4", dir, name, size, &[])?;
        Self::mount(
            "ext4",
            &dir.join(format!("{name}.img")),
            &dir.join(name),
            options,
        )
    }

    /// Creates an xfs, which clones files, in the same way. Its size is 300 MiB, the minimum.
    pub fn xfs(dir: &Path, name: &str) -> Result<Self, String> {
        Self::make("xfs", dir, name, 300, &[])?;
        let image = dir.join(format!("{name}.img"));
        Self::mount("xfs", &image, &dir.join(name), "nouuid")
    }

    /// Creates ext4 in the same way, and mounts it by fuse2fs(1). Its size is 64 MiB.
    pub fn fuse2fs(dir: &Path, name: &str) -> Result<Self, String> {
        Self::make("ext4", dir, name, 64, &[])?;
        let (image, path) = (dir.join(format!("{name}.img")), dir.join(name));
        std::fs::create_dir(&path).unwrap();
        let mut mount = Command::new("fuse2fs");
        let mount = mount.arg(&image).arg(&path).args(["-o", "rw,allow_other"]);
        let output = mount.output().map_err(|e| format!("needs fuse2fs: {e}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(Self {
            image,
            mountpoint: path.clone(),
            kind: "fuse2fs",
            path,
        })
    }

    /// Creates a file system of any type, with further arguments of mkfs.
    pub fn made_with(
        kind: &'static str,
        dir: &Path,
        name: &str,
        size: u64,
        args: &[&str],
    ) -> Result<Self, String> {
        Self::make(kind, dir, name, size, args)?;
        let image = dir.join(format!("{name}.img"));
        Self::mount(kind, &image, &dir.join(name), "rw")
    }

    /// Creates a subvolume of btrfs with a quota, for [`Self::limit`].
    pub fn with_quota(dir: &Path, name: &str) -> Result<Self, String> {
        let mut disk = Self::made_with("btrfs", dir, name, 256, &[])?;
        btrfs(&["quota", "enable"], &disk.mountpoint)?;
        disk.path = disk.mountpoint.join("subvolume");
        btrfs(&["subvolume", "create"], &disk.path)?;
        Ok(disk)
    }

    /// Limits the subvolume to this number of bytes, or to `none`. `subvolume` is the result of
    /// [`Self::path`].
    pub fn limit(subvolume: &Path, bytes: &str) -> Result<(), String> {
        // The limit is not set through the subvolume, because the new limit would count against the
        // old one.
        let top = subvolume.parent().unwrap();
        btrfs(&["qgroup", "limit", bytes, FIRST_SUBVOLUME], top)
    }

    /// Unmounts it, which must be possible, and mounts it again on the same directory.
    pub fn again(&self) -> Result<(), String> {
        unmount(&self.mountpoint, UnmountFlags::empty()).map_err(|e| format!("unmount: {e}"))?;
        Self::attach(self.kind, &self.image, &self.mountpoint, "rw")
    }

    fn make(kind: &str, dir: &Path, name: &str, size: u64, args: &[&str]) -> Result<(), String> {
        let image = dir.join(format!("{name}.img"));
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(size << 20).unwrap();
        let program = format!("mkfs.{kind}");
        let made = Command::new(&program)
            .arg("-q")
            .args(args)
            .arg(&image)
            .status();
        if made.is_ok_and(|status| status.success()) {
            Ok(())
        } else {
            Err(format!("needs {program}"))
        }
    }

    /// Mounts an image on a directory, which is created for it.
    pub fn mount(
        kind: &'static str,
        image: &Path,
        path: &Path,
        options: &str,
    ) -> Result<Self, String> {
        std::fs::create_dir(path).unwrap();
        Self::attach(kind, image, path, options)?;
        Ok(Self {
            image: image.to_owned(),
            mountpoint: path.to_owned(),
            kind,
            path: path.to_owned(),
        })
    }

    fn attach(kind: &str, image: &Path, path: &Path, options: &str) -> Result<(), String> {
        let mut mount = Command::new("mount");
        let mount = mount.args(["-t", kind, "-o", &format!("loop,{options}")]);
        let output = mount.arg(image).arg(path).output().unwrap();
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Returns the directory of its files.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Mounts the state that a power cut at this moment would leave, beside it on `name`.
    pub fn cut(&self, name: &str) -> Self {
        let (image, path) = (
            self.image.with_file_name(format!("{name}.img")),
            self.mountpoint.with_file_name(name),
        );
        let mut cp = Command::new("cp");
        let cp = cp.arg("--sparse=always").arg(&self.image).arg(&image);
        assert!(cp.status().unwrap().success());
        // The copy has the UUID of the mounted file system.
        let options = match self.kind {
            "xfs" => "nouuid",
            _ => "rw",
        };
        Self::mount(self.kind, &image, &path, options).unwrap_or_else(|e| panic!("{e}"))
    }
}

/// The quota group of the first subvolume of a btrfs.
const FIRST_SUBVOLUME: &str = "0/256";

/// Runs btrfs(8) on a path. The error is the reason why that is impossible.
fn btrfs(args: &[&str], path: &Path) -> Result<(), String> {
    let output = Command::new("btrfs").args(args).arg(path).output();
    let output = output.map_err(|e| format!("needs btrfs: {e}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!(
            "btrfs {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        ))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = unmount(&self.mountpoint, UnmountFlags::DETACH);
    }
}
