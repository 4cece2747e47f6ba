//! The command line of other programs: `PROG [SOURCE] TARGET -o lowerdir=…`, as for fuse-overlayfs,
//! mount(8) helpers and mount.fuse3.
//!
//! Subcommands such as `unionfs images` are recognised first and never come here.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::aliases::is_program_option;
use super::error::Usage;
use super::launch::{self, MountpointIs, Request};
use super::logging::Verbosity;
use super::options::{Markers, MountOptions};
use super::{catalog, mount, mount_checks, output, remount};
use unionfs::layer::{Dialect, LayerSpec, StackSpec, UpperSpec};
use unionfs::union::Outside;

/// The name by which the program was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Persona {
    /// Any other name.
    Unionfs,
    /// `fuse-overlayfs`: callers parse the version.
    FuseOverlayfs,
    /// `mount.unionfs`, `mount.fuse…`: mount(8) calls `PROG SOURCE TARGET [-sfnv] -o …`.
    MountHelper,
}

impl Persona {
    fn of(program: &OsStr) -> Self {
        let name = program.as_bytes().rsplit(|&b| b == b'/').next();
        match name {
            Some(name) if name.starts_with(b"fuse-overlayfs") => Self::FuseOverlayfs,
            Some(name) if name.starts_with(b"mount.") => Self::MountHelper,
            _ => Self::Unionfs,
        }
    }
}

/// The parsed arguments.
#[derive(Debug, Default, PartialEq, Eq)]
struct Call {
    options: MountOptions,
    /// The `-o` arguments as given, for `unionfs ps`.
    texts: Vec<OsString>,
    positionals: Vec<OsString>,
    foreground: bool,
    debug: bool,
    help: bool,
    version: bool,
    /// mount(8) `-f`: check everything, but do not mount.
    fake: bool,
}

/// Whether `args` (program name first) have this form. `commands` are the subcommands.
pub(super) fn recognise(args: &[OsString], is_command: impl Fn(&OsStr) -> bool) -> Option<Persona> {
    let program = args.first()?;
    match Persona::of(program) {
        Persona::Unionfs => {
            let first = args.get(1)?;
            let wanted = !is_command(first)
                && !is_program_option(first)
                && args
                    .iter()
                    .skip(1)
                    .any(|arg| arg.as_bytes().starts_with(b"-o") || arg == "-fo" || arg == "-do");
            wanted.then_some(Persona::Unionfs)
        }
        persona => Some(persona),
    }
}

/// Runs the command line.
pub(super) fn run(persona: Persona, args: &[OsString]) -> anyhow::Result<()> {
    let call = parse(persona, args.get(1..).unwrap_or_default())?;
    if call.help {
        return output::print(HELP);
    }
    if call.version {
        return output::print(&version(persona));
    }
    let fake = call.fake;
    if remount::is_wanted(&call.options) {
        return match call.positionals.as_slice() {
            [mountpoint] | [_, mountpoint] => remount::run(mountpoint.as_ref(), &call.options),
            _ => Err(Usage("no mountpoint given: see unionfs --help".into()).into()),
        };
    }
    let request = request(persona, call)?;
    if fake {
        launch::check(request)
    } else {
        launch::run(request)
    }
}

const HELP: &str = "\
Usage: unionfs [-f] [-d] -o OPTION[,OPTION...] [SOURCE] MOUNTPOINT

