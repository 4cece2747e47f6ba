//! Root mounts directories that another user may change. A name that this user exchanges for a
//! symlink leads root nowhere else, neither before the command resolves it nor between two lookups.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use testkit::home::Home;
use testkit::need;
use testkit::need::can_mount;

use crate::own_store::fill;

const USER: Option<u32> = Some(65534);
/// Rounds of each race.
const ROUNDS: usize = 150;

/// Returns a home with a directory of the user, and beside it one that only root may read.
fn with_secret() -> Home {
    let home = Home::new();
    home.dirs(&["theirs", "theirs/layer", "secret", "mnt", "u", "w"]);
    fs::write(home.path("secret/root-only"), "secret").unwrap();
    fs::set_permissions(home.path("secret"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(home.path("theirs/layer/fine"), "fine").unwrap();
    symlink(home.path("secret"), home.path("theirs/out")).unwrap();
    own(&home.path("theirs"));
    home
}

fn own(path: &Path) {
    std::os::unix::fs::lchown(path, USER, USER).unwrap();
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).unwrap() {
            own(&entry.unwrap().path());
        }
    }
    chown(path, USER, USER).unwrap_or(());
}

#[test]
fn a_symlink_of_another_user_is_not_followed() {
    need!(can_mount());
    let home = with_secret();
    let (out, layer, mnt) = (
        home.text("theirs/out"),
        home.text("theirs/layer"),
        home.text("mnt"),
    );
    let (u, w) = (home.text("u"), home.text("w"));
    for options in [
        format!("lowerdir={out}"),
        format!("lowerdir={layer}:{out}"),
        format!("lowerdir={layer}::{out}"),
        format!("lowerdir={layer},upperdir={out},workdir={w}"),
        format!("lowerdir={layer},upperdir={u},workdir={out}"),
    ] {
        home.run(["-o", &options, &mnt])
            .failed(1, &["another user may change"]);
    }
    home.run(["--root", &out, "images"])
        .failed(1, &["another user may change"]);
    home.run(["-o", &format!("lowerdir={layer}"), &mnt]).ok();
    assert!(home.path("mnt/fine").exists());
}

/// Exchanges `name` with a symlink to the secret as long as `job` runs.
fn while_exchanged(home: &Home, name: &Path, mut job: impl FnMut()) {
    let link: PathBuf = name.with_extension("link");
    symlink(home.path("secret"), &link).unwrap();
    std::os::unix::fs::lchown(&link, USER, USER).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flips = scope.spawn(|| {
            let mut flips = 0;
            while !over.load(Ordering::Relaxed) {
                renameat_with(CWD, name, CWD, &link, RenameFlags::EXCHANGE).unwrap();
                flips += 1;
                std::thread::sleep(std::time::Duration::from_micros(200));
            }
            flips
        });
        // Also if the job fails: the scope waits for the thread.
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let end = Over(&over);
        job();
        drop(end);
        assert!(flips.join().unwrap() > ROUNDS, "the name was exchanged");
    });
}

/// Mounts `ROUNDS` times; each mount shows the user's layer or is refused.
fn race(home: &Home, args: &[&str]) {
    race_for(home, args, "fine");
}

/// Like [`race`], with the name that the layer shows.
fn race_for(home: &Home, args: &[&str], fine: &str) {
    let (mut shown, mut refused) = (0, 0);
    for _ in 0..ROUNDS {
        match home.run(args).code {
            Some(0) => {
                assert!(!home.path("mnt/root-only").exists(), "the secret shows");
                shown += usize::from(home.path("mnt").join(fine).exists());
                home.run(["umount", "--lazy", &home.text("mnt")]).ok();
            }
            _ => refused += 1,
        }
    }
    // The number of refused mounts depends on the moments at which names are exchanged.
    assert!(shown > 0, "shown {shown}, refused {refused}");
}

#[test]
fn a_lower_that_is_exchanged_shows_nothing_else() {
    need!(can_mount());
    let home = with_secret();
    let layer = home.path("theirs/layer");
    let options = format!("lowerdir={}", layer.display());
    while_exchanged(&home, &layer, || {
        race(&home, &["-o", &options, &home.text("mnt")]);
    });
}

#[test]
fn a_layer_of_a_store_that_is_exchanged_shows_nothing_else() {
    need!(can_mount());
    let home = with_secret();
    let store = home.text("theirs/store");
    let mut import = home.command(testkit::program());
    import.env("UNIONFS_ROOT", &store);
    import.args(["import", &home.text("theirs/layer"), "base:1"]);
    assert!(import.output().unwrap().status.success());
    own(&home.path("theirs/store"));
    let layers = home.path("theirs/store/overlay2");
    let diff = fs::read_dir(layers)
        .unwrap()
        .map(|entry| entry.unwrap().path().join("diff"))
        .find(|path| path.is_dir());
    while_exchanged(&home, &diff.unwrap(), || {
        let mnt = home.text("mnt");
        race(&home, &["--root", &store, "mount", "-r", "base:1", &mnt]);
    });
}

