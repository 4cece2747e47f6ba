//! Commands that change our own store, killed before each of their system calls in turn (strace's
//! fault injection). In the store that is left, every image and named layer is whole, and `prune`
//! removes all the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Output};

use testkit::home::Home;
use testkit::need::{Needed, can_mount, has_tools};
use testkit::{need, program};
use unionfs::store::discovery::Environment;
use unionfs::store::writable::NoMounts;
use unionfs::store::{Stores, Writable};

use crate::own_store;

/// The system calls that change files or sync them. Killing before each of them leaves every
/// possible state. Calls that open a file are added if they create it. Not every machine has all
/// calls (`?`).
const CALLS: [&str; 25] = [
    "?rename",
    "?renameat",
    "?renameat2",
    "?unlink",
    "?unlinkat",
    "?rmdir",
    "?mkdir",
    "?mkdirat",
    "?link",
    "?linkat",
    "?symlink",
    "?symlinkat",
    "?mknodat",
    "fsync",
    "syncfs",
    "write",
    "pwrite64",
    "ftruncate",
    "?chmod",
    "fchmod",
    "?fchmodat",
    "fchownat",
    "utimensat",
    "?setxattr,?lsetxattr",
    "fsetxattr",
];

/// Every use of these calls is failed. Of the other calls only some uses are failed if a run has
/// many.
const ALL_OF: [&str; 15] = [
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "rmdir",
    "mkdir",
    "mkdirat",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "mknodat",
    "fsync",
    "syncfs",
];

/// How many uses of the other calls are failed.
const SOME: usize = 6;

/// Calls that remove something. What cannot be removed is left to `prune`, so these calls are not
/// failed.
const REMOVING: [&str; 3] = ["unlink", "unlinkat", "rmdir"];

/// The visible content of a store: names with IDs, and named layers.
pub(crate) type View = BTreeSet<String>;

/// Returns the view, after checking that everything in it and all its layers are whole.
pub(crate) fn view(root: &Path, when: &str) -> View {
    let stores = Stores::discover(Some(root), &Environment::default()).unwrap();
    let listing = stores.images();
    assert!(
        listing.problems.is_empty(),
        "{when}: {:?}",
        listing.problems
    );
    let report = stores.verify(None, &mut |_| ()).unwrap();
    assert_eq!(report.problems, [], "{when}");
    let mut view = View::new();
    for image in &listing.images {
        view.insert(image.id.to_string());
        for name in &image.names {
            let kept = stores.pulled_content(&name.to_string()).unwrap();
            view.extend(kept.map(|kept| format!("{name} kept {}", kept.target())));
        }
        view.extend(
            image
                .names
                .iter()
                .map(|name| format!("{name} {}", image.id)),
        );
    }
    for named in stores.named() {
        let (store, named) = named.unwrap();
        let container = store.load_named(&named).unwrap();
        assert!(container.upper.work.path().is_dir(), "{when}");
        view.insert(format!("named {}", named.name));
    }
    view
}

/// Prunes, and checks that nothing but the view is left.
fn prune(root: &Path, when: &str) {
    let store = Writable::open(root).unwrap();
    let store = store.lock().unwrap();
    for garbage in store.garbage(&NoMounts, &[]).unwrap() {
        store.remove_garbage(&garbage, &NoMounts).unwrap();
    }
    let left = store.garbage(&NoMounts, &[]).unwrap();
    assert!(left.is_empty(), "{when}: {left:?}");
    let own = store.writable().store();
    let mut dirs = BTreeSet::new();
    for id in own.all_named().unwrap() {
        dirs.insert(own.named_dir(&id.unwrap()));
    }
    let stores = Stores::discover(Some(root), &Environment::default()).unwrap();
    for image in stores.images().images {
        let layers = image.layers.iter();
        dirs.extend(layers.map(|layer| layer.place.path().parent().unwrap().to_owned()));
    }
    let found = std::fs::read_dir(root.join("overlay2")).unwrap();
    let found: BTreeSet<_> = found
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.ends_with("l"))
        .collect();
    assert_eq!(found, dirs, "{when}");
    let links = std::fs::read_dir(root.join("overlay2/l")).unwrap();
    assert_eq!(links.count(), dirs.len(), "{when}");
}

