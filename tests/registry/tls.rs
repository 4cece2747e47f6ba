//! A registry with TLS: its certificate must come from a known authority; one registry requires
//! client certificates.

use std::process::Command;

use testkit::home::{Home, Outcome};
use testkit::need::has_tools;
use testkit::{need, program};

use crate::images::home;
use crate::server::{Server, can_serve};

/// Runs openssl in the home; it must succeed.
fn openssl(home: &Home, args: &str) {
    let mut command = Command::new("openssl");
    command.current_dir(home.path("")).args(args.split(' '));
    let output = command.output().unwrap();
    assert!(output.status.success(), "openssl {args}: {output:?}");
}

/// Makes an authority `ca.pem` and `leaf.pem` for 127.0.0.1, with its key.
fn certificates(home: &Home) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(
        home,
        &format!("req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=authority -days 2"),
    );
    openssl(
        home,
        &format!("req {key} -keyout leaf.key -out leaf.csr -subj /CN=registry"),
    );
    std::fs::write(home.path("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    openssl(
        home,
        "x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names \
         -out leaf.pem -days 2"
            .replace("  ", " ")
            .as_str(),
    );
}

/// Runs the program with these certificates instead of the system's.
fn run(home: &Home, known: &str, args: &[&str]) -> Outcome {
    let mut command = home.command(program());
    command
        .env("SSL_CERT_FILE", home.path(known))
        .env("HOME", home.path("nobody"))
        .env_remove("SSL_CERT_DIR");
    command.args(args).output().unwrap().into()
}

#[test]
fn a_known_authority_is_trusted_and_another_is_not() {
    need!(can_serve());
    need!(has_tools(&["openssl"]));
    let home = home();
    certificates(&home);
    let (cert, key) = (home.path("leaf.pem"), home.path("leaf.key"));
    let http = format!(", tls: {{certificate: {cert:?}, key: {key:?}}}");
    let server = Server::start_with(&home, "", &http);
    let (docker, name) = (home.text("docker"), server.name("app:1"));
    let push = ["--root", &docker, "push", "-q", "sample:1", &name];
    run(&home, "ca.pem", &push).ok();
    run(&home, "ca.pem", &["pull", "-q", &name]).ok();
    run(&home, "ca.pem", &["rmi", &name]).ok();
    std::fs::write(home.path("none.pem"), "").unwrap();
    let url = format!("https://127.0.0.1:{}/", server.port);
    run(&home, "none.pem", &["pull", "-q", &name]).failed(
        1,
        &[&url, "certificate is not trusted", "/etc/docker/certs.d"],
    );
    // Another name than that in the certificate.
    let other = name.replace("127.0.0.1", "localhost");
    run(&home, "ca.pem", &["pull", "-q", &other]).failed(1, &["certificate is not trusted"]);
}

/// With the certificates in certs.d, as for docker and podman.
#[test]
fn a_registry_that_knows_its_clients_wants_their_certificate() {
    need!(can_serve());
    need!(has_tools(&["openssl"]));
    let home = home();
    certificates(&home);
    let (cert, key, ca) = (
        home.path("leaf.pem"),
        home.path("leaf.key"),
        home.path("ca.pem"),
    );
    let http = format!(", tls: {{certificate: {cert:?}, key: {key:?}, clientcas: [{ca:?}]}}");
    let server = Server::start_with(&home, "", &http);
    let (docker, name) = (home.text("docker"), server.name("app:1"));
    let push = ["--root", &docker, "push", "-q", "sample:1", &name];
    // The only known authorities are in the user's own directory.
    std::fs::write(home.path("none.pem"), "").unwrap();
    for place in ["containers", "docker"] {
        let certs = format!("nobody/.config/{place}/certs.d/127.0.0.1:{}", server.port);
        home.dirs(&[&certs]);
        let dir = home.path(&certs);
        std::fs::copy(&ca, dir.join("ca.crt")).unwrap();
        run(&home, "none.pem", &push).failed(1, &["wants a client's certificate", "client.key"]);
        // Any client certificate that the authority has signed.
        std::fs::copy(&cert, dir.join("client.cert")).unwrap();
        run(&home, "none.pem", &push).failed(1, &["client.cert", "client.key", "missing"]);
        std::fs::copy(&key, dir.join("client.key")).unwrap();
        run(&home, "none.pem", &push).ok();
        run(&home, "none.pem", &["pull", "-q", &name]).ok();
        run(&home, "none.pem", &["rmi", &name]).ok();
        // A client certificate of an unknown authority.
        openssl(
            &home,
            "req -x509 -newkey rsa:2048 -nodes -keyout stranger.key -out stranger.pem \
             -subj /CN=stranger -days 2"
                .replace("  ", " ")
                .as_str(),
        );
        std::fs::copy(home.path("stranger.pem"), dir.join("client.cert")).unwrap();
        std::fs::copy(home.path("stranger.key"), dir.join("client.key")).unwrap();
        run(&home, "none.pem", &push).failed(1, &["wants a client's certificate"]);
        std::fs::remove_dir_all(dir).unwrap();
    }
}

/// The options and the configuration that say which certificates are trusted.
#[test]
fn certificates_come_from_options_and_configuration_too() {
    need!(can_serve());
    need!(has_tools(&["openssl"]));
    let home = home();
    certificates(&home);
    let (cert, key) = (home.path("leaf.pem"), home.path("leaf.key"));
    let http = format!(", tls: {{certificate: {cert:?}, key: {key:?}}}");
    let server = Server::start_with(&home, "", &http);
    std::fs::write(home.path("none.pem"), "").unwrap();
    let (docker, name) = (home.text("docker"), server.name("app:1"));
    let with = |options: &[&str]| {
        let push = ["--root", &docker, "push", "-q", "sample:1", &name];
        run(&home, "none.pem", &[&push[..], options].concat())
    };
    let refused = |outcome: Outcome| outcome.failed(1, &["certificate is not trusted"]);
    refused(with(&[]));
    home.dirs(&["certs", "empty"]);
    std::fs::copy(home.path("ca.pem"), home.path("certs/ca.crt")).unwrap();
    with(&["--cert-dir", &home.text("certs")]).ok();
    refused(with(&["--cert-dir", &home.text("empty")]));
    with(&["--tls-verify=false"]).ok();
    // The configuration calls the registry insecure. The option has the last word.
    let containers = "nobody/.config/containers";
    home.dirs(&[containers]);
    let conf = home.path(containers).join("registries.conf");
    let text = format!(
        "[[registry]]\nlocation = \"127.0.0.1:{}\"\ninsecure = true\n",
        server.port
    );
    std::fs::write(&conf, text).unwrap();
    with(&[]).ok();
    refused(with(&["--tls-verify"]));
    std::fs::remove_file(&conf).unwrap();
    // containerd's file has an authority for its server.
    let certs = format!(
        "nobody/.config/containerd/certs.d/127.0.0.1:{}",
        server.port
    );
    home.dirs(&[&certs]);
    std::fs::copy(home.path("ca.pem"), home.path(&certs).join("own.pem")).unwrap();
    std::fs::write(home.path(&certs).join("hosts.toml"), "ca = \"own.pem\"\n").unwrap();
    with(&[]).ok();
    run(&home, "none.pem", &["pull", "-q", &name]).ok();
}
