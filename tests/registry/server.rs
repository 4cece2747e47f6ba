//! A docker-registry of one test: on a port of its own, with its storage in a directory of
//! the test.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use testkit::home::{Home, wait_until};
use testkit::need::{Needed, has_tools};
use unionfs::oci::Digest;

/// Whether the registry and skopeo are installed.
pub(crate) fn can_serve() -> Needed {
    has_tools(&["docker-registry", "skopeo"])
}

/// The registry, until dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    storage: PathBuf,
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl Server {
    pub(crate) fn start(home: &Home) -> Self {
        Self::start_with(home, "", "")
    }

    /// `more`: further lines of its configuration; `http`: what else is in that section.
    pub(crate) fn start_with(home: &Home, more: &str, http: &str) -> Self {
        let port = free_port();
        let storage = home.path(&format!("registry-{port}"));
        let config = home.path(&format!("registry-{port}.yml"));
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {storage:?}}}}}\n\
             {more}http: {{addr: \"127.0.0.1:{port}\", secret: test{http}}}\n"
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self {
            child,
            port,
            storage,
        };
        wait_until("the registry answers", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        server
    }

    /// An image's name there.
    pub(crate) fn name(&self, rest: &str) -> String {
        format!("127.0.0.1:{}/{rest}", self.port)
    }

    /// For skopeo.
    pub(crate) fn url(&self, rest: &str) -> String {
        format!("docker://{}", self.name(rest))
    }

    /// The digests of all blobs and manifests it has.
    pub(crate) fn blobs(&self) -> Vec<String> {
        let dir = self.storage.join("docker/registry/v2/blobs/sha256");
        let mut found = Vec::new();
        for prefix in std::fs::read_dir(dir).into_iter().flatten() {
            for entry in std::fs::read_dir(prefix.unwrap().path()).unwrap() {
                found.push(entry.unwrap().file_name().into_string().unwrap());
            }
        }
        found.sort();
        found
    }

    /// Puts a manifest there as it is.
    pub(crate) fn put_manifest(&self, repository: &str, tag: &str, media: &str, body: &str) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        write!(
            stream,
            "PUT /v2/{repository}/manifests/{tag} HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\
             Content-Type: {media}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs skopeo, which must succeed, also without TLS.
pub(crate) fn skopeo(args: &[&str]) -> String {
    let output = Command::new("skopeo").args(args).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "skopeo {args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// What skopeo says about an image, and its manifest.
pub(crate) fn inspect(server: &Server, rest: &str) -> (serde_json::Value, String) {
    let url = server.url(rest);
    let about = skopeo(&["inspect", "--tls-verify=false", &url]);
    let raw = skopeo(&["inspect", "--raw", "--tls-verify=false", &url]);
    (serde_json::from_str(&about).unwrap(), raw)
}

/// The digest of a manifest that skopeo shows.
pub(crate) fn digest_of(server: &Server, rest: &str) -> Digest {
    let (_, raw) = inspect(server, rest);
    Digest::of(raw.as_bytes())
}
