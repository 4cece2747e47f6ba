//! A process outside of the sandbox does what a command may not do: it gives the finished output
//! its name or removes an unfinished one, syncs mounts, and finds origins by their file handles.
//! Handles lead to any file of a file system, so it returns only the identity of the file.
//!
//! Invariant: it acts only on objects that were fixed before the command had read any input.
//! Messages of a byte and a number or a handle choose among these. It ends with the command, and
//! removes what is unfinished, also after a SIGKILL.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use anyhow::Context as _;
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::output_file::Temporary;
use super::sync::sync_mount;
use unionfs::fuse::{MountRecord, runtime};
use unionfs::layer::origin::{Origin, OriginFile};
use unionfs::store::{Container, Places};
use unionfs::sys::daemon;

/// Gives the output its name.
const PUBLISH: u8 = b'p';
/// Removes the output.
const DISCARD: u8 = b'd';
/// Syncs the mount of this number.
const SYNC: u8 = b's';
/// Finds an origin by its file handle. The message contains the device number and the origin, the
/// answer an [`OriginFile`].
const ORIGIN: u8 = b'o';

/// The maximum length of a message.
const MAX_MESSAGE: usize = 512;

/// The command's end of the connection.
#[derive(Debug)]
pub(super) struct Outside {
    /// `None`: there is no process outside. It is locked during a request and its answer.
    socket: Option<Mutex<OwnedFd>>,
    /// Mounts whose uppers are in the stores.
    mounts: Vec<MountRecord>,
}

impl Outside {
    /// Starts the process if it is needed: for `output`, for mounts of layers in these places, or
    /// to find origins. There must be no second thread yet.
    pub(super) fn start(
        output: Option<Temporary>,
        places: Option<&Places>,
    ) -> io::Result<Arc<Self>> {
        let file_systems = places.map_or_else(Vec::new, Places::file_systems);
        let mounts = places.map_or_else(Vec::new, mounted_in);
        if output.is_none() && mounts.is_empty() && file_systems.is_empty() {
            let socket = None;
            return Ok(Arc::new(Self { socket, mounts }));
        }
        let dir = output
            .as_ref()
            .map(|output| output.dir().try_clone_to_owned());
        let dir = dir.transpose()?;
        let file_systems: Vec<_> = file_systems
            .iter()
            .map(|(dev, dir)| (*dev, dir.as_fd()))
            .collect();
        let dir = dir.as_ref().map(|dir| dir.as_fd());
        let all = file_systems.iter().map(|(_, dir)| *dir).chain(dir);
        let keep: Vec<BorrowedFd<'_>> = all.collect();
        let name = output.map(Temporary::into_names);
        let socket = daemon::helper(&keep, |socket| {
            let output = dir.zip(name).and_then(|(dir, (temporary, name))| {
                let dir = dir.try_clone_to_owned().ok()?;
                Some(Temporary::again(dir, temporary, name))
            });
            serve(&socket, output, &mounts, &file_systems);
        })?;
        let socket = Some(Mutex::new(socket));
        Ok(Arc::new(Self { socket, mounts }))
    }

    /// Gives the output its name.
    pub(super) fn publish(&self) -> io::Result<()> {
        self.ask(&[PUBLISH]).map(drop)
    }

    /// Removes the output, unless it has its name.
    pub(super) fn discard(&self) -> io::Result<()> {
        self.ask(&[DISCARD]).map(drop)
    }

    /// Flushes everything that was written through a live mount to its upper, which is about to be
    /// read.
    pub(super) fn flush(&self, container: &Container) -> anyhow::Result<()> {
        let upper = container.upper.layer.path();
        let is_its = |record: &MountRecord| record.description.upper.as_deref() == Some(upper);
        let Some(number) = self.mounts.iter().position(is_its) else {
            return Ok(());
        };
        let mountpoint = &self.mounts[number].mountpoint;
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        let message = [&[SYNC][..], &number.to_ne_bytes()].concat();
        self.ask(&message).map(drop).with_context(|| {
            format!("cannot write back what is mounted on {mountpoint:?}; unmount it first")
        })
    }

