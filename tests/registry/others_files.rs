//! Files with logins and certificates that belong to another user or are no regular files, for
//! example if root runs with that user's `$HOME`. No registry is needed, because all files are
//! checked before the first request.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::process::Stdio;

use rustix::fs::{CWD, FileType, Mode};
use testkit::home::{Home, Outcome};
use testkit::need::{can_mount, has_tools};
use testkit::{need, program};

const USER: Option<u32> = Some(65534);
/// No registry listens on this port.
const IMAGE: &str = "127.0.0.1:1/app:1";
const LOGIN: &str = r#"{"auths":{"127.0.0.1:1":{"auth":"YTpi"}}}"#;
const HELPER: &str = r#"{"credsStore":"marked"}"#;

/// Returns a home with a helper that creates a file when it runs.
fn home() -> Home {
    let home = Home::new();
    home.dirs(&["bin", "docker-config", "config"]);
    let helper = home.path("bin/docker-credential-marked");
    let script = format!(
        "#!/bin/sh\n>{:?}\necho '{{\"Username\":\"a\",\"Secret\":\"b\"}}'\n",
        home.path("mark")
    );
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    home
}

/// Runs a pull and asserts that it ends in time, whatever it opens.
fn pull(home: &Home, variables: &[(&str, &str)], stdin: impl Into<Stdio>) -> Outcome {
    let mut command = home.command("timeout");
    command
        .args(["-s", "KILL", "60", program(), "pull", "-q", IMAGE])
        .env("DOCKER_CONFIG", home.path("docker-config"))
        .env("XDG_CONFIG_HOME", home.path("config"))
        .env("HOME", home.path("nobody"))
        .env("PATH", format!("{}:/usr/bin:/bin", home.text("bin")))
        .env_remove("XDG_RUNTIME_DIR")
        .env_remove("REGISTRY_AUTH_FILE")
        .envs(variables.iter().copied())
        .stdin(stdin);
    command.output().unwrap().into()
}

fn run(home: &Home) -> Outcome {
    pull(home, &[], Stdio::null())
}

fn give(path: &Path) {
    chown(path, USER, USER).unwrap();
}

/// Asserts that the error is a refused connection, so the file was accepted.
fn got_to_the_registry(outcome: &Outcome) {
    outcome.failed(1, &["127.0.0.1:1"]);
    let said = &outcome.stderr;
    assert!(
        !said.contains("config.json") && !said.contains("cannot be read"),
        "{said}"
    );
}

#[test]
fn what_is_no_file_is_not_opened() {
    need!(can_mount());
    need!(has_tools(&["timeout"]));
    let home = home();
    let path = home.path("docker-config/config.json");
    for (kind, device) in [
        (FileType::Fifo, 0),
        (FileType::CharacterDevice, rustix::fs::makedev(1, 5)),
    ] {
        rustix::fs::mknodat(CWD, &path, kind, Mode::RUSR, device).unwrap();
        run(&home).failed(1, &["config.json", "not a regular file"]);
        fs::remove_file(&path).unwrap();
    }
    fs::create_dir(&path).unwrap();
    run(&home).failed(1, &["config.json", "not a regular file"]);
    fs::remove_dir(&path).unwrap();
    home.dirs(&["config/containers/certs.d/127.0.0.1:1"]);
    let path = home.path("config/containers/certs.d/127.0.0.1:1/ca.crt");
    rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap();
    run(&home).failed(1, &["ca.crt", "not a regular file"]);
}

#[test]
fn a_symlink_of_another_user_is_not_followed() {
    need!(can_mount());
    need!(has_tools(&["timeout"]));
    let home = home();
    let (link, secret) = (home.path("docker-config/config.json"), home.path("secret"));
    fs::write(&secret, "root's own").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    symlink(&secret, &link).unwrap();
    // Root's own symlink is followed: its target is no JSON.
    run(&home).failed(1, &["config.json", "not the JSON"]);
    give(&home.path("docker-config"));
    run(&home).failed(1, &["config.json", "another user may change"]);
    fs::remove_file(&link).unwrap();
    got_to_the_registry(&run(&home));
    // The same in the middle of the path, and for certificates.
    home.dirs(&["config/containers"]);
    symlink(home.path(""), home.path("config/containers/certs.d")).unwrap();
    give(&home.path("config/containers"));
    run(&home).failed(1, &["another user may change"]);
}

#[test]
fn no_program_runs_for_another_users_file() {
    need!(can_mount());
    need!(has_tools(&["timeout"]));
    let home = home();
    let (file, mark) = (home.path("docker-config/config.json"), home.path("mark"));
    fs::write(&file, HELPER).unwrap();
    got_to_the_registry(&run(&home));
    fs::remove_file(&mark).unwrap();
    let refused = || {
        run(&home).failed(1, &["config.json", "\"marked\"", "no program is run"]);
        assert!(!mark.exists());
    };
    give(&file);
    refused();
    chown(&file, Some(0), Some(0)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    refused();
    fs::write(&file, r#"{"credHelpers":{"127.0.0.1:1":"marked"}}"#).unwrap();
    refused();
    // The file of a login is only read.
    fs::write(&file, LOGIN).unwrap();
    give(&file);
    got_to_the_registry(&run(&home));
}

#[test]
fn another_users_authority_is_not_believed() {
    need!(can_mount());
    need!(has_tools(&["timeout", "openssl"]));
    let home = home();
    let dir = "config/containers/certs.d/127.0.0.1:1";
    home.dirs(&[dir]);
    let certificate = home.path(&format!("{dir}/ca.crt"));
    let made = home
        .command("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
        .args(["ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x"])
        .args(["-keyout", "/dev/null", "-out"])
        .arg(&certificate)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    got_to_the_registry(&run(&home));
    give(&certificate);
    run(&home).failed(1, &["ca.crt", "ignored"]);
}

#[test]
fn a_pipe_that_the_shell_names_is_read() {
    need!(can_mount());
    need!(has_tools(&["timeout", "bash"]));
    let home = home();
    for name in ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"] {
        let (reader, mut writer) = std::io::pipe().unwrap();
        std::io::Write::write_all(&mut writer, b"no JSON").unwrap();
        drop(writer);
        let outcome = pull(&home, &[("REGISTRY_AUTH_FILE", name)], reader);
        outcome.failed(1, &[name, "not the JSON"]);
    }
    let script = format!(
        "REGISTRY_AUTH_FILE=<(echo no JSON) exec timeout -s KILL 60 {} pull -q {IMAGE}",
        program()
    );
    let output = home.command("bash").args(["-c", &script]).output().unwrap();
    Outcome::from(output).failed(1, &["/dev/fd/", "not the JSON"]);
}
