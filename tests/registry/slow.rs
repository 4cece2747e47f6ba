//! Registries that are slow, stall, ask the client to wait, restart, or are no registries; and
//! disks that are too small.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::home::{Home, kill, wait_until};
use testkit::need::can_mount;
use testkit::{need, program};
use unionfs::oci::{Digest, Reference};
use unionfs::progress::Progress;
use unionfs::registry::{
    Access, CertificateDirs, CredentialFiles, PullOptions, PushOptions, fetch, push,
};
use unionfs::store::discovery::Environment;
use unionfs::store::writable::Staging;
use unionfs::store::{Stores, Writable};

use crate::images::{assert_whole, home, id, serve, serve_large};
use crate::proxy::{Act, Asked, Proxy};
use crate::server::{Server, can_serve};

const LARGE: usize = 3 << 20;

/// Starts a server that runs `serve` for each connection; returns its port.
fn server(serve: fn(std::net::TcpStream) -> std::io::Result<()>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A broken connection is what the test checks.
            std::thread::spawn(move || serve(stream).ok());
        }
    });
    port
}

fn drip(mut stream: std::net::TcpStream, text: &str) -> std::io::Result<()> {
    for byte in text.bytes().cycle() {
        stream.write_all(&[byte])?;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn head(stream: &mut std::net::TcpStream) -> std::io::Result<bool> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        bytes.push(byte[0]);
    }
    Ok(bytes.starts_with(b"GET /v2/ "))
}

/// Returns the access to a registry with shorter timeouts than usual.
fn hasty(plain_http: bool) -> Access {
    let second = Duration::from_secs(1);
    let mut access = Access::default();
    access.plain_http = plain_http;
    access.credentials = CredentialFiles::default();
    access.certificates = CertificateDirs::default();
    access.retry.attempts = 2;
    access.retry.pause = Duration::ZERO;
    access.patience.silence = second / 2;
    access.patience.connect = second;
    access.patience.answer = second;
    access.patience.upload = second;
    access.patience.window = second / 2;
    access.patience.least = 4096;
    access
}

/// Pulls with shorter timeouts than usual; returns the error and the events reported meanwhile.
fn impatient(port: u16, plain_http: bool) -> (String, Vec<String>) {
    let home = Home::new();
    let store = Writable::open(&home.path("own")).unwrap();
    let mut options = PullOptions::default();
    options.access = hasty(plain_http);
    options.parallel = 1;
    let name = Reference::parse(&format!("127.0.0.1:{port}/app:1")).unwrap();
    let told = std::sync::Mutex::new(Vec::new());
    let show = |event: Progress<'_, &Digest>| told.lock().unwrap().push(format!("{event:?}"));
    let begun = Instant::now();
    let error = match fetch(&store, &name, &options, &show) {
        Ok(_) => panic!("pulled"),
        Err(error) => error.to_string(),
    };
    // No measurement: without a limit the pull would never end.
    assert!(begun.elapsed() < Duration::from_secs(60), "{error}");
    (error, told.into_inner().unwrap())
}

#[test]
fn a_registry_that_drips_or_says_nothing_is_given_up() {
    let silent = server(|mut stream| stream.read_to_end(&mut Vec::new()).map(drop));
    let headers = server(|mut stream| {
        head(&mut stream)?;
        drip(
            stream,
            "HTTP/1.1 200 OK\r\nX: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy",
        )
    });
    let body = server(|mut stream| {
        if head(&mut stream)? {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        } else {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")?;
            drip(stream, " ")
        }
    });
    // Handshakes have a time limit too.
    for (port, plain_http, why) in [
        (silent, false, "timeout"),
        (silent, true, "timeout"),
        (headers, true, "timeout"),
        (body, true, "stall"),
    ] {
        let (error, told) = impatient(port, plain_http);
        assert!(error.contains(why), "no {why} in {error}");
        assert!(
            told.iter().any(|event| event.starts_with("Later")),
            "nothing was said: {told:?}"
        );
    }
}