/// Returns the calls that `args` makes on a fresh copy of the store: by name, the numbers (from 1)
/// of those that change something.
fn calls(home: &Home, args: &[&str]) -> BTreeMap<String, Vec<usize>> {
    copy(home);
    let mut command = home.command("strace");
    let trace = format!("trace={},openat,?openat2", CALLS.join(","));
    command
        .args(["-qq", "-o", "calls", "-e", &trace, program()])
        .args(args);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let _ = home.run(["umount", "mnt"]);
    let log = std::fs::read(home.path("calls")).unwrap();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut changing: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let log = String::from_utf8_lossy(&log);
    for (call, arguments) in log.lines().filter_map(|line| line.split_once('(')) {
        if call.starts_with("syscall_0x") {
            // The call is newer than strace (fchmodat2), which cannot make it fail.
            continue;
        }
        let count = counts.entry(call).or_default();
        *count += 1;
        if !call.starts_with("open") || arguments.contains("O_CREAT") {
            changing.entry(call.to_owned()).or_default().push(*count);
        }
    }
    changing
}

/// Returns which of these calls are failed: all, or every n-th from a random one on.
fn chosen(call: &str, mut numbers: Vec<usize>) -> Vec<usize> {
    if numbers.len() <= SOME || ALL_OF.contains(&call) {
        return numbers;
    }
    let stride = numbers.len().div_ceil(SOME);
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), call);
    let first = usize::try_from(random % stride as u64).unwrap();
    let count = numbers.len();
    numbers = numbers.into_iter().skip(first).step_by(stride).collect();
    eprintln!("{call}: {numbers:?}, of {count}");
    numbers
}

