//! A registry's HTTP API for one repository: requests, redirects, authorization, and the meaning of
//! responses.
//!
//! Format: OCI distribution specification, spec.md.
//!
//! Credentials are sent to the registry's own origin and to the realm that it names, over https or
//! to this machine. They are never sent to another host after a redirect.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::RwLock;
use ureq::http::header::{HeaderName, HeaderValue};
use ureq::http::{self, HeaderMap, Method, StatusCode, Uri, header};
use ureq::{Agent, SendBody};

use super::access::Access;
use super::auth::{self, Challenge};
use super::credentials::Credential;
use super::error::{Error, Result};
use super::pace::{Pace, Patience};
use super::response::{Refusal, Response, is_html, read_all, refusal, retry_after};
use super::retry::{Contact, Failure, Outcome, Retry, transport};
use super::route::{Purpose, Route};
use super::{Show, endpoint};
use crate::oci::{Digest, Reference};
use crate::progress::Progress;
use crate::sys::interrupt;

/// The limit of redirects that are followed.
const MAX_REDIRECTS: usize = 5;
/// The limit of attempts with a mirror.
const MIRROR_ATTEMPTS: u32 = 2;

/// One repository of a registry.
pub(super) struct Client<'s> {
    agent: Agent,
    /// The scheme and authority.
    origin: Uri,
    route: Route,
    /// The image's name, for messages.
    name: String,
    /// The actions of the token's scope: `pull` or `pull,push`.
    actions: &'static str,
    /// Other repositories, from which blobs are mounted.
    sources: Vec<String>,
    /// The value of the Authorization header.
    authorization: RwLock<Option<String>>,
    pub(super) retry: Retry,
    pub(super) patience: Patience,
    show: Show<'s>,
    /// Whether the registry has responded before.
    known: AtomicBool,
}

/// What a client will do.
struct Wish<'w> {
    actions: &'static str,
    sources: &'w [String],
}

/// The content of a request.
pub(super) enum Payload<'p> {
    None,
    Bytes(&'p [u8]),
    /// The whole file. `passed` gets the number of bytes that are sent.
    File {
        file: &'p File,
        size: u64,
        passed: &'p dyn Fn(u64),
    },
}

pub(super) struct Request<'r> {
    pub(super) method: Method,
    pub(super) uri: Uri,
    /// The object of the request, for messages.
    pub(super) what: String,
    pub(super) headers: Vec<(HeaderName, String)>,
    pub(super) body: Payload<'r>,
}

impl<'s> Client<'s> {
    /// Finds out how the registry of `name` is reached, to change it. `sources` are other repositories
    /// that will be read.
    pub(super) fn open(
        name: &Reference,
        actions: &'static str,
        sources: &[String],
        access: &Access,
        show: Show<'s>,
    ) -> Result<Self> {
        let mut last = None;
        for route in access.routes(name, Purpose::Push)? {
            let wish = Wish { actions, sources };
            match Self::connect(name, &wish, &route, access, show) {
                Ok(client) => return Ok(client),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::malformed(name.to_string(), "has no registry")))
    }

    /// Finds out how a registry or mirror is reached, to read an image.
    pub(super) fn reach(
        name: &Reference,
        route: &Route,
        access: &Access,
        show: Show<'s>,
    ) -> Result<Self> {
        let wish = Wish {
            actions: "pull",
            sources: &[],
        };
        Self::connect(name, &wish, route, access, show)
    }

