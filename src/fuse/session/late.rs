//! What a mount has besides its workers: the record, the control socket, the watch for signals.
//! Called by `session`.

use std::sync::mpsc::Sender;

use signal_hook::iterator::Signals;

use super::{Core, Event};
use crate::fuse::runtime::MountRecord;
use crate::fuse::stats;

/// What waits until the mount answers: whoever mounts it waits for that, and for a processor.
pub(super) struct Late {
    signals: Option<(Signals, Sender<Event>)>,
    /// Clients queue up here until there is a thread for them.
    socket: Option<stats::Socket>,
    answer: Option<Box<dyn Fn() -> Vec<u8> + Send>>,
    watcher: Option<signal_hook::iterator::Handle>,
    server: Option<stats::Server>,
}

impl Late {
    /// Writes the record and opens the control socket. A mount without them works: failures
    /// are warnings.
    pub(super) fn new(
        record: &mut Option<MountRecord>,
        core: &Core,
        signals: Option<Signals>,
        sender: Sender<Event>,
    ) -> Self {
        if let Some(Err(error)) = record.as_mut().map(MountRecord::write) {
            tracing::warn!(%error, "mount not recorded: ps and stats will not know it");
            *record = None;
        }
        let socket = record.as_ref().and_then(|record| {
            stats::Socket::bind(&record.socket())
                .map_err(|error| tracing::warn!(%error, "no control socket: stats will not work"))
                .ok()
        });
        Self {
            signals: signals.map(|signals| (signals, sender)),
            socket,
            answer: record.clone().map(|record| core.answer(record)),
            watcher: None,
            server: None,
        }
    }

    /// Once.
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
