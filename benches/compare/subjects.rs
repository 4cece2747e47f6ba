//! The subjects of the measurements, and a mount that a workload may unmount, mount again and make
//! cold.

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
/// The column with metacopies, which only rows that change metadata of lower files have.
const KERNEL_METACOPY: Fs = Fs::Kernel("redirect_dir=on,metacopy=on,index=on");
const METACOPY_NAME: &str = "kernel metacopy=on";
/// The rows that the columns with metacopies have.
const METACOPY_ROWS: &str = "chown ";

/// The way in which a subject shows the files.
#[derive(Clone, Debug)]
enum How {
    /// A plain directory with the same files. It shows the limit of the disk.
    Plain,
    /// Mounted from the layers' directories.
    Overlay(Fs),
    /// Mounted by `unionfs mount` of the image, with these options.
    Image(&'static str),
}

/// One column of the report.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) name: String,
    how: How,
    /// The prefix of the rows that are measured for this subject, if it differs from another one
    /// only in these.
    only: &'static str,
    /// Whether it is measured only if it is requested by name.
    on_request: bool,
}

impl Subject {
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self.how, How::Plain)
    }

    /// Whether it is measured if the subjects with these `names` are requested (none: all).
    pub(crate) fn is_wanted(&self, names: &[String]) -> bool {
        match names {
            [] => !self.on_request,
            _ => self.name == "kernel" || names.contains(&self.name),
        }
    }

    /// Whether it is measured in this row.
    pub(crate) fn takes(&self, row: &str) -> bool {
        row.starts_with(self.only)
    }

    /// Returns the version that another project's program prints.
    pub(crate) fn version(&self) -> Option<String> {
        let How::Overlay(Fs::Program(program)) = &self.how else {
            return None;
        };
        let text = sh("\"$1\" --version 2>&1", &[program]).ok()?;
        text.lines().next().map(str::to_owned)
    }

    /// Mounts directories that belong to no image.
    pub(crate) fn mount_directories(&self, stack: &Stack) -> Result<Mounted, String> {
        match &self.how {
            How::Plain => Err(NOTHING.into()),
            How::Overlay(fs) => fs.try_mount(stack),
            How::Image(options) => Fs::Unionfs(options).try_mount(stack),
        }
    }

    /// Mounts by running a program, for all subjects alike, because a user waits for that program.
    /// Also returns the time until the mount answers.
    fn mount(&self, layers: &Layers, image: &str, stack: &Stack) -> Option<(Mounted, Duration)> {
        let mut command = match &self.how {
            How::Plain => return None,
            How::Overlay(Fs::Program(program)) => {
                let mut command = Command::new(program);
                command.args(["-o", &stack.options()]).arg(&stack.mnt);
                command
            }
            How::Overlay(_) => kernel_command(&self.name, stack),
            How::Image(options) => image_command(options, layers, image, stack),
        };
        let is_kernel = matches!(self.how, How::Overlay(Fs::Kernel(_)));
        let _uring = self.name.contains("uring").then(|| Switch::set("Y"));
        let start = Instant::now();
        let output = command.output().unwrap();
        // The mount of unionfs is live when the program returns; that of fuse-overlayfs 2.0 is not.
        while output.status.success() && !is_live(&stack.mnt) && start.elapsed() < PATIENCE {
            std::thread::yield_now();
        }
        let took = start.elapsed();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(is_live(&stack.mnt), "{command:?}: {errors}");
        Some((Mounted::new(&stack.mnt, !is_kernel), took))
    }
}

/// The maximum time that a program may take to mount.
const PATIENCE: Duration = Duration::from_secs(10);

fn is_live(mnt: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|m| m.dev());
    let parent = mnt.parent().unwrap_or(mnt);
    device(mnt).is_ok_and(|dev| device(parent).is_ok_and(|other| other != dev))
}

/// The argument that stands for an absent upper and work directory.
const NO_UPPER: &str = "none";