    fn connect(
        name: &Reference,
        wish: &Wish<'_>,
        route: &Route,
        access: &Access,
        show: Show<'s>,
    ) -> Result<Self> {
        let host = route.authority.as_str();
        let mut retry = access.retry;
        if route.is_mirror {
            // There is another place to ask.
            retry.attempts = retry.attempts.min(MIRROR_ATTEMPTS);
        }
        let mut last = None;
        for scheme in route.schemes {
            let malformed = |_| Error::malformed(host, "is not a host of a registry");
            let client = Self {
                agent: endpoint::agent(route, access.patience),
                origin: format!("{scheme}://{host}/").parse().map_err(malformed)?,
                route: route.clone(),
                name: name.to_string(),
                actions: wish.actions,
                sources: wish.sources.to_vec(),
                authorization: RwLock::new(None),
                retry,
                patience: access.patience,
                show,
                known: AtomicBool::new(false),
            };
            match client.ask(host, || client.ping()) {
                Ok(()) => return Ok(client),
                // The registry does not speak TLS. If there is another scheme, that is allowed.
                Err(error @ Error::Unreachable { .. }) => {
                    last = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::malformed(host, "has no address")))
    }

    /// Repeats an attempt until it succeeds or fails for good; reports each further attempt.
    pub(super) fn ask<T>(&self, what: &str, attempt: impl FnMut() -> Outcome<T>) -> Result<T> {
        let show = |why: &Error, pause| (self.show)(Progress::Later { what, why, pause });
        self.retry.run(show, attempt)
    }

    /// Checks that the server is a registry, and obtains authorization.
    fn ping(&self) -> Outcome<()> {
        let path = format!("{}/", self.route.base);
        let what = format!("registry {}", self.route.domain);
        let request = self.request(Method::GET, &path, what)?;
        match self.exchange(&request) {
            // A mirror need not have this page.
            Err(Failure::Final(Error::Status { .. })) if self.route.is_mirror => Ok(()),
            // Some registries have no such page; the next request shows more.
            Ok(_) | Err(Failure::Final(Error::NotFound { .. })) => Ok(()),
            // Public images may be readable without a login: the request for the image decides.
            Err(Failure::Final(Error::Unauthorized { .. })) if self.route.credential.is_none() => {
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    /// Makes a request to this registry; `path` is what [`Self::path`] returns, or the whole path.
    pub(super) fn request<'r>(
        &self,
        method: Method,
        path: &str,
        what: String,
    ) -> Result<Request<'r>> {
        let uri = endpoint::resolve(&self.origin, path);
        let bad = || Error::malformed(what.as_str(), "is not an address of a registry");
        Ok(Request {
            method,
            uri: uri.ok_or_else(bad)?,
            what,
            headers: Vec::new(),
            body: Payload::None,
        })
    }

    /// Returns the path of an object in this repository: `blobs/sha256:…`. A mirror learns which registry
    /// is meant.
    pub(super) fn path(&self, what: &str) -> String {
        let Route {
            base, repository, ..
        } = &self.route;
        match &self.route.namespace {
            Some(registry) => {
                format!("{base}/{repository}/{what}?ns={}", auth::escape(registry))
            }
            None => format!("{base}/{repository}/{what}"),
        }
    }

    /// Returns the name of a blob of this image for messages.
    pub(super) fn blob_name(&self, digest: &Digest) -> String {
        format!("{}, blob {digest}", self.name)
    }

    /// Returns the image's name, for messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Sends a request with authorization. Any response other than success is an error.
    pub(super) fn exchange(&self, request: &Request<'_>) -> Outcome<Response> {
        let mut challenged = false;
        loop {
            let (ours, response) = self.follow(request)?;
            if response.status() == StatusCode::UNAUTHORIZED && ours && !challenged {
                challenged = true;
                self.authorize(&request.what, response.headers())?;
                continue;
            }
            return self.checked(request, response);
        }
    }

    /// Sends a request and follows redirects. Returns whether the response is the registry's own.
    fn follow(&self, request: &Request<'_>) -> Outcome<(bool, Response)> {
        let mut uri = request.uri.clone();
        for _ in 0..=MAX_REDIRECTS {
            let ours = endpoint::same_origin(&uri, &self.origin);
            let own = if ours { self.own_headers() } else { Vec::new() };
            let response = self.send(request, &uri, own)?;
            let location = response.headers().get(header::LOCATION);
            let (true, Some(location)) = (response.status().is_redirection(), location) else {
                return Ok((ours, response));
            };
            let refused = |why: &str| Error::malformed(request.what.as_str(), why);
            if !matches!(request.method, Method::GET | Method::HEAD) {
                return Err(refused("the registry sends uploads elsewhere: refused").into());
            }
            let next = location.to_str().ok();
            let next = next.and_then(|location| endpoint::resolve(&uri, location));
            let next = next.ok_or_else(|| refused("the registry redirects without an address"))?;
            if uri.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(refused("the registry redirects from https to http: refused").into());
            }
            uri = next;
        }
        Err(Error::malformed(request.what.as_str(), "too many redirects").into())
    }

    /// Returns the headers that only the registry itself gets.
    fn own_headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = self.route.headers.clone();
        let authorization = self.authorization.read();
        let value = authorization.as_ref().and_then(|value| value.parse().ok());
        headers.extend(value.map(|mut value: HeaderValue| {
            value.set_sensitive(true);
            (header::AUTHORIZATION, value)
        }));
        headers
    }

