//! Commands that change our own store, killed before each of their system calls in turn
//! (strace's fault injection): whatever is left is a store in which every image and named
//! layer is whole, and of whose rest prune leaves nothing.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;

use unionfs::store::roots::Environment;
use unionfs::store::{Stores, Writable};

use crate::own_store;
use crate::support::{Home, PROGRAM, can_mount, has_tools};

/// The system calls that change files, and those that open them. Not every machine has all.
const CALLS: &str = "?rename,?renameat,?renameat2,?unlink,?unlinkat,?rmdir,?mkdir,?mkdirat,\
    ?symlink,?symlinkat,?open,?openat,?openat2,write,fsync,syncfs,flock,?chmod,?fchmodat,fchmod,\
    ?fchownat,utimensat,lsetxattr";

/// More would be an endless loop.
const MOST: usize = 2000;

/// What one sees of a store: names with IDs, and named layers.
type View = BTreeSet<String>;

/// The view, after checking that everything seen is whole.
fn view(root: &Path, when: &str) -> View {
    let stores = Stores::discover(Some(root), &Environment::default()).unwrap();
    let listing = stores.images();
    assert!(
        listing.problems.is_empty(),
        "{when}: {:?}",
        listing.problems
    );
    let mut view = View::new();
    for image in &listing.images {
        view.insert(image.id.to_string());
        view.extend(
            image
                .names
                .iter()
                .map(|name| format!("{name} {}", image.id)),
        );
        for layer in &image.layers {
            // Committed layers are never half there.
            assert_eq!(
                std::fs::read_dir(&layer.spec.path).unwrap().count(),
                1,
                "{when}"
            );
        }
    }
    for named in stores.named() {
        let (store, named) = named.unwrap();
        let container = store.load_named(&named).unwrap();
        assert!(container.upper.work.is_dir(), "{when}");
        view.insert(format!("named {}", named.name));
    }
    view
}