/// A registry that sends tokens a byte at a time, or never.
#[test]
fn a_token_that_drips_or_never_comes_is_given_up() {
    fn serve(mut stream: std::net::TcpStream, token: &str) -> std::io::Result<()> {
        if head(&mut stream)? {
            let port = stream.local_addr()?.port();
            let text = format!(
                "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\
                 WWW-Authenticate: Bearer realm=\"http://127.0.0.1:{port}/token\"\r\n\r\n"
            );
            return stream.write_all(text.as_bytes());
        }
        stream.write_all(token.as_bytes())?;
        if token.is_empty() {
            stream.read_to_end(&mut Vec::new()).map(drop)
        } else {
            drip(stream, " ")
        }
    }
    let silent = server(|stream| serve(stream, ""));
    let dripping =
        server(|stream| serve(stream, "HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"));
    for (port, why) in [(silent, "timeout"), (dripping, "stall")] {
        let (error, told) = impatient(port, true);
        assert!(error.contains(why), "no {why} in {error}");
        let said = told.iter().any(|event| event.starts_with("Later"));
        assert!(said, "nothing was said: {told:?}");
    }
}

/// A registry that reads an upload a byte at a time, or not at all, or never confirms it.
#[test]
fn an_upload_that_drips_or_stalls_is_given_up() {
    /// Handles the requests before the upload.
    fn begin(stream: &mut std::net::TcpStream) -> std::io::Result<bool> {
        let mut bytes = Vec::new();
        let mut byte = [0];
        while !bytes.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte)?;
            bytes.push(byte[0]);
        }
        let answer = match bytes.split(|b| *b == b' ').next() {
            Some(b"PUT") => return Ok(true),
            Some(b"HEAD") => "404 Not Found\r\nContent-Length: 0",
            Some(b"POST") => "202 Accepted\r\nContent-Length: 0\r\nLocation: /v2/app/upload",
            _ => "200 OK\r\nContent-Length: 0",
        };
        stream.write_all(format!("HTTP/1.1 {answer}\r\nConnection: close\r\n\r\n").as_bytes())?;
        Ok(false)
    }
    let takes_nothing = server(|mut stream| {
        if begin(&mut stream)? {
            std::thread::sleep(Duration::from_secs(3600));
        }
        Ok(())
    });
    let takes_bytes = server(|mut stream| {
        if begin(&mut stream)? {
            while stream.read(&mut [0])? > 0 {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    });
    let says_nothing = server(|mut stream| {
        if begin(&mut stream)? {
            stream.read_to_end(&mut Vec::new())?;
        }
        Ok(())
    });
    let home = Home::new();
    home.dirs(&["tree"]);
    // More than sockets buffer, and incompressible.
    let mut noise = std::fs::File::open("/dev/urandom").unwrap().take(11 << 20);
    let mut file = std::fs::File::create(home.path("tree/noise")).unwrap();
    std::io::copy(&mut noise, &mut file).unwrap();
    home.run(["import", "-q", "tree", "large:1"]).ok();
    let push_to = |port: u16| {
        let own = Some(home.path("own"));
        let stores = Stores::discover(own.as_deref(), &Environment::default()).unwrap();
        let (store, image) = (&stores.all()[0], stores.find("large:1").unwrap());
        let name = Reference::parse(&format!("127.0.0.1:{port}/app:1")).unwrap();
        let mut options = PushOptions::new(Staging::of_files(1).unwrap());
        options.access = hasty(true);
        options.parallel = 1;
        let told = std::sync::Mutex::new(Vec::new());
        let show = |event: Progress<'_, &Digest>| {
            let event = format!("{event:?}");
            // There would be thousands of events about bytes.
            if !event.starts_with("Advance") {
                told.lock().unwrap().push((event, Instant::now()));
            }
        };
        let error = push(store, &image, &name, &options, &show)
            .unwrap_err()
            .to_string();
        (error, told.into_inner().unwrap(), Instant::now())
    };
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let servers = [takes_nothing, takes_bytes, says_nothing];
        let pushes = servers.map(|port| scope.spawn(move || push_to(port)));
        pushes.map(|push| push.join().unwrap()).into()
    });
    for (error, told, ended) in outcomes {
        assert!(
            error.contains("timeout") || error.contains("stall"),
            "{error}"
        );
        let said = told.iter().any(|(event, _)| event.starts_with("Later"));
        assert!(said, "nothing was said: {told:?}");
        // No measurement: without a limit the push would never end. The time before the upload is
        // compression.
        let begun = told.iter().find(|(event, _)| event.starts_with("Begin"));
        let (_, begun) = begun.expect("an upload begins");
        assert!(
            ended.duration_since(*begun) < Duration::from_secs(60),
            "{error}"
        );
    }
}

