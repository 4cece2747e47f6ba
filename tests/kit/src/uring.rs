//! FUSE over io_uring is off unless the administrator switches it on, for the whole machine. The
//! tests switch it on during a mount call; the mount keeps it afterwards. `mount` uses this for
//! every mount with `transport=uring`.

use std::fs::File;
use std::io::Write;

use rustix::fs::{FlockOperation, flock};

const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";

/// Returns the reason why this machine has no FUSE over io_uring; `None` if it has.
pub fn missing() -> Option<String> {
    if std::fs::read(SWITCH).is_err() {
        return Some(format!("no {SWITCH}: the kernel has no FUSE over io_uring"));
    }
    match std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled") {
        Ok(text) if text.trim() == "2" => {
            Some("io_uring is switched off (kernel.io_uring_disabled=2)".into())
        }
        _ => None,
    }
}

/// The switch. It keeps its state until this is dropped, and no other test changes it meanwhile.
pub struct Switch {
    file: File,
    before: String,
}

impl Switch {
    /// Sets the switch to on (`Y`) or off (`N`).
    pub fn set(state: &str) -> Self {
        let file = File::options().read(true).write(true).open(SWITCH).unwrap();
        flock(&file, FlockOperation::LockExclusive).unwrap();
        let before = std::fs::read_to_string(SWITCH).unwrap();
        std::fs::write(SWITCH, state).unwrap();
        Self { file, before }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        if let Err(e) = self.file.write_all(self.before.as_bytes()) {
            eprintln!("{SWITCH} stays as the test left it: {e}");
        }
    }
}
