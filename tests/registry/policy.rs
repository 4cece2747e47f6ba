//! policy.json: what it rejects is not pulled, a signature by the key that it names is demanded, and
//! what cannot be checked is refused. skopeo decides the same by the same file.

use std::process::Command;

use testkit::home::{Home, Outcome};
use testkit::need::has_tools;
use testkit::{need, program};
use unionfs::oci::Digest;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::images::{home, serve};
use crate::server::{Server, can_serve, digest_of};

const ANYTHING: &str = r#"[{"type":"insecureAcceptAnything"}]"#;

fn run(home: &Home, args: &[&str]) -> Outcome {
    let mut command = home.command(program());
    command.env("HOME", home.path("nobody")).args(args);
    command.output().unwrap().into()
}

/// Writes the policy for the registries on this machine.
fn policy(home: &Home, requirements: &str) {
    home.dirs(&["nobody/.config/containers"]);
    let text = format!(
        r#"{{"default":{ANYTHING},"transports":{{"docker":{{"127.0.0.1":{requirements},"":{requirements}}}}}}}"#
    );
    std::fs::write(home.path("nobody/.config/containers/policy.json"), text).unwrap();
}

/// Whether skopeo accepts the image by that policy.
fn skopeo_accepts(home: &Home, server: &Server, rest: &str) -> bool {
    let registries = home.path("nobody/.config/containers/registries.d");
    std::fs::create_dir_all(&registries).unwrap();
    let text = "default-docker:\n  use-sigstore-attachments: true\n";
    std::fs::write(registries.join("default.yaml"), text).unwrap();
    let to = format!("dir:{}", home.text("copied"));
    let mut command = Command::new("skopeo");
    command
        .arg("--policy")
        .arg(home.path("nobody/.config/containers/policy.json"))
        .arg("--registries.d")
        .arg(registries)
        .args([
            "copy",
            "-q",
            "--src-tls-verify=false",
            "--remove-signatures",
        ])
        .args([&server.url(rest), &to]);
    let output = command.output().unwrap();
    // Shown if the test fails.
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    output.status.success()
}

fn openssl(home: &Home, args: &[&str]) {
    let mut command = Command::new("openssl");
    let output = command
        .current_dir(home.path(""))
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "openssl {args:?}: {output:?}");
}

