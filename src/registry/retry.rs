//! What may succeed when tried again, and when that is done.

use std::io;
use std::time::{Duration, Instant};

use super::error::{Error, Result};
use crate::store;
use crate::sys::interrupt;

/// How often and how soon something is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retry {
    /// Attempts, the first included.
    pub attempts: u32,
    /// Before the second; before each further one twice as long.
    pub pause: Duration,
}

/// The longest that a registry is waited for because it says so (Retry-After), in one go.
const MAX_AFTER: Duration = Duration::from_secs(120);

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 5,
            pause: Duration::from_millis(500),
        }
    }
}

/// Why an attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Perhaps it does not the next time.
    Transient(Error),
    /// It will again.
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
    /// How long to wait after so many attempts in a row; `None`: no more.
    pub(super) fn after(&self, failed: u32) -> Option<Duration> {
        let doubled = 1u32.checked_shl(failed.saturating_sub(1)).unwrap_or(1);
        (failed < self.attempts).then(|| self.pause.saturating_mul(doubled))
    }

    /// As [`Retry::after`], after this failure: a registry that says when it wants to be asked
    /// again is not asked sooner, nor at all where that is too late.
    pub(super) fn pause(&self, failed: u32, error: &Error) -> Option<Duration> {
        let pause = self.after(failed)?;
        match error {
            Error::Status {
                after: Some(after), ..
            } => (*after <= MAX_AFTER).then(|| pause.max(*after)),
            _ => Some(pause),
        }
    }

    /// Tries until it succeeds or there is no point; `show` is told before each further attempt.
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

/// Waits, unless it is interrupted or there is no point any more.
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

/// What came instead of an answer. `url` is for the message; `known`: the registry has answered
/// before, so that one which is not there is being started again.
pub(super) fn transport(url: &str, error: ureq::Error, known: bool) -> Failure {
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
        ureq::Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => known,
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

/// Whether a registry does not like our certificate, or that there is none (RFC 8446, section
/// 6.2; which of the two, older servers do not tell).
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

/// A registry that is not there, and one that speaks no TLS, will not be in a second.
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
                transport("u", ureq::Error::Io(kind.into()), false),
                Failure::Transient(_)
            )
        };
        assert!(io(io::ErrorKind::ConnectionReset) && io(io::ErrorKind::UnexpectedEof));
        assert!(!io(io::ErrorKind::ConnectionRefused));
        let refused = || ureq::Error::Io(io::ErrorKind::ConnectionRefused.into());
        assert!(matches!(
            transport("u", refused(), true),
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
