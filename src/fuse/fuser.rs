//! The transport `fuser`: the crate of that name reads requests and writes answers, instead of
//! `wire`. It is an independent implementation of the protocol, so tests that run over it also
//! check our own implementation and the trait `Operations`.
//!
//! The crate gets the connection of a mount that this process made. It never mounts. Features that
//! it does not pass on are not agreed on with the kernel ([`NOT_PASSED_ON`]). A panic in an
//! operation ends neither a thread of the crate nor the mount.

mod answers;
mod filesystem;
mod values;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use ::fuser::{Config, INodeNo, InitFlags, KernelConfig, Notifier, Session, SessionACL, Version};
use rustix::io::Errno;

use super::operations::{Notices, Operations};
use super::transport::Devices;
use super::wire::Limits;
use super::wire::abi::{self, init};

/// The features that the crate cannot carry. Without HANDLE_KILLPRIV_V2 the kernel drops set-id
/// bits by a SETATTR before it sends a change: the crate drops the flags that would leave this to
/// the server. SETXATTR_EXT makes a message longer than the crate knows. READDIRPLUS of the crate
/// has no entries without attributes, which a listing may have.
const NOT_PASSED_ON: u32 = init::HANDLE_KILLPRIV_V2 | init::SETXATTR_EXT | init::DO_READDIRPLUS;

/// The first kernels (Linux 5.14) that send the ioctls for flags of files only by themselves, after
/// they have checked that the caller may. The crate does not show the difference.
const CHECKED_FLAGS: Version = Version(abi::MAJOR, 34);

/// A connection after the handshake.
pub(super) struct Connection<T: Operations> {
    session: Session<Filesystem<T>>,
    shared: Arc<Shared<T>>,
}

/// The file system that the crate calls.
struct Filesystem<T> {
    limits: Limits,
    shared: Arc<Shared<T>>,
}

/// Values that are set only after the crate has its file system.
struct Shared<T> {
    /// The flags of `abi::init`, set by the handshake.
    flags: OnceLock<u32>,
    /// Whether only the kernel sends ioctls for flags of files.
    checks_flags: OnceLock<bool>,
    /// The operations, set when the service begins.
    operations: OnceLock<T>,
}

impl<T: Operations> Connection<T> {
    /// Answers INIT, which the kernel sends first. The transport in `limits` has no effect, and no
    /// file is passed through. `threads` will serve.
    ///
    /// # Errors
    /// ENODEV if it was unmounted meanwhile; EPROTO if the kernel has a version older than 7.31 or
    /// sends another message.
    pub(super) fn open(
        device: OwnedFd,
        limits: &Limits,
        threads: usize,
        devices: Devices,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            flags: OnceLock::new(),
            checks_flags: OnceLock::new(),
            operations: OnceLock::new(),
        });
        let filesystem = Filesystem {
            limits: *limits,
            shared: Arc::clone(&shared),
        };
        let mut config = Config::default();
        config.n_threads = Some(threads);
        config.clone_fd = devices == Devices::OnePerThread;
        // The kernel checks who may use the mount.
        let session = Session::from_fd(filesystem, device, SessionACL::All, config)?;
        Ok(Self { session, shared })
    }

    /// Returns the flags that both sides agreed on.
    pub(super) fn flags(&self) -> u32 {
        self.shared.flags.get().copied().unwrap_or_default()
    }

    /// Returns the sender of notifications to the kernel.
    pub(super) fn notices(&self) -> Arc<dyn Notices> {
        Arc::new(self.session.notifier())
    }

    /// Serves until the file system is unmounted.
    ///
    /// # Errors
    /// An error if the threads could not be started, or if one ended early.
    pub(super) fn serve(self, operations: T) -> io::Result<()> {
        let Self { session, shared } = self;
        // This is the only place that sets it.
        let _ = shared.operations.set(operations);
        drop(shared);
        session.run()
    }
}

impl Notices for Notifier {
    fn attributes_changed(&self, ino: u64) {
        // Attributes only: the range contains no data.
        if let Err(error) = self.inval_inode(INodeNo(ino), -1, 0) {
            tracing::debug!(ino, %error, "notification not taken");
        }
    }
}

impl<T> Filesystem<T> {
    /// Agrees on the common features, and stores them.
    fn agree(&self, config: &mut KernelConfig) -> io::Result<()> {
        if config.kernel_abi() < Version(abi::MAJOR, abi::MIN_MINOR) {
            return Err(Errno::PROTO.into());
        }
        let wanted = InitFlags::from_bits_retain((self.limits.flags & !NOT_PASSED_ON).into());
        let agreed = wanted & config.capabilities();
        let refused = |_| io::Error::from(Errno::PROTO);
        config
            .add_capabilities(agreed)
            .map_err(|_| io::Error::from(Errno::PROTO))?;
        config.set_max_write(self.limits.max_io).map_err(refused)?;
        // If the kernel offers less, that is used.
        let _ = config.set_max_readahead(self.limits.max_io);
        let _ = config.set_max_background(self.limits.max_background);
        let _ = self.shared.flags.set(agreed.bits() as u32);
        let checks = config.kernel_abi() >= CHECKED_FLAGS;
        let _ = self.shared.checks_flags.set(checks);
        Ok(())
    }
}
