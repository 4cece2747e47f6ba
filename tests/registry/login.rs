//! `login` and `logout`: what they write, skopeo and podman read, and the other way round; and the
//! options of podman for one command.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use testkit::home::{Home, Outcome};
use testkit::need::has_tools;
use testkit::{need, program};

use crate::access::guarded;
use crate::images::home;
use crate::proxy::{Act, Proxy};
use crate::server::can_serve;

/// Lets a command find no logins but those of this home.
fn alone<'c>(home: &Home, command: &'c mut Command) -> &'c mut Command {
    home.dirs(&["session", "bin"]);
    command
        .env("HOME", home.path("nobody"))
        .env("XDG_RUNTIME_DIR", home.path("session"))
        .env("PATH", format!("{}:/usr/bin:/bin", home.text("bin")))
        .env_remove("DOCKER_CONFIG")
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("REGISTRY_AUTH_FILE")
}

fn run(home: &Home, args: &[&str]) -> Outcome {
    let mut command = home.command(program());
    alone(home, &mut command).args(args);
    command.output().unwrap().into()
}

/// Runs a command with a password on standard input.
fn typed(home: &Home, program: impl AsRef<std::ffi::OsStr>, args: &[&str], text: &str) -> Outcome {
    let mut command = home.command(program);
    alone(home, &mut command).args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap().into()
}

fn log_in(home: &Home, host: &str, password: &str) -> Outcome {
    let args = ["login", "-u", "ali", "--password-stdin", host];
    typed(home, program(), &args, password)
}

#[test]
fn a_login_is_checked_and_then_read_by_all_tools() {
    need!(can_serve());
    let home = home();
    let server = guarded(&home);
    let host = format!("127.0.0.1:{}", server.port);
    let file = home.path("nobody/.docker/config.json");
    let wrong = log_in(&home, &host, "open barley\n");
    wrong.failed(1, &["the credentials of user \"ali\"", "unionfs login"]);
    assert!(!wrong.stderr.contains("barley") && !file.exists());
    let said = log_in(&home, &host, "open sesame\r\n").ok();
    assert!(
        said.contains("Login succeeded") && !said.contains("sesame"),
        "{said}"
    );
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(run(&home, &["login", "--get-login", &host]).ok(), "ali\n");
    let get = |tool: &str| {
        let mut command = home.command(tool);
        alone(&home, &mut command).args(["login", "--get-login", &host]);
        Outcome::from(command.output().unwrap())
    };
    assert_eq!(get("skopeo").ok(), "ali\n");
    let docker = home.text("docker");
    let name = server.name("app:1");
    run(&home, &["--root", &docker, "push", "-q", "sample:1", &name]).ok();
    let inspect = ["inspect", "--tls-verify=false", &server.url("app:1")];
    let mut command = home.command("skopeo");
    assert!(
        alone(&home, &mut command)
            .args(inspect)
            .status()
            .unwrap()
            .success()
    );
    // What skopeo writes, we read and remove.
    run(&home, &["logout", &host]).ok();
    get("skopeo").failed_with_output(&["not logged in"]);
    let args = [
        "login",
        "-u",
        "ali",
        "--password-stdin",
        "--tls-verify=false",
        &host,
    ];
    assert_eq!(typed(&home, "skopeo", &args, "open sesame").code, Some(0));
    run(&home, &["pull", "-q", &name]).ok();
    assert!(run(&home, &["logout", &host]).ok().contains("auth.json"));
    get("skopeo").failed_with_output(&["not logged in"]);
    run(&home, &["pull", "-q", &name]).failed(1, &["anonymous access"]);
    assert!(
        run(&home, &["logout", &host])
            .ok()
            .contains("Not logged in")
    );
}

