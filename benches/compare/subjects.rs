//! What is measured, and where: the subjects, and a mount that a workload may unmount, mount again
//! and make cold.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use testkit::mount::{Fs, Mounted, Stack};
use testkit::program;
use testkit::uring::{self, Switch};

use crate::layers::Layers;

/// Kernel overlayfs with its defaults, to which the ratios refer.
const KERNEL: Fs = Fs::Kernel("redirect_dir=on,metacopy=off");

/// How a subject shows the files.
#[derive(Clone, Debug)]
enum How {
    /// A plain directory with the same files, the limit of what a disk gives.
    Plain,
    /// From the layers' directories.
    Overlay(Fs),
    /// By `unionfs mount` of the image, with these options.
    Image(&'static str),
}

/// One column of the report.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) name: String,
    how: How,
    /// It differs from another one only in rows whose names begin so.
    only: &'static str,
    /// It is measured only where it is asked for by name.
    on_request: bool,
}

impl Subject {
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self.how, How::Plain)
    }

    /// Whether it is measured, if these are asked for by name (none: all).
    pub(crate) fn is_wanted(&self, names: &[String]) -> bool {
        match names {
            [] => !self.on_request,
            _ => self.name == "kernel" || names.contains(&self.name),
        }
    }

    /// Whether it is worth measuring in this row.
    pub(crate) fn takes(&self, row: &str) -> bool {
        row.starts_with(self.only)
    }

    /// What a program of somebody else's says it is.
    pub(crate) fn version(&self) -> Option<String> {
        let How::Overlay(Fs::Program(program)) = &self.how else {
            return None;
        };
        let text = sh("\"$1\" --version 2>&1", &[program]).ok()?;
        text.lines().next().map(str::to_owned)
    }

    /// Directories that are no image's.
    pub(crate) fn mount_directories(&self, stack: &Stack) -> Result<Mounted, String> {
        match &self.how {
            How::Plain => Err(NOTHING.into()),
            How::Overlay(fs) => fs.try_mount(stack),
            How::Image(options) => Fs::Unionfs(options).try_mount(stack),
        }
    }

    /// By a program, for all of them: what is compared is what somebody waits for who mounts.
    /// With the time until the mount answers.
    fn mount(&self, layers: &Layers, image: &str, stack: &Stack) -> Option<(Mounted, Duration)> {
        let mut command = match &self.how {
            How::Plain => return None,
            How::Overlay(Fs::Program(program)) => {
                let mut command = Command::new(program);
                command.args(["-o", &stack.options()]).arg(&stack.mnt);
                command
            }
            How::Overlay(_) => kernel_command(stack),
            How::Image(options) => image_command(options, layers, image, stack),
        };
        let is_kernel = self.name == "kernel";
        let _uring = self.name.contains("uring").then(|| Switch::set("Y"));
        let start = Instant::now();
        let output = command.output().unwrap();
        // Ours promises to be live when it returns; fuse-overlayfs 2.0 is not.
        while output.status.success() && !is_live(&stack.mnt) && start.elapsed() < PATIENCE {
            std::thread::yield_now();
        }
        let took = start.elapsed();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(is_live(&stack.mnt), "{command:?}: {errors}");
        Some((Mounted::new(&stack.mnt, !is_kernel), took))
    }
}

/// How long a program may take to mount.
const PATIENCE: Duration = Duration::from_secs(10);

fn is_live(mnt: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|m| m.dev());
    let parent = mnt.parent().unwrap_or(mnt);
    device(mnt).is_ok_and(|dev| device(parent).is_ok_and(|other| other != dev))
}

/// Stands for an upper and a work directory that are not there.
const NO_UPPER: &str = "none";

/// This program once more: mount(8) takes no more than a page of options.
fn kernel_command(stack: &Stack) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("--bench").arg("--mount-kernel").arg(&stack.mnt);
    match &stack.upper {
        Some((upper, work)) => command.arg(upper).arg(work),
        None => command.args([NO_UPPER, NO_UPPER]),
    };
    command.args(&stack.lowers);
    command
}

/// What [`kernel_command`] runs: mountpoint, upper, work (both [`NO_UPPER`]: read-only), lowers.
pub(crate) fn mount_kernel(places: &[PathBuf]) {
    let [mnt, upper, work, lowers @ ..] = places else {
        panic!("--mount-kernel MNT UPPER WORK LOWER...");
    };
    let has_upper = upper.as_os_str() != NO_UPPER;
    let mounted = KERNEL.mount(&Stack {
        lowers: lowers.to_vec(),
        upper: has_upper.then(|| (upper.clone(), work.clone())),
        mnt: mnt.clone(),
    });
    // It stays.
    std::mem::forget(mounted);
}

fn image_command(options: &str, layers: &Layers, image: &str, stack: &Stack) -> Command {
    let mut command = Command::new(program());
    command.env("UNIONFS_ROOT", layers.store()).arg("mount");
    if !options.is_empty() {
        command.args(["-o", options]);
    }
    match &stack.upper {
        Some((upper, work)) => command.arg("--upper").arg(upper).arg("--work").arg(work),
        None => command.arg("--read-only"),
    };
    command.arg(image).arg(&stack.mnt);
    command
}

