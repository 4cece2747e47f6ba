//! The parameters of the access to registries, and what is read in advance for an image.

use super::certificates::CertificateDirs;
use super::config::ConfigurationFiles;
use super::config::policy::SignatureRule;
use super::credentials::CredentialFiles;
use super::error::Result;
use super::pace::Patience;
use super::retry::Retry;
use super::route::{Purpose, Route, routes};
use crate::oci::Reference;

/// Whether certificates of registries are checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVerify {
    /// As the configuration says: always, but not for registries that it calls insecure.
    #[default]
    Configured,
    /// Always, whatever the configuration says, and never http.
    Always,
    /// Never. The registry may also use http, and gets credentials over it.
    Never,
}

/// The parameters of the access to a registry.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Access {
    /// Use no TLS. Registries on this machine may do without TLS in any case.
    pub plain_http: bool,
    /// Whether the certificate of the named registry is checked.
    pub tls_verify: TlsVerify,
    /// The files with credentials.
    pub credentials: CredentialFiles,
    /// The directories with certificates, besides the system's.
    pub certificates: CertificateDirs,
    /// The files that say which registries and mirrors are used, and which images are accepted.
    pub configuration: ConfigurationFiles,
    /// The retries after transient failures.
    pub retry: Retry,
    /// The time limits.
    pub patience: Patience,
    known: Vec<Known>,
}

/// What was read in advance of one image.
#[derive(Clone, Debug)]
struct Known {
    name: Reference,
    purpose: Purpose,
    routes: Vec<Route>,
    rules: Vec<SignatureRule>,
}

impl Default for Access {
    /// Uses the credentials, certificates and configuration of this user.
    fn default() -> Self {
        Self {
            plain_http: false,
            tls_verify: TlsVerify::default(),
            credentials: CredentialFiles::of_user(),
            certificates: CertificateDirs::of_user(),
            configuration: ConfigurationFiles::of_user(),
            retry: Retry::default(),
            patience: Patience::default(),
            known: Vec::new(),
        }
    }
}

impl Access {
    /// Reads the configuration, certificates and credentials for an image in advance, so that no files
    /// are read and no helpers are run later, in a sandbox.
    ///
    /// # Errors
    /// [`super::Error::Credentials`], [`super::Error::Configuration`]; [`super::Error::Blocked`] and [`super::Error::Policy`] if the
    /// configuration refuses the image.
    pub fn look_up(&mut self, name: &Reference, purpose: Purpose) -> Result<()> {
        let rules = match purpose {
            Purpose::Pull => self.configuration.rules_for(name)?,
            Purpose::Push => Vec::new(),
        };
        self.know(name, purpose, rules)
    }

    /// As [`Self::look_up`], for a look at an image, whatever the signature policy says of it.
    ///
    /// # Errors
    /// As [`Self::look_up`].
    pub fn look_up_ways(&mut self, name: &Reference, purpose: Purpose) -> Result<()> {
        self.know(name, purpose, Vec::new())
    }

    fn know(
        &mut self,
        name: &Reference,
        purpose: Purpose,
        rules: Vec<SignatureRule>,
    ) -> Result<()> {
        let known = Known {
            routes: routes(self, name, purpose)?,
            rules,
            name: name.clone(),
            purpose,
        };
        self.known.push(known);
        Ok(())
    }

    /// Returns the names that a text may mean in registries: a name without a host may be an alias, or be
    /// in several search registries.
    ///
    /// # Errors
    /// [`super::Error::Oci`] for a malformed name; [`super::Error::Configuration`], also if the name is ambiguous.
    pub fn candidates(&self, text: &str) -> Result<Vec<Reference>> {
        self.configuration.registries()?.candidates(text)
    }

    /// Returns the ways to a repository.
    pub(super) fn routes(&self, name: &Reference, purpose: Purpose) -> Result<Vec<Route>> {
        match self.known(name, purpose) {
            Some(known) => Ok(known.routes.clone()),
            None => routes(self, name, purpose),
        }
    }

    /// Returns the signatures that an image must have.
    pub(super) fn rules(&self, name: &Reference) -> Result<Vec<SignatureRule>> {
        match self.known(name, Purpose::Pull) {
            Some(known) => Ok(known.rules.clone()),
            None => self.configuration.rules_for(name),
        }
    }

    fn known(&self, name: &Reference, purpose: Purpose) -> Option<&Known> {
        let mut known = self.known.iter();
        known.find(|known| known.purpose == purpose && known.name == *name)
    }
}
