//! Looks at a registry without pulling: `tags`, `digest`, `inspect docker://`, and `delete`. skopeo says
//! the same.

use serde_json::Value;
use testkit::need;

use crate::images::{home, serve};
use crate::proxy::{Act, Proxy};
use crate::server::{Server, can_serve, digest_of, skopeo};

#[test]
fn tags_digests_and_configurations_are_what_skopeo_says() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    for tag in ["1", "2"] {
        serve(&home, &server, tag, &format!("team/app:{tag}"), &[]);
    }
    let url = server.url("team/app");
    let listed = skopeo(&["list-tags", "--tls-verify=false", &url]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let sorted = |mut list: Value| {
        let tags = list["Tags"].as_array_mut().unwrap();
        tags.sort_by_key(ToString::to_string);
        list
    };
    let ours = home.json(["tags", "--json", &url]);
    assert_eq!(sorted(ours), sorted(listed));
    let text = home.run(["list-tags", &server.name("team/app")]).ok();
    assert!(text == "1\n2\n" || text == "2\n1\n", "{text}");
    let missing = server.name("team/none");
    home.run(["tags", &missing])
        .failed(1, &["the tags of", "does not have it"]);
    let (url, name) = (server.url("team/app:1"), server.name("team/app:1"));
    let digest = digest_of(&server, "team/app:1").to_string();
    assert_eq!(home.run(["digest", &name]).ok().trim(), digest);
    let (about, raw) = crate::server::inspect(&server, "team/app:1");
    let ours = home.json(["inspect", "--json", &url]);
    for key in [
        "Name",
        "Digest",
        "Created",
        "Labels",
        "Architecture",
        "Os",
        "Layers",
        "Env",
    ] {
        assert_eq!(ours[key], about[key], "{key}");
    }
    assert_eq!(home.run(["inspect", "--raw", &url]).ok(), raw);
    let config = skopeo(&["inspect", "--config", "--raw", "--tls-verify=false", &url]);
    assert_eq!(
        home.run(["inspect", "--config", "--raw", &url]).ok(),
        config.trim_end()
    );
    let text = home.run(["inspect", &url]).ok();
    assert!(
        text.contains(&digest) && text.contains("Layer 1:"),
        "{text}"
    );
    // Nothing was pulled.
    assert_eq!(std::fs::read_dir(home.path("own")).unwrap().count(), 0);
}

#[test]
fn a_list_of_tags_in_pages_is_read_to_its_end() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    let page = |link: &str, tags: &str| {
        let head = format!("200 OK\r\nContent-Type: application/json{link}");
        Act::Answer(head, format!(r#"{{"name":"app","tags":{tags}}}"#))
    };
    let proxy = Proxy::start(server.port, move |asked| match asked.path.as_str() {
        "/v2/app/tags/list?n=1000" => page(
            "\r\nLink: </v2/app/tags/list?n=1000&last=b>; rel=\"next\"",
            r#"["a","b"]"#,
        ),
        "/v2/app/tags/list?n=1000&last=b" => page("", r#"["c"]"#),
        "/v2/elsewhere/tags/list?n=1000" => {
            page("\r\nLink: <http://127.0.0.1:1/v2/x>; rel=\"next\"", "[]")
        }
        "/v2/empty/tags/list?n=1000" => page("", "null"),
        _ => Act::Pass,
    });
    assert_eq!(home.run(["tags", &proxy.name("app")]).ok(), "a\nb\nc\n");
    assert_eq!(home.run(["tags", &proxy.name("empty")]).ok(), "");
    home.run(["tags", &proxy.name("elsewhere")])
        .failed(1, &["elsewhere"]);
}

#[test]
fn an_image_of_an_index_is_chosen_by_its_platform() {
    need!(can_serve());
    let home = home();
    let server = Server::start(&home);
    serve(&home, &server, "1", "app:1", &[]);
    serve(&home, &server, "2", "app:2", &[]);
    let (one, two) = (digest_of(&server, "app:1"), digest_of(&server, "app:2"));
    let media = "application/vnd.docker.distribution.manifest.list.v2+json";
    let entry = |digest: &unionfs::oci::Digest, arch: &str, size: usize| {
        format!(
            r#"{{"mediaType":"application/vnd.docker.distribution.manifest.v2+json","size":{size},"digest":"{digest}","platform":{{"os":"linux","architecture":"{arch}"}}}}"#
        )
    };
    let size = |rest: &str| crate::server::inspect(&server, rest).1.len();
    let list = format!(
        r#"{{"schemaVersion":2,"mediaType":"{media}","manifests":[{},{}]}}"#,
        entry(&one, "amd64", size("app:1")),
        entry(&two, "arm64", size("app:2"))
    );
    server.put_manifest("app", "all", media, &list);
    let name = server.name("app:all");
    let of_list = unionfs::oci::Digest::of(list.as_bytes()).to_string();
    assert_eq!(home.run(["digest", &name]).ok().trim(), of_list);
    for (platform, digest) in [("linux/amd64", one), ("linux/arm64", two)] {
        let shown = home.run(["digest", "--platform", platform, &name]).ok();
        assert_eq!(shown.trim(), digest.to_string());
        let url = server.url("app:all");
        let about = home.json(["inspect", "--json", "--platform", platform, &url]);
        assert_eq!(about["ManifestDigest"], digest.to_string());
        assert_eq!(about["Platforms"].as_array().unwrap().len(), 2);
    }
    let other = ["digest", "--platform", "linux/s390x", &name];
    home.run(other).failed(1, &["linux/amd64", "--platform"]);
}

#[test]
fn what_is_deleted_is_gone_for_all_tags() {
    need!(can_serve());
    let home = home();
    let kept = Server::start(&home);
    serve(&home, &kept, "1", "app:1", &[]);
    home.run(["delete", &kept.url("app:1")]).failed(1, &["405"]);
    let server = Server::start_that_deletes(&home);
    for tag in ["1", "again"] {
        serve(&home, &server, "1", &format!("app:{tag}"), &[]);
    }
    serve(&home, &server, "2", "app:2", &[]);
    home.run(["delete", "app:1"])
        .failed(2, &["docker://", "rmi"]);
    let digest = digest_of(&server, "app:1").to_string();
    let said = home.run(["delete", &server.url("app:1")]).ok();
    assert!(said.contains(&digest), "{said}");
    assert_eq!(home.run(["tags", &server.name("app")]).ok(), "2\n");
    home.run(["delete", &server.url("app:1")])
        .failed(1, &["does not have it"]);
}
