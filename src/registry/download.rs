//! Downloads a blob into its file in our own store. The bytes of an earlier attempt are hashed, and
//! the rest is requested with a Range, again after each interruption.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use ureq::http::{Method, StatusCode, header};

use super::Show;
use super::client::Client;
use super::error::{Error, Result};
use super::manifest::Blob;
use super::pace::Paced;
use super::response::{Response, coding};
use super::retry::{Failure, Outcome, sleep};
use super::sources::{Needs, Sources};
use crate::oci::Digest;
use crate::progress::Progress;
use crate::store::writable::Download;
use crate::store::{self, Writable};
use crate::sys::free_space::{FreeSpace, FreeSpaceWatch};
use crate::sys::interrupt;

/// The number of bytes read at a time.
const CHUNK: usize = 128 << 10;
/// The interval at which the end of another process's download is checked.
const LOOK: Duration = Duration::from_millis(10);
/// An attempt that received at least this number of bytes counts as progress.
const WORTHWHILE: u64 = 64 << 10;

/// The download of one blob.
pub(super) struct Fetch<'a, 's> {
    pub(super) sources: &'a Sources<'s>,
    pub(super) blob: &'a Blob,
    pub(super) show: Show<'a>,
    /// Whether another blob has failed, so that this download can end.
    pub(super) stop: &'a AtomicBool,
}

/// The number of bytes in the file, and their hash so far.
#[derive(Default)]
struct DownloadState {
    have: u64,
    hash: Sha256,
}

impl DownloadState {
    fn restart(&mut self, download: &Download) -> Result<()> {
        *self = Self::default();
        let truncated = download.file().set_len(0);
        truncated.map_err(|error| local("truncate", download, &error))
    }
}

/// Returns the error of a failure of the local disk.
fn local(action: &'static str, download: &Download, error: &io::Error) -> Error {
    let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
    store::Error::io(action, download.path(), errno).into()
}

/// Whether the bytes of a blob are of use to a later attempt. Failures of the network or the
/// registry, a full disk or a signal do not make them useless.
pub(super) fn is_worth_keeping(error: &Error) -> bool {
    use Error::{Interrupted, NotFound, Status, Unauthorized, Unreachable};
    let registry = matches!(
        error,
        Unreachable { .. } | Status { .. } | Unauthorized { .. } | NotFound { .. } | Interrupted(_)
    );
    registry || error.is_full() || interrupt::signal().is_some()
}

impl Fetch<'_, '_> {
    /// Downloads the whole blob and compares its digest; `None` if it was stopped.
    pub(super) fn run(&self, store: &Writable) -> Result<Option<Download>> {
        let mut said = false;
        loop {
            match store.download(&self.blob.digest)? {
                Some(download) if download.is_writing() => return self.bring(download),
                Some(download) => {
                    // Another process has completed the download, or given it up.
                    let state = self.there(&download)?;
                    if state.have == self.blob.size
                        && Digest::from_hash(state.hash) == self.blob.digest
                    {
                        (self.show)(Progress::Done {
                            item: &self.blob.digest,
                        });
                        return Ok(Some(download));
                    }
                }
                None if !said => {
                    said = true;
                    let item = &self.blob.digest;
                    let process = store.downloader(item);
                    (self.show)(Progress::Elsewhere { item, process });
                }
                None => (),
            }
            sleep(LOOK, || false)?;
            if self.stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
        }
    }

    /// Downloads into a file that this process has locked exclusively.
    fn bring(&self, mut download: Download) -> Result<Option<Download>> {
        match self.complete(&download) {
            Ok(true) => {
                download.share()?;
                Ok(Some(download))
            }
            Ok(false) => Ok(None),
            Err(error) => {
                if !is_worth_keeping(&error) {
                    // The first failure is the one to report.
                    let _ = download.remove();
                }
                Err(error)
            }
        }
    }

