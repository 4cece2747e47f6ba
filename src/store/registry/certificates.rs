//! Whom a registry is believed to be, and who it believes we are: certificates. Called by
//! `endpoint` and the cli (which directories).
//!
//! Format: Docker's certs.d, which containers-certs.d(5) describes too: in a directory named like
//! the host, port included, `*.crt` are authorities, `NAME.cert` with `NAME.key` is a client's
//! certificate and its key, all PEM.

use std::path::{Path, PathBuf};

use ureq::tls::{Certificate, ClientCert, PemItem};

use super::error::RegistryError;
use crate::store::error::Result;

/// The most that is read of a certificate's or key's file, in bytes.
const LIMIT: u64 = 1 << 20;

/// Directories with one for each registry that has certificates of its own; the first that has
/// the registry's counts.
#[derive(Clone, Debug, Default)]
pub struct CertificateDirs {
    /// Paths; what is not there is skipped.
    pub paths: Vec<PathBuf>,
    /// Those of a host that have been found already.
    known: Option<(String, Certificates)>,
}

/// The certificates for one registry.
#[derive(Clone, Debug)]
pub(super) struct Certificates {
    /// The system's authorities, and those for this registry. None at all is an error only when
    /// one is needed.
    pub(super) authorities: Vec<Certificate<'static>>,
    /// What this client shows of itself.
    pub(super) client: Option<ClientCert>,
}

impl CertificateDirs {
    /// Those of this process's user: `containers/certs.d` and `docker/certs.d` in
    /// `$XDG_CONFIG_HOME` (`~/.config`), then those in `/etc`.
    pub fn of_user() -> Self {
        let dir = |name| {
            let value = std::env::var_os(name).filter(|value| !value.is_empty());
            value.map(PathBuf::from).filter(|path| path.is_absolute())
        };
        let home = || dir("HOME").map(|home| home.join(".config"));
        let config = dir("XDG_CONFIG_HOME").or_else(home);
        let bases = config.into_iter().chain([PathBuf::from("/etc")]);
        let paths = bases
            .flat_map(|base| ["containers/certs.d", "docker/certs.d"].map(|name| base.join(name)));
        Self {
            paths: paths.collect(),
            known: None,
        }
    }

    /// Reads those for a host; later no file is read for it.
    pub(super) fn look_up(&mut self, host: &str) -> Result<()> {
        self.known = Some((host.to_owned(), self.find(host)?));
        Ok(())
    }

    /// The certificates for a host.
    pub(super) fn find(&self, host: &str) -> Result<Certificates> {
        if let Some((known, certificates)) = &self.known
            && known == host
        {
            return Ok(certificates.clone());
        }
        let system = rustls_native_certs::load_native_certs();
        for error in &system.errors {
            tracing::debug!(%error, "a system certificate cannot be read");
        }
        let system = system.certs.iter();
        let mut found = Certificates {
            authorities: system
                .map(|der| Certificate::from_der(der.as_ref()).to_owned())
                .collect(),
            client: None,
        };
        let mut dirs = self.paths.iter().map(|dir| dir.join(host));
        if let Some(dir) = dirs.find(|dir| dir.is_dir()) {
            found.add(&dir)?;
        }
        Ok(found)
    }
}

impl Certificates {
    fn add(&mut self, dir: &Path) -> Result<()> {
        let entries = std::fs::read_dir(dir).map_err(|e| unreadable(dir, &e))?;
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in &paths {
            match path.extension().and_then(std::ffi::OsStr::to_str) {
                Some("crt") => self.authorities.extend(certificates(path)?),
                // Of several the first by name: which one is wanted cannot be known before.
                Some("cert") if self.client.is_none() => self.client = Some(client(path)?),
                Some("key") if !path.with_extension("cert").exists() => {
                    let why = "has no client certificate of its name beside it (NAME.cert)";
                    return Err(bad(path, why).into());
                }
                _ => (),
            }
        }
        Ok(())
    }
}

