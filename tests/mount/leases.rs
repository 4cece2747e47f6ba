//! Leases that the owner of a file holds on it in a layer: an open through the mount waits until
//! the holder has released the lease, as on kernel overlayfs, and other users work meanwhile.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use testkit::fixture::Fixture;
use testkit::layers::{Form, Layer};
use testkit::mount::{Fs, KERNEL, poll};
use testkit::{need, need_mounts};

/// Far more than it takes once the lease is released, and less than the time that the kernel gives
/// the holder.
const LONG: Duration = Duration::from_secs(30);

/// A lease of a file that no other process has open.
struct Lease(File);

#[allow(unsafe_code)]
fn lease(file: &File, kind: i32) -> std::io::Result<()> {
    // SAFETY: the call takes numbers only.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

impl Lease {
    #[allow(unsafe_code)]
    fn of(path: &Path) -> Self {
        // SAFETY: the signal that notifies the holder ends the process unless it is ignored;
        // nothing here needs it.
        unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
        let file = File::open(path).unwrap();
        // A file that the server has just closed may still count as open.
        let kind = libc::F_WRLCK;
        assert!(
            poll(|| lease(&file, kind).is_ok()),
            "{:?}",
            lease(&file, kind)
        );
        Self(file)
    }

    /// Tells whether a process waits for the lease.
    fn is_wanted(&self) -> bool {
        // While the lease is being broken, the kernel returns the type that it will have.
        #[allow(unsafe_code)]
        // SAFETY: the call takes numbers only.
        let kind = unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_GETLEASE) };
        kind != libc::F_WRLCK
    }

    fn give_up(self) {
        lease(&self.0, libc::F_UNLCK).unwrap();
    }
}

type Act = fn(&Path) -> std::io::Result<()>;

const ACTS: [(&str, Act); 5] = [
    ("read", |path| {
        let mut text = String::new();
        File::open(path)?.read_to_string(&mut text)?;
        assert_eq!(text, "text");
        Ok(())
    }),
    ("write", |path| {
        let mut file = OpenOptions::new().write(true).open(path)?;
        file.write_all(b"else")
    }),
    ("append", |path| {
        let mut file = OpenOptions::new().append(true).open(path)?;
        file.write_all(b"more")
    }),
    ("truncate", |path| fs::write(path, "new")),
    ("seek", |path| {
        let file = File::open(path)?;
        assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0))?, 4);
        Ok(())
    }),
];

/// Runs `act` through the mount while a process has a lease of the file in its layer.
fn waits(f: &Fixture, what: &str, name: &str, layer: &Path, act: Act) {
    let lease = Lease::of(&layer.join(name));
    let (tell, told) = mpsc::channel();
    let path = f.at(name);
    std::thread::spawn(move || tell.send(act(&path)));
    let mut early = None;
    let wanted = poll(|| {
        early = told.try_recv().ok();
        early.is_some() || lease.is_wanted()
    });
    assert!(wanted && early.is_none(), "{what} did not wait: {early:?}");
    // Other requests do not wait.
    assert!(fs::read_dir(f.at("")).unwrap().count() > 0);
    fs::write(f.at("other"), "x").unwrap();
    lease.give_up();
    told.recv_timeout(LONG)
        .unwrap_or_else(|_| panic!("{what} does not end"))
        .unwrap_or_else(|error| panic!("{what}: {error}"));
}

#[test]
fn who_opens_a_leased_file_waits() {
    need_mounts!();
    let mut all = vec![
        KERNEL,
        Fs::Unionfs("io=cached,transport=classic"),
        Fs::Unionfs("io=passthrough,transport=classic"),
        Fs::Unionfs("transport=fuser"),
    ];
    if need::part(need::has_uring()) {
        all.extend([
            Fs::Unionfs("io=cached,transport=uring"),
            Fs::Unionfs("io=passthrough,transport=uring"),
        ]);
    }
    for fs in all {
        let layer = Layer::new().file("low", "text").file("low-read", "text");
        let mut f = Fixture::with(&fs, &[layer], Form::Kernel, true);
        for (name, _) in ACTS {
            fs::write(f.at(name), "text").unwrap();
        }
        // So that the server has none of the files open.
        f.remount();
        for (name, act) in ACTS {
            waits(&f, &format!("{fs:?}, {name}"), name, &f.upper(""), act);
        }
        assert_eq!(fs::read_to_string(f.at("append")).unwrap(), "textmore");
        assert_eq!(fs::read_to_string(f.at("truncate")).unwrap(), "new");
        let lower = f.stack.lowers[0].clone();
        let (_, read) = ACTS[0];
        waits(&f, &format!("{fs:?}, lower"), "low-read", &lower, read);
        let (_, write) = ACTS[1];
        waits(&f, &format!("{fs:?}, copy-up"), "low", &lower, write);
        assert_eq!(fs::read_to_string(f.at("low")).unwrap(), "else");
    }
}
