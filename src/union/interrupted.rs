//! Calls that are tried again after EINTR, but not for ever: the threads of a server get no signals, and
//! a file system of a layer can answer EINTR each time.

use rustix::io::Errno;

/// How often one piece of work is tried again.
const TRIES: u32 = 16;

/// The interruptions of one piece of work.
#[derive(Default)]
pub(crate) struct Interruptions(u32);

impl Interruptions {
    /// Returns after an interruption that may be ignored, else the error.
    ///
    /// # Errors
    /// The error, if it is another one than EINTR or comes too often.
    pub fn ignore(&mut self, error: Errno) -> Result<(), Errno> {
        self.0 += 1;
        if error == Errno::INTR && self.0 <= TRIES {
            Ok(())
        } else {
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_are_ignored() {
        let mut interruptions = Interruptions::default();
        assert_eq!(interruptions.ignore(Errno::IO), Err(Errno::IO));
        let ignored = (0..100).take_while(|_| interruptions.ignore(Errno::INTR).is_ok());
        assert_eq!(ignored.count(), TRIES as usize - 1);
        assert_eq!(interruptions.ignore(Errno::INTR), Err(Errno::INTR));
    }
}
