//! The transport `fuser`: the crate of that name reads requests and writes answers, instead of `wire`.
//! It is an implementation of the protocol by others, so the tests that run over it check our own, and
//! the trait `Operations`, too.
//!
//! The crate gets the connection of a mount that was made by us; it never mounts. What it does not pass
//! on is not agreed on with the kernel ([`NOT_PASSED_ON`]), which then does without. A panic in an
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
use super::wire::Limits;
use super::wire::abi::{self, init};

/// What the crate cannot carry, of what we ask for. Without HANDLE_KILLPRIV_V2 the kernel takes files
/// their set-id bits by a SETATTR before it sends a change: the crate drops the flags that would leave
/// it to us. SETXATTR_EXT makes a message longer than the crate knows. READDIRPLUS of the crate has no
/// entries without attributes, of which a listing has some.
const NOT_PASSED_ON: u32 = init::HANDLE_KILLPRIV_V2 | init::SETXATTR_EXT | init::DO_READDIRPLUS;

/// The first kernels (Linux 5.14) that send the ioctls for flags of files only for themselves, after
/// they have checked that the caller may. The crate does not show the difference.
const CHECKED_FLAGS: Version = Version(abi::MAJOR, 34);

/// A connection that has shaken hands.
pub(super) struct Connection<T: Operations> {
    session: Session<Filesystem<T>>,
    shared: Arc<Shared<T>>,
}

/// The file system that the crate calls.
struct Filesystem<T> {
    limits: Limits,
    shared: Arc<Shared<T>>,
}

/// What is known later than the crate has its file system.
struct Shared<T> {
    /// Flags of `abi::init`, by the handshake.
    flags: OnceLock<u32>,
    /// Whether only the kernel sends ioctls for flags of files.
    checks_flags: OnceLock<bool>,
    /// From the beginning of service on.
    operations: OnceLock<T>,
}

impl<T: Operations> Connection<T> {
    /// Answers INIT, which the kernel sends first. The transport of `limits` is not looked at, and no
    /// file is passed through. `threads` will serve, with descriptors of their own where the process can
    /// open /dev/fuse.
    ///
    /// # Errors
    /// ENODEV when it was unmounted meanwhile, EPROTO when the kernel speaks a version older than 7.31
    /// or something else than FUSE.
    pub(super) fn open(
        device: OwnedFd,
        limits: &Limits,
        threads: usize,
        own_devices: bool,
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
        config.clone_fd = own_devices;
        // The kernel lets nobody in who may not.
        let session = Session::from_fd(filesystem, device, SessionACL::All, config)?;
        Ok(Self { session, shared })
    }

    /// The flags both sides agreed on.
    pub(super) fn flags(&self) -> u32 {
        self.shared.flags.get().copied().unwrap_or_default()
    }

    /// For what is told to the kernel unasked.
    pub(super) fn notices(&self) -> Arc<dyn Notices> {
        Arc::new(self.session.notifier())
    }

    /// Serves until the file system is unmounted.
    ///
    /// # Errors
    /// When the threads could not be started, or one had to end early.
    pub(super) fn serve(self, operations: T) -> io::Result<()> {
        let Self { session, shared } = self;
        // Set once: here.
        let _ = shared.operations.set(operations);
        drop(shared);
        session.run()
    }
}

impl Notices for Notifier {
    fn attributes_changed(&self, ino: u64) {
        // None of the data.
        if let Err(error) = self.inval_inode(INodeNo(ino), -1, 0) {
            tracing::debug!(ino, %error, "notification not taken");
        }
    }
}

impl<T> Filesystem<T> {
    /// Agrees on what both sides can, and remembers it.
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
        // Refused where the kernel offers less, which is then taken.
        let _ = config.set_max_readahead(self.limits.max_io);
        let _ = config.set_max_background(self.limits.max_background);
        let _ = self.shared.flags.set(agreed.bits() as u32);
        let checks = config.kernel_abi() >= CHECKED_FLAGS;
        let _ = self.shared.checks_flags.set(checks);
        Ok(())
    }
}