Options:
  -o lowerdir=TOP:...:BOTTOM[::DATA...]   lower directories; colons in names as \\:
  -o upperdir=DIR,workdir=DIR             where changes go; read-only without them
  -o dialect=all|overlay                  whiteouts of any writer, or of overlayfs only
  -o redirect_dir=on|off                  whether directories of lowers can be renamed
  -o metacopy=on|off                      whether chmod, chown and rename leave data below
  -o io=auto|cached|passthrough|shared    who reads and writes the data of files
  -o writeback                            the kernel collects writes until a file is closed
  -o nobtime                              statx reports no time of birth; saves messages
  -o noxattrs                             no xattrs, ACLs, capabilities; saves messages
  -o allow_idmap                          the mount may be idmapped (Linux 6.12)
  -o catalog=FILE                         names and attributes from this catalog
  -o volatile                             never sync the upper directory
  -o transport=auto|classic|uring|fuser   requests from /dev/fuse, over io_uring, by fuser
  -o sandbox=auto|off|strict              what keeps the daemon from anything but its work
  -o uidmapping=DISK:SHOWN:LEN[:...]      users as they are shown; gidmapping for groups
  -o squash_to_root                       all files shown as root's
  -o squash_to_uid=N,squash_to_gid=N      all files shown as those of one user or group
  -o xattr_permissions=0|1|2              owners and modes in xattrs beside the files
  -o fsname=NAME                          the source shown in /proc/mounts
  -o ro,nodev,nosuid,noexec,noatime,allow_other,...
  -f                                      stay in the foreground
  -d                                      log requests
  -V, --version                           print the version

Example:
  unionfs -o lowerdir=/lower/b:/lower/a,upperdir=/upper,workdir=/work /mnt

See unionfs help for images and everything else.
";

/// Callers look for a version of at least 1.10 behind the last space of exactly this line.
fn version(persona: Persona) -> String {
    let ours = format!("unionfs {}\n", env!("CARGO_PKG_VERSION"));
    match persona {
        Persona::FuseOverlayfs => format!("fuse-overlayfs: version 1.13\n{ours}"),
        _ => ours,
    }
}

fn parse(persona: Persona, args: &[OsString]) -> Result<Call, Usage> {
    let mut call = Call::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_bytes() {
            b"--" => {
                call.positionals.extend(args.by_ref().cloned());
            }
            b"--help" => call.help = true,
            b"--version" => call.version = true,
            b"--debug" => call.debug = true,
            b"--foreground" => call.foreground = true,
            [b'-', b'-', ..] | b"-" => return Err(unknown(arg)),
            [b'-', letters @ ..] => call.letters(persona, letters, &mut args)?,
            _ => call.positionals.push(arg.clone()),
        }
    }
    Ok(call)
}

fn unknown(arg: &OsStr) -> Usage {
    Usage(format!(
        "option {} is not known: see unionfs --help",
        arg.display()
    ))
}

impl Call {
    /// Letters may be joined (`-fd`). The text after an `o` is its argument.
    fn letters<'a>(
        &mut self,
        persona: Persona,
        letters: &[u8],
        args: &mut impl Iterator<Item = &'a OsString>,
    ) -> Result<(), Usage> {
        let mount_helper = persona == Persona::MountHelper;
        for (at, &letter) in letters.iter().enumerate() {
            let mut argument = || match &letters[at + 1..] {
                [] => args.next().cloned().ok_or_else(|| {
                    Usage(format!("option -{} needs an argument", char::from(letter)))
                }),
                rest => Ok(OsString::from_vec(rest.to_vec())),
            };
            match letter {
                b'o' => {
                    let text = argument()?;
                    self.options.parse(&text)?;
                    self.texts.push(text);
                    return Ok(());
                }
                // mount(8) gives namespace and type. The type is known, and the namespace was
                // entered.
                b't' | b'N' if mount_helper => return argument().map(|_| ()),
                b'f' if mount_helper => self.fake = true,
                b'n' | b'v' if mount_helper => {}
                b'f' => self.foreground = true,
                b'd' => self.debug = true,
                // These are libfuse's single thread, and mount(8)'s tolerance of unknown options.
                b's' => {}
                b'h' => self.help = true,
                b'V' => self.version = true,
                _ => return Err(unknown(OsStr::new(&format!("-{}", char::from(letter))))),
            }
        }
        Ok(())
    }
}