    fn send(
        &self,
        request: &Request<'_>,
        uri: &Uri,
        own: Vec<(HeaderName, HeaderValue)>,
    ) -> Outcome<Response> {
        let mut builder = http::Request::builder()
            .method(request.method.clone())
            .uri(uri.clone());
        // The content is hashed as it is received, so it must not be coded.
        builder = builder.header(header::ACCEPT_ENCODING, "identity");
        for (name, value) in &request.headers {
            builder = builder.header(name, value);
        }
        for (name, value) in own {
            builder = builder.header(name, value);
        }
        let bad = |e: http::Error| Error::malformed(request.what.as_str(), e.to_string());
        let answer = match &request.body {
            Payload::None => self.agent.run(builder.body(()).map_err(bad)?),
            Payload::Bytes(bytes) => self.agent.run(builder.body(*bytes).map_err(bad)?),
            Payload::File { file, size, passed } => {
                builder = builder.header(header::CONTENT_LENGTH, *size);
                let mut content = FileReader {
                    file,
                    at: 0,
                    passed: *passed,
                    pace: Pace::new(self.patience),
                    since: Instant::now(),
                    last: 0,
                };
                let body = SendBody::from_reader(&mut content);
                let request = builder.body(body).map_err(bad)?;
                let request = self.agent.configure_request(request);
                let patient = request.timeout_recv_response(Some(self.patience.upload));
                self.agent.run(patient.build())
            }
        };
        self.came(uri, answer)
    }

    /// Returns a response, or the failure.
    fn came(
        &self,
        uri: &Uri,
        answer: std::result::Result<Response, ureq::Error>,
    ) -> Outcome<Response> {
        let contact = if self.known.load(Ordering::Relaxed) {
            Contact::Had
        } else {
            Contact::Never
        };
        let answer = answer.map_err(|error| transport(&endpoint::shown(uri), error, contact))?;
        self.known.store(true, Ordering::Relaxed);
        Ok(answer)
    }

