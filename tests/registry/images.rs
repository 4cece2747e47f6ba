//! Images for the registry: those of the sample store, and ones of large layers.

use std::path::Path;

use testkit::home::Home;
use testkit::store::sample;

use crate::server::{Server, skopeo};

/// Returns a home with a store in Docker's layout in `docker`, which holds the sample images.
pub(crate) fn home() -> Home {
    let home = Home::new();
    sample::make(&home.path("docker")).unwrap();
    home
}

/// Returns the image's ID by its store.
pub(crate) fn id(home: &Home, root: &str, image: &str) -> String {
    let about = home.json(["--root", root, "inspect", "--json", image])[0].clone();
    let about = about.as_array().map_or(&about, |all| &all[0]);
    about["id"].as_str().unwrap().to_owned()
}

/// Copies `sample:TAG` to the registry through an archive and skopeo.
pub(crate) fn serve(home: &Home, server: &Server, tag: &str, to: &str, options: &[&str]) {
    let archive = home.text(&format!("{tag}.tar"));
    if !Path::new(&archive).exists() {
        let image = format!("sample:{tag}");
        let root = home.text("docker");
        let saved = home.run(["--root", &root, "save", "-q", &image, "-o", &archive]);
        assert_eq!(saved.ok(), "");
    }
    let (from, to) = (format!("docker-archive:{archive}"), server.url(to));
    let mut args = vec!["copy", "-q", "--dest-tls-verify=false"];
    args.extend(options);
    args.extend([from.as_str(), to.as_str()]);
    skopeo(&args);
}

/// Copies an image of one layer to the registry, with `bytes` bytes that no compression makes
/// smaller; returns its ID.
pub(crate) fn serve_large(home: &Home, server: &Server, to: &str, bytes: usize) -> String {
    let tree = home.path("large");
    std::fs::create_dir_all(&tree).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let noise: Vec<u8> = (0..bytes)
        .map(|_| {
            // xorshift
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect();
    std::fs::write(tree.join("noise"), noise).unwrap();
    let root = home.text("maker");
    let made = home.run(["--store", &root, "import", "large", "large:1"]);
    assert_eq!(made.code, Some(0), "{made:?}");
    let pushed = home.run(["--root", &root, "push", "-q", "large:1", &server.name(to)]);
    assert_eq!(pushed.code, Some(0), "{pushed:?}");
    id(home, &root, "large:1")
}

/// Asserts that every layer and image of the home's own store is whole, and that prune finds
/// exactly `garbage` items.
#[track_caller]
pub(crate) fn assert_whole(home: &Home, images: usize, garbage: usize) {
    let verified = home.run(["--root", &home.text("own"), "verify", "--all"]);
    if images > 0 {
        assert_eq!(verified.code, Some(0), "{verified:?}");
    }
    let listed = home.json(["--root", &home.text("own"), "images", "--json"]);
    assert_eq!(listed.as_array().unwrap().len(), images, "{listed}");
    let report = home.json(["prune", "--dry-run", "--json"]);
    assert_eq!(
        report["items"].as_array().unwrap().len(),
        garbage,
        "{report}"
    );
}