fn request(persona: Persona, mut call: Call) -> anyhow::Result<Request> {
    call.options.check().map_err(Usage::from)?;
    if persona == Persona::FuseOverlayfs {
        // Both programs use the same uppers, and fuse-overlayfs follows no redirects.
        call.options.redirect_dir.get_or_insert(false);
        // It ignores this option of kernel overlayfs, and would show metacopies as files of zeros.
        call.options.metacopy = None;
        call.options.owners.outside = Outside::Overflow;
    }
    let (source, mountpoint) = match call.positionals.as_slice() {
        [mountpoint] => (None, mountpoint),
        [source, mountpoint] => (Some(source), mountpoint),
        [] => return Err(Usage("no mountpoint given: see unionfs --help".into()).into()),
        _ => {
            return Err(Usage("more than a source and a mountpoint given".into()).into());
        }
    };
    if persona != Persona::FuseOverlayfs
        && let Some(image) = image(&call.options, source)
    {
        return mount::of_fstab(mount::FromFstab {
            image,
            mountpoint: mountpoint.clone(),
            foreground: call.foreground,
            texts: call.texts,
            options: call.options,
        });
    }
    let source = match (&call.options.fsname, source) {
        (Some(name), _) => name.clone(),
        // mount.fuse3 passes a type or any text here, and mount(8) the source that the user gave.
        (None, Some(name))
            if persona == Persona::MountHelper && mount_checks::is_plain_source(name) =>
        {
            name.clone()
        }
        _ => "unionfs".into(),
    };
    let read_only = call.options.read_only == Some(true) || call.options.upper.is_none();
    let ends_soon = !call.foreground && !call.fake;
    let namespace = launch::prepare_namespace(call.options.sandbox, ends_soon);
    let stack = stack(&call.options, read_only)?;
    let catalog = catalog::of_directories(&call.options, &stack);
    let rules = mount_checks::Rules {
        nonempty: true,
        stacked: true,
    };
    Ok(Request {
        stack,
        target: mount_checks::target_or_connection(Path::new(mountpoint), rules)?,
        read_only,
        source,
        image: None,
        image_id: None,
        held: Vec::new(),
        fresh: None,
        name: None,
        mountpoint: MountpointIs::Given,
        foreground: call.foreground,
        verbosity: Verbosity::of_flag(call.debug || call.options.debug),
        option_texts: call.texts,
        catalog,
        options: call.options,
        namespace,
    })
}

/// Returns the image to mount if the options name no directories: the source, which is `None` if an
/// option names the image. For a source that is only shown, there is none.
fn image(options: &MountOptions, source: Option<&OsString>) -> Option<Option<OsString>> {
    const ONLY_SHOWN: [&str; 5] = ["none", "overlay", "unionfs", "fuse", "fuse-overlayfs"];
    let image = source.filter(|name| !ONLY_SHOWN.iter().any(|n| n == name));
    let names_no_directory = options.lower_count() == 0 && options.upper.is_none();
    let by_name = options.image.is_given() || image.is_some() && names_no_directory;
    by_name.then(|| image.cloned())
}

