//! Certificates: the authorities that a registry is verified by, and this client's own
//! certificates.
//!
//! Directories are opened once, and no symlink of another user is followed. Files of another user
//! are not trusted, so that root with a user's `$HOME` does not trust an authority of that user.
//!
//! Format: Docker's certs.d, which containers-certs.d(5) describes too: in a directory named like
//! the host, port included, `*.crt` are authorities, `NAME.cert` with `NAME.key` is a client's
//! certificate and its key, all PEM.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey};

use super::error::{Error, Result};
use crate::sys::walk::{self, Trust};

/// The size limit of a certificate or key file, in bytes.
const LIMIT: u64 = 1 << 20;

/// Directories that contain one directory for each registry with certificates of its own. The first
/// that has the registry's is used.
#[derive(Clone, Debug, Default)]
pub struct CertificateDirs {
    /// The paths; directories that do not exist are skipped.
    pub paths: Vec<PathBuf>,
    /// A directory with the certificates for all registries, instead of those of `paths`.
    pub only: Option<PathBuf>,
}

/// The certificates for one registry.
#[derive(Clone, Debug)]
pub(super) struct Certificates {
    /// The system's authorities, and those for this registry. An empty list is an error only when a
    /// certificate must be verified.
    pub(super) authorities: Vec<Certificate<'static>>,
    /// The certificate of this client.
    pub(super) client: Option<ClientCert>,
}

impl CertificateDirs {
    /// Returns the directories of this process's user: `containers/certs.d` and `docker/certs.d` in
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
            only: None,
        }
    }

    /// Returns the certificates for a host.
    pub(super) fn find(&self, host: &str) -> Result<Certificates> {
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
        if let Some(path) = self.only.clone() {
            let dir = walk::open_directory(&path, Trust::of_root());
            let dir = dir.map_err(|error| unreadable(&path, &error))?;
            found.add(&Dir { path, dir })?;
            return Ok(found);
        }
        for path in self.paths.iter().map(|dir| dir.join(host)) {
            match walk::open_directory(&path, Trust::of_root()) {
                Ok(dir) => {
                    found.add(&Dir { path, dir })?;
                    break;
                }
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(unreadable(&path, &error)),
            }
        }
        Ok(found)
    }
}

/// Whether the error means that the directory does not exist.
fn is_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}

/// An open directory with the certificates of one registry.
struct Dir {
    path: PathBuf,
    dir: OwnedFd,
}

impl Dir {
    /// Returns the names in the directory, sorted.
    fn names(&self) -> Result<Vec<OsString>> {
        let list = || -> io::Result<Vec<OsString>> {
            let mut names = Vec::new();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = rustix::fs::openat(&self.dir, ".", flags, Mode::empty())?;
            for entry in rustix::fs::Dir::new(dir)? {
                names.push(OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned());
            }
            names.sort();
            Ok(names)
        };
        list().map_err(|e| unreadable(&self.path, &e))
    }

    /// Reads a file of the directory. Only files of root and of this user are trusted, because an
    /// authority decides which servers may send us images.
    fn read(&self, name: &OsStr) -> Result<Vec<u8>> {
        let path = self.path.join(name);
        let failed = |error| unreadable(&path, &error);
        // A symlink is followed like any other path that root names.
        let file = match walk::open_file_in(self.dir.as_fd(), name) {
            Err(_) if path.is_symlink() => walk::open_file(&path, Trust::of_root()),
            other => other,
        };
        let file = file.map_err(failed)?;
        if !walk::is_trusted(&file).map_err(failed)? {
            let why = "belongs to another user or can be written by others: it is ignored";
            return Err(bad(&path, why));
        }
        let mut bytes = Vec::new();
        file.take(LIMIT).read_to_end(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }
}

impl Certificates {
    /// Adds certificates of files: authorities, and a client's certificate with its key.
    pub(super) fn add_files(
        &mut self,
        authorities: &[PathBuf],
        client: Option<&(PathBuf, PathBuf)>,
    ) -> Result<()> {
        for path in authorities {
            let found = chain_of(path, read_file(path)?.as_bytes())?;
            self.authorities.extend(found);
        }
        if let Some((cert, key)) = client {
            let chain = chain_of(cert, read_file(cert)?.as_bytes())?;
            let key = key_of(key, read_file(key)?.as_bytes())?;
            self.client = Some(ClientCert::new_with_certs(&chain, key));
        }
        Ok(())
    }

