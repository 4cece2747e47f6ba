//! registries.conf and hosts.toml: mirrors, blocked registries, aliases. skopeo reads the same files.

use std::process::Command;

use testkit::home::{Home, Outcome};
use testkit::{need, program};

use crate::images::{home, serve};
use crate::proxy::{Act, Proxy};
use crate::server::{Server, can_serve, digest_of};

/// Runs the program with the configuration of this home.
fn run(home: &Home, args: &[&str]) -> Outcome {
    let mut command = home.command(program());
    with_configuration(home, &mut command).args(args);
    command.output().unwrap().into()
}

fn with_configuration<'c>(home: &Home, command: &'c mut Command) -> &'c mut Command {
    home.dirs(&["drop-ins"]);
    command
        .env("HOME", home.path("nobody"))
        .env("CONTAINERS_REGISTRIES_CONF", home.path("registries.conf"))
        .env("CONTAINERS_REGISTRIES_CONF_DIR", home.path("drop-ins"))
}

fn configure(home: &Home, text: &str) {
    std::fs::write(home.path("registries.conf"), text).unwrap();
}

/// Writes hosts.toml for a registry.
fn hosts(home: &Home, registry: &str, text: &str) {
    let dir = format!("nobody/.config/containerd/certs.d/{registry}");
    home.dirs(&[&dir]);
    std::fs::write(home.path(&dir).join("hosts.toml"), text).unwrap();
}

/// Lets skopeo show the digest of an image through the same configuration.
fn skopeo_digest(home: &Home, name: &str) -> String {
    let mut command = home.command("skopeo");
    with_configuration(home, &mut command);
    command
        .arg("--registries-conf")
        .arg(home.path("registries.conf"));
    let url = format!("docker://{name}");
    let output = command
        .args(["inspect", "--format", "{{.Digest}}", &url])
        .output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A distribution registry as a pull-through cache of another one.
#[test]
fn a_pull_through_cache_is_asked_first_and_the_registry_if_it_fails() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    serve(&home, &server, "1", "team/app:1", &[]);
    let upstream = Proxy::start(server.port, |_| Act::Pass);
    let remote = format!(
        "proxy: {{remoteurl: \"http://127.0.0.1:{}\"}}\n",
        upstream.port
    );
    let cache = Server::start_with(&home, &remote, "");
    let registry = format!("127.0.0.1:{}", upstream.port);
    configure(
        &home,
        &format!(
            "[[registry]]\nlocation = \"{registry}\"\ninsecure = true\n[[registry.mirror]]\n\
             location = \"127.0.0.1:{}\"\ninsecure = true\n",
            cache.port
        ),
    );
    let name = upstream.name("team/app:1");
    let said = run(&home, &["pull", "-q", &name]).ok();
    // The image has the name that the user gave.
    assert!(said.contains(&format!("Pulled image: {name}")), "{said}");
    assert!(!cache.blobs().is_empty(), "the cache has what was pulled");
    assert!(said.contains(&skopeo_digest(&home, &name)), "{said}");
    // From now on the cache has it: the registry is not needed for blobs.
    upstream.forget();
    run(&home, &["rmi", &name]).ok();
    run(&home, &["pull", "-q", &name]).ok();
    let asked = upstream.asked();
    assert!(!asked.iter().any(|asked| asked.is_blob()), "{asked:?}");
    // Without the cache, the registry gives it.
    drop(cache);
    run(&home, &["rmi", &name]).ok();
    run(&home, &["pull", "-q", &name]).ok();
    assert!(upstream.asked().iter().any(|asked| asked.is_blob()));
}

#[test]
fn a_blob_that_a_mirror_lacks_or_damages_comes_from_the_registry() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    serve(&home, &server, "1", "app:1", &[]);
    for damaged in [false, true] {
        let mirror = Proxy::start(server.port, move |asked| match (asked.is_blob(), damaged) {
            (true, true) => Act::Flip(3),
            (true, false) => Act::Answer("404 Not Found".to_owned(), "{}".to_owned()),
            _ => Act::Pass,
        });
        configure(
            &home,
            &format!(
                "[[registry]]\nlocation = \"127.0.0.1:{}\"\n[[registry.mirror]]\nlocation = \
                 \"127.0.0.1:{}\"\n",
                server.port, mirror.port
            ),
        );
        let name = server.name("app:1");
        run(&home, &["pull", "-q", &name]).ok();
        assert!(mirror.asked().iter().any(|asked| asked.is_blob()));
        run(&home, &["verify", &name]).ok();
        run(&home, &["rmi", &name]).ok();
    }
}