/// Prunes; then there is nothing but what is seen.
fn prune(root: &Path, when: &str) {
    let store = Writable::open(root).unwrap();
    let store = store.lock().unwrap();
    let nothing = |_: &Path| None;
    for garbage in store.garbage(&nothing).unwrap() {
        store.remove_garbage(&garbage).unwrap();
    }
    let left = store.garbage(&nothing).unwrap();
    assert!(left.is_empty(), "{when}: {left:?}");
    let own = store.writable().store();
    let mut dirs = BTreeSet::new();
    for id in own.all_named().unwrap() {
        dirs.insert(own.named_dir(&id.unwrap()));
    }
    let stores = Stores::discover(Some(root), &Environment::default()).unwrap();
    for image in stores.images().images {
        let layers = image.layers.iter();
        dirs.extend(layers.map(|layer| layer.spec.path.parent().unwrap().to_owned()));
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

/// Kills `args` at each of its calls, on a fresh copy of the store every time. What is
/// seen afterwards must be one of what is seen before, after, or `between`.
fn kill_everywhere(home: &Home, args: &[&str], between: &[&dyn Fn(&View) -> bool]) {
    let own = home.path("own");
    let copy = || {
        let _ = std::fs::remove_dir_all(&own);
        let mut command = Command::new("cp");
        command.arg("-a").arg(home.path("template")).arg(&own);
        assert!(command.status().unwrap().success());
    };
    copy();
    let before = view(&own, "before");
    let whole = home.run(args);
    assert_eq!(whole.code, Some(0), "{whole:?}");
    let _ = home.run(["umount", "mnt"]);
    let after = view(&own, "after");
    assert_ne!(before, after, "{args:?} does something");

    let mut unchanged = 0;
    for number in 1..MOST {
        copy();
        let inject = format!("inject={CALLS}:signal=KILL:when={number}");
        let mut command = home.command("strace");
        command.args([
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            &format!("trace={CALLS}"),
            "-e",
            &inject,
        ]);
        let outcome = command.arg(PROGRAM).args(args).output().unwrap();
        if outcome.status.success() {
            assert!(number > 20, "strace kills at few calls: {number}");
            assert!(
                unchanged > 0 && unchanged < number,
                "{unchanged} of {number}"
            );
            return;
        }
        assert_eq!(outcome.status.signal(), Some(9), "{outcome:?}");
        let when = format!("{args:?} killed at call {number}");
        let seen = view(&own, &when);
        unchanged += usize::from(seen == before);
        let known = seen == before || seen == after || between.iter().any(|fits| fits(&seen));
        assert!(known, "{when}: {seen:?}");
        prune(&own, &when);
        assert_eq!(view(&own, &when), seen, "prune takes nothing that is seen");
        // Once more, now to the end, or it was done.
        if seen != after {
            let again = home.run(args);
            let done = again.code == Some(0) || again.stderr.contains("no ");
            assert!(done, "{when}: {again:?}");
            let _ = home.run(["umount", "mnt"]);
            prune(&own, &when);
        }
    }
    panic!("{args:?} does not end");
}

fn home() -> Option<Home> {
    if !can_mount() || !has_tools(&["strace"]) {
        return None;
    }
    let home = Home::new();
    home.dirs(&["mnt"]);
    std::fs::remove_dir(home.path("own")).unwrap();
    own_store::fill(&home.path("template"));
    Some(home)
}

#[test]
fn tag() {
    if let Some(home) = home() {
        kill_everywhere(&home, &["tag", "two:1", "one:1"], &[]);
    }
}

#[test]
fn rmi() {
    if let Some(home) = home() {
        // The names go first.
        let dangling = |seen: &View| !seen.iter().any(|entry| entry.starts_with("one"));
        kill_everywhere(
            &home,
            &["rmi", "two:1"],
            &[&|seen| !seen.iter().any(|entry| entry.starts_with("two")) && !dangling(seen)],
        );
    }
}

#[test]
fn mount_name() {
    if let Some(home) = home() {
        kill_everywhere(&home, &["mount", "--name", "new", "one:1", "mnt"], &[]);
    }
}

#[test]
fn rm() {
    if let Some(home) = home() {
        std::fs::rename(home.path("template"), home.path("own")).unwrap();
        home.run(["mount", "--name", "old", "one:1", "mnt"]).ok();
        std::fs::create_dir_all(home.path("mnt/a/b")).unwrap();
        std::fs::write(home.path("mnt/a/b/c"), "c").unwrap();
        home.run(["umount", "mnt"]).ok();
        std::fs::rename(home.path("own"), home.path("template")).unwrap();
        kill_everywhere(&home, &["rm", "old"], &[]);
    }
}

#[test]
fn prune_itself() {
    if let Some(home) = home() {
        let images = home.path("template/image/overlay2");
        std::fs::create_dir(images.join("layerdb/tmp/write-set-1")).unwrap();
        let content = images.join("imagedb/content/sha256");
        let names = std::fs::read_to_string(images.join("repositories.json")).unwrap();
        // An image lost, as `rmi` leaves it when killed.
        let lost = names.split("two:1\":\"sha256:").nth(1).unwrap()[..64].to_owned();
        let kept = names.replace(&format!("\"two\":{{\"two:1\":\"sha256:{lost}\"}}"), "");
        std::fs::write(images.join("repositories.json"), kept.replace(",}", "}")).unwrap();
        std::fs::remove_file(content.join(lost)).unwrap();
        std::fs::rename(home.path("template"), home.path("own")).unwrap();
        let seen = view(&home.path("own"), "littered");
        std::fs::rename(home.path("own"), home.path("template")).unwrap();
        kill_prune(&home, &seen);
    }
}

/// As [`kill_everywhere`], for a command that changes nothing one sees.
fn kill_prune(home: &Home, seen: &View) {
    let own = home.path("own");
    for number in 1..MOST {
        let _ = std::fs::remove_dir_all(&own);
        let mut command = Command::new("cp");
        command.arg("-a").arg(home.path("template")).arg(&own);
        assert!(command.status().unwrap().success());
        let inject = format!("inject={CALLS}:signal=KILL:when={number}");
        let mut command = home.command("strace");
        command.args([
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            &format!("trace={CALLS}"),
            "-e",
            &inject,
        ]);
        let outcome = command.args([PROGRAM, "prune"]).output().unwrap();
        let when = format!("prune killed at call {number}");
        assert_eq!(&view(&own, &when), seen, "{when}");
        if outcome.status.success() {
            assert!(number > 20, "strace kills at few calls: {number}");
            return;
        }
        prune(&own, &when);
        assert_eq!(&view(&own, &when), seen, "{when}");
    }
    panic!("prune does not end");
}