#[test]
fn a_registry_that_wants_to_be_left_alone_is() {
    need!(can_serve());
    let home = Home::new();
    let server = Server::start(&home);
    let expected = serve_large(&home, &server, "large:1", LARGE);
    let times = AtomicUsize::new(0);
    let proxy = Proxy::start(server.port, move |_: &Asked| {
        match times.fetch_add(1, Ordering::SeqCst) % 2 {
            0 => Act::Answer("429 Too Many\r\nRetry-After: 1".to_owned(), String::new()),
            _ => Act::Pass,
        }
    });
    let output = home.run(["pull", &proxy.name("large:1")]);
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(
        output.stderr.contains("trying again in 1.0 s"),
        "{output:?}"
    );
    assert!(output.stderr.contains("429"), "{output:?}");
    assert_eq!(
        id(&home, &home.text("own"), &proxy.name("large:1")),
        expected
    );
    let proxy = Proxy::start(server.port, |_: &Asked| {
        Act::Answer(
            "429 Too Many\r\nRetry-After: 9999".to_owned(),
            String::new(),
        )
    });
    home.run(["pull", "-q", &proxy.name("large:1")])
        .failed(1, &["429", "new attempt in 9999 s"]);
}

#[test]
fn what_is_no_registry_is_called_that() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    serve(&home, &server, "1", "app:1", &["--format", "v2s2"]);
    let html = Proxy::start(server.port, |asked: &Asked| match asked.path.as_str() {
        "/v2/" => Act::Pass,
        _ => Act::Answer(
            "200 OK\r\nContent-Type: text/html; charset=utf-8".to_owned(),
            "<html>Log in</html>".to_owned(),
        ),
    });
    home.run(["pull", "-q", &html.name("app:1")])
        .failed(1, &["an HTML page came", &html.name("app:1")]);
    let coded = Proxy::start(server.port, |asked: &Asked| {
        if asked.is_blob() {
            Act::Answer("200 OK\r\nContent-Encoding: br".to_owned(), "xx".to_owned())
        } else {
            Act::Pass
        }
    });
    home.run(["pull", "-q", &coded.name("app:1")])
        .failed(1, &["content coding \"br\""]);
    assert!(
        coded
            .asked()
            .iter()
            .all(|asked| asked.header("accept-encoding") == Some("identity"))
    );
    // Public, behind a page that requires a login.
    let login = Proxy::start(server.port, |asked: &Asked| match asked.path.as_str() {
        "/v2/" => Act::Answer(
            "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"".to_owned(),
            String::new(),
        ),
        _ => Act::Pass,
    });
    home.run(["pull", "-q", &login.name("app:1")]).ok();
    // A blob that is no configuration.
    let bad = Proxy::start(server.port, |asked: &Asked| {
        if asked.path.contains("/manifests/") {
            let digest = Digest::of(b"{");
            let media = "application/vnd.docker.distribution.manifest.v2+json";
            let config = format!(
                r#"{{"mediaType":"application/vnd.docker.container.image.v1+json","size":1,"digest":"{digest}"}}"#
            );
            Act::Answer(
                format!("200 OK\r\nContent-Type: {media}"),
                format!(
                    r#"{{"schemaVersion":2,"mediaType":"{media}","config":{config},"layers":[]}}"#
                ),
            )
        } else {
            Act::Answer("200 OK".to_owned(), "{".to_owned())
        }
    });
    let failed = home.run(["pull", "-q", &bad.name("app:9")]);
    failed.failed(1, &["its configuration, line 1", &bad.name("app:9")]);
    assert!(!failed.stderr.contains("restore"), "{failed:?}");
}

