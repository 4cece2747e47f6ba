//! The subjects of the measurements, and a mount that a workload may unmount, mount again and make
//! cold.
//!
//! Every row begins with a new mount and a new upper ([`Bed::refresh`]), so that no row is measured
//! on what another one left. The ordinary directory is made once in a round, because a copy of it
//! takes seconds.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use testkit::mount::{Fs, Mounted, Stack};
use testkit::program;
use testkit::uring::{self, Switch};

use crate::Workload;
use crate::figures::report::{Column, DEFAULT, Group, KERNEL, NOTHING, Weight};
use crate::layers::Layers;

/// Kernel overlayfs with its defaults, to which the ratios refer.
const OVERLAYFS: &str = "redirect_dir=on,metacopy=off";
/// Kernel overlayfs with metacopies, for the rows that change metadata of lower files.
const OVERLAYFS_METACOPY: &str = "redirect_dir=on,metacopy=on,index=on";

/// The way in which a subject shows the files.
#[derive(Clone, Debug)]
enum How {
    /// An ordinary directory with the same files, without a union. It shows the limit of the disk.
    Native,
    /// Mounted from the layers' directories.
    Overlay(Fs),
    /// Mounted by `unionfs mount` of the image with its catalog, with these options.
    Image(&'static str),
}

/// One column of the report.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) name: String,
    how: How,
    /// The command before the commands that mount: nothing, or one that takes something away.
    before: &'static [&'static str],
    /// Whether a row is measured for this subject. Some subjects differ from another one in few
    /// rows only.
    takes: fn(&Workload) -> bool,
    /// Whether rows on more layers and on a million files, which take long, are measured too.
    long: bool,
    /// Whether it is measured in the first round only: it is there for comparison, and takes long.
    once: bool,
    /// Whether it is measured only if it is requested by name.
    on_request: bool,
}

impl Subject {
    pub(crate) fn is_native(&self) -> bool {
        matches!(self.how, How::Native)
    }

    /// Whether it is measured if the subjects with these `names` are requested (none: all).
    pub(crate) fn is_wanted(&self, names: &[String]) -> bool {
        match names {
            [] => !self.on_request,
            _ => self.name == KERNEL || names.contains(&self.name),
        }
    }

    /// Whether it is measured in this row.
    pub(crate) fn takes(&self, row: &Workload) -> bool {
        (self.takes)(row)
    }

    /// Whether it is measured in rows that take long.
    pub(crate) fn takes_long_rows(&self) -> bool {
        self.long
    }

    /// Whether it is measured in the first round only.
    pub(crate) fn is_once(&self) -> bool {
        self.once
    }

    /// Describes it for the report.
    pub(crate) fn column(&self) -> Column {
        let more = |options: &str| match options {
            "" => "default options".to_owned(),
            options => format!("`-o {options}`"),
        };
        let mounted = match &self.how {
            How::Native => "an ordinary directory with the same files, without a union".into(),
            How::Overlay(Fs::Kernel(options)) => format!(
                "kernel overlayfs on the directories of the layers, `-o {options}`, mounted by a \
                 program that makes the system call"
            ),
            How::Overlay(Fs::Program(program)) => format!(
                "`{}` on the directories of the layers, default options; {}in the first round only",
                self.version()
                    .unwrap_or_else(|| program.display().to_string()),
                if self.once {
                    ""
                } else {
                    "other numbers of layers "
                },
            ),
            How::Overlay(Fs::Unionfs("")) if !self.before.is_empty() => format!(
                "`unionfs`, started by `{}`: its threads do not give way",
                self.before.join(" ")
            ),
            How::Overlay(ours) => format!(
                "`unionfs` by root on the directories of the layers, without a catalog: {}",
                more(ours.options())
            ),
            How::Image(options) => format!(
                "`unionfs mount IMAGE` by root, with a catalog that exists already: {}",
                more(options)
            ),
        };
        Column {
            name: self.name.clone(),
            mounted,
        }
    }