#[test]
fn a_helper_keeps_the_login_if_the_file_names_one() {
    need!(can_serve());
    let home = home();
    let server = guarded(&home);
    let host = format!("127.0.0.1:{}", server.port);
    home.dirs(&["bin", "nobody/.docker"]);
    let helper = home.path("bin/docker-credential-jar");
    let jar = home.path("jar");
    let script = format!(
        "#!/bin/sh\ncase $1 in\nstore) cat >{jar:?};;\nerase) rm {jar:?};;\n\
         get) cat {jar:?} 2>/dev/null || {{ echo 'credentials not found in native keychain'; exit 1; }};;\nesac\n"
    );
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let file = home.path("nobody/.docker/config.json");
    std::fs::write(&file, r#"{"credsStore":"jar","psFormat":"x"}"#).unwrap();
    let said = log_in(&home, &host, "open sesame").ok();
    assert!(said.contains("docker-credential-jar"), "{said}");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(
        !text.contains("auth\"") && text.contains("psFormat"),
        "{text}"
    );
    let kept = std::fs::read_to_string(&jar).unwrap();
    assert!(kept.contains(&format!(r#""ServerURL":"{host}""#)), "{kept}");
    assert_eq!(run(&home, &["login", "--get-login", &host]).ok(), "ali\n");
    run(&home, &["logout", &host]).ok();
    assert!(!jar.exists());
}

/// The options of podman for one command.
#[test]
fn a_command_has_its_own_login() {
    need!(can_serve());
    let home = home();
    let server = guarded(&home);
    let (host, name) = (format!("127.0.0.1:{}", server.port), server.name("app:1"));
    let docker = home.text("docker");
    let push = [
        "--root",
        &docker,
        "push",
        "-q",
        "--creds",
        "ali:open sesame",
    ];
    run(&home, &[&push[..], &["sample:1", &name]].concat()).ok();
    run(&home, &["pull", "-q", &name]).failed(1, &["anonymous access"]);
    run(&home, &["pull", "-q", "--creds", "ali:wrong", &name]).failed(1, &["user \"ali\""]);
    run(&home, &["pull", "-q", "--creds", "ali", &name]).failed(2, &["password"]);
    run(&home, &["pull", "-q", "--creds", "ali:open sesame", &name]).ok();
    let file = home.text("other.json");
    run(&home, &["pull", "-q", "--authfile", &file, &name]).failed(2, &["does not exist"]);
    let args = [
        "login",
        "-u",
        "ali",
        "--password-stdin",
        "--authfile",
        &file,
        &host,
    ];
    typed(&home, program(), &args, "open sesame").ok();
    run(&home, &["pull", "-q", "--authfile", &file, &name]).ok();
    assert!(!home.path("nobody/.docker").exists());
    run(&home, &["logout", "--authfile", &file, "--all"]).ok();
    run(&home, &["pull", "-q", "--authfile", &file, &name]).failed(1, &["anonymous access"]);
}

/// Without a redirect to follow, and also with one, a password given on the command line goes to the
/// host that the user names only.
#[test]
fn a_login_of_one_command_stays_with_its_host() {
    need!(can_serve());
    let home = home();
    let server = guarded(&home);
    let name = server.name("app:1");
    let docker = home.text("docker");
    let creds = ["-q", "--creds", "ali:open sesame"];
    let push = [
        &["--root", &docker, "push"],
        &creds[..],
        &["sample:1", &name],
    ]
    .concat();
    run(&home, &push).ok();
    let elsewhere = Proxy::start(server.port, |_| Act::Pass);
    let to = elsewhere.port;
    let front = Proxy::start(server.port, move |asked| {
        if asked.is_blob() {
            let place = format!("http://127.0.0.1:{to}{}", asked.path);
            Act::Answer(format!("307 Elsewhere\r\nLocation: {place}"), String::new())
        } else {
            Act::Pass
        }
    });
    let through = front.name("app:1");
    let pull = [&["pull"], &creds[..], &[&through]].concat();
    assert_eq!(run(&home, &pull).code, Some(1));
    let asked = elsewhere.asked();
    assert!(!asked.is_empty());
    assert!(
        asked
            .iter()
            .all(|asked| asked.header("authorization").is_none())
    );
}

#[test]
fn a_login_is_not_written_where_others_rule() {
    need!(can_serve());
    need!(has_tools(&["chown"]));
    if !rustix::process::geteuid().is_root() {
        return need::skip(&"only root has something to lose");
    }
    let home = home();
    let server = guarded(&home);
    let host = format!("127.0.0.1:{}", server.port);
    home.dirs(&["nobody/.docker"]);
    let dir = home.path("nobody/.docker");
    std::os::unix::fs::chown(&dir, Some(4711), Some(4711)).unwrap();
    log_in(&home, &host, "open sesame").failed(1, &["another user", "--authfile"]);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
    std::os::unix::fs::chown(&dir, Some(0), Some(0)).unwrap();
    // A file that another user may read and change.
    std::fs::write(dir.join("config.json"), "{}").unwrap();
    std::os::unix::fs::chown(dir.join("config.json"), Some(4711), None).unwrap();
    log_in(&home, &host, "open sesame").failed(1, &["no login is stored there"]);
}
