//! Access rights: passwords, tokens, credential helpers, and the hosts that must not get them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use testkit::home::{Home, Outcome};
use testkit::{need, program};

use crate::images::home;
use crate::proxy::{Act, Asked, Proxy};
use crate::server::{Server, can_serve};

/// crypt(3) of "open sesame".
const HTPASSWD: &str = "ali:$2b$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n";

pub(crate) fn guarded(home: &Home) -> Server {
    let path = home.path("htpasswd");
    std::fs::write(&path, HTPASSWD).unwrap();
    let auth = format!("auth: {{htpasswd: {{realm: cave, path: {path:?}}}}}\n");
    Server::start_with(home, &auth, "")
}

/// Stores a login for a host.
fn log_in(home: &Home, host: &str, pair: &str) {
    let auth = STANDARD.encode(pair);
    write_config(
        home,
        &format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}"}}}}}}"#),
    );
}

fn write_config(home: &Home, text: &str) {
    home.dirs(&["docker-config"]);
    std::fs::write(home.path("docker-config/config.json"), text).unwrap();
}

/// Runs the program with those logins and no others.
fn run(home: &Home, args: &[&str]) -> Outcome {
    let path = format!("{}:/usr/bin:/bin", home.text("bin"));
    let mut command = home.command(program());
    command
        .env("DOCKER_CONFIG", home.path("docker-config"))
        .env("HOME", home.path("nobody"))
        .env("PATH", path)
        .env_remove("XDG_RUNTIME_DIR")
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("REGISTRY_AUTH_FILE");
    command.args(args).output().unwrap().into()
}

fn push(home: &Home, to: &str) -> Outcome {
    let docker = home.text("docker");
    run(home, &["--root", &docker, "push", "-q", "sample:1", to])
}