    fn checked(&self, request: &Request<'_>, mut response: Response) -> Outcome<Response> {
        let status = response.status();
        if status.is_success() {
            return if is_html(&response) && !request.uri.path().ends_with("/v2/") {
                Err(self.html(request).into())
            } else {
                Ok(response)
            };
        }
        let what = request.what.clone();
        let Refusal { code, message } = refusal(&mut response, self.patience);
        Err(match status {
            StatusCode::NOT_FOUND => Error::NotFound { what, message }.into(),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                self.unauthorized(&what, message).into()
            }
            _ => {
                let after = retry_after(&response);
                let limited = status == StatusCode::TOO_MANY_REQUESTS && after.is_some();
                let transient = status.is_server_error() || limited;
                let status = status.as_u16();
                let error = Error::Status {
                    what,
                    status,
                    code,
                    message,
                    after,
                };
                if transient {
                    Failure::Transient(error)
                } else {
                    error.into()
                }
            }
        })
    }

    fn html(&self, request: &Request<'_>) -> Error {
        let why = format!(
            "an HTML page came instead of it: {} is not a registry, or a login page or proxy is in \
             between",
            self.route.domain
        );
        Error::malformed(request.what.as_str(), why)
    }

    /// Returns the credential, if it may be used.
    fn credential(&self) -> Option<&Credential> {
        let usable = self.may_have_secrets(&self.origin);
        self.route.credential.as_ref().filter(|_| usable)
    }

    /// Whether credentials may be sent to an address: over TLS, to this machine, or to the host that the
    /// user has configured as insecure.
    fn may_have_secrets(&self, uri: &Uri) -> bool {
        let same_host = uri.authority() == self.origin.authority();
        endpoint::is_private(uri) || (self.route.secrets_over_http && same_host)
    }

    fn unauthorized(&self, what: &str, message: String) -> Error {
        let host = &self.route.domain;
        let (who, remedy) = match (self.credential(), &self.route.credential) {
            (Some(credential), _) => (
                credential.who(),
                format!("log in again (unionfs login {host}) as a user who may do this"),
            ),
            (None, Some(_)) => (
                "anonymous access".to_owned(),
                "credentials are not sent over http to another machine, unless registries.conf calls it \
                 insecure"
                    .to_owned(),
            ),
            (None, None) => (
                "anonymous access".to_owned(),
                format!("check the name, or log in (unionfs login {host})"),
            ),
        };
        Error::Unauthorized {
            what: what.to_owned(),
            who,
            message,
            remedy,
        }
    }

    /// Responds to a challenge: obtains the authorization for the next requests.
    fn authorize(&self, what: &str, headers: &HeaderMap) -> Outcome<()> {
        let challenges = headers.get_all(header::WWW_AUTHENTICATE).iter();
        let value = match Challenge::of(challenges.filter_map(|value| value.to_str().ok())) {
            None => None,
            Some(Challenge::Basic) => self.credential().and_then(Credential::basic),
            Some(Challenge::Bearer { realm, service, .. }) => {
                let token = self.token(&realm, service.as_deref())?;
                Some(format!("Bearer {token}"))
            }
        };
        let value = value.ok_or_else(|| self.unauthorized(what, String::new()))?;
        *self.authorization.write() = Some(value);
        Ok(())
    }

    /// Gets a token for this repository.
    fn token(&self, realm: &str, service: Option<&str>) -> Outcome<String> {
        let what = format!("a token for {}", self.name);
        let uri: Option<Uri> = realm.parse().ok();
        let uri = uri.filter(|uri| matches!(uri.scheme_str(), Some("https" | "http")));
        let uri = uri.filter(|uri| uri.authority().is_some());
        let bad = || Error::malformed(what.as_str(), "the registry names no address for it");
        let uri = uri.ok_or_else(bad)?;
        if self.origin.scheme_str() == Some("https") && uri.scheme_str() != Some("https") {
            let why = "the registry offers it over http only: refused";
            return Err(Error::malformed(what, why).into());
        }
        let own = format!("repository:{}:{}", self.route.repository, self.actions);
        let sources = self.sources.iter();
        let sources = sources.map(|source| format!("repository:{source}:pull"));
        // A login is for no repository.
        let own = Some(own).filter(|_| !self.route.repository.is_empty());
        let scopes: Vec<String> = own.into_iter().chain(sources).collect();
        // A query has one parameter for each scope; a form has one for all (distribution,
        // docs/spec/auth).
        let each = |scope: &String| format!("scope={}", auth::escape(scope));
        let credential = self.credential().filter(|_| self.may_have_secrets(&uri));
        let mut query = match credential {
            Some(Credential::Identity(_)) => each(&scopes.join(" ")),
            _ => scopes.iter().map(each).collect::<Vec<_>>().join("&"),
        };
        if let Some(service) = service {
            query += &format!("&service={}", auth::escape(service));
        }
        let answer = match credential {
            Some(Credential::Identity(token)) => {
                let form = format!(
                    "grant_type=refresh_token&client_id=unionfs&{query}&refresh_token={}",
                    auth::escape(token)
                );
                let form_type = "application/x-www-form-urlencoded";
                let request = self.agent.post(&uri);
                request.header(header::CONTENT_TYPE, form_type).send(form)
            }
            credential => {
                let between = if uri.query().is_some() { '&' } else { '?' };
                let mut request = self.agent.get(format!("{uri}{between}{query}"));
                if let Some(value) = credential.and_then(Credential::basic) {
                    request = request.header(header::AUTHORIZATION, value);
                }
                request.call()
            }
        };
        let mut answer = self.came(&uri, answer)?;
        if !answer.status().is_success() {
            let request = self.request(Method::GET, "/", what.clone())?;
            return Err(match self.checked(&request, answer) {
                Err(failure) => failure,
                Ok(_) => bad().into(),
            });
        }
        let bytes = read_all(&mut answer, auth::MAX_TOKEN, &what, self.patience)?;
        let none = || Error::malformed(what.as_str(), "the answer has none");
        Ok(auth::token(&bytes).ok_or_else(none)?)
    }
}

/// Reads a file from its beginning. Other readers of the file do not matter.
struct FileReader<'p> {
    file: &'p File,
    at: u64,
    passed: &'p dyn Fn(u64),
    pace: Pace,
    /// The time when the last piece was handed over. A read of the next piece means that it was
    /// sent.
    since: Instant,
    last: u64,
}

impl io::Read for FileReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        interrupt::check()?;
        self.pace.passed(self.last, self.since.elapsed())?;
        let got = self.file.read_at(buf, self.at)?;
        self.at += got as u64;
        (self.passed)(got as u64);
        (self.since, self.last) = (Instant::now(), got as u64);
        Ok(got)
    }
}