    /// Returns a function that finds origins by their file handles, which this process may not
    /// open. It returns only the identity of the file.
    pub(super) fn finder(
        self: &Arc<Self>,
    ) -> Arc<impl Fn(u64, &Origin) -> rustix::io::Result<OriginFile> + Send + Sync + 'static> {
        let outside = Arc::clone(self);
        Arc::new(move |dev: u64, origin: &Origin| {
            let message = [&[ORIGIN][..], &dev.to_ne_bytes(), origin.as_bytes()].concat();
            let answer = outside.ask(&message);
            let answer = answer.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::STALE))?;
            OriginFile::from_bytes(dev, &answer).ok_or(Errno::STALE)
        })
    }

    /// Sends a request. Returns the answer after the error number, if that is 0.
    fn ask(&self, message: &[u8]) -> io::Result<Vec<u8>> {
        let Some(socket) = &self.socket else {
            return Ok(Vec::new());
        };
        let socket = socket.lock();
        rustix::net::send(&*socket, message, SendFlags::NOSIGNAL)?;
        let mut answer = [0; MAX_MESSAGE];
        let (size, _) = rustix::io::retry_on_intr(|| {
            rustix::net::recv(&*socket, &mut answer, RecvFlags::empty())
        })?;
        let answer = answer.get(..size).and_then(<[u8]>::split_first_chunk);
        match answer.map(|(errno, rest)| (i32::from_ne_bytes(*errno), rest)) {
            Some((0, rest)) => Ok(rest.to_vec()),
            Some((errno, _)) => Err(io::Error::from_raw_os_error(errno)),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// Runs the process outside.
fn serve(
    socket: &OwnedFd,
    mut output: Option<Temporary>,
    mounts: &[MountRecord],
    file_systems: &[(u64, BorrowedFd<'_>)],
) {
    let mut message = [0; MAX_MESSAGE];
    // It ends with the command. Dropping the output removes it.
    while let Ok((size, _)) =
        rustix::io::retry_on_intr(|| rustix::net::recv(socket, &mut message, RecvFlags::empty()))
        && let Some((&what, rest)) = message.get(..size).and_then(<[u8]>::split_first)
    {
        let done = match what {
            PUBLISH => output
                .take()
                .map_or(Ok(()), Temporary::persist)
                .map(|()| Vec::new()),
            DISCARD => {
                drop(output.take());
                Ok(Vec::new())
            }
            SYNC => sync(rest, mounts).map(|()| Vec::new()),
            ORIGIN => find(rest, file_systems).map_err(io::Error::from),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        };
        let (errno, rest) = match done {
            Ok(rest) => (0, rest),
            Err(error) => (error.raw_os_error().unwrap_or(libc::EIO), Vec::new()),
        };
        let answer = [&errno.to_ne_bytes()[..], &rest].concat();
        if rustix::net::send(socket, &answer, SendFlags::NOSIGNAL).is_err() {
            break;
        }
    }
}

/// Returns the mounts whose uppers are in these places.
fn mounted_in(places: &Places) -> Vec<MountRecord> {
    let mut mounts = runtime::list();
    mounts.retain(|record| {
        let upper = record.description.upper.as_ref();
        upper.is_some_and(|upper| places.roots().iter().any(|root| upper.starts_with(root)))
    });
    mounts
}

fn sync(message: &[u8], mounts: &[MountRecord]) -> io::Result<()> {
    let number = message
        .first_chunk()
        .map(|number| u32::from_ne_bytes(*number));
    let record = number.and_then(|number| mounts.get(number as usize));
    let record = record.ok_or(io::ErrorKind::InvalidInput)?;
    // The path is not opened, as it may lead to a FIFO or to another user's mount by now.
    let Some(mount) = record.open_mount().map_err(io::Error::other)? else {
        return Ok(());
    };
    sync_mount(mount).map_err(|error| match error.downcast::<Errno>() {
        Ok(errno) => errno.into(),
        Err(error) => io::Error::other(error),
    })
}

/// Returns the file that an origin leads to.
fn find(message: &[u8], file_systems: &[(u64, BorrowedFd<'_>)]) -> Result<Vec<u8>, Errno> {
    let (dev, origin) = message.split_first_chunk().ok_or(Errno::INVAL)?;
    let dev = u64::from_ne_bytes(*dev);
    let origin = Origin::parse(origin).ok_or(Errno::INVAL)?;
    let known = file_systems.iter().find(|(known, _)| *known == dev);
    let (_, dir) = known.ok_or(Errno::STALE)?;
    let file = origin.find(dir)?;
    if file.id.0 == dev {
        Ok(file.to_bytes())
    } else {
        Err(Errno::STALE)
    }
}