#[test]
fn a_password_opens_and_a_wrong_one_does_not() {
    need!(can_serve());
    let home = home();
    let server = guarded(&home);
    let (host, name) = (format!("127.0.0.1:{}", server.port), server.name("app:1"));
    push(&home, &name).failed(1, &["anonymous access", "unionfs login 127.0.0.1"]);
    log_in(&home, &host, "ali:open barley");
    let wrong = push(&home, &name);
    wrong.failed(1, &["the credentials of user \"ali\"", "log in again"]);
    assert!(!wrong.stderr.contains("barley"));
    log_in(&home, &host, "ali:open sesame");
    push(&home, &name).ok();
    run(&home, &["pull", "-q", &name]).ok();
    // A login is used for its own host only.
    log_in(&home, "127.0.0.1:1", "ali:open sesame");
    run(&home, &["pull", "-q", &name]).failed(1, &["anonymous access"]);
    write_config(&home, r#"{"auths": {"x": {"auth": 17}}}"#);
    run(&home, &["pull", "-q", &name]).failed(1, &["config.json", "docker login"]);
}

#[test]
fn a_credential_helper_is_asked() {
    need!(can_serve());
    let home = home();
    let server = guarded(&home);
    let name = server.name("app:1");
    home.dirs(&["bin"]);
    let helper = home.path("bin/docker-credential-cave");
    let script = format!(
        "#!/bin/sh\nread server\necho \"$1 $server\" >>{:?}\n\
         echo '{{\"ServerURL\":\"x\",\"Username\":\"ali\",\"Secret\":\"open sesame\"}}'\n",
        home.path("asked")
    );
    let install = |text: &str| {
        std::fs::write(&helper, text).unwrap();
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    install(&script);
    write_config(&home, r#"{"credsStore":"cave"}"#);
    push(&home, &name).ok();
    let asked = std::fs::read_to_string(home.path("asked")).unwrap();
    assert!(
        asked
            .lines()
            .all(|line| line == format!("get 127.0.0.1:{}", server.port))
    );
    install("#!/bin/sh\necho 'credentials not found in native keychain'\nexit 1\n");
    push(&home, &name).failed(1, &["anonymous access"]);
    install("#!/bin/sh\necho secret\nexit 1\n");
    let failed = push(&home, &name);
    failed.failed(1, &["docker-credential-cave", "has failed"]);
    assert!(!failed.stderr.contains("secret"));
    std::fs::remove_file(&helper).unwrap();
    push(&home, &name).failed(1, &["docker-credential-cave", "cannot be run"]);
}

/// Acts as a registry with tokens, before one that needs none.
fn tokens(asked: &Asked, port: &std::sync::OnceLock<u16>) -> Act {
    let answer = |status: &str, body: &str| Act::Answer(status.to_owned(), body.to_owned());
    if asked.path.starts_with("/token") {
        let basic = format!("Basic {}", STANDARD.encode("ali:open sesame"));
        let by_password = asked.header("authorization") == Some(&basic);
        let by_token = asked.method == "POST"
            && asked.body.contains("grant_type=refresh_token")
            && asked.body.contains("refresh_token=re%2Ffresh");
        let scope = "scope=repository%3Aapp%3Apull";
        let scoped = asked.path.contains(scope) || asked.body.contains(scope);
        return if (by_password || by_token) && scoped {
            answer("200 OK", r#"{"token":"good"}"#)
        } else {
            answer("401 Unauthorized", r#"{"details":"no"}"#)
        };
    }
    match asked.header("authorization") {
        Some("Bearer good") => Act::Pass,
        _ => {
            let port = port.get().unwrap();
            let challenge = format!(
                "401 Unauthorized\r\nWWW-Authenticate: \
                 Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"cave\""
            );
            answer(&challenge, "")
        }
    }
}

#[test]
fn tokens_are_asked_for_with_what_is_stored() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    let port = std::sync::Arc::new(std::sync::OnceLock::new());
    let known = port.clone();
    let proxy = Proxy::start(server.port, move |asked| tokens(asked, &known));
    port.set(proxy.port).unwrap();
    let (host, name) = (format!("127.0.0.1:{}", proxy.port), proxy.name("app:1"));
    push(&home, &server.name("app:1")).ok();
    run(&home, &["pull", "-q", &name]).failed(1, &["a token for", "anonymous access"]);
    log_in(&home, &host, "ali:open sesame");
    run(&home, &["pull", "-q", &name]).ok();
    let asked = proxy.asked();
    let token = asked
        .iter()
        .rfind(|a| a.path.starts_with("/token"))
        .unwrap();
    assert!(token.path.contains("service=cave"), "{token:?}");
    // To mount blobs from one repository into another, the client requests a token for both.
    proxy.forget();
    run(&home, &["push", "-q", &name, &proxy.name("other:1")]).ok();
    let asked = proxy.asked();
    let token = asked.iter().rfind(|a| a.path.starts_with("/token"));
    let path = &token.unwrap().path;
    for scope in [
        "repository%3Aother%3Apull%2Cpush",
        "repository%3Aapp%3Apull",
    ] {
        assert!(path.contains(&format!("scope={scope}")), "{path}");
    }
    run(&home, &["rmi", &name]).ok();
    write_config(
        &home,
        &format!(r#"{{"auths":{{"{host}":{{"identitytoken":"re/fresh"}}}}}}"#),
    );
    run(&home, &["pull", "-q", &name]).ok();
}

#[test]
fn no_credential_follows_a_redirect() {
    need!(can_serve());
    let home = home();
    let open = Server::start(&home);
    push(&home, &open.name("app:1")).ok();
    // The host of the blobs, which needs no credentials.
    let elsewhere = Proxy::start(open.port, |_| Act::Pass);
    let to = elsewhere.port;
    let basic = format!("Basic {}", STANDARD.encode("ali:open sesame"));
    let front = Proxy::start(open.port, move |asked| {
        if asked.header("authorization") != Some(&basic) {
            let challenge = "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"cave\"";
            return Act::Answer(challenge.to_owned(), String::new());
        }
        if asked.is_blob() {
            Act::Answer(
                format!(
                    "307 Elsewhere\r\nLocation: http://127.0.0.1:{to}{}?signed",
                    asked.path
                ),
                String::new(),
            )
        } else {
            Act::Pass
        }
    });
    log_in(
        &home,
        &format!("127.0.0.1:{}", front.port),
        "ali:open sesame",
    );
    run(&home, &["pull", "-q", &front.name("app:1")]).ok();
    let asked = elsewhere.asked();
    assert_eq!(asked.len(), 4, "{asked:?}");
    for asked in &asked {
        assert_eq!(asked.header("authorization"), None, "{asked:?}");
        assert!(asked.path.ends_with("?signed"), "{asked:?}");
    }
}

/// Returns an address of this machine that is not loopback. `None` if there is none.
fn outside() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    // Sends nothing: the call only selects a route.
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

#[test]
fn http_to_another_machine_must_be_asked_for_and_gets_no_credentials() {
    need!(can_serve());
    let Some(address) = outside() else {
        return need::skip(&"there is no network but loopback");
    };
    let home = home();
    let listener = std::net::TcpListener::bind((address, 0)).unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let asked = std::sync::Arc::new(std::sync::Mutex::new(Vec::<String>::new()));
    let log = asked.clone();
    std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        for mut stream in listener.incoming().flatten() {
            let mut bytes = [0; 4096];
            let got = stream.read(&mut bytes).unwrap_or(0);
            log.lock()
                .unwrap()
                .push(String::from_utf8_lossy(&bytes[..got]).into_owned());
            let _ = stream.write_all(
                b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\n\
                  Content-Length: 0\r\nConnection: close\r\n\r\n",
            );
        }
    });
    log_in(&home, &host, "ali:open sesame");
    let name = format!("{host}/app:1");
    run(&home, &["pull", "-q", &name]).failed(1, &[&format!("https://{host}/")]);
    let secret = STANDARD.encode("ali:open sesame");
    run(&home, &["pull", "-q", "--plain-http", &name]).failed(1, &["not sent over http"]);
    let asked = asked.lock().unwrap();
    assert!(
        asked.iter().any(|text| text.starts_with("GET /v2/")),
        "{asked:?}"
    );
    assert!(
        asked.iter().all(|text| !text.contains(&secret)),
        "{asked:?}"
    );
    assert!(Path::new(&home.text("docker-config/config.json")).exists());
}
