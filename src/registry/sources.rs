//! The places from which an image is read: mirrors, and last the registry itself. What one cannot give,
//! the next is asked for.

use std::sync::OnceLock;

use super::Show;
use super::access::Access;
use super::client::Client;
use super::error::{Error, Result};
use super::route::{Purpose, Route};
use crate::oci::Reference;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    /// The meaning of a tag: the host must be allowed to say it.
    Tag,
    /// Content that has a digest: every host may give it.
    Digest,
}

/// The places of one image. Each is contacted when it is first needed.
pub(super) struct Sources<'s> {
    name: Reference,
    all: Vec<Source<'s>>,
    access: &'s Access,
    show: Show<'s>,
}

struct Source<'s> {
    route: Route,
    /// `None`: it cannot be reached, or does not let us in.
    client: OnceLock<Option<Client<'s>>>,
}

impl<'s> Sources<'s> {
    /// Finds the places of an image.
    pub(super) fn of(name: &Reference, access: &'s Access, show: Show<'s>) -> Result<Self> {
        let routes = access.routes(name, Purpose::Pull)?;
        let all = routes.into_iter().map(|route| Source {
            route,
            client: OnceLock::new(),
        });
        Ok(Self {
            name: name.clone(),
            all: all.collect(),
            access,
            show,
        })
    }

    /// Returns the number of places.
    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// Returns the image's name, for messages.
    pub(super) fn name(&self) -> String {
        self.name.to_string()
    }

    /// Does `work` with the first place for which it succeeds.
    ///
    /// # Errors
    /// That of the last place, which is the registry itself.
    pub(super) fn first<T>(
        &self,
        needs: Needs,
        mut work: impl FnMut(&Client<'s>) -> Result<T>,
    ) -> Result<T> {
        let mut last = None;
        for at in 0..self.count() {
            match self.client(at, needs).and_then(|client| match client {
                Some(client) => work(client).map(Some),
                None => Ok(None),
            }) {
                Ok(Some(done)) => return Ok(done),
                Ok(None) => {}
                Err(error) => last = Some(self.passed_over(at, error)?),
            }
        }
        Err(last.unwrap_or_else(|| self.none()))
    }

    /// Returns the client of a place; `None` if the place is not used for this.
    pub(super) fn client(&self, at: usize, needs: Needs) -> Result<Option<&Client<'s>>> {
        let Some(source) = self.all.get(at) else {
            return Ok(None);
        };
        if needs == Needs::Tag && !source.route.resolves {
            return Ok(None);
        }
        if let Some(client) = source.client.get() {
            return Ok(client.as_ref());
        }
        let opened = Client::reach(&self.name, &source.route, self.access, self.show);
        let opened = match opened {
            Ok(client) => Some(client),
            Err(error) => {
                let error = self.passed_over(at, error)?;
                if !source.route.is_mirror {
                    return Err(error);
                }
                None
            }
        };
        Ok(source.client.get_or_init(|| opened).as_ref())
    }

    /// Returns the failure of a place if another place may do better, else fails with it.
    pub(super) fn passed_over(&self, at: usize, error: Error) -> Result<Error> {
        if error.is_local() {
            return Err(error);
        }
        if let Some(source) = self.all.get(at).filter(|source| source.route.is_mirror) {
            let mirror = source.route.authority.as_str();
            tracing::info!(mirror, %error, "the next place is asked");
        }
        Ok(error)
    }

    pub(super) fn none(&self) -> Error {
        let why = "no registry or mirror may be asked for it (hosts.toml: capabilities)";
        Error::malformed(self.name(), why)
    }
}