    /// Completes a download from the first place that has the blob, and from the next where that fails.
    fn complete(&self, download: &Download) -> Result<bool> {
        let mut last = None;
        for at in 0..self.sources.count() {
            let client = match self.sources.client(at, Needs::Digest) {
                Ok(client) => client,
                Err(error) => {
                    last = Some(self.sources.passed_over(at, error)?);
                    continue;
                }
            };
            let Some(client) = client else { continue };
            let place = Place {
                fetch: self,
                client,
            };
            match place.complete(download) {
                Ok(done) => return Ok(done),
                Err(error) => last = Some(self.sources.passed_over(at, error)?),
            }
        }
        Err(last.unwrap_or_else(|| self.sources.none()))
    }

    /// Hashes the bytes of an earlier attempt.
    fn there(&self, download: &Download) -> Result<DownloadState> {
        let failed = |error: io::Error| local("read", download, &error);
        let mut state = DownloadState::default();
        let file: &File = download.file();
        let length = file.metadata().map_err(failed)?.len();
        if length > self.blob.size {
            // Another process may need the bytes, for a manifest that says how many there are.
            if download.is_writing() {
                state.restart(download)?;
            }
            return Ok(state);
        }
        if length > 0 {
            (self.show)(Progress::Verifying {
                item: &self.blob.digest,
            });
        }
        let mut buffer = vec![0; CHUNK];
        loop {
            match file.read_at(&mut buffer, state.have) {
                Ok(0) => return Ok(state),
                Ok(got) => {
                    state.hash.update(&buffer[..got]);
                    state.have += got as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

/// The download from one place.
struct Place<'f, 'a, 's> {
    fetch: &'f Fetch<'a, 's>,
    client: &'f Client<'s>,
}

impl Place<'_, '_, '_> {
    fn complete(&self, download: &Download) -> Result<bool> {
        let Blob { digest, size, .. } = self.fetch.blob;
        let (digest, size) = (digest, *size);
        let mut state = self.fetch.there(download)?;
        let mut old = state.have > 0;
        let have = state.have;
        (self.fetch.show)(Progress::Begin {
            item: digest,
            size,
            have,
        });
        let mut failed = 0;
        while !self.fetch.stop.load(Ordering::Relaxed) {
            if state.have == size {
                let actual = Digest::from_hash(state.hash.clone());
                if actual == *digest {
                    (self.fetch.show)(Progress::Done { item: digest });
                    return Ok(true);
                }
                let error = Error::Digest {
                    what: self.client.blob_name(digest),
                    expected: *digest,
                    actual,
                };
                if !old {
                    return Err(error);
                }
                // The bytes of an earlier attempt may have been wrong; now all bytes are downloaded
                // again.
                old = false;
                state.restart(download)?;
                (self.fetch.show)(Progress::Again {
                    item: digest,
                    why: &error,
                    have: 0,
                });
            }
            let before = state.have;
            match self.attempt(download, &mut state) {
                Ok(()) => (),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Transient(error)) => {
                    if state.have >= before.saturating_add(WORTHWHILE) {
                        failed = 0;
                    }
                    failed += 1;
                    let Some(pause) = self.client.retry.pause(failed, &error) else {
                        return Err(error);
                    };
                    (self.fetch.show)(Progress::Again {
                        item: digest,
                        why: &error,
                        have: state.have,
                    });
                    sleep(pause, || self.fetch.stop.load(Ordering::Relaxed))?;
                }
            }
        }
        Ok(false)
    }

    /// Requests the missing bytes and receives them.
    fn attempt(&self, download: &Download, state: &mut DownloadState) -> Outcome<()> {
        let digest = &self.fetch.blob.digest;
        let what = self.client.blob_name(digest);
        let path = self.client.path(&format!("blobs/{digest}"));
        let mut request = self.client.request(Method::GET, &path, what)?;
        if state.have > 0 {
            let range = format!("bytes={}-", state.have);
            request.headers.push((header::RANGE, range));
        }
        let response = match self.client.exchange(&request) {
            // The registry has a shorter blob than the file.
            Err(Failure::Final(Error::Status { status: 416, .. })) if state.have > 0 => {
                return Ok(state.restart(download)?);
            }
            other => other?,
        };
        match (response.status(), state.have) {
            (StatusCode::PARTIAL_CONTENT, 0) => {
                let why = "the registry sends a part that was not asked for";
                return Err(Error::malformed(request.what, why).into());
            }
            (StatusCode::PARTIAL_CONTENT, have) if begins_at(&response, have) => (),
            (StatusCode::PARTIAL_CONTENT, _) => return Ok(state.restart(download)?),
            (_, 0) => (),
            // The registry does not support ranges.
            _ => state.restart(download)?,
        }
        self.refuse_coded(&response, state)?;
        self.take(response, download, state)
    }

    /// Rejects coded content, which does not have the blob's digest. Some registries name a coding
    /// for content that is not coded; its length shows that.
    fn refuse_coded(&self, response: &Response, state: &DownloadState) -> Result<()> {
        let Some(coding) = coding(response) else {
            return Ok(());
        };
        let length = response.headers().get(header::CONTENT_LENGTH);
        let length: Option<u64> = length.and_then(|value| value.to_str().ok()?.parse().ok());
        if length == Some(self.fetch.blob.size - state.have) {
            return Ok(());
        }
        let why = format!(
            "the registry sends it with the content coding {coding}, which was not asked for"
        );
        Err(Error::malformed(
            self.client.blob_name(&self.fetch.blob.digest),
            why,
        ))
    }

    /// Fails if the file system has no space for more bytes.
    fn room(&self, download: &Download, watch: &mut FreeSpaceWatch, more: u64) -> Result<()> {
        let fail = |errno| store::Error::io("ask for the free space of", download.path(), errno);
        if watch.allows(download.file(), more).map_err(fail)? {
            return Ok(());
        }
        let room = FreeSpace::of(download.file()).map_err(fail)?;
        Err(Error::NoRoom {
            what: self.client.blob_name(&self.fetch.blob.digest),
            needed: more,
            free: room.bytes,
            store: download.path().to_owned(),
        })
    }

    fn take(
        &self,
        mut response: Response,
        download: &Download,
        state: &mut DownloadState,
    ) -> Outcome<()> {
        let (digest, size) = (&self.fetch.blob.digest, self.fetch.blob.size);
        let interrupted = |why: String| {
            Failure::Transient(Error::Unreachable {
                url: self.client.blob_name(digest),
                why,
            })
        };
        let body = response.body_mut().with_config().limit(u64::MAX).reader();
        let mut body = Paced::new(body, self.client.patience);
        let mut watch = FreeSpaceWatch::new();
        let mut buffer = vec![0; CHUNK];
        while !self.fetch.stop.load(Ordering::Relaxed) {
            let got = match body.read(&mut buffer) {
                Ok(0) if state.have == size => return Ok(()),
                Ok(0) => {
                    let why = format!("the answer ends after {} of {size} bytes", state.have);
                    return Err(interrupted(why));
                }
                Ok(got) => got,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(interrupted(error.to_string())),
            };
            if state.have.saturating_add(got as u64) > size {
                let why = format!("more than the {size} bytes that the manifest declares");
                let what = self.client.blob_name(digest);
                return Err(Error::malformed(what, why).into());
            }
            interrupt::check().map_err(Error::from)?;
            self.room(download, &mut watch, got as u64)?;
            let written = download.file().write_all_at(&buffer[..got], state.have);
            written.map_err(|error| local("write", download, &error))?;
            state.hash.update(&buffer[..got]);
            state.have += got as u64;
            let count = got as u64;
            (self.fetch.show)(Progress::Advance {
                item: digest,
                count,
            });
        }
        Ok(())
    }
}

/// Whether a partial response begins at the requested offset (RFC 9110, Content-Range).
fn begins_at(response: &Response, offset: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE);
    let range = range.and_then(|value| value.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {offset}-")))
}
