//! Readiness for a service manager (sd_notify(3)): a mount in the foreground, as a unit with
//! `Type=notify`, says when it answers.
//!
//! The socket is opened before a sandbox is entered, from which no path leads to it.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// A connection to the service manager.
pub(super) struct ServiceManager(UnixDatagram);

impl ServiceManager {
    /// Connects to the socket in `$NOTIFY_SOCKET`: a path, or `@` and an abstract name. `None` if
    /// no service manager waits, or it cannot be reached.
    pub(super) fn of_environment() -> Option<Self> {
        let name = std::env::var_os("NOTIFY_SOCKET")?;
        let connected = || -> io::Result<UnixDatagram> {
            let address = match name.as_bytes() {
                [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
                _ => SocketAddr::from_pathname(&name)?,
            };
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&address)?;
            Ok(socket)
        };
        let socket = connected().inspect_err(|error| {
            tracing::warn!(%error, ?name, "the service manager cannot be reached");
        });
        socket.ok().map(Self)
    }

    /// Tells it that the mount answers.
    pub(super) fn tell_ready(self) {
        if let Err(error) = self.0.send(b"READY=1\n") {
            tracing::warn!(%error, "the service manager does not hear");
        }
    }
}
