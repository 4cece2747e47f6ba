//! The options for connections to registries, with the names that podman and skopeo give them.

use std::path::{Path, PathBuf};

use super::error::Usage;
use super::policy_args;
use unionfs::registry::{Access, CredentialFiles, PARALLEL, TlsVerify};

/// How a registry is reached.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Connection {
    /// Use http, not https; credentials are then sent only to registries on this machine
    #[arg(long)]
    pub(super) plain_http: bool,
    /// Check the certificate of the registry; with false also use http, and send credentials over it [default: true, and as registries.conf says]
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        conflicts_with = "plain_http"
    )]
    pub(super) tls_verify: Option<bool>,
    /// Take certificates from this directory: *.crt, *.cert, *.key
    #[arg(long, value_name = "DIR")]
    pub(super) cert_dir: Option<PathBuf>,
    /// Use this file of logins, and no other [default: $REGISTRY_AUTH_FILE, then those of docker and podman]
    #[arg(long, value_name = "FILE")]
    pub(super) authfile: Option<PathBuf>,
}

impl Connection {
    pub(super) fn access(&self) -> Access {
        let mut access = Access::default();
        access.configuration = policy_args::configuration();
        access.plain_http = self.plain_http;
        access.tls_verify = match self.tls_verify {
            None => TlsVerify::Configured,
            Some(true) => TlsVerify::Always,
            Some(false) => TlsVerify::Never,
        };
        access.certificates.only.clone_from(&self.cert_dir);
        if let Some(path) = &self.authfile {
            access.credentials = CredentialFiles::of_file(path);
        }
        access
    }
}

/// How a registry is reached, and as whom.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Credentials {
    #[command(flatten)]
    pub(super) connection: Connection,
    /// Log in with these, for this command only; without a password, it is asked for
    #[arg(long, value_name = "USER[:PASSWORD]")]
    pub(super) creds: Option<String>,
}

impl Credentials {
    /// Returns the options as a user writes them.
    pub(super) fn words(&self) -> Vec<String> {
        let path = |option: &str, path: &Option<PathBuf>| {
            let path = path.as_ref()?.to_str()?;
            Some(format!("--{option}={path}"))
        };
        let Connection {
            tls_verify,
            cert_dir,
            authfile,
            ..
        } = &self.connection;
        [
            tls_verify.map(|verify| format!("--tls-verify={verify}")),
            path("cert-dir", cert_dir),
            path("authfile", authfile),
            self.creds.as_ref().map(|creds| format!("--creds={creds}")),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    pub(super) fn access(&self) -> anyhow::Result<Access> {
        let mut access = self.connection.access();
        if let Some(path) = &self.connection.authfile {
            must_exist(path)?;
        }
        if let Some(creds) = &self.creds {
            let (user, password) = match creds.split_once(':') {
                Some((user, password)) => (user, password.to_owned()),
                None => (creds.as_str(), ask_for_password(creds)?),
            };
            access.credentials.give(user.to_owned(), password);
        }
        Ok(access)
    }
}

/// The options of `pull` and `push`.
#[derive(Debug, clap::Args)]
pub(super) struct RegistryArgs {
    #[command(flatten)]
    credentials: Credentials,
    /// Number of layers that are transferred at the same time
    #[arg(long, value_name = "N", default_value_t = PARALLEL, value_parser = at_once)]
    pub(super) parallel: usize,
}

impl RegistryArgs {
    /// Returns the options for the credentials as a user writes them.
    pub(super) fn words(&self) -> Vec<String> {
        self.credentials.words()
    }

    pub(super) fn access(&self) -> anyhow::Result<Access> {
        self.credentials.access()
    }
}

pub(super) fn at_once(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=64) => Ok(number),
        _ => Err("a number from 1 to 64".to_owned()),
    }
}

/// A file of logins that the user names must exist: a mistyped name would mean no login.
fn must_exist(path: &Path) -> Result<(), Usage> {
    if path.exists() {
        return Ok(());
    }
    let text = format!("--authfile {path:?} does not exist: unionfs login --authfile makes it");
    Err(Usage(text))
}

/// Asks for a password on the terminal, without showing it.
pub(super) fn ask_for_password(user: &str) -> anyhow::Result<String> {
    let prompt = format!("Password of {}: ", super::output::one_line(user));
    rpassword::prompt_password(prompt).map_err(|_| {
        let text = "a password is needed, and there is no terminal to ask on: give --password-stdin, or \
                    --creds USER:PASSWORD";
        Usage(text.to_owned()).into()
    })
}
