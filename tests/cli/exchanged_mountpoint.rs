//! Root mounts on and unmounts a directory whose parent another user exchanges for a symlink all
//! the time: nothing outside is mounted on or unmounted.

use std::fs;
use std::os::unix::fs::{lchown, symlink};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::mount::UnmountFlags;
use testkit::home::{Home, Outcome};
use testkit::need;
use testkit::need::can_mount;

const USER: Option<u32> = Some(65534);
/// Rounds of the race.
const ROUNDS: usize = 150;

/// Returns a home with `theirs/real/m` of the user, `theirs/out`, a symlink to `outside`, and
/// `outside/m`, on which root has mounted.
fn home() -> Home {
    let home = Home::new();
    home.dirs(&["lower", "theirs/real/m", "outside/m"]);
    fs::write(home.path("lower/file"), "lower\n").unwrap();
    symlink(home.path("outside"), home.path("theirs/out")).unwrap();
    for name in ["theirs", "theirs/real", "theirs/real/m", "theirs/out"] {
        lchown(home.path(name), USER, USER).unwrap();
    }
    home
}

/// Returns the mounts on `outside/m` and below.
fn outside(home: &Home) -> Vec<String> {
    let below = home.text("outside");
    let mounts = home.mounts().into_iter();
    mounts.filter(|line| line.contains(&below)).collect()
}

/// Runs `job` repeatedly while `theirs/real` and `theirs/out` change places.
fn while_exchanged(home: &Home, mut job: impl FnMut()) {
    let (real, out) = (home.path("theirs/real"), home.path("theirs/out"));
    let stop = AtomicBool::new(false);
    let exchanges = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                renameat_with(CWD, &real, CWD, &out, RenameFlags::EXCHANGE).unwrap();
                exchanges.fetch_add(1, Ordering::Relaxed);
            }
        });
        // The thread stops also if a round fails.
        let rounds = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            (0..ROUNDS).for_each(|_| job());
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(failure) = rounds {
            std::panic::resume_unwind(failure);
        }
    });
    assert!(exchanges.into_inner() > ROUNDS);
    if real.is_symlink() {
        renameat_with(CWD, &real, CWD, &out, RenameFlags::EXCHANGE).unwrap();
    }
}

/// Removes the mounts on the user's directory, wherever that is.
fn clear(home: &Home) {
    for line in home.mounts() {
        let target = line.split(' ').nth(1).unwrap();
        if target.starts_with(&home.text("theirs")) {
            // Its parents change places; only the user's directory can be a mountpoint.
            for name in ["real", "out"] {
                let path = home.path("theirs").join(name);
                if !path.is_symlink() {
                    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
                    let _ = rustix::mount::unmount(path.join("m"), flags);
                }
            }
        }
    }
}

/// Asserts that the command was refused without harm, as the user's change makes it fail.
#[track_caller]
fn is_refusal(outcome: &Outcome) -> bool {
    assert!(matches!(outcome.code, Some(0 | 1)), "{outcome:?}");
    outcome.code == Some(1)
}

#[test]
fn nothing_outside_is_mounted_on() {
    need!(can_mount());
    let home = home();
    let (mut mounted, mut refused) = (0, 0);
    while_exchanged(&home, || {
        let outcome = home.run(["-o", "lowerdir=lower", "theirs/real/m"]);
        if is_refusal(&outcome) {
            refused += 1;
        } else {
            mounted += 1;
        }
        assert_eq!(outside(&home), Vec::<String>::new());
        clear(&home);
    });
    assert!(
        mounted > 0 && refused > 0,
        "{mounted} mounted, {refused} refused"
    );
}

#[test]
fn nothing_outside_is_unmounted() {
    need!(can_mount());
    let home = home();
    home.run(["-o", "lowerdir=lower", "outside/m"]).ok();
    let before = outside(&home);
    assert_eq!(before.len(), 1);
    let ways: [&[&str]; 3] = [&["umount"], &["umount", "--lazy"], &["umount", "--force"]];
    let mut round = 0;
    while_exchanged(&home, || {
        round += 1;
        // In some rounds there is a mount that may be unmounted.
        if round % 3 == 0 {
            is_refusal(&home.run(["-o", "lowerdir=lower", "theirs/real/m"]));
        }
        let way = ways[round % 3];
        is_refusal(&home.run([way, &["theirs/real/m"]].concat()));
        assert_eq!(outside(&home), before, "{way:?}");
        let text = fs::read_to_string(home.path("outside/m/file"));
        assert_eq!(text.unwrap(), "lower\n", "{way:?}: it was cut off");
    });
    clear(&home);
    // Its daemon may live on with a copy in the mount namespace of another test.
    assert_eq!(home.run(["umount", "outside/m"]).code, Some(0));
}

/// The command refuses the path also if nothing changes at the wrong moment.
#[test]
fn a_symlink_that_stays_is_refused_by_all_commands() {
    need!(can_mount());
    let home = home();
    home.run(["-o", "lowerdir=lower", "outside/m"]).ok();
    let commands: [&[&str]; 6] = [
        &["umount"],
        &["umount", "--lazy"],
        &["umount", "--force"],
        &["stats"],
        &["sync"],
        &["-o", "lowerdir=lower"],
    ];
    for command in commands {
        let outcome = home.run([command, &["theirs/out/m"]].concat());
        outcome.failed(1, &["another user"]);
        assert_eq!(outside(&home).len(), 1, "{command:?}");
    }
    // Its daemon may live on with a copy in the mount namespace of another test.
    assert_eq!(home.run(["umount", "outside/m"]).code, Some(0));
}