/// Runs the race on a store of the user with an image of three layers, `one:1`. The object that
/// replaces a directory of the store leads to directories of root with the same names.
fn race_of_stores(exchanged: impl Fn(&Path) -> PathBuf) {
    let home = with_secret();
    fill(&home.path("theirs/store"));
    let layers = home.path("theirs/store/overlay2");
    // In the secret every object has the same name as in the store, and shows `root-only`.
    for entry in fs::read_dir(&layers).unwrap() {
        let entry = entry.unwrap();
        let (name, secret) = (entry.file_name(), home.path("secret"));
        if name == "l" {
            for link in fs::read_dir(entry.path()).unwrap() {
                let link = link.unwrap().file_name();
                symlink(&secret, secret.join(&link)).unwrap();
                fs::create_dir_all(secret.join("l")).unwrap();
                symlink(&secret, secret.join("l").join(link)).unwrap();
            }
        } else {
            for copy in [secret.join(&name), secret.clone()] {
                fs::create_dir_all(copy.join("diff")).unwrap();
                fs::write(copy.join("diff/root-only"), "secret").unwrap();
                for file in ["link", "lower"] {
                    if let Ok(text) = fs::read(entry.path().join(file)) {
                        fs::write(copy.join(file), text).unwrap();
                    }
                }
            }
        }
    }
    let exchanged = exchanged(&layers);
    own(&home.path("theirs/store"));
    while_exchanged(&home, &exchanged, || {
        let (store, mnt) = (home.text("theirs/store"), home.text("mnt"));
        let args = [
            "--root",
            &store,
            "mount",
            "-r",
            "-o",
            "catalog=off",
            "one:1",
            &mnt,
        ];
        race_for(&home, &args, "top");
    });
}

/// Returns the directory of a layer that has others below it.
fn layer_with_lowers(layers: &Path) -> PathBuf {
    let dirs = fs::read_dir(layers).unwrap();
    let mut dirs = dirs.map(|entry| entry.unwrap().path());
    dirs.find(|dir| dir.join("lower").exists()).unwrap()
}

#[test]
fn short_names_of_a_store_that_are_exchanged_show_nothing_else() {
    need!(can_mount());
    race_of_stores(|layers| layers.join("l"));
}

#[test]
fn a_layers_directory_that_is_exchanged_shows_nothing_else() {
    need!(can_mount());
    race_of_stores(layer_with_lowers);
}

#[test]
fn all_layers_of_a_store_that_are_exchanged_show_nothing_else() {
    need!(can_mount());
    race_of_stores(Path::to_owned);
}

/// Runs the race on an upper and a work directory of the user, one of which is exchanged: nothing
/// in the secret is written or removed.
fn race_of_uppers(exchanged: &str) {
    let home = with_secret();
    home.dirs(&["lower", "theirs/work"]);
    fs::create_dir(home.path("secret/work")).unwrap();
    fs::write(home.path("secret/work/kept"), "kept").unwrap();
    own(&home.path("theirs"));
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        home.text("lower"),
        home.text("theirs/layer"),
        home.text("theirs/work")
    );
    while_exchanged(&home, &home.path(exchanged), || {
        race(&home, &["-o", &options, &home.text("mnt")]);
    });
    let names = |dir: &str| fs::read_dir(home.path(dir)).unwrap().count();
    assert_eq!((names("secret"), names("secret/work")), (2, 1));
}

#[test]
fn an_upper_that_is_exchanged_leads_nowhere_else() {
    need!(can_mount());
    race_of_uppers("theirs/layer");
}

#[test]
fn a_work_directory_that_is_exchanged_leads_nowhere_else() {
    need!(can_mount());
    race_of_uppers("theirs/work");
}

#[test]
fn an_archive_is_not_what_another_user_makes_of_its_name() {
    need!(can_mount());
    let home = with_secret();
    let link = home.path("theirs/a.tar");
    symlink(home.path("secret/root-only"), &link).unwrap();
    own(&home.path("theirs"));
    home.run(["load", "-i", "theirs/a.tar"])
        .failed(1, &["theirs/a.tar", "another user may change"]);
    for name in ["theirs/a.tar", "theirs/out", "theirs/out/root-only"] {
        home.run(["import", name, "x:1"])
            .failed(1, &[name, "another user may change"]);
    }
    // Files that are no symlinks are read, and root's own symlinks are followed.
    home.run(["import", "-q", "theirs/layer", "x:1"]).ok();
    symlink("theirs/layer", home.path("mine")).unwrap();
    home.run(["import", "-q", "mine", "x:2"]).ok();
}