#[test]
fn what_the_policy_rejects_is_not_pulled() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    serve(&home, &server, "1", "app:1", &[]);
    let name = server.name("app:1");
    policy(&home, ANYTHING);
    run(&home, &["pull", "-q", &name]).ok();
    assert!(skopeo_accepts(&home, &server, "app:1"));
    policy(&home, r#"[{"type":"reject"}]"#);
    run(&home, &["pull", "-q", &name]).failed(1, &["policy.json", "rejected"]);
    assert!(!skopeo_accepts(&home, &server, "app:1"));
    // Another file, or none, as with skopeo.
    run(&home, &["--insecure-policy", "pull", "-q", &name]).ok();
    run(&home, &["rmi", &name]).ok();
    let other = |requirement: &str| {
        let text = format!(r#"{{"default":{requirement}}}"#);
        std::fs::write(home.path("other.json"), text).unwrap();
        run(&home, &["pull", "--policy", "other.json", "-q", &name])
    };
    other(ANYTHING).ok();
    policy(&home, ANYTHING);
    other(r#"[{"type":"reject"}]"#).failed(1, &["other.json", "rejected"]);
    run(&home, &["--policy", "none.json", "pull", "-q", &name])
        .failed(2, &["none.json", "--insecure-policy"]);
    policy(
        &home,
        r#"[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/etc/x"}]"#,
    );
    run(&home, &["pull", "-q", &name]).failed(1, &["policy.json", "GPG", "podman"]);
    std::fs::write(home.path("nobody/.config/containers/policy.json"), "{}").unwrap();
    run(&home, &["pull", "-q", &name]).failed(1, &["policy.json"]);
}

/// Archives have a transport of their own.
#[test]
fn archives_follow_the_policy_too() {
    need!(can_serve());
    let home = home();
    let docker = home.text("docker");
    run(
        &home,
        &["--root", &docker, "save", "-q", "sample:1", "-o", "a.tar"],
    )
    .ok();
    let write = |text: &str| {
        home.dirs(&["nobody/.config/containers"]);
        std::fs::write(home.path("nobody/.config/containers/policy.json"), text).unwrap();
    };
    write(r#"{"default":[{"type":"reject"}]}"#);
    run(&home, &["load", "-q", "-i", "a.tar"]).failed(1, &["policy.json", "rejected"]);
    run(&home, &["inspect", "docker-archive:a.tar"]).failed(1, &["policy.json", "rejected"]);
    let accepted = ["load", "-q", "-i", "a.tar", "--insecure-policy"];
    assert_eq!(run(&home, &accepted).code, Some(0));
    let inspected = ["--insecure-policy", "inspect", "docker-archive:a.tar"];
    assert_eq!(run(&home, &inspected).code, Some(0));
    home.dirs(&["mnt"]);
    let mount = ["mount", "-r", "docker-archive:a.tar", "mnt"];
    run(&home, &mount).failed(1, &["policy.json", "rejected"]);
    write(&format!(
        r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker-archive":{{"":{ANYTHING}}}}}}}"#
    ));
    assert_eq!(run(&home, &["load", "-q", "-i", "a.tar"]).code, Some(0));
}

/// A signature as cosign makes it, by a key of openssl. Debian's skopeo refuses all of sigstore: it
/// cannot be asked whether it accepts.
#[test]
fn a_signature_by_the_key_is_demanded() {
    need!(can_serve());
    need!(has_tools(&["openssl"]));
    let home = home();
    let server = Server::start(&home);
    serve(&home, &server, "1", "app:1", &[]);
    serve(&home, &server, "2", "other:1", &[]);
    let curve = "ec_paramgen_curve:prime256v1";
    for key in ["key", "stranger"] {
        let (private, public) = (format!("{key}.pem"), format!("{key}.pub"));
        openssl(
            &home,
            &[
                "genpkey",
                "-algorithm",
                "EC",
                "-pkeyopt",
                curve,
                "-out",
                &private,
            ],
        );
        openssl(
            &home,
            &["pkey", "-in", &private, "-pubout", "-out", &public],
        );
    }
    let demand = |more: &str| {
        let key = home.text("key.pub");
        policy(
            &home,
            &format!(r#"[{{"type":"sigstoreSigned","keyPath":"{key}"{more}}}]"#),
        );
    };
    demand("");
    let name = server.name("app:1");
    let pull = || {
        let _ = run(&home, &["rmi", &name]);
        run(&home, &["pull", "-q", &name])
    };
    pull().failed(1, &["policy.json", "no signature"]);
    assert!(!skopeo_accepts(&home, &server, "app:1"));
    let digest = digest_of(&server, "app:1");
    sign(&home, &server, "app", &digest, &digest, "stranger", &name);
    pull().failed(1, &["policy.json", "key"]);
    sign(
        &home,
        &server,
        "app",
        &digest,
        &digest,
        "key",
        &server.name("app:2"),
    );
    pull().failed(1, &["policy.json", "another name"]);
    demand(r#","signedIdentity":{"type":"matchRepository"}"#);
    pull().ok();
    demand("");
    let other = digest_of(&server, "other:1");
    sign(&home, &server, "app", &digest, &other, "key", &name);
    pull().failed(1, &["policy.json", "another image"]);
    sign(&home, &server, "app", &digest, &digest, "key", &name);
    pull().ok();
}

/// Stores a signature beside the image `of`: the key signs that `named` is the image `what`.
fn sign(
    home: &Home,
    server: &Server,
    repository: &str,
    of: &Digest,
    what: &Digest,
    key: &str,
    named: &str,
) {
    let payload = format!(
        r#"{{"critical":{{"identity":{{"docker-reference":"{named}"}},"image":{{"docker-manifest-digest":"{what}"}},"type":"cosign container image signature"}},"optional":null}}"#
    );
    std::fs::write(home.path("payload"), &payload).unwrap();
    let private = format!("{key}.pem");
    openssl(
        home,
        &[
            "dgst",
            "-sha256",
            "-sign",
            &private,
            "-out",
            "signature",
            "payload",
        ],
    );
    let signature = STANDARD.encode(std::fs::read(home.path("signature")).unwrap());
    let config = "{}";
    for blob in [payload.as_str(), config] {
        server.put_blob(repository, blob);
    }
    let media = "application/vnd.oci.image.manifest.v1+json";
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{media}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","size":2,"digest":"{}"}},"layers":[{{"mediaType":"application/vnd.dev.cosign.simplesigning.v1+json","size":{},"digest":"{}","annotations":{{"dev.cosignproject.cosign/signature":"{signature}"}}}}]}}"#,
        Digest::of(config.as_bytes()),
        payload.len(),
        Digest::of(payload.as_bytes()),
    );
    server.put_manifest(
        repository,
        &format!("sha256-{}.sig", of.hex()),
        media,
        &manifest,
    );
}
