//! A new terminal (pty(7)) for a program that is started.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};

/// Makes a terminal, gives it to the program that `command` starts as its standard streams and as
/// its controlling terminal, in a session of its own, and returns the other end.
///
/// The command keeps the terminal open until it is dropped.
///
/// # Errors
/// Those of open(2) on /dev/ptmx and of its ioctls.
pub fn give(command: &mut Command) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let ours = rustix::fs::open("/dev/ptmx", flags, Mode::empty())?;
    let unlocked: libc::c_int = 0;
    // SAFETY: the descriptor is open, and the kernel reads one int at the address.
    checked(unsafe { libc::ioctl(ours.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) })?;
    // SAFETY: the descriptor is open, and the argument is a number.
    let theirs = checked(unsafe {
        libc::ioctl(
            ours.as_raw_fd(),
            libc::TIOCGPTPEER,
            flags.bits() as libc::c_int,
        )
    })?;
    // SAFETY: the ioctl has made this descriptor, and nobody else has it.
    let theirs = unsafe { OwnedFd::from_raw_fd(theirs) };
    command
        .stdin(theirs.try_clone()?)
        .stdout(theirs.try_clone()?)
        .stderr(Stdio::from(theirs));
    let lead = || -> io::Result<()> {
        rustix::process::setsid()?;
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes two system calls, and no allocation.
    unsafe { command.pre_exec(lead) };
    Ok(ours)
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn the_program_leads_a_session_on_the_terminal() {
        let mut command = Command::new("sh");
        command.args(["-c", "test -t 0 && test -t 2 && echo yes > /dev/tty"]);
        let ours = give(&mut command).unwrap();
        let mut child = command.spawn().unwrap();
        drop(command);
        assert!(child.wait().unwrap().success());
        let mut text = [0; 5];
        std::fs::File::from(ours).read_exact(&mut text).unwrap();
        assert_eq!(&text, b"yes\r\n");
    }
}
