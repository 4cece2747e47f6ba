//! The parts of a mount besides its workers: the record, the control socket, the handling of
//! signals.
//!

use std::fs::File;
use std::sync::mpsc::Sender;

use signal_hook::iterator::Signals;

use super::{Core, Event};
use crate::fuse::error::Error;
use crate::fuse::keeper::Keeper;
use crate::fuse::runtime::MountRecord;
use crate::fuse::stats;

/// The unpublished record and the control socket. A mount works without them, so failures are
/// warnings.
pub(super) struct Files {
    staged: File,
    socket: Option<stats::Socket>,
}

impl Files {
    /// Opens both. A record that cannot be written is removed.
    pub(super) fn open(record: &mut Option<MountRecord>) -> Option<Self> {
        let staged = match record.as_mut()?.stage() {
            Ok(staged) => staged,
            Err(error) => return not_recorded(record, &error),
        };
        let socket = record.as_ref().and_then(|record| {
            stats::Socket::bind(&record.socket())
                .map_err(|error| tracing::warn!(%error, "no control socket: stats will not work"))
                .ok()
        });
        Some(Self { staged, socket })
    }

    /// Writes the record and makes the keeper publish it.
    pub(super) fn publish(mut self, record: &Option<MountRecord>, keeper: &Keeper) -> Option<Self> {
        let record = record.as_ref()?;
        let done = record
            .fill(&mut self.staged)
            .and_then(|()| keeper.publish(record));
        match done {
            Ok(()) => Some(self),
            Err(error) => not_recorded(&mut None, &error),
        }
    }

    /// Opens both, if possible.
    pub(super) fn write(record: &mut Option<MountRecord>) -> Option<Self> {
        let mut files = Self::open(record)?;
        let mounted = record.as_ref()?;
        match mounted
            .fill(&mut files.staged)
            .and_then(|()| mounted.publish())
        {
            Ok(()) => Some(files),
            Err(error) => {
                mounted.remove();
                not_recorded(record, &error)
            }
        }
    }
}

fn not_recorded<T>(record: &mut Option<MountRecord>, error: &Error) -> Option<T> {
    tracing::warn!(%error, "mount not recorded: ps and stats will not know it");
    *record = None;
    None
}

/// Work that is done after the mount answers, because the caller waits for the answer and needs the
/// processor.
pub(super) struct Late {
    signals: Option<(Signals, Sender<Event>)>,
    /// The control socket. Clients wait in it until there is a thread for them.
    socket: Option<stats::Socket>,
    answer: Option<Box<dyn Fn() -> Vec<u8> + Send>>,
    watcher: Option<signal_hook::iterator::Handle>,
    server: Option<stats::Server>,
}

impl Late {
    /// Prepares the work. Without files, `ps` and `stats` do not know the mount.
    pub(super) fn new(
        files: Option<Files>,
        record: &Option<MountRecord>,
        core: &Core,
        signals: Option<Signals>,
        sender: Sender<Event>,
    ) -> Self {
        let record = record.clone().filter(|_| files.is_some());
        Self {
            signals: signals.map(|signals| (signals, sender)),
            socket: files.and_then(|files| files.socket),
            answer: record.map(|record| core.answer(record)),
            watcher: None,
            server: None,
        }
    }

    /// Starts the work, at most once.
    pub(super) fn start(&mut self) {
        if let Some((signals, sender)) = self.signals.take() {
            self.watcher = Some(watch_signals(signals, sender));
        }
        if let (Some(socket), Some(answer)) = (self.socket.take(), self.answer.take()) {
            self.server = socket
                .serve(answer)
                .map_err(|error| tracing::warn!(%error, "stats will not work"))
                .ok();
        }
    }

    pub(super) fn stop(self) {
        if let Some(handle) = self.watcher {
            handle.close();
        }
        if let Some(server) = self.server {
            server.stop();
        }
    }
}

fn watch_signals(mut signals: Signals, sender: Sender<Event>) -> signal_hook::iterator::Handle {
    let handle = signals.handle();
    let watch = move || {
        for signal in signals.forever() {
            if sender.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    };
    let spawned = std::thread::Builder::new()
        .name("unionfs-signals".into())
        .spawn(watch);
    if let Err(error) = spawned {
        tracing::warn!(%error, "signals will not unmount");
    }
    handle
}