/// Returns the stack of the options, with resolved paths.
pub(super) fn stack(options: &MountOptions, read_only: bool) -> anyhow::Result<StackSpec> {
    if options.lowers.is_empty() {
        return Err(Usage("no lower layers given: add -o lowerdir=TOP:…:BOTTOM".into()).into());
    }
    let dialect = match options.markers.unwrap_or_default() {
        Markers::All => Dialect {
            trusted: !options.userxattr,
            ..Dialect::ALL
        },
        Markers::Overlay if rustix::process::geteuid().is_root() && !options.userxattr => {
            Dialect::KERNEL
        }
        Markers::Overlay => Dialect::KERNEL_USERXATTR,
    };
    let trust = options.owners.trust();
    let layer = |role: &str, path: &PathBuf| {
        let opened = mount_checks::open_dir_trusting(role, path, trust);
        opened.map(|dir| LayerSpec { dir, dialect })
    };
    let layers = |paths: &[PathBuf]| -> anyhow::Result<Vec<LayerSpec>> {
        mount_checks::lower_count(options.lower_count())?;
        paths
            .iter()
            .map(|path| layer("lower layer", path))
            .collect()
    };
    let mut stack = StackSpec {
        lowers: layers(&options.lowers)?,
        data_only: layers(&options.data_only)?,
        upper: None,
    };
    let Some(upper) = &options.upper else {
        return Ok(stack);
    };
    let upper = layer("upper directory", upper)?;
    if read_only {
        // The upper is shown but not written, so it needs no lock and no work directory.
        stack.lowers.insert(0, upper);
        return Ok(stack);
    }
    let Some(work) = &options.work else {
        return Err(Usage(
            "upperdir without workdir: add workdir=DIR, an empty directory on the file system \
             of the upper"
                .into(),
        )
        .into());
    };
    let work = mount_checks::open_dir("work directory", work)?;
    stack.upper = Some(UpperSpec { layer: upper, work });
    Ok(stack)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(list: &[&str]) -> Vec<OsString> {
        list.iter().map(OsString::from).collect()
    }

    fn is_command(name: &OsStr) -> bool {
        name == "mount" || name == "ps"
    }

    #[test]
    fn who_is_called() {
        let cases: [(&[&str], Option<Persona>); 12] = [
            (
                &["unionfs", "--root", "d", "mount", "-o", "ro", "a", "b"],
                None,
            ),
            (
                &["unionfs", "--runroot=d", "mount", "-o", "ro", "a", "b"],
                None,
            ),
            (
                &["unionfs", "--store", "d", "mount", "-o", "ro", "a", "b"],
                None,
            ),
            (&["unionfs", "mount", "-o", "ro", "a", "b"], None),
            (&["unionfs", "ps"], None),
            (
                &["unionfs", "-o", "lowerdir=a", "mount"],
                Some(Persona::Unionfs),
            ),
            (
                &["unionfs", "overlay", "m", "-olowerdir=a"],
                Some(Persona::Unionfs),
            ),
            (&["prog", "-f", "-o", "x", "m"], Some(Persona::Unionfs)),
            (&["unionfs"], None),
            (&["unionfs", "--version"], None),
            (
                &["/usr/bin/fuse-overlayfs", "--version"],
                Some(Persona::FuseOverlayfs),
            ),
            (
                &["/sbin/mount.unionfs", "ps", "/mnt"],
                Some(Persona::MountHelper),
            ),
        ];
        for (list, persona) in cases {
            assert_eq!(recognise(&args(list), is_command), persona, "{list:?}");
        }
    }

    #[test]
    fn calls_as_they_come() {
        let podman = args(&["-o", "lowerdir=l/A,upperdir=u,workdir=w", "/m"]);
        let call = parse(Persona::Unionfs, &podman).unwrap();
        assert_eq!(call.options.lowers, [PathBuf::from("l/A")]);
        assert_eq!(call.positionals, args(&["/m"]));
        let fuse3 = args(&["overlay", "/m", "-orw,lowerdir=a,dev,suid"]);
        let call = parse(Persona::Unionfs, &fuse3).unwrap();
        assert_eq!(call.positionals, args(&["overlay", "/m"]));
        assert_eq!(call.options.other, args(&["dev", "suid"]));
        let apptainer = args(&["-f", "-o", "lowerdir=a", "-o", "ro", "--", "-m"]);
        let call = parse(Persona::FuseOverlayfs, &apptainer).unwrap();
        assert!(call.foreground && call.options.read_only == Some(true));
        assert_eq!(call.positionals, args(&["-m"]));
        let call = parse(Persona::Unionfs, &args(&["-fdolowerdir=a", "m"])).unwrap();
        assert!(call.foreground && call.debug && call.options.lowers.len() == 1);
        let helper = args(&["src", "/m", "-fnv", "-t", "unionfs", "-o", "rw"]);
        let call = parse(Persona::MountHelper, &helper).unwrap();
        assert!(call.fake && !call.foreground);
    }

    #[test]
    fn what_is_no_call() {
        for list in [
            &["-o"][..],
            &["--what"],
            &["-x"],
            &["-"],
            &["-o", "dialect=x", "m"],
        ] {
            assert!(parse(Persona::Unionfs, &args(list)).is_err(), "{list:?}");
        }
        let three = parse(Persona::Unionfs, &args(&["a", "b", "c"])).unwrap();
        assert!(request(Persona::Unionfs, three).is_err());
    }

    #[test]
    fn the_version_ends_its_line() {
        let text = version(Persona::FuseOverlayfs);
        let line = text.lines().next().unwrap();
        assert_eq!(line.rsplit(' ').next(), Some("1.13"));
        assert!(version(Persona::Unionfs).starts_with("unionfs "));
    }
}