    fn add(&mut self, dir: &Dir) -> Result<()> {
        let names = dir.names()?;
        for name in &names {
            let path = Path::new(name);
            let beside = |end: &str| names.contains(&path.with_extension(end).into_os_string());
            match path.extension().and_then(OsStr::to_str) {
                Some("crt") => self.authorities.extend(certificates(dir, name)?),
                // The first of several by name is used: which one the registry wants is not known
                // in advance.
                Some("cert") if self.client.is_none() && !beside("key") => {
                    let key = dir.path.join(path.with_extension("key"));
                    let why = format!("its key {key:?} is missing; authorities are named NAME.crt");
                    return Err(bad(&dir.path.join(name), why));
                }
                Some("cert") if self.client.is_none() => self.client = Some(client(dir, name)?),
                Some("key") if !beside("cert") => {
                    let why = "has no client certificate of its name beside it (NAME.cert)";
                    return Err(bad(&dir.path.join(name), why));
                }
                _ => (),
            }
        }
        Ok(())
    }
}

/// Reads a client certificate, with its key beside it.
fn client(dir: &Dir, name: &OsStr) -> Result<ClientCert> {
    let key_name = Path::new(name).with_extension("key");
    let chain = certificates(dir, name)?;
    let pem = dir.read(key_name.as_os_str())?;
    let key = key_of(&dir.path.join(&key_name), &pem)?;
    Ok(ClientCert::new_with_certs(&chain, key))
}

fn read_file(path: &Path) -> Result<String> {
    super::config::read(path)?.ok_or_else(|| bad(path, "does not exist"))
}

fn key_of(path: &Path, pem: &[u8]) -> Result<PrivateKey<'static>> {
    let mut key = None;
    for item in ureq::tls::parse_pem(pem) {
        // The file may contain EC parameters before an EC key.
        if let Ok(PemItem::PrivateKey(found)) = item {
            key = Some(found);
        }
    }
    key.ok_or_else(|| bad(path, "holds no private key in PEM (PKCS #1, 8 or SEC1)"))
}

fn certificates(dir: &Dir, name: &OsStr) -> Result<Vec<Certificate<'static>>> {
    let path = &dir.path.join(name);
    let found = chain_of(path, &dir.read(name)?)?;
    Ok(found)
}

/// Returns the certificates of a file, which may have a key too.
fn chain_of(path: &Path, pem: &[u8]) -> Result<Vec<Certificate<'static>>> {
    let mut all = Vec::new();
    for item in ureq::tls::parse_pem(pem) {
        match item.map_err(|e| bad(path, format!("is not PEM: {e}")))? {
            PemItem::Certificate(certificate) => all.push(certificate),
            PemItem::PrivateKey(_) => {}
            _ => return Err(bad(path, "holds something other than certificates")),
        }
    }
    if all.is_empty() {
        Err(bad(path, "holds no certificate in PEM"))
    } else {
        Ok(all)
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Error {
    bad(path, format!("cannot be read: {error}"))
}

fn bad(path: &Path, why: impl Into<String>) -> Error {
    Error::Credentials {
        what: format!("certificate {path:?}"),
        why: why.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate (openssl req -x509 -newkey ec).
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
            only: None,
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
        // Only the first directory that has the registry is used.
        std::fs::create_dir(none.path().join("r.example:5000")).unwrap();
        assert_eq!(count("r.example:5000"), system);
    }
}