    /// Returns the version that another project's program prints.
    pub(crate) fn version(&self) -> Option<String> {
        let How::Overlay(Fs::Program(program)) = &self.how else {
            return None;
        };
        let text = sh("\"$1\" --version 2>&1", &[program]).ok()?;
        // Version 1 prints those of fusermount3 and of the library too.
        text.lines()
            .find(|l| l.starts_with("fuse-overlayfs"))
            .map(str::to_owned)
    }

    /// Mounts directories that belong to no image.
    pub(crate) fn mount_directories(&self, stack: &Stack) -> Result<Mounted, String> {
        match &self.how {
            How::Native => Err(NOTHING.into()),
            How::Overlay(fs) => fs.try_mount(stack),
            How::Image(options) => Fs::Unionfs(options).try_mount(stack),
        }
    }

    /// Mounts by running a program, for all subjects alike, because a user waits for that program.
    /// Also returns the time until the mount answers.
    /// `before` is a command that runs the program.
    fn mount(
        &self,
        layers: &Layers,
        image: &str,
        stack: &Stack,
        before: &[&str],
    ) -> Option<(Mounted, Duration)> {
        let command = match &self.how {
            How::Native => return None,
            How::Overlay(Fs::Program(program)) => directories_command(program, "", stack),
            How::Overlay(Fs::Kernel(options)) => kernel_command(options, stack),
            How::Overlay(ours) => directories_command(Path::new(program()), ours.options(), stack),
            How::Image(options) => image_command(options, layers, image, stack),
        };
        let is_kernel = matches!(self.how, How::Overlay(Fs::Kernel(_)));
        let mut command = run_by(&[self.before, before].concat(), command);
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

/// Returns the command that `before` runs.
fn run_by(before: &[&str], command: Command) -> Command {
    let [program, arguments @ ..] = before else {
        return command;
    };
    let mut by = Command::new(program);
    by.args(arguments)
        .arg(command.get_program())
        .args(command.get_args());
    let set = command
        .get_envs()
        .filter_map(|(key, value)| Some((key, value?)));
    by.envs(set);
    by
}

/// Returns a command with the options of fuse-overlayfs, which are those of unionfs too.
fn directories_command(program: &Path, options: &str, stack: &Stack) -> Command {
    let mut all = stack.options();
    if !options.is_empty() {
        all += &format!(",{options}");
    }
    let mut command = Command::new(program);
    command.args(["-o", &all]).arg(&stack.mnt);
    command
}

/// The argument that stands for an absent upper and work directory.
const NO_UPPER: &str = "none";

/// Returns a command that runs this program again to mount kernel overlayfs: mount(8) accepts at
/// most a page of options.
fn kernel_command(options: &str, stack: &Stack) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--bench", "--mount-kernel", options]);
    command.arg(&stack.mnt);
    match &stack.upper {
        Some((upper, work)) => command.arg(upper).arg(work),
        None => command.args([NO_UPPER, NO_UPPER]),
    };
    command.args(&stack.lowers);
    command
}

/// Mounts kernel overlayfs for [`kernel_command`]. The arguments are options, mountpoint, upper,
/// work (both [`NO_UPPER`]: read-only) and lowers.
pub(crate) fn mount_kernel(places: &[PathBuf]) {
    let [options, mnt, upper, work, lowers @ ..] = places else {
        panic!("--mount-kernel OPTIONS MNT UPPER WORK LOWER...");
    };
    let known = [OVERLAYFS, OVERLAYFS_METACOPY];
    let options = known
        .into_iter()
        .find(|o| options.as_os_str() == *o)
        .unwrap();
    let has_upper = upper.as_os_str() != NO_UPPER;
    let mounted = Fs::Kernel(options).mount(&Stack {
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

/// Whether a row changes metadata of lower files, and so differs with metacopies.
fn changes_lowers(row: &Workload) -> bool {
    row.name.starts_with("chown") || row.name == "1000 chmod of lower files"
}

/// The command that takes away the right to change the policy of threads, as containers do. Without
/// it (and with RLIMIT_NICE 0, the default) the threads of unionfs do not give way.
const WITHOUT_NICE: &[&str] = &[
    "prlimit",
    "--nice=0:0",
    "setpriv",
    "--inh-caps",
    "-sys_nice",
    "--bounding-set",
    "-sys_nice",
];

/// Whether a row is on callers beside other processes.
fn is_latency(row: &Workload) -> bool {
    row.group == Group::Busy && row.name.contains("spinning")
}

/// Whether a row is on a copy-up on another file system, which has to be made and filled.
fn is_copy_up_elsewhere(row: &Workload) -> bool {
    row.name.starts_with("copy-up of 20") || row.name.ends_with("tmpfs")
}

/// Whether a row is a variation on data. Files are passed through, so the transport makes no
/// difference there.
fn is_variation_on_data(row: &Workload) -> bool {
    row.group == Group::Data && row.weight == Weight::Aside && row.name.starts_with("fio")
}

/// Returns the subjects. Kernel overlayfs comes first, because the ratios refer to it.
pub(crate) fn subjects(peer: Option<PathBuf>) -> Vec<Subject> {
    let one = |name: &str, how| Subject {
        name: name.into(),
        how,
        before: &[],
        takes: |_| true,
        long: false,
        once: false,
        on_request: false,
    };
    let ours = |options: &'static str| {
        let name = format!("{DEFAULT} {options}");
        one(name.trim(), How::Overlay(Fs::Unionfs(options)))
    };
    let long = |subject| Subject {
        long: true,
        ..subject
    };
    let on_request = |subject| Subject {
        on_request: true,
        ..subject
    };
    let some = |subject, takes| Subject { takes, ..subject };
    let uring = |subject| match uring::missing() {
        None => subject,
        Some(_) => on_request(subject),
    };
    let mut subjects = vec![
        long(one(KERNEL, How::Overlay(Fs::Kernel(OVERLAYFS)))),
        long(some(
            one(
                "kernel metacopy=on",
                How::Overlay(Fs::Kernel(OVERLAYFS_METACOPY)),
            ),
            changes_lowers,
        )),
        long(ours("")),
        some(ours("io=cached"), |row| {
            !is_latency(row) && !is_copy_up_elsewhere(row)
        }),
        uring(some(ours("transport=uring"), |row| {
            !is_variation_on_data(row)
        })),
        some(ours("writeback"), |row| {
            row.group == Group::Data && !row.name.starts_with("copy-up")
        }),
        some(ours("noxattrs,nobtime"), |row| {
            let groups = [Group::Metadata, Group::Programs];
            groups.contains(&row.group) || row.name.contains("births")
        }),
        some(ours("volatile"), |row| {
            let rows = ["sqlite", "fsync", "randwrite", "chmod", "apt-get"];
            !is_latency(row) && rows.iter().any(|text| row.name.contains(text))
        }),
        long(some(ours("metacopy=on"), changes_lowers)),
        Subject {
            before: WITHOUT_NICE,
            ..some(
                one(
                    "unionfs without CAP_SYS_NICE",
                    How::Overlay(Fs::Unionfs("")),
                ),
                is_latency,
            )
        },
        some(ours("io=shared"), |row| {
            !is_latency(row) && row.group != Group::Metadata
        }),
        long(some(one("unionfs image", How::Image("")), |row| {
            !is_latency(row) && row.group != Group::Data
        })),
        on_request(one("unionfs image io=cached", How::Image("io=cached"))),
        on_request(uring(one(
            "unionfs image transport=uring",
            How::Image("transport=uring"),
        ))),
        on_request(ours("sandbox=off")),
        on_request(ours("transport=fuser")),
    ];
    let peer = peer
        .or_else(|| std::env::var_os("PEER").map(Into::into))
        .or_else(|| on_path("fuse-overlayfs"));
    let other = Path::new(DEBIANS);
    if peer.as_deref().is_some_and(|peer| peer != other) && other.exists() {
        let how = How::Overlay(Fs::Program(other.to_owned()));
        let debians = some(one("fuse-overlayfs of Debian", how), |row| {
            row.weight == Weight::Counted && row.group != Group::Data
        });
        subjects.push(Subject {
            once: true,
            ..debians
        });
    }
    if let Some(program) = peer {
        subjects.push(long(one(
            "fuse-overlayfs",
            How::Overlay(Fs::Program(program)),
        )));
    }
    subjects.push(one(NATIVE, How::Native));
    subjects
}

/// The fuse-overlayfs of the system's package, an older version.
const DEBIANS: &str = "/usr/bin/fuse-overlayfs";

/// Returns the path of a program in PATH.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|p| p.exists())
}

/// The seconds after which a script is killed: a row that hangs must not hold the others up. Making the
/// root file system is the longest.
const SCRIPT_SECONDS: &str = "1200";

/// Runs a script. If it fails, its output is the error.
pub(crate) fn sh(script: &str, args: &[&Path]) -> Result<String, String> {
    let output = Command::new("timeout")
        .args(["--kill-after=5", SCRIPT_SECONDS, "bash"])
        .args(["-euo", "pipefail", "-c", script, "bash"])
        .args(args)
        .output()
        .map_err(|e| format!("timeout bash: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!(
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    ))
}

/// The column of the ordinary directory.
pub(crate) const NATIVE: &str = "no union";

/// A mount to run workloads on.
pub(crate) struct Bed<'l> {
    pub(crate) layers: &'l Layers,
    pub(crate) subject: &'l Subject,
    image: String,
    stack: Stack,
    mounted: Option<Mounted>,
    own: PathBuf,
}

impl<'l> Bed<'l> {
    /// Makes a place for the mounts of an image. [`Self::refresh`] mounts.
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
        let bed = Self {
            layers,
            subject,
            image: image.to_owned(),
            stack,
            mounted: None,
            own,
        };
        if subject.is_native() {
            bed.fill_native();
        }
        bed
    }

