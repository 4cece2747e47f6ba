//! The layers of live mounts, for commands that remove or exchange layers.
//!
//! Such a command runs in a sandbox, where mounts are not visible. It gets either the mounts of the
//! moment before it entered ([`Mounted::now`]), or a process outside that looks at each question
//! ([`Mounted::watched`]). A mount holds the store's lock for readers until its record exists, so a
//! question that is asked while readers are excluded has a final answer.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use parking_lot::Mutex;
use rustix::net::{RecvFlags, SendFlags};

use unionfs::fuse::runtime;
use unionfs::store::Image;
use unionfs::store::writable::LiveMounts;
use unionfs::sys::daemon;

/// The maximum length of a message: a path, or a path after the ID of an image.
const MAX_MESSAGE: usize = 8 << 10;
/// Asks for the mountpoint of a layer.
const LAYER: u8 = b'l';
/// Asks for the mountpoint of an image: its ID in 71 bytes, then its topmost layer.
const IMAGE: u8 = b'i';
/// The length of an image's ID.
const ID: usize = "sha256:".len() + 64;
/// The answer without a mountpoint.
const NOWHERE: u8 = b'-';
/// The answer with the mountpoint.
const THERE: u8 = b'+';

/// The live mounts.
pub(super) enum Mounted {
    At(Moment),
    Outside(Mutex<OwnedFd>),
}

/// The mounts at one moment.
#[derive(Default)]
pub(super) struct Moment(Vec<Live>);

struct Live {
    mountpoint: PathBuf,
    /// The topmost lower represents the whole chain.
    lowers: Vec<PathBuf>,
    upper: Option<PathBuf>,
    /// The ID of the image, if it is known.
    image: Option<String>,
}

impl Moment {
    fn now() -> Self {
        let live = runtime::list().into_iter().map(|record| Live {
            mountpoint: record.mountpoint,
            lowers: record.description.lowers,
            upper: record.description.upper,
            image: record.description.image_id,
        });
        Self(live.collect())
    }

    fn layer(&self, diff: &Path) -> Option<&Path> {
        let uses = |live: &&Live| live.lowers.iter().chain(&live.upper).any(|dir| dir == diff);
        self.0
            .iter()
            .find(uses)
            .map(|live| live.mountpoint.as_path())
    }

    /// Returns the mountpoint of exactly this image, and not of another one with the same layers.
    fn image(&self, id: &str, top: &Path) -> Option<&Path> {
        let is_this = |live: &&Live| {
            live.lowers.first().is_some_and(|lower| lower == top)
                && live.image.as_ref().is_none_or(|image| image == id)
        };
        self.0
            .iter()
            .find(is_this)
            .map(|live| live.mountpoint.as_path())
    }

    fn answer(&self, question: &[u8]) -> Option<&Path> {
        let path = |bytes| Path::new(OsStr::from_bytes(bytes));
        match question.split_first()? {
            (&LAYER, diff) => self.layer(path(diff)),
            (&IMAGE, rest) => {
                let (id, top) = rest.split_at_checked(ID)?;
                self.image(std::str::from_utf8(id).ok()?, path(top))
            }
            _ => None,
        }
    }
}

impl Mounted {
    /// The mounts that are live now.
    pub(super) fn now() -> Self {
        Self::At(Moment::now())
    }

    /// None.
    pub(super) fn none() -> Self {
        Self::At(Moment::default())
    }

    /// The mounts that are live at each question. There must be no second thread yet.
    pub(super) fn watched() -> anyhow::Result<Self> {
        let socket = daemon::helper(&[], |socket| serve(&socket));
        let socket = socket.context("cannot start the process that looks at mounts")?;
        Ok(Self::Outside(Mutex::new(socket)))
    }
}

impl LiveMounts for Mounted {
    fn layer(&self, diff: &Path) -> Option<PathBuf> {
        match self {
            Self::At(moment) => moment.layer(diff).map(Path::to_owned),
            Self::Outside(socket) => {
                let question = [&[LAYER], diff.as_os_str().as_bytes()].concat();
                ask(socket, &question)
            }
        }
    }

    /// Returns the mountpoint of an image: of exactly its layers, and not of another image with the
    /// same layers.
    fn image(&self, image: &Image) -> Option<PathBuf> {
        let top = image.layers.last()?.place.path();
        let id = image.id.to_string();
        match self {
            Self::At(moment) => moment.image(&id, top).map(Path::to_owned),
            Self::Outside(socket) => {
                let question = [&[IMAGE], id.as_bytes(), top.as_os_str().as_bytes()].concat();
                ask(socket, &question)
            }
        }
    }
}

/// Asks the process outside. Without an answer the layer counts as mounted.
fn ask(socket: &Mutex<OwnedFd>, question: &[u8]) -> Option<PathBuf> {
    let exchange = || -> rustix::io::Result<Vec<u8>> {
        let socket = socket.lock();
        rustix::net::send(&*socket, question, SendFlags::NOSIGNAL)?;
        let mut answer = vec![0; MAX_MESSAGE];
        let (size, _) = rustix::io::retry_on_intr(|| {
            rustix::net::recv(&*socket, &mut *answer, RecvFlags::empty())
        })?;
        answer.truncate(size);
        Ok(answer)
    };
    match exchange().unwrap_or_default().split_first() {
        Some((&NOWHERE, _)) => None,
        Some((&THERE, mountpoint)) => Some(OsStr::from_bytes(mountpoint).into()),
        _ => Some("a place that cannot be found out".into()),
    }
}

/// Answers until the command ends.
fn serve(socket: &OwnedFd) {
    let mut message = vec![0; MAX_MESSAGE];
    loop {
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recv(socket, &mut *message, RecvFlags::empty())
        });
        let Some(question) = received.ok().and_then(|(size, _)| message.get(..size)) else {
            return;
        };
        if question.is_empty() {
            return;
        }
        let moment = Moment::now();
        let answer = match moment.answer(question) {
            Some(mountpoint) => [&[THERE], mountpoint.as_os_str().as_bytes()].concat(),
            None => vec![NOWHERE],
        };
        if rustix::net::send(socket, &answer, SendFlags::NOSIGNAL).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_answered_by_layer_and_by_image() {
        let id = format!("sha256:{}", "a".repeat(64));
        let live = Live {
            mountpoint: "/mnt".into(),
            lowers: vec!["/top".into(), "/base".into()],
            upper: Some("/upper".into()),
            image: Some(id.clone()),
        };
        let moment = Moment(vec![live]);
        let there = Some(Path::new("/mnt"));
        for question in [&b"l/top"[..], b"l/base", b"l/upper"] {
            assert_eq!(moment.answer(question), there);
        }
        assert_eq!(moment.answer(format!("i{id}/top").as_bytes()), there);
        let other = format!("isha256:{}/top", "b".repeat(64));
        let nowhere = [
            "",
            "l",
            "l/other",
            "x/top",
            "i",
            "i/top",
            &format!("i{id}/base"),
            &other,
        ];
        for question in nowhere {
            assert_eq!(moment.answer(question.as_bytes()), None, "{question}");
        }
    }
}
