//! The terminal of a command for which no OCI runtime makes one: what is typed goes to it, and what
//! the command writes comes from it. The user's terminal passes on every key meanwhile.
//!
//! The command does not get the user's own terminal, because it could put text into its input
//! (TIOCSTI), as if the user had typed it.

use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::thread::JoinHandle;

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::{read, retry_on_intr, write};
use rustix::stdio::stdin;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};
use signal_hook::consts::SIGWINCH;
use signal_hook::iterator::{Handle, Signals};

/// How much is passed on at once.
const PIECE: usize = 4096;

/// A terminal that is connected to that of the user. Dropping it gives the user's back as it was.
pub(super) struct OwnTerminal {
    copying: Option<JoinHandle<()>>,
    sizes: Handle,
    before: Termios,
}

impl OwnTerminal {
    /// Connects the end of a terminal with the standard streams.
    pub(super) fn connect(end: OwnedFd) -> anyhow::Result<Self> {
        let before = tcgetattr(stdin()).context("cannot read the settings of the terminal")?;
        let same_size = |end: &OwnedFd| tcsetwinsize(end, tcgetwinsize(stdin())?);
        same_size(&end).context("cannot set the size of the terminal")?;
        let mut signals = Signals::new([SIGWINCH]).context("cannot watch for signals")?;
        let sizes = signals.handle();
        let sized = end.try_clone()?;
        std::thread::spawn(move || {
            for _ in signals.forever() {
                let _ = same_size(&sized);
            }
        });
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw).context("cannot set the terminal")?;
        let copying = std::thread::spawn(move || {
            let _ = copy(&end);
        });
        Ok(Self {
            copying: Some(copying),
            sizes,
            before,
        })
    }
}

impl Drop for OwnTerminal {
    fn drop(&mut self) {
        // The rest of what the command wrote.
        if let Some(copying) = self.copying.take() {
            let _ = copying.join();
        }
        self.sizes.close();
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.before);
    }
}

/// Passes everything on until no process has the terminal open. Neither direction waits for the
/// other one.
fn copy(end: &OwnedFd) -> io::Result<()> {
    rustix::fs::fcntl_setfl(end, OFlags::RDWR | OFlags::NONBLOCK)?;
    let mut is_typing = true;
    let mut typed: Vec<u8> = Vec::new();
    let mut piece = [0; PIECE];
    let mut shown = io::stdout().lock();
    loop {
        let mut wanted = PollFlags::IN;
        wanted.set(PollFlags::OUT, !typed.is_empty());
        let mut fds = vec![PollFd::new(end, wanted)];
        let input = stdin();
        if is_typing && typed.is_empty() {
            fds.push(PollFd::new(&input, PollFlags::IN));
        }
        retry_on_intr(|| poll(&mut fds, None))?;
        let ready = fds[0].revents();
        let has_input = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        if ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            // EIO when nobody has it open.
            let read = retry_on_intr(|| read(end, &mut piece))?;
            if read == 0 {
                return Ok(());
            }
            shown.write_all(&piece[..read])?;
            shown.flush()?;
        }
        if ready.contains(PollFlags::OUT) {
            let written = retry_on_intr(|| write(end, &typed))?;
            typed.drain(..written);
        }
        if has_input {
            let read = retry_on_intr(|| read(input, &mut piece))?;
            is_typing = read > 0;
            typed.extend_from_slice(&piece[..read]);
        }
    }
}
