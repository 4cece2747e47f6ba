//! A docker-registry for one test: on a port of its own, with its storage in a directory of the
//! test.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use testkit::home::{Home, wait_until};
use testkit::need::{Needed, has_tools};
use unionfs::oci::Digest;

/// Checks whether the registry and skopeo are installed.
pub(crate) fn can_serve() -> Needed {
    has_tools(&["docker-registry", "skopeo"])
}

/// A running registry, stopped when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    storage: PathBuf,
}

/// Returns a port that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl Server {
    pub(crate) fn start(home: &Home) -> Self {
        Self::start_with(home, "", "")
    }

    /// Starts a registry that allows deletions.
    pub(crate) fn start_that_deletes(home: &Home) -> Self {
        Self::start_as(home, ", delete: {enabled: true}", "", "")
    }

    /// Starts the registry. `more` has further lines of its configuration; `http` has further lines
    /// of that section.
    pub(crate) fn start_with(home: &Home, more: &str, http: &str) -> Self {
        Self::start_as(home, "", more, http)
    }

    fn start_as(home: &Home, storing: &str, more: &str, http: &str) -> Self {
        let port = free_port();
        let storage = home.path(&format!("registry-{port}"));
        let config = home.path(&format!("registry-{port}.yml"));
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {storage:?}}}{storing}}}\n\
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

    /// Returns an image's name at the registry.
    pub(crate) fn name(&self, rest: &str) -> String {
        format!("127.0.0.1:{}/{rest}", self.port)
    }

    /// Returns an image's name in the form of skopeo.
    pub(crate) fn url(&self, rest: &str) -> String {
        format!("docker://{}", self.name(rest))
    }

    /// Returns the digests of all its blobs and manifests.
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

    /// Stores a blob.
    pub(crate) fn put_blob(&self, repository: &str, content: &str) {
        let begin = format!(
            "POST /v2/{repository}/blobs/uploads/ HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\
             Content-Length: 0\r\n\r\n"
        );
        let answer = self.exchange(&begin);
        let place = answer
            .lines()
            .find_map(|line| line.strip_prefix("Location: "));
        let place = place.unwrap().trim();
        let path = place
            .split_once("://")
            .map_or(place, |(_, rest)| &rest[rest.find('/').unwrap()..]);
        let digest = Digest::of(content.as_bytes());
        let put = format!(
            "PUT {path}&digest={digest} HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\
             Content-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n{content}",
            content.len()
        );
        let answer = self.exchange(&put);
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    }

    fn exchange(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Returns the manifest of a tag.
    pub(crate) fn manifest(&self, repository: &str, tag: &str) -> serde_json::Value {
        let answer = self.exchange(&format!(
            "GET /v2/{repository}/manifests/{tag} HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\
             Accept: application/vnd.oci.image.manifest.v1+json\r\n\
             Accept: application/vnd.docker.distribution.manifest.v2+json\r\n\r\n"
        ));
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        serde_json::from_str(body).unwrap()
    }

    /// Stores a manifest without changing it.
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

/// Runs skopeo without TLS; it must succeed.
pub(crate) fn skopeo(args: &[&str]) -> String {
    let output = Command::new("skopeo").args(args).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "skopeo {args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Returns what skopeo reports about an image, and its manifest.
pub(crate) fn inspect(server: &Server, rest: &str) -> (serde_json::Value, String) {
    let url = server.url(rest);
    let about = skopeo(&["inspect", "--tls-verify=false", &url]);
    let raw = skopeo(&["inspect", "--raw", "--tls-verify=false", &url]);
    (serde_json::from_str(&about).unwrap(), raw)
}

/// Returns the digest of a manifest that skopeo shows.
pub(crate) fn digest_of(server: &Server, rest: &str) -> Digest {
    let (_, raw) = inspect(server, rest);
    Digest::of(raw.as_bytes())
}