/// A manifest with a content encoding that was not requested is decoded.
#[test]
fn a_coded_manifest_is_undone() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    serve(&home, &server, "1", "app:1", &["--format", "v2s2"]);
    let (_, raw) = crate::server::inspect(&server, "app:1");
    let port = server.port;
    // The proxy's own answers are text, so the test makes this one itself.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let coded_port = listener.local_addr().unwrap().port();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(raw.trim_end().as_bytes()).unwrap();
    let body = gzip.finish().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let body = body.clone();
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                let mut byte = [0];
                while !bytes.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                    bytes.push(byte[0]);
                    if bytes[0] == 0x16 {
                        return;
                    }
                }
                let text = String::from_utf8_lossy(&bytes).into_owned();
                if text.contains("/manifests/") {
                    let media = "application/vnd.docker.distribution.manifest.v2+json";
                    let head = format!(
                        "HTTP/1.1 200 OK\r\nContent-Type: {media}\r\nContent-Encoding: gzip\r\n\
                         Content-Length: {}\r\nConnection: close\r\n\r\n",
                        body.len()
                    );
                    let _ = stream.write_all(&[head.as_bytes(), &body].concat());
                    return;
                }
                let mut up = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
                let asked = text.trim_end().to_owned() + "\r\nConnection: close\r\n\r\n";
                let mut answer = Vec::new();
                up.write_all(asked.as_bytes()).unwrap();
                up.read_to_end(&mut answer).unwrap();
                let _ = stream.write_all(&answer);
            });
        }
    });
    home.run(["pull", "-q", &format!("127.0.0.1:{coded_port}/app:1")])
        .ok();
    assert_whole(&home, 1, 0);
}

/// A small file system, mounted until dropped.
struct Small(std::path::PathBuf);

impl Small {
    fn new(home: &Home, name: &str, size: &str) -> Self {
        home.dirs(&[name]);
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"])
            .arg(home.path(name))
            .status();
        assert!(mounted.unwrap().success());
        Self(home.path(name))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn what_cannot_fit_is_refused_before_a_byte_comes() {
    need!(can_serve());
    need!(can_mount());
    let home = Home::new();
    let server = Server::start(&home);
    serve_large(&home, &server, "large:1", LARGE);
    let proxy = Proxy::start(server.port, |_: &Asked| Act::Pass);
    let small = Small::new(&home, "small", "2m");
    let root = home.text("small/own");
    home.run(["--store", &root, "pull", "-q", &proxy.name("large:1")])
        .failed(
            1,
            &["it needs 3.0 MiB, but only 1.9 MiB", "free some space"],
        );
    let layers = proxy.blobs();
    assert_eq!(layers.len(), 1, "only the configuration: {layers:?}");
    drop(small);
    // The blob fits and its content does not: the blob is kept, and the message says so.
    let _small = Small::new(&home, "tight", "5m");
    let root = home.text("tight/own");
    let name = proxy.name("large:1");
    home.run(["--store", &root, "pull", "-q", &name])
        .failed(1, &["free some space", "are kept for the next pull"]);
    let remount = Command::new("mount")
        .args(["-o", "remount,size=20m"])
        .arg(home.path("tight"))
        .status();
    assert!(remount.unwrap().success());
    proxy.forget();
    home.run(["--store", &root, "pull", "-q", &name]).ok();
    assert_eq!(proxy.blobs().len(), 1, "the layer was there already");
    let report = home.json(["--store", &root, "prune", "-n", "--json"]);
    assert_eq!(report["items"], serde_json::json!([]));
}

/// A signal during the download of blobs: the parts are kept, and every command that shows them
/// says so.
#[test]
fn a_pull_that_is_interrupted_says_what_it_keeps() {
    need!(can_serve());
    use std::os::unix::process::ExitStatusExt as _;
    let home = Home::new();
    let server = Server::start(&home);
    serve_large(&home, &server, "large:1", LARGE);
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let stalled = Proxy::start(server.port, |asked: &Asked| {
            if asked.is_blob() && asked.header("range").is_none() {
                Act::Stall(1 << 20)
            } else {
                Act::Pass
            }
        });
        let child = home
            .signalled(program())
            .args(["pull", &stalled.name("large:1")])
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let downloads = home.path("own/unionfs/downloads");
        wait_until("a part is there", || {
            let entries = std::fs::read_dir(&downloads).into_iter().flatten();
            let sizes = entries.map(|entry| entry.unwrap().metadata().unwrap().len());
            sizes.sum::<u64>() == 1 << 20
        });
        kill(i32::try_from(child.id()).unwrap(), signal);
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.signal(), Some(signal.as_raw()), "{text}");
        assert!(text.contains("interrupted; 1.0"), "{text}");
        assert!(text.contains("kept for the next pull"), "{text}");
        let report = home.json(["df", "--json"]);
        assert_eq!(report["downloads"], 1 << 20);
        assert!(home.run(["df"]).ok().contains("downloads for a later pull"));
        assert!(
            home.run(["prune"])
                .ok()
                .contains("download for a later pull")
        );
        assert_eq!(home.json(["df", "--json"])["downloads"], 0);
        assert_whole(&home, 0, 0);
    }
}
