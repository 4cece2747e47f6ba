//! Decides which failures allow another attempt, and when.

use std::io;
use std::time::{Duration, Instant};

use super::error::{Error, Result};
use crate::store;
use crate::sys::interrupt;

/// The number of attempts and the pauses between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retry {
    /// The number of attempts, including the first.
    pub attempts: u32,
    /// The pause before the second attempt; it doubles before each further one.
    pub pause: Duration,
}

/// The longest single pause that a registry may ask for (Retry-After).
const MAX_AFTER: Duration = Duration::from_secs(120);

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 5,
            pause: Duration::from_millis(500),
        }
    }
}

/// The failure of an attempt.
#[derive(Debug)]
pub(super) enum Failure {
    /// Another attempt may succeed.
    Transient(Error),
    /// Another attempt would fail too.
    Final(Error),
}

pub(super) type Outcome<T> = std::result::Result<T, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        Self::Final(error.into())
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Transient(error) | Failure::Final(error) => error,
        }
    }
}

impl Retry {
    /// Returns the pause after this number of failed attempts in a row; `None` if there are no more
    /// attempts.
    pub(super) fn after(&self, failed: u32) -> Option<Duration> {
        let doubled = 1u32.checked_shl(failed.saturating_sub(1)).unwrap_or(1);
        (failed < self.attempts).then(|| self.pause.saturating_mul(doubled))
    }

    /// As [`Retry::after`], after this failure: if the registry names a time (Retry-After), there
    /// is no attempt before it, and none at all if the time is too long.
    pub(super) fn pause(&self, failed: u32, error: &Error) -> Option<Duration> {
        let pause = self.after(failed)?;
        match error {
            Error::Status {
                after: Some(after), ..
            } => (*after <= MAX_AFTER).then(|| pause.max(*after)),
            _ => Some(pause),
        }
    }

    /// Repeats an attempt until it succeeds or fails for good; calls `show` before each further
    /// attempt.
    pub(super) fn run<T>(
        &self,
        show: impl Fn(&Error, Duration),
        mut attempt: impl FnMut() -> Outcome<T>,
    ) -> Result<T> {
        let mut failed = 0;
        loop {
            let error = match attempt() {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Transient(error)) => error,
            };
            failed += 1;
            let Some(pause) = self.pause(failed, &error) else {
                return Err(error);
            };
            show(&error, pause);
            sleep(pause, || false)?;
        }
    }
}

/// Waits until the time is over, or `over` returns true. A signal is an error.
pub(super) fn sleep(time: Duration, over: impl Fn() -> bool) -> Result<()> {
    const LOOK: Duration = Duration::from_millis(100);
    let end = Instant::now() + time;
    while !over() {
        interrupt::check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        std::thread::sleep(left.min(LOOK));
    }
    Ok(())
}

/// Whether a registry has responded before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contact {
    /// It has. If it cannot be reached now, it is probably being restarted.
    Had,
    Never,
}

/// Returns the failure of a request without a response. `url` is for the message.
pub(super) fn transport(url: &str, error: ureq::Error, contact: Contact) -> Failure {
    let tls = match &error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => error.get_ref().and_then(|e| e.downcast_ref()),
        _ => None,
    };
    if let Some(rustls::Error::InvalidCertificate(why)) = tls {
        return Error::Untrusted {
            url: url.to_owned(),
            why: format!("its certificate is not trusted ({why})"),
        }
        .into();
    }
    if let Some(rustls::Error::AlertReceived(alert)) = tls
        && is_about_us(*alert)
    {
        return Error::Unwelcome {
            url: url.to_owned(),
            why: format!("the registry wants a client's certificate that it knows ({alert:?})"),
        }
        .into();
    }
    let transient = match &error {
        ureq::Error::Timeout(_) => true,
        ureq::Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            contact == Contact::Had
        }
        ureq::Error::Io(error) => tls.is_none() && is_transient(error.kind()),
        _ => false,
    };
    let error = Error::Unreachable {
        url: url.to_owned(),
        why: match &error {
            ureq::Error::Io(error) => error.to_string(),
            other => other.to_string(),
        },
    };
    if transient {
        Failure::Transient(error)
    } else {
        error.into()
    }
}

/// Whether a registry rejects our certificate, or requires one (RFC 8446, section 6.2; older
/// servers do not say which of the two).
fn is_about_us(alert: rustls::AlertDescription) -> bool {
    use rustls::AlertDescription as Alert;
    matches!(
        alert,
        Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
    )
}

/// Whether another attempt may succeed. If a registry does not exist or speaks no TLS, that will
/// not change in a second.
fn is_transient(kind: io::ErrorKind) -> bool {
    !matches!(
        kind,
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::InvalidData
            | io::ErrorKind::NotFound
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::PermissionDenied
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transient() -> Failure {
        Failure::Transient(Error::malformed("x", "y"))
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let retry = Retry {
            attempts: 3,
            pause: Duration::ZERO,
        };
        let mut count = 0;
        let mut run = |failure: fn() -> Failure| {
            count = 0;
            let outcome: Result<()> = retry.run(
                |_, _| (),
                || {
                    count += 1;
                    Err(failure())
                },
            );
            assert!(outcome.is_err());
            count
        };
        assert_eq!(run(transient), 3);
        assert_eq!(run(|| Error::malformed("x", "y").into()), 1);
        let io = |kind: io::ErrorKind| {
            matches!(
                transport("u", ureq::Error::Io(kind.into()), Contact::Never),
                Failure::Transient(_)
            )
        };
        assert!(io(io::ErrorKind::ConnectionReset) && io(io::ErrorKind::UnexpectedEof));
        assert!(!io(io::ErrorKind::ConnectionRefused));
        let refused = || ureq::Error::Io(io::ErrorKind::ConnectionRefused.into());
        assert!(matches!(
            transport("u", refused(), Contact::Had),
            Failure::Transient(_)
        ));
        let busy = |seconds| Error::Status {
            what: String::new(),
            status: 429,
            code: String::new(),
            message: String::new(),
            after: Some(Duration::from_secs(seconds)),
        };
        let pause = |failed, seconds| Retry::default().pause(failed, &busy(seconds));
        assert_eq!(pause(1, 7), Some(Duration::from_secs(7)));
        assert_eq!(pause(4, 0), Some(Duration::from_secs(4)));
        assert_eq!(pause(1, 121), None);
        assert_eq!(pause(5, 7), None);
        assert_eq!(Retry::default().after(1), Some(Duration::from_millis(500)));
        assert_eq!(Retry::default().after(4), Some(Duration::from_secs(4)));
        assert_eq!(Retry::default().after(5), None);
    }
}
