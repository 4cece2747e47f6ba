//! Waits for leases. The holder of a lease of a file (fcntl(2), F_SETLEASE; the owner of the file
//! may have one) is asked to give it up when another process opens the file, and has some time for
//! that. Kernel overlayfs waits in the open. The union opens files of layers without waiting, since
//! the thread would hold locks of the inode. The open gives EAGAIN, and the whole operation is
//! tried again, from the pool and without a lock, until the kernel has removed the lease.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::freed_room::with_freed_room;
use super::{Adapter, user_of};
use crate::fuse::busy::Work;
use crate::fuse::pool::{Pool, Room};
use crate::fuse::request_scope;
use crate::union::{Error, Result, Union};

/// The time for tries. The kernel removes a lease after 45 s (fs.lease-break-time).
const LIMIT: Duration = Duration::from_secs(60);
/// The first and the longest pause between two tries, during which a thread of the pool is in use.
const FIRST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(50);

/// Whether an operation is to be tried again.
fn is_leased(error: &Error) -> bool {
    error.errno() == libc::EAGAIN
}

impl Adapter {
    /// As [`Adapter::run`], for an operation that opens files of layers. It is repeated until no
    /// lease prevents it and removed files have returned their space.
    pub(super) fn attempt<T>(
        &self,
        work: Work,
        mut job: impl FnMut(&Union) -> Result<T> + Send + 'static,
        answer: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        self.attempt_with(work, &[], move |union, _| job(union), answer);
    }

    /// As [`Adapter::attempt`], with data in the worker's buffer.
    pub(super) fn attempt_with<T>(
        &self,
        work: Work,
        data: &[u8],
        mut job: impl FnMut(&Union, &[u8]) -> Result<T> + Send + 'static,
        answer: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        let mut job = move |union: &Union, data: &[u8]| with_freed_room(union, || job(union, data));
        if let Some(here) = self.may_run_here(work) {
            let result = job(&self.union, data);
            drop(here);
            return match result {
                Err(error) if is_leased(&error) => match self.room_for(data) {
                    Some((room, data)) => {
                        let job = move |union: &Union| job(union, &data);
                        self.attempts().submit(room, FIRST, job, answer);
                    }
                    None => answer(Err(error)),
                },
                result => answer(result),
            };
        }
        match self.room_for(data) {
            Some((room, data)) => {
                let job = move |union: &Union| job(union, &data);
                self.attempts().submit(room, Duration::ZERO, job, answer);
            }
            None => answer(job(&self.union, data)),
        }
    }

    /// As [`Adapter::attempt`], for an operation that this thread tries first, even if other work
    /// waits.
    pub(super) fn attempt_here<T>(
        &self,
        mut job: impl FnMut(&Union) -> Result<T> + Send + 'static,
        answer: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        match job(&self.union) {
            Err(error) if is_leased(&error) => match self.room_for(&[]) {
                Some((room, _)) => self.attempts().submit(room, FIRST, job, answer),
                None => answer(Err(error)),
            },
            result => answer(result),
        }
    }

    fn attempts(&self) -> Attempts {
        Attempts {
            pool: self.pool.clone(),
            union: Arc::clone(&self.union),
            request: request_scope::current(),
            began: Instant::now(),
        }
    }
}

/// An operation that is tried in the pool.
struct Attempts {
    pool: Pool,
    union: Arc<Union>,
    request: Option<request_scope::Request>,
    began: Instant,
}

impl Attempts {
    /// Tries once after a pause. If the file is still leased, the operation goes to the end of its
    /// user's queue.
    fn submit<T>(
        self,
        room: Room,
        pause: Duration,
        mut job: impl FnMut(&Union) -> Result<T> + Send + 'static,
        answer: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        let (pool, user, bytes) = (self.pool.clone(), user_of(self.request), room.bytes());
        pool.submit(room, user, move || {
            let _scope = request_scope::enter(self.request);
            std::thread::sleep(pause);
            match job(&self.union) {
                Err(error) if is_leased(&error) && self.began.elapsed() < LIMIT => {
                    match self.pool.admit_more(bytes) {
                        Some(room) => {
                            let pause = (pause * 2).clamp(FIRST, LONGEST);
                            self.submit(room, pause, job, answer);
                        }
                        None => answer(Err(error)),
                    }
                }
                result => answer(result),
            }
        });
    }
}