/// Returns a command that runs this program again to mount kernel overlayfs: mount(8) accepts at
/// most a page of options.
fn kernel_command(subject: &str, stack: &Stack) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--bench", "--mount-kernel", subject]);
    command.arg(&stack.mnt);
    match &stack.upper {
        Some((upper, work)) => command.arg(upper).arg(work),
        None => command.args([NO_UPPER, NO_UPPER]),
    };
    command.args(&stack.lowers);
    command
}

/// Mounts kernel overlayfs for [`kernel_command`]. The arguments are the subject, mountpoint, upper,
/// work (both [`NO_UPPER`]: read-only) and lowers.
pub(crate) fn mount_kernel(places: &[PathBuf]) {
    let [subject, mnt, upper, work, lowers @ ..] = places else {
        panic!("--mount-kernel SUBJECT MNT UPPER WORK LOWER...");
    };
    let fs = if subject.as_os_str() == METACOPY_NAME {
        KERNEL_METACOPY
    } else {
        KERNEL
    };
    let has_upper = upper.as_os_str() != NO_UPPER;
    let mounted = fs.mount(&Stack {
        lowers: lowers.to_vec(),
        upper: has_upper.then(|| (upper.clone(), work.clone())),
        mnt: mnt.clone(),
    });
    // The mount stays after the process ends.
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

/// Returns the subjects. Kernel overlayfs comes first, because the ratios refer to it.
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
            only: METACOPY_ROWS,
            ..one(METACOPY_NAME, How::Overlay(KERNEL_METACOPY))
        },
        Subject {
            only: METACOPY_ROWS,
            ..one("unionfs metacopy=on", How::Image("metacopy=on"))
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

/// Returns the path of a program in PATH.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|p| p.exists())
}

/// Runs a script. If it fails, its output is the error.
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

/// The reason why a row has no figure for a subject to which it does not apply. This is no failure.
pub(crate) const NOTHING: &str = "has no such thing";

/// A mount to run workloads on. It is made anew for every subject and round. A workload sees the
/// files that earlier ones have left.
pub(crate) struct Bed<'l> {
    pub(crate) layers: &'l Layers,
    pub(crate) subject: &'l Subject,
    image: String,
    stack: Stack,
    mounted: Option<Mounted>,
    own: PathBuf,
}

impl<'l> Bed<'l> {
    /// Mounts an image for a subject.
    ///
    /// # Panics
    /// If the image does not exist.
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

    /// Copies the merged files into an ordinary directory.
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

    /// Makes `count` more mounts of the same layers, each read-only.
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

    /// Returns the directory of the merged files.
    pub(crate) fn path(&self) -> &Path {
        &self.stack.mnt
    }

    /// Returns the path of a file of the top layer in its layer.
    pub(crate) fn below(&self, name: &str) -> PathBuf {
        if self.subject.is_plain() {
            self.path().join(name)
        } else {
            self.stack.lowers[0].join(name)
        }
    }

    /// Returns a directory on the disk beside the mount, for input and output of workloads.
    pub(crate) fn outside(&self) -> &Path {
        &self.own
    }

    /// Fails for the plain directory, for which such a row has no meaning.
    pub(crate) fn need_mount(&self) -> Result<(), String> {
        if self.subject.is_plain() {
            Err(NOTHING.into())
        } else {
            Ok(())
        }
    }

    /// Returns the processes that serve the mount.
    pub(crate) fn servers(&self) -> &[u32] {
        self.mounted.as_ref().map_or(&[], Mounted::servers)
    }

    /// Unmounts and mounts again, so that the server and the kernel have forgotten names and pages
    /// of the mount, but not of the layers. Returns the time of the mounting.
    pub(crate) fn remount(&mut self) -> Duration {
        if let Some(mounted) = self.mounted.take() {
            mounted.unmount();
        }
        self.mount()
    }

    /// Drops all caches of the kernel, so that the disk is cold too.
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
