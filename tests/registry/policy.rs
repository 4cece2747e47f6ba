//! policy.json: what it rejects is not pulled, a signature by the key that it names is demanded, and
//! what cannot be checked is refused. skopeo decides the same by the same file.

use std::process::Command;

use testkit::home::{Home, Outcome};
use testkit::need::has_tools;
use testkit::{need, program};
use unionfs::oci::Digest;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::copy::INDEX;
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

/// Signatures of GPG, certificates of Fulcio and the log Rekor cannot be checked: each command that takes
/// an image from a registry or an archive refuses it before it reads it, and says what to do.
#[test]
fn what_cannot_be_checked_is_refused_by_every_command() {
    let home = home();
    let docker = home.text("docker");
    let save = ["--root", &docker, "save", "-q", "sample:1", "-o", "a.tar"];
    run(&home, &save).ok();
    std::fs::write(home.path("key.pub"), "a key").unwrap();
    home.dirs(&["nobody/.config/containers", "mnt"]);
    let key = home.text("key.pub");
    let more = |text: &str| format!(r#"{{"type":"sigstoreSigned",{text}}}"#);
    let demands = [
        (
            format!(r#"{{"type":"signedBy","keyType":"GPGKeys","keyPath":"{key}"}}"#),
            "podman",
        ),
        (
            r#"{"type":"signedBaseLayer","baseLayerIdentity":{"type":"matchExact"}}"#.to_owned(),
            "podman",
        ),
        (
            more(
                r#""fulcio":{"caPath":"/ca","oidcIssuer":"i","subjectEmail":"e"},"rekorPublicKeyPath":"/r""#,
            ),
            "podman",
        ),
        (
            more(&format!(r#""keyPath":"{key}","rekorPublicKeyPath":"/r""#)),
            "podman",
        ),
        (more(r#""pki":{"caRootsPath":"/ca"}"#), "podman"),
        (r#"{"type":"ofTheFuture"}"#.to_owned(), "podman"),
        // A key that is none.
        (more(&format!(r#""keyPath":"{key}""#)), "PEM"),
    ];
    // Nobody is asked: the policy is read first.
    let remote = "127.0.0.1:1/app:1";
    let url = format!("docker://{remote}");
    let archive = "docker-archive:a.tar";
    let commands: [&[&str]; 20] = [
        &["pull", remote],
        &["pull", "--all", remote],
        &["copy", &url, "new:1"],
        &["copy", "--all", &url, "new:1"],
        &["copy", &url, "oci:out"],
        &["copy", "--all", &url, "docker://127.0.0.1:1/other"],
        &["load", "-i", "a.tar"],
        &["load", "--all", archive],
        &["copy", archive, "new:1"],
        &["copy", archive, "oci:out"],
        &["mount", "-r", archive, "mnt"],
        &["run", archive, "true"],
        &["inspect", archive],
        &["ls", archive],
        &["cat", archive, "/etc/motd"],
        &["diff", archive, archive],
        &["save", archive, "-o", "b.tar"],
        &["push", archive, remote],
        &["tag", archive, "new:1"],
        &["verify", archive],
    ];
    let file = home.path("nobody/.config/containers/policy.json");
    for (number, (demand, remedy)) in demands.iter().enumerate() {
        std::fs::write(&file, format!(r#"{{"default":[{demand}]}}"#)).unwrap();
        // One demand of each kind is tried with every command, the others with one of each kind.
        let few = [commands[0], commands[4], commands[6], commands[10]];
        let tried = if number == 0 { &commands[..] } else { &few };
        for args in tried {
            let refused = run(&home, args);
            let code = if args[0] == "run" { 125 } else { 1 };
            assert_eq!(refused.code, Some(code), "{demand} {args:?}: {refused:?}");
            let is_told = ["policy.json", remedy]
                .iter()
                .all(|word| refused.stderr.contains(word))
                || refused.stderr.contains("key.pub") && refused.stderr.contains(remedy);
            assert!(is_told, "{demand} {args:?}: {refused:?}");
            assert_eq!(refused.stdout, "", "{args:?}");
        }
    }
    assert!(!home.path("out/index.json").exists() && !home.path("b.tar").exists());
    let images = ["--root", &home.text("own"), "images", "-q"];
    let none = run(&home, &images);
    assert!(none.stdout.is_empty(), "{none:?}");
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
    // A signature of one image is none of its index, which is kept whole.
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{{"mediaType":"application/vnd.docker.distribution.manifest.v2+json","size":{},"digest":"{digest}","platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#,
        crate::server::inspect(&server, "app:1").1.len()
    );
    server.put_manifest("app", "all", INDEX, &text);
    let name = server.name("app:all");
    sign(&home, &server, "app", &digest, &digest, "key", &name);
    run(&home, &["pull", "-q", &name]).ok();
    run(&home, &["pull", "--all", "-q", &name]).failed(1, &["policy.json", "no signature"]);
    let index = Digest::of(text.as_bytes());
    sign(&home, &server, "app", &index, &index, "key", &name);
    run(&home, &["pull", "--all", "-q", &name]).ok();
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
