//! The transport of a mount: the choice, the handshake, and serving requests.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use super::adapter::Adapter;
use super::config::{IoPolicy, MountConfig, Transport};
use super::error::{Error, Result};
use super::operations::Notices;
use super::passthrough::{self, Opens};
use super::wire::{self, Dispatch, Limits};
#[cfg(feature = "fuser")]
use super::{fuser, mount::can_reopen_device};
use crate::union::Union;

/// A connection after the handshake.
pub(super) enum Connection {
    /// `transport=classic` and `transport=uring`.
    Wire(wire::Connection),
    /// `transport=fuser`.
    #[cfg(feature = "fuser")]
    Fuser(Box<fuser::Connection<Adapter>>),
}

/// Checks that the requested transport is possible, also with the other options.
///
/// # Errors
/// [`Error::Fuser`] if it is not.
pub(super) fn check(config: &MountConfig) -> Result<()> {
    let why = match (config.transport, config.io) {
        (Some(Transport::Fuser), _) if !cfg!(feature = "fuser") => {
            "it was left out of this unionfs (cargo feature fuser); use transport=auto"
        }
        (Some(Transport::Fuser), policy) if policy.insists() => {
            "it does not pass files through; use io=auto, or another transport"
        }
        (Some(Transport::Fuser), _) if config.idmappable => {
            "its mounts cannot be idmapped; leave out allow_idmap, or use another transport"
        }
        _ => return Ok(()),
    };
    Err(Error::Fuser {
        path: config.mountpoint.clone(),
        why,
    })
}

/// Whether files can be passed through with this transport.
pub(super) fn passes(config: &MountConfig) -> bool {
    config.transport != Some(Transport::Fuser)
}

/// The result of the handshake.
pub(super) struct Agreed {
    /// Sends notifications to the kernel.
    pub(super) notices: Arc<dyn Notices>,
    /// The flags of INIT that both sides know (`init`).
    pub(super) flags: u32,
}

/// The descriptors of /dev/fuse that the threads of a server read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Devices {
    /// All read the same: the process cannot open /dev/fuse any more.
    Shared,
    /// Each has its own.
    OnePerThread,
}

impl Connection {
    /// Answers INIT, which the kernel sends first. `limits` are those of a checked mount, which
    /// `threads` will serve.
    ///
    /// # Errors
    /// ENODEV if it was unmounted meanwhile; EPROTO if the kernel has a version older than 7.31 or
    /// sends another message; an error if io_uring is requested and not possible.
    pub(super) fn open(
        device: OwnedFd,
        limits: &Limits,
        threads: usize,
        devices: Devices,
    ) -> io::Result<Self> {
        match limits.transport {
            #[cfg(feature = "fuser")]
            Some(Transport::Fuser) => {
                let devices = if can_reopen_device() {
                    devices
                } else {
                    Devices::Shared
                };
                let connection = fuser::Connection::open(device, limits, threads, devices)?;
                Ok(Self::Fuser(Box::new(connection)))
            }
            _ => {
                let _ = (threads, devices);
                Ok(Self::Wire(wire::Connection::open(device, limits)?))
            }
        }
    }

    /// Returns the transport.
    pub(super) fn transport(&self) -> Transport {
        match self {
            Self::Wire(connection) => connection.transport(),
            #[cfg(feature = "fuser")]
            Self::Fuser(_) => Transport::Fuser,
        }
    }

    pub(super) fn agreed(&self) -> Agreed {
        match self {
            Self::Wire(connection) => Agreed {
                notices: Arc::<OwnedFd>::clone(connection.device()),
                flags: connection.flags(),
            },
            #[cfg(feature = "fuser")]
            Self::Fuser(connection) => Agreed {
                notices: connection.notices(),
                flags: connection.flags(),
            },
        }
    }

    /// Sets up passthrough as [`passthrough::start`]. A transport without passthrough passes
    /// nothing through.
    ///
    /// # Errors
    /// As [`passthrough::start`].
    pub(super) fn pass_through(
        &self,
        union: &Union,
        path: &Path,
        policy: IoPolicy,
    ) -> Result<Option<Opens>> {
        match self {
            Self::Wire(connection) => passthrough::start(connection, union, path, policy),
            #[cfg(feature = "fuser")]
            Self::Fuser(_) => Ok(None),
        }
    }

    /// As [`wire::Connection::with_spares`].
    pub(super) fn with_spares(self, spares: Vec<OwnedFd>) -> Self {
        match self {
            Self::Wire(connection) => Self::Wire(connection.with_spares(spares)),
            #[cfg(feature = "fuser")]
            Self::Fuser(connection) => Self::Fuser(connection),
        }
    }

    /// Serves until the file system is unmounted, as [`wire::Connection::serve`].
    ///
    /// # Errors
    /// An error if no worker could be started, or if one ended early.
    pub(super) fn serve(
        self,
        adapter: Adapter,
        threads: usize,
        others: impl FnOnce() -> bool,
        abort: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<()> {
        match self {
            Self::Wire(connection) => {
                connection.serve(Arc::new(Dispatch(adapter)), threads, others, abort)
            }
            #[cfg(feature = "fuser")]
            Self::Fuser(connection) => connection.serve(adapter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuser_is_refused_where_it_cannot_be_had() {
        let mut config = MountConfig::new("/mnt");
        assert!(check(&config).is_ok() && passes(&config));
        config.transport = Some(Transport::Fuser);
        let answer = check(&config).map_err(|error| error.to_string());
        assert_eq!(answer.is_ok(), cfg!(feature = "fuser"), "{answer:?}");
        assert!(!passes(&config));
        config.io = IoPolicy::Passthrough;
        let refused = check(&config).unwrap_err().to_string();
        assert!(
            refused.starts_with("transport=fuser is not possible on /mnt: "),
            "{refused}"
        );
    }
}