/// Kernel overlayfs first: the ratios are to it.
pub(crate) fn subjects(peer: Option<PathBuf>) -> Vec<Subject> {
    let one = |name: &str, how| Subject {
        name: name.into(),
        how,
        only: "",
        on_request: false,
    };
    let mut subjects = vec![
        one("kernel", How::Overlay(KERNEL)),
        one("unionfs", How::Image("")),
        one("unionfs sandbox=off", How::Image("sandbox=off")),
        one("unionfs io=cached", How::Image("io=cached")),
        Subject {
            only: "fio",
            ..one("unionfs writeback", How::Image("writeback"))
        },
        Subject {
            on_request: true,
            ..one("unionfs transport=fuser", How::Image("transport=fuser"))
        },
    ];
    if uring::missing().is_none() {
        subjects.push(one(
            "unionfs transport=uring",
            How::Image("transport=uring"),
        ));
    }
    let peer = peer
        .or_else(|| std::env::var_os("PEER").map(Into::into))
        .or_else(|| on_path("fuse-overlayfs"));
    if let Some(program) = peer {
        subjects.push(one("fuse-overlayfs", How::Overlay(Fs::Program(program))));
    }
    subjects.push(one("plain", How::Plain));
    subjects
}

/// Where a program is.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|p| p.exists())
}

/// Runs a command; its output when it fails is the error.
pub(crate) fn sh(script: &str, args: &[&Path]) -> Result<String, String> {
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script, "bash"])
        .args(args)
        .output()
        .map_err(|e| format!("bash: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!(
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    ))
}

/// Why a row has no figure for a subject that has no such thing; not a failure.
pub(crate) const NOTHING: &str = "has no such thing";

/// A place to run workloads on. Made fresh for every subject and round; what a workload
/// leaves in it the later ones see.
pub(crate) struct Bed<'l> {
    pub(crate) layers: &'l Layers,
    pub(crate) subject: &'l Subject,
    image: String,
    stack: Stack,
    mounted: Option<Mounted>,
    own: PathBuf,
}

impl<'l> Bed<'l> {
    /// # Panics
    /// When there is no such image.
    pub(crate) fn new(layers: &'l Layers, subject: &'l Subject, image: &str) -> Self {
        let own = layers.scratch.dir("bed");
        let dir = |name: &str| layers.scratch.dir(&format!("bed/{name}"));
        let stack = Stack {
            lowers: layers.stack(image).unwrap().to_vec(),
            upper: Some((dir("upper"), dir("work"))),
            mnt: dir("mnt"),
        };
        let mut bed = Self {
            layers,
            subject,
            image: image.to_owned(),
            stack,
            mounted: None,
            own,
        };
        if subject.is_plain() {
            bed.fill_plain();
        }
        bed.mount();
        bed
    }

    /// The merged files as an ordinary directory.
    fn fill_plain(&self) {
        let stack = Stack {
            mnt: self.own.join("merged"),
            ..self.stack.clone()
        };
        fs::create_dir(&stack.mnt).unwrap();
        let merged = KERNEL.mount(&stack);
        sh("cp -a \"$1/.\" \"$2\"", &[merged.path(), &self.stack.mnt]).unwrap();
    }

    fn mount(&mut self) -> Duration {
        let mounted = self.subject.mount(self.layers, &self.image, &self.stack);
        let (mounted, took) = mounted.unzip();
        self.mounted = mounted;
        took.unwrap_or_default()
    }

    /// `count` more mounts of the same layers, each read-only.
    pub(crate) fn more(&self, count: usize) -> Vec<Mounted> {
        let one = |n: usize| {
            let stack = Stack {
                upper: None,
                mnt: self.layers.scratch.dir(&format!("bed/mnt-{n}")),
                ..self.stack.clone()
            };
            let mounted = self.subject.mount(self.layers, &self.image, &stack)?;
            Some(mounted.0)
        };
        (0..count).filter_map(one).collect()
    }

    /// Where the files are.
    pub(crate) fn path(&self) -> &Path {
        &self.stack.mnt
    }

    /// A file of the top layer where it lies.
    pub(crate) fn below(&self, name: &str) -> PathBuf {
        if self.subject.is_plain() {
            self.path().join(name)
        } else {
            self.stack.lowers[0].join(name)
        }
    }

    /// A directory on the disk beside the mount, for what goes in or out.
    pub(crate) fn outside(&self) -> &Path {
        &self.own
    }

    /// Fails on the plain directory: there is nothing of this kind to measure.
    pub(crate) fn need_mount(&self) -> Result<(), String> {
        if self.subject.is_plain() {
            Err(NOTHING.into())
        } else {
            Ok(())
        }
    }

    /// Processes that serve the mount.
    pub(crate) fn servers(&self) -> &[u32] {
        self.mounted.as_ref().map_or(&[], Mounted::servers)
    }

    /// Unmounts and mounts again: the server and the kernel have forgotten names and pages of
    /// the mount, but not of the layers. How long the mounting took.
    pub(crate) fn remount(&mut self) -> Duration {
        if let Some(mounted) = self.mounted.take() {
            mounted.unmount();
        }
        self.mount()
    }

    /// After it the disk is cold too.
    pub(crate) fn drop_caches(&mut self) {
        if let Some(mounted) = self.mounted.take() {
            mounted.unmount();
        }
        rustix::fs::sync();
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        self.mount();
    }
}

impl Drop for Bed<'_> {
    fn drop(&mut self) {
        self.mounted = None;
        if let Err(e) = fs::remove_dir_all(&self.own) {
            eprintln!("remove {}: {e}", self.own.display());
        }
    }
}