/// Runs `args` repeatedly on a fresh copy of the store, with `fault` injected into each of its
/// calls in turn.
fn inject_everywhere(
    home: &Home,
    args: &[&str],
    (faulty, fault): (impl Fn(&str) -> bool, &str),
    mut check: impl FnMut(&Output, &str),
) {
    let mut faults = 0;
    for (call, numbers) in calls(home, args) {
        if !faulty(&call) {
            continue;
        }
        for number in chosen(&call, numbers) {
            copy(home);
            // strace counts each call separately.
            let inject = format!("inject={call}:{fault}:when={number}");
            let mut command = home.command("strace");
            command.args(["-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
            command.args(["-e", &inject, program()]).args(args);
            let output = command.output().unwrap();
            if output.status.success() {
                // The command made fewer calls this time, or succeeded without this one.
                let _ = home.run(["umount", "mnt"]);
                continue;
            }
            faults += 1;
            check(&output, &format!("{args:?}: {call} {number}: {fault}"));
        }
    }
    assert!(faults > 10, "{args:?}: only {faults} faults");
    eprintln!("{args:?}: {fault}: {faults} places");
}

/// Makes a fresh copy of the store.
fn copy(home: &Home) {
    let own = home.path("own");
    let _ = std::fs::remove_dir_all(&own);
    let mut command = Command::new("cp");
    command.arg("-a").arg(home.path("template")).arg(&own);
    assert!(command.status().unwrap().success());
}

/// Kills `args` at each of its calls. The view afterwards must be the one before or after the whole
/// command, or `between`.
pub(crate) fn kill_everywhere(home: &Home, args: &[&str], between: impl Fn(&View) -> bool) {
    let own = home.path("own");
    copy(home);
    let before = view(&own, "before");
    let whole = home.run(args);
    assert_eq!(whole.code, Some(0), "{whole:?}");
    let _ = home.run(["umount", "mnt"]);
    let after = view(&own, "after");
    let mut kinds = BTreeSet::new();
    let all = |_: &str| true;
    inject_everywhere(home, args, (all, "signal=KILL"), |output, when| {
        assert_eq!(output.status.signal(), Some(9), "{when}: {output:?}");
        let _ = home.run(["umount", "mnt"]);
        let seen = view(&own, when);
        kinds.insert(seen == before);
        assert!(
            seen == before || seen == after || between(&seen),
            "{when}: {seen:?}"
        );
        prune(&own, when);
        assert_eq!(view(&own, when), seen, "prune takes nothing that is seen");
        // The command runs once more and now ends, or it was complete already.
        let again = home.run(args);
        let done = again.code == Some(0) || again.stderr.contains("no ");
        assert!(done, "{when}: {again:?}");
        let _ = home.run(["umount", "mnt"]);
        prune(&own, when);
    });
    // The command was killed early and late.
    assert!(kinds.len() > 1 || before == after, "{args:?}: {kinds:?}");
}

pub(crate) fn home() -> Needed<Home> {
    can_mount()?;
    has_tools(&["strace"])?;
    let home = Home::new();
    home.dirs(&["mnt"]);
    std::fs::remove_dir(home.path("own")).unwrap();
    own_store::fill(&home.path("template"));
    Ok(home)
}

#[test]
fn tag() {
    let home = need!(home());
    kill_everywhere(&home, &["tag", "two:1", "one:1"], |_| false);
}

#[test]
fn rmi() {
    let home = need!(home());
    // The name is removed first; then the image may still be there.
    let nameless = |seen: &View| {
        let images = seen.iter().filter(|entry| entry.starts_with("sha256:"));
        images.count() == 2 && !seen.iter().any(|entry| entry.starts_with("two"))
    };
    kill_everywhere(&home, &["rmi", "two:1"], nameless);
}

#[test]
fn mount_name() {
    let home = need!(home());
    // With a sandbox a copy of the process makes the layer, and strace kills this process only.
    let args = [
        "mount",
        "-o",
        "sandbox=off",
        "--name",
        "new",
        "one:1",
        "mnt",
    ];
    kill_everywhere(&home, &args, |_| false);
}

#[test]
fn rm() {
    let home = need!(home());
    std::fs::rename(home.path("template"), home.path("own")).unwrap();
    home.run(["mount", "--name", "old", "one:1", "mnt"]).ok();
    std::fs::create_dir_all(home.path("mnt/a/b")).unwrap();
    std::fs::write(home.path("mnt/a/b/c"), "c").unwrap();
    home.run(["umount", "mnt"]).ok();
    std::fs::rename(home.path("own"), home.path("template")).unwrap();
    kill_everywhere(&home, &["rm", "old"], |_| false);
}

/// Fails `args` at each of its writing calls, as a full disk and a broken one do: the command
/// prints one error, leaves nothing, and adds nothing to the view.
pub(crate) fn fail_everywhere(home: &Home, args: &[&str]) {
    let own = home.path("own");
    copy(home);
    let before = view(&own, "before");
    let writing = |call: &str| !REMOVING.contains(&call);
    for (fault, remedy) in [("error=ENOSPC", "free some space"), ("error=EIO", "")] {
        inject_everywhere(home, args, (writing, fault), |output, when| {
            let _ = home.run(["umount", "mnt"]);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(stderr.lines().count(), 1, "{when}: {output:?}");
            // A directory that cannot be synced has the new name already. The last output is
            // printed after the work is done.
            let printing = stderr.contains("standard output");
            let published = printing || stderr.contains("cannot sync");
            assert!(printing || stderr.contains(remedy), "{when}: {output:?}");
            let store = Writable::open(&own).unwrap();
            let locked = store.lock().unwrap();
            let left = locked.garbage(&NoMounts, &[]).unwrap();
            assert!(left.is_empty(), "{when}: {left:?} after {stderr}");
            drop(locked);
            let seen = view(&own, when);
            assert!(
                seen == before || published,
                "{when}: {seen:?} after {stderr}"
            );
        });
    }
}

#[test]
fn a_full_disk_leaves_nothing_staged() {
    let home = need!(home());
    fail_everywhere(&home, &["tag", "two:1", "one:1"]);
    fail_everywhere(&home, &["mount", "--name", "new", "one:1", "mnt"]);
}

#[test]
fn prune_itself() {
    let home = need!(home());
    let images = home.path("template/image/overlay2");
    std::fs::create_dir(images.join("layerdb/tmp/write-set-1")).unwrap();
    let content = images.join("imagedb/content/sha256");
    let names = std::fs::read_to_string(images.join("repositories.json")).unwrap();
    // An image without its name and its configuration, as a killed `rmi` leaves it.
    let lost = names.split("two:1\":\"sha256:").nth(1).unwrap()[..64].to_owned();
    let kept = names.replace(&format!("\"two\":{{\"two:1\":\"sha256:{lost}\"}}"), "");
    std::fs::write(images.join("repositories.json"), kept.replace(",}", "}")).unwrap();
    std::fs::remove_file(content.join(lost)).unwrap();
    view(&home.path("template"), "littered");
    kill_everywhere(&home, &["prune"], |_| false);
}
