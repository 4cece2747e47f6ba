//! The directory of a bundle: `config.json`, `rootfs`, where root holds volumes `volumes/N`, where
//! owners are recorded the socket `owners`, and for images with apt `apt.conf`.
//!
//! Invariant: nothing is removed recursively, because a mount could be below. A directory that is
//! still a mountpoint stays.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::fs::FileType;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};
use serde_json::Value;

use super::ContainerArgs;
use super::apt;
use super::image::{ImageToRun, Own};
use super::volume::Volume;

/// How often a busy mount is unmounted before it is detached, and the time between.
const TRIES: u32 = 20;
const BETWEEN_TRIES: Duration = Duration::from_millis(100);

/// A bundle. Dropping it removes it, also after a failure.
pub(super) struct Bundle {
    path: PathBuf,
    mounted: bool,
    /// Whether sources of volumes are mounted in it, which only lasts as long as this process.
    holds_volumes: bool,
    volumes: Vec<PathBuf>,
    kept: bool,
}

impl Bundle {
    /// Makes a private directory with a new name.
    pub(super) fn temporary() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("unionfs-run-").tempdir();
        // Its mode is 0700.
        let path = dir
            .context("cannot make a directory for the container")?
            .keep();
        let mut bundle = Self::new(path)?;
        bundle.holds_volumes = rustix::process::geteuid().is_root();
        Ok(bundle)
    }

    /// Takes a directory that does not exist or is empty.
    pub(super) fn at(path: &Path) -> anyhow::Result<Self> {
        let path = std::path::absolute(path)?;
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let failed = || format!("cannot read {path:?}");
                if std::fs::read_dir(&path)
                    .with_context(failed)?
                    .next()
                    .is_some()
                {
                    bail!("{path:?} is not empty: give a new directory");
                }
            }
            Err(error) => return Err(error).with_context(|| format!("cannot make {path:?}")),
        }
        Self::new(path)
    }

    fn new(path: PathBuf) -> anyhow::Result<Self> {
        let bundle = Self {
            path,
            mounted: false,
            holds_volumes: false,
            volumes: Vec::new(),
            kept: false,
        };
        let rootfs = bundle.rootfs();
        let made = DirBuilder::new().mode(0o700).create(&rootfs);
        made.with_context(|| format!("cannot make {rootfs:?}"))?;
        Ok(bundle)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    /// Mounts the image on `rootfs`. The files of this user and group of the image are those of the
    /// plain user who mounts, if owners are recorded.
    pub(super) fn mount(
        &mut self,
        own: &Own<'_>,
        image: &ImageToRun,
        args: &ContainerArgs,
        user: Option<(u32, u32)>,
    ) -> anyhow::Result<()> {
        let owners = user.map(|(uid, gid)| format!("user_as={uid}:{gid}"));
        let rootfs = super::text(&self.rootfs())?;
        let name = args.name.as_deref().or(image.layer.as_deref());
        let mut command = vec!["mount"];
        match name {
            Some(name) => command.extend(["--name", name]),
            None if args.read_only => command.push("--read-only"),
            None => command.push("--ephemeral"),
        }
        if args.name.is_some() && image.layer.is_some() && args.name != image.layer {
            bail!("what is run is a read-write layer already: leave --name out");
        }
        if image.layer.is_none() {
            command.push(&image.id);
        }
        if let Some(owners) = &owners {
            command.extend(["-o", owners]);
        }
        command.push(&rootfs);
        own.call(command)?;
        self.mounted = true;
        Ok(())
    }

    /// Unmounts the image, to mount it in another way.
    pub(super) fn unmount(&mut self, own: &Own<'_>) -> anyhow::Result<()> {
        own.call(["umount".as_ref(), self.rootfs().as_os_str()])?;
        self.mounted = false;
        Ok(())
    }

    /// Makes the sources of volumes fixed. root mounts what was opened; a plain user, who may not, has
    /// no rights that another user could misuse.
    pub(super) fn hold(&mut self, mut volumes: Vec<Volume>) -> anyhow::Result<Vec<Volume>> {
        if !self.holds_volumes || volumes.is_empty() {
            return Ok(volumes);
        }
        let dir = self.path.join("volumes");
        DirBuilder::new().mode(0o700).create(&dir)?;
        for (number, volume) in volumes.iter_mut().enumerate() {
            let place = dir.join(number.to_string());
            if volume.kind == FileType::Directory {
                DirBuilder::new().mode(0o700).create(&place)?;
            } else {
                File::create_new(&place)?;
            }
            let failed = || format!("-v: cannot mount {:?}", volume.source);
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE
                | OpenTreeFlags::AT_EMPTY_PATH;
            let tree = rustix::mount::open_tree(&volume.opened, "", flags).with_context(failed)?;
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            rustix::mount::move_mount(tree.as_fd(), "", rustix::fs::CWD, &place, flags)
                .with_context(failed)?;
            self.volumes.push(place.clone());
            volume.source = place;
        }
        Ok(volumes)
    }

    /// Writes `config.json`.
    pub(super) fn write_config(&self, spec: &Value) -> anyhow::Result<()> {
        self.write("config.json", &serde_json::to_vec_pretty(spec)?)
    }

    /// Writes a new file.
    pub(super) fn write(&self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        let path = self.path.join(name);
        let failed = || format!("cannot write {path:?}");
        let mut options = OpenOptions::new();
        let options = options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(&path).with_context(failed)?;
        file.write_all(content).with_context(failed)
    }

    /// Leaves the bundle to others.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }

    /// Removes it.
    pub(super) fn remove(mut self, own: &Own<'_>) -> anyhow::Result<()> {
        self.kept = true;
        self.clean(own)
    }

    fn clean(&mut self, own: &Own<'_>) -> anyhow::Result<()> {
        let mut result = Ok(());
        if std::mem::take(&mut self.mounted) {
            let rootfs = self.rootfs();
            let lazily = || own.call(["umount".as_ref(), "--lazy".as_ref(), rootfs.as_os_str()]);
            // Processes of the container and of the runtime may be ending.
            let mut done = own.call(["umount".as_ref(), rootfs.as_os_str()]);
            for _ in 0..TRIES {
                if done.is_ok() {
                    break;
                }
                std::thread::sleep(BETWEEN_TRIES);
                done = own.call(["umount".as_ref(), rootfs.as_os_str()]);
            }
            result = done.or_else(|_| lazily()).map(drop);
        }
        for volume in self.volumes.drain(..) {
            let _ = rustix::mount::unmount(&volume, UnmountFlags::DETACH);
            let _ = std::fs::remove_file(&volume);
            let _ = std::fs::remove_dir(&volume);
        }
        for file in ["config.json", "pid", "owners", apt::FILE] {
            let _ = std::fs::remove_file(self.path.join(file));
        }
        for dir in ["volumes", "state", "rootfs", ""] {
            let _ = std::fs::remove_dir(self.path.join(dir));
        }
        result
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Ok(own) = Own::new(None) {
            // The failure before is the one to report.
            let _ = self.clean(&own);
        }
    }
}