    /// Mounts again with a new upper, and writes out what earlier rows left to write.
    pub(crate) fn refresh(&mut self) -> std::io::Result<()> {
        if let Some(mounted) = self.mounted.take() {
            mounted.unmount();
        }
        let (upper, work) = self.stack.upper.as_ref().unwrap();
        for dir in [upper, work] {
            fs::remove_dir_all(dir)?;
            fs::create_dir(dir)?;
        }
        rustix::fs::syncfs(fs::File::open(&self.own)?)?;
        self.mount();
        Ok(())
    }

    /// Copies the merged files into an ordinary directory.
    fn fill_native(&self) {
        let stack = Stack {
            mnt: self.own.join("merged"),
            ..self.stack.clone()
        };
        fs::create_dir(&stack.mnt).unwrap();
        let merged = Fs::Kernel(OVERLAYFS).mount(&stack);
        sh("cp -a \"$1/.\" \"$2\"", &[merged.path(), &self.stack.mnt]).unwrap();
    }

    fn mount(&mut self) -> Duration {
        self.mount_within(&[])
    }

    fn mount_within(&mut self, before: &[&str]) -> Duration {
        let mounted = self
            .subject
            .mount(self.layers, &self.image, &self.stack, before);
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
            let mounted = self.subject.mount(self.layers, &self.image, &stack, &[])?;
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
        if self.subject.is_native() {
            self.path().join(name)
        } else {
            self.stack.lowers[0].join(name)
        }
    }

    /// Returns a directory on the disk beside the mount, for input and output of workloads.
    pub(crate) fn outside(&self) -> &Path {
        &self.own
    }

    /// Fails for the ordinary directory, for which such a row has no meaning.
    pub(crate) fn need_mount(&self) -> Result<(), String> {
        if self.subject.is_native() {
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
        self.remount_within(&[])
    }

    /// As [`Self::remount`]; the command `before` runs the program that mounts.
    pub(crate) fn remount_within(&mut self, before: &[&str]) -> Duration {
        if let Some(mounted) = self.mounted.take() {
            mounted.unmount();
        }
        self.mount_within(before)
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
