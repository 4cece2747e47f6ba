//! A process that builds a catalog beside a live mount, at idle priority. The daemon itself may
//! write to no store, because of its sandbox.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::{RecvFlags, SendFlags};

use super::image_catalogs::MountCatalog;
use crate::catalog::{self, Label};
use crate::layer::StackSpec;
use crate::sandbox::{self, Mode};
use crate::store::complete_layers::LayerRecords;
use crate::sys::daemon;

/// A process that builds a catalog. Dropping this stops it and waits for its end.
#[derive(Debug)]
#[must_use = "the build is stopped when this is dropped"]
pub struct BackgroundBuild(OwnedFd);

impl BackgroundBuild {
    /// Starts a process that will build the catalog of lowers of `stack` after
    /// [`BackgroundBuild::begin`]. The calling process must have one thread. `None`: this catalog
    /// is not to be built, or the process cannot be started (a warning gives the reason).
    pub fn prepare(catalog: MountCatalog, stack: &StackSpec, mode: Mode) -> Option<Self> {
        let label = catalog.label.clone()?;
        let stack = &catalog.described(stack);
        let work = |socket: OwnedFd| {
            // If the mount fails, nothing is built.
            if let Ok((1.., _)) = rustix::net::recv(&socket, &mut [0], RecvFlags::empty()) {
                build(&catalog, stack, &label, mode, socket);
            }
        };
        let keep = stack.dirs().map(|dir| dir.as_fd());
        match daemon::bare_helper(&keep.collect::<Vec<_>>(), work) {
            Ok(socket) => Some(Self(socket)),
            Err(error) => {
                tracing::warn!(%error, "no catalog is built of the layers");
                None
            }
        }
    }

    /// Begins the build. Call it after the mount is live.
    pub fn begin(&self) {
        if let Err(error) = rustix::net::send(&self.0, &[0], SendFlags::NOSIGNAL) {
            tracing::warn!(%error, "no catalog is built of the layers");
        }
    }
}

impl Drop for BackgroundBuild {
    fn drop(&mut self) {
        // This fails if the process has ended already.
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Write);
        // The end of the process closes its side.
        let _ = rustix::net::recv(&self.0, &mut [0], RecvFlags::empty());
    }
}

fn build(catalog: &MountCatalog, stack: &StackSpec, label: &Label, mode: Mode, socket: OwnedFd) {
    crate::sys::schedule::idle_thread();
    // It is not used if the layer above is unfit.
    if !catalog.is_outdated() && catalog::describes(catalog.path(), stack) {
        return tracing::info!("the catalog fits, but is not used");
    }
    // They are opened before and, but for Docker's, read after this process has confined itself.
    let records = match catalog.records(stack) {
        Ok(records) => records,
        Err(why) => return tracing::info!("no catalog is built of the layers: {why}"),
    };
    catalog.make_room();
    let mut unfit = None;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let confine = |catalogs: BorrowedFd<'_>| {
        let layers = stack.lowers.iter().chain(&stack.data_only);
        let layers: Vec<_> = layers.map(|layer| layer.dir.as_fd()).collect();
        let in_force = sandbox::daemon::enter_beside(mode, &layers, catalogs)?;
        tracing::debug!(%in_force, "sandbox of the process that builds a catalog");
        // This thread ends with the process.
        std::thread::spawn(move || {
            // The process of the mount sends no more. This is its end, or that of the mount.
            let _ = rustix::net::recv(&socket, &mut [0], RecvFlags::empty());
            stop.store(true, Ordering::Relaxed);
            std::mem::forget(socket);
        });
        if let Some(Err(why)) = records.as_ref().map(LayerRecords::promise) {
            unfit = Some(why);
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(())
    };
    let built = catalog::build_confined(stack, label, catalog.path(), confine, &mut |_| {
        !stopped.load(Ordering::Relaxed)
    });
    match built {
        Err(_) if let Some(why) = unfit => {
            tracing::info!("no catalog is built of the layers: {why}");
        }
        Ok(built) => tracing::info!(?built, "catalog {} built", catalog.path().display()),
        Err(catalog::Error::Stopped | catalog::Error::Busy(_)) => {}
        Err(error) => tracing::warn!(%error, "no catalog is built of the layers"),
    }
}