/// A client's certificate, with its key beside it.
fn client(path: &Path) -> Result<ClientCert> {
    let key_path = path.with_extension("key");
    if !key_path.exists() {
        let why = format!("its key {key_path:?} is missing; authorities are named NAME.crt");
        return Err(bad(path, why).into());
    }
    let chain = certificates(path)?;
    let mut key = None;
    for item in ureq::tls::parse_pem(&read(&key_path)?) {
        // EC keys may come with their parameters before them.
        if let Ok(PemItem::PrivateKey(found)) = item {
            key = Some(found);
        }
    }
    let key = key.ok_or_else(|| {
        bad(
            &key_path,
            "holds no private key in PEM (PKCS #1, 8 or SEC1)",
        )
    })?;
    Ok(ClientCert::new_with_certs(&chain, key))
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>> {
    let mut all = Vec::new();
    for item in ureq::tls::parse_pem(&read(path)?) {
        match item.map_err(|e| bad(path, format!("is not PEM: {e}")))? {
            PemItem::Certificate(certificate) => all.push(certificate),
            _ => return Err(bad(path, "holds something else than certificates").into()),
        }
    }
    match all.is_empty() {
        true => Err(bad(path, "holds no certificate in PEM").into()),
        false => Ok(all),
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path);
    let read = file.and_then(|file| {
        std::io::Read::read_to_end(&mut std::io::Read::take(file, LIMIT), &mut bytes)
    });
    match read {
        Ok(_) => Ok(bytes),
        Err(error) => Err(unreadable(path, &error).into()),
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> RegistryError {
    bad(path, format!("cannot be read: {error}"))
}

fn bad(path: &Path, why: impl Into<String>) -> RegistryError {
    RegistryError::Credentials {
        what: format!("certificate {path:?}"),
        why: why.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any certificate (openssl req -x509 -newkey ec).
    const PEM: &str = "\
-----BEGIN CERTIFICATE-----
MIIBdTCCARugAwIBAgIUDh7jVOq3fl3/gKoLSxVoNrX7g3wwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjQxMjEyNDVaGA8yMTI2MTAzMTEyMTI0
NVowDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABDdK
b0/XZa5wN+YOAh0ho8k1R5FdL1wufj0QaBKvGOMhfmWAXSiWx0HZbeH8Lf9hORnw
ixgm9muPq2bTPYkROD2jUzBRMB0GA1UdDgQWBBSNQuXp3W8onB4AaINebnVyPHew
RzAfBgNVHSMEGDAWgBSNQuXp3W8onB4AaINebnVyPHewRzAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0gAMEUCIEJinEnPm0mq2YHgYzDyUoya2nwzjIJGlnM+
8pHAM1XjAiEAmUJyrQ9tdsreGoSxqqQUkmJMmKAzutQrcCLQaff30Us=
-----END CERTIFICATE-----
";

    #[test]
    fn a_registry_has_certificates_of_its_own() {
        let (none, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let dirs = CertificateDirs {
            paths: [&none, &dir].map(|dir| dir.path().to_owned()).to_vec(),
            known: None,
        };
        let of = |host: &str| dirs.find(host);
        let count = |host: &str| of(host).unwrap().authorities.len();
        let system = count("r.example:5000");
        let own = dir.path().join("r.example:5000");
        std::fs::create_dir(&own).unwrap();
        std::fs::write(own.join("ca.crt"), PEM).unwrap();
        std::fs::write(own.join("note.txt"), "something else").unwrap();
        assert_eq!(count("r.example:5000"), system + 1);
        assert_eq!(count("r.example"), system);
        let refused = |name: &str, content: &str, expected: &str| {
            std::fs::write(own.join(name), content).unwrap();
            let error = of("r.example:5000").unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            std::fs::remove_file(own.join(name)).unwrap();
        };
        refused("bad.crt", &PEM[..100], "bad.crt");
        refused("empty.crt", "", "empty.crt\": holds no certificate");
        refused("client.cert", PEM, "client.key");
        refused("client.key", "any", "client.key\": has no client");
        std::fs::write(own.join("client.key"), PEM).unwrap();
        refused("client.cert", PEM, "client.key\": holds no private key");
        // What lies in a directory that comes first counts alone.
        std::fs::create_dir(none.path().join("r.example:5000")).unwrap();
        assert_eq!(count("r.example:5000"), system);
    }
}