#[test]
fn mirrors_by_digest_only_are_not_asked_for_tags() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    serve(&home, &server, "1", "app:1", &[]);
    let mirror = Proxy::start(server.port, |_| Act::Pass);
    let entry = |more: &str, of_mirror: &str| {
        configure(
            &home,
            &format!(
                "[[registry]]\nlocation = \"127.0.0.1:{}\"\n{more}\n[[registry.mirror]]\nlocation = \
                 \"127.0.0.1:{}\"\n{of_mirror}\n",
                server.port, mirror.port
            ),
        );
    };
    let by_tag = server.name("app:1");
    let by_digest = server.name(&format!("app@{}", digest_of(&server, "app:1")));
    for (more, of_mirror, expected) in [
        ("mirror-by-digest-only = true", "", [false, true]),
        ("", "pull-from-mirror = \"digest-only\"", [false, true]),
        ("", "pull-from-mirror = \"tag-only\"", [true, false]),
        ("", "", [true, true]),
    ] {
        entry(more, of_mirror);
        for (name, expected) in [&by_tag, &by_digest].into_iter().zip(expected) {
            mirror.forget();
            run(&home, &["pull", "-q", name]).ok();
            assert_eq!(
                !mirror.asked().is_empty(),
                expected,
                "{more} {of_mirror} {name}"
            );
        }
    }
}

#[test]
fn names_are_aliased_moved_and_blocked() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    serve(&home, &server, "1", "team/app:1", &[]);
    let here = format!("127.0.0.1:{}", server.port);
    configure(
        &home,
        &format!(
            "unqualified-search-registries = [\"{here}\"]\n[aliases]\n\"tool\" = \"{here}/team/app\"\n\
             [[registry]]\nprefix = \"*.example.org\"\nlocation = \"{here}\"\n\
             [[registry]]\nprefix = \"evil.example\"\nblocked = true\n"
        ),
    );
    let pulled = |name: &str| run(&home, &["pull", "-q", name]).ok();
    assert!(pulled("tool:1").contains(&format!("Pulled image: {here}/team/app:1")));
    assert!(pulled("team/app:1").contains(&format!("Pulled image: {here}/team/app:1")));
    let moved = pulled("a.example.org/team/app:1");
    assert!(
        moved.contains("Pulled image: a.example.org/team/app:1"),
        "{moved}"
    );
    run(&home, &["pull", "-q", "evil.example/app"]).failed(1, &["blocked", "evil.example"]);
    let docker = home.text("docker");
    run(
        &home,
        &[
            "--root",
            &docker,
            "push",
            "-q",
            "sample:1",
            "evil.example/app",
        ],
    )
    .failed(1, &["blocked"]);
    // A file of the directory replaces what the first says.
    let unblocked = "[[registry]]\nprefix = \"evil.example\"\nlocation = \"HERE/team\"\n";
    std::fs::write(
        home.path("drop-ins/10.conf"),
        unblocked.replace("HERE", &here),
    )
    .unwrap();
    pulled("evil.example/app:1");
    configure(
        &home,
        "unqualified-search-registries = [\"a.example\", \"b.example\"]",
    );
    run(&home, &["pull", "-q", "thing"]).failed(1, &["a.example/thing", "b.example/thing"]);
    configure(&home, "[[registry]]\nlocation = 3\n");
    run(&home, &["pull", "-q", "h.example/x"]).failed(1, &["registries.conf", "line 2"]);
}

/// What Spegel and Dragonfly do: mirrors of containerd, which learn the registry from `ns`.
#[test]
fn mirrors_of_containerd_are_asked_in_order() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    serve(&home, &server, "1", "team/app:1", &[]);
    let gone = "http://127.0.0.1:1";
    let peer = Proxy::start(server.port, |asked| {
        let known = asked.path.ends_with("?ns=r.example.org") || asked.path == "/v2/";
        let secret = asked.header("x-key") == Some("k");
        if known && secret && !asked.is_blob() {
            Act::Pass
        } else {
            Act::Answer("404 Not Found".to_owned(), "{}".to_owned())
        }
    });
    let blobs = Proxy::start(server.port, |_| Act::Pass);
    hosts(
        &home,
        "r.example.org",
        &format!(
            "server = \"http://127.0.0.1:1\"\n[host.\"{gone}\"]\n\
             [host.\"http://127.0.0.1:{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n\
             [host.\"http://127.0.0.1:{}\".header]\nx-key = \"k\"\n\
             [host.\"http://127.0.0.1:{}\"]\ncapabilities = [\"pull\"]\n",
            peer.port, peer.port, blobs.port
        ),
    );
    let name = "r.example.org/team/app:1";
    let said = run(&home, &["pull", "-q", name]).ok();
    assert!(said.contains(&format!("Pulled image: {name}")), "{said}");
    let tags = |asked: &[crate::proxy::Asked]| {
        asked
            .iter()
            .filter(|a| a.path.contains("manifests/1"))
            .count()
    };
    assert_eq!(tags(&peer.asked()), 1);
    assert_eq!(tags(&blobs.asked()), 0, "it may not say what a tag means");
    let asked = blobs.asked();
    assert!(asked.iter().any(|asked| asked.is_blob()));
    assert!(asked.iter().all(|asked| asked.header("x-key").is_none()));
}

/// A configuration that another user may change decides nothing.
#[test]
fn configuration_of_others_is_refused() {
    need!(can_serve());
    if !rustix::process::geteuid().is_root() {
        return need::skip(&"only root has something to lose");
    }
    let home = home();
    configure(&home, "");
    std::os::unix::fs::chown(home.path("registries.conf"), Some(4711), None).unwrap();
    let refused = &["registries.conf", "another user"];
    run(&home, &["pull", "-q", "localhost:1/app"]).failed(1, refused);
    std::fs::remove_file(home.path("registries.conf")).unwrap();
    hosts(&home, "localhost:1", "");
    let file = "nobody/.config/containerd/certs.d/localhost:1/hosts.toml";
    std::os::unix::fs::chown(home.path(file), Some(4711), None).unwrap();
    run(&home, &["pull", "-q", "localhost:1/app"]).failed(1, &["hosts.toml", "another user"]);
}

/// podman finds an image that was pulled by a short name by that name.
#[test]
fn an_image_is_found_by_the_short_name_by_which_it_was_pulled() {
    need!(can_serve());
    need!(need::can_mount());
    let home = home();
    home.dirs(&["mnt", "nobody"]);
    let server = Server::start(&home);
    serve(&home, &server, "1", "team/app:1", &[]);
    let full = server.name("team/app");
    let registry = format!("127.0.0.1:{}", server.port);
    let alias = format!("[aliases]\nsm = \"{full}\"\n");
    let search = format!("unqualified-search-registries = [\"{registry}\"]\n");
    for (configuration, short) in [(&alias, "sm:1"), (&search, "team/app:1")] {
        configure(&home, configuration);
        let said = run(&home, &["pull", "-q", short]).ok();
        assert!(said.contains(&format!("{full}:1")), "{said}");
        run(&home, &["mount", "-r", short, "mnt"]).ok();
        run(&home, &["umount", "mnt"]).ok();
        for args in [
            &["inspect", short][..],
            &["history", short],
            &["ls", short],
            &["layers", short],
            &["save", "-q", "-o", "saved.tar", short],
            &["tag", short, "tagged:1"],
            &["catalog", "build", short],
            &["copy", "-q", short, "docker-archive:copied.tar"],
        ] {
            let outcome = run(&home, args);
            assert_eq!(outcome.code, Some(0), "{outcome:?}");
        }
        // It goes to where its name says.
        let pushed = run(&home, &["push", "-q", short]).ok();
        assert!(
            pushed.contains(&format!("{registry}/team/app:1")),
            "{pushed}"
        );
        // An image with the name itself comes first.
        run(&home, &["import", "-q", "nobody", short]).ok();
        let names = run(&home, &["inspect", "--format", "{{.RepoTags}}", short]).ok();
        assert!(!names.contains(&registry), "{names}");
        run(&home, &["rmi", short]).ok();
        run(&home, &["rmi", "tagged:1"]).ok();
        run(&home, &["rmi", short]).ok();
        run(&home, &["inspect", short]).failed(1, &["no image"]);
    }
    // A configuration that cannot be used hides no image.
    run(&home, &["import", "-q", "nobody", "plain:1"]).ok();
    configure(&home, "broken");
    run(&home, &["inspect", "plain:1"]).ok();
    run(&home, &["inspect", "other:1"]).failed(1, &["no image"]);
}

/// A host of Docker has no registries.conf.
#[test]
fn mirrors_of_dockers_daemon_are_used_where_there_is_no_registries_conf() {
    use unionfs::oci::Reference;
    use unionfs::registry::{Access, ConfigurationFiles, digest};

    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    // Docker's mirrors are those of its hub.
    serve(&home, &server, "1", "library/app:1", &[]);
    let wanted = digest_of(&server, "library/app:1");
    let daemon = home.path("daemon.json");
    let text = format!(
        r#"{{"registry-mirrors": ["http://127.0.0.1:{}"], "data-root": "/elsewhere"}}"#,
        server.port
    );
    std::fs::write(&daemon, text).unwrap();
    let mut access = Access::default();
    access.configuration = ConfigurationFiles::default();
    access.configuration.daemons = vec![home.path("absent.json"), daemon.clone()];
    let name = Reference::parse("app:1").unwrap();
    let asked = |access: &Access| digest(&name, None, access, &|_| ());
    assert_eq!(asked(&access).unwrap(), wanted);
    // registries.conf counts alone.
    configure(
        &home,
        "[[registry]]\nlocation = \"docker.io\"\nblocked = true\n",
    );
    access.configuration.registries = vec![home.path("registries.conf")];
    let error = asked(&access).unwrap_err().to_string();
    assert!(error.contains("registries.conf"), "{error}");
    // A file of another user is not believed.
    access.configuration.registries.clear();
    if need::is_root().is_ok() {
        std::os::unix::fs::chown(&daemon, Some(1234), None).unwrap();
        let error = asked(&access).unwrap_err().to_string();
        assert!(error.contains("belongs to another user"), "{error}");
    }
}
