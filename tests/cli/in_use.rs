//! The images that `rmi` refuses to remove: those whose chain of layers is mounted, and those with
//! a named layer. It does not refuse images that only share layers with an image in use.

use serde_json::{Value, json};
use testkit::home::Home;
use testkit::need;
use testkit::need::{Needed, can_mount};
use unionfs::oci::Reference;
use unionfs::store::Writable;

use crate::own_store;

/// Returns a home with `one` of base, middle and top; `twin`, another image with these layers;
/// `child` with one more; `base` with the lowest layer only.
fn home() -> Needed<Home> {
    can_mount()?;
    let home = Home::new();
    home.dirs(&["mnt"]);
    {
        let store = Writable::open(&home.path("own")).unwrap();
        let store = store.lock().unwrap();
        own_store::image(&store, &["one:1", "one:2"], &["base", "middle", "top"]);
        own_store::image(&store, &["child:1"], &["base", "middle", "top", "more"]);
        own_store::image(&store, &["base:1"], &["base"]);
        let (one, _) = store.find("one:1").unwrap();
        let (_, config) = store.writable().store().config_bytes(&one).unwrap();
        let mut config: Value = serde_json::from_slice(&config).unwrap();
        config["author"] = json!("twin");
        let twin = store.register_image(config.to_string().as_bytes()).unwrap();
        store
            .tag(&Reference::parse("twin:1").unwrap(), &twin)
            .unwrap();
    }
    Ok(home)
}

fn read(home: &Home, name: &str) -> String {
    std::fs::read_to_string(home.path("mnt").join(name)).unwrap()
}

#[test]
fn a_mounted_chain_keeps_every_image_that_is_it_and_no_other() {
    let home = need!(home());
    home.run(["mount", "one:1", "mnt"]).ok();
    // The other images only share layers with it.
    home.run(["rmi", "child:1"]).ok();
    home.run(["rmi", "base:1"]).ok();
    // Removing one of several names does not remove the image.
    assert_eq!(home.run(["rmi", "one:2"]).ok(), "Untagged: one:2\n");
    home.run(["rmi", "one:1"])
        .failed(1, &["in use", "is mounted on", "/mnt", "unionfs umount"]);
    home.run(["rmi", "-f", "one:1"]).failed(1, &["in use"]);
    assert_eq!(home.names(), ["one:1", "twin:1"]);
    assert_eq!(
        (read(&home, "base"), read(&home, "top")),
        ("base".into(), "top".into())
    );
    home.run(["umount", "mnt"]).ok();
    // The twin has the same layers and is another image.
    home.run(["mount", "-r", "twin:1", "mnt"]).ok();
    let mounted = home.json(["ps", "--json"]);
    let twin = home.json(["inspect", "--json", "twin:1"])[0].clone();
    assert_eq!(mounted[0]["image_id"], twin["id"]);
    home.run(["rmi", "twin:1"]).failed(1, &["in use"]);
    home.run(["rmi", "one:1"]).ok();
    assert_eq!(read(&home, "middle"), "middle");
    home.run(["umount", "mnt"]).ok();
    // A mount by directories may be of either image, so an image with these layers stays.
    let layers = twin["layers"].as_array().unwrap().iter();
    let layers: Vec<&str> = layers.filter_map(|layer| layer["path"].as_str()).collect();
    home.run(["-o", &format!("lowerdir={}", layers.join(":")), "mnt"])
        .ok();
    home.run(["rmi", "twin:1"]).failed(1, &["in use"]);
    home.run(["umount", "mnt"]).ok();
    home.run(["rmi", "twin:1"]).ok();
    assert_eq!(home.json(["prune", "--json"])["items"], json!([]));
}

#[test]
fn what_an_image_was_made_from_may_go_while_it_is_mounted() {
    let home = need!(home());
    home.run(["mount", "--ephemeral", "child:1", "mnt"]).ok();
    home.run(["rmi", "-f", "one:1", "one:2", "twin:1", "base:1"])
        .ok();
    home.run(["rmi", "child:1"])
        .failed(1, &["in use", "is mounted on"]);
    assert_eq!(
        (read(&home, "base"), read(&home, "more")),
        ("base".into(), "more".into())
    );
    assert_eq!(home.json(["prune", "--json"])["items"], json!([]));
    home.run(["umount", "mnt"]).ok();
    let removed = home.json(["rmi", "--json", "child:1"]);
    assert_eq!(removed[0]["layers"].as_array().unwrap().len(), 4);
}

#[test]
fn a_named_layer_keeps_its_image_mounted_or_not() {
    let home = need!(home());
    home.run(["mount", "--name", "work", "one:1", "mnt"]).ok();
    home.run(["umount", "mnt"]).ok();
    home.run(["rmi", "one:2"]).ok();
    home.run(["rmi", "one:1"])
        .failed(1, &["in use", "\"work\"", "unionfs rm work"]);
    // Images with the same layers are removed, but the layers stay.
    home.run(["rmi", "twin:1", "child:1", "base:1"]).ok();
    home.run(["mount", "--name", "work", "mnt"]).ok();
    assert_eq!(read(&home, "top"), "top");
    home.run(["rmi", "one:1"]).failed(1, &["in use"]);
    home.run(["umount", "mnt"]).ok();
    home.run(["rm", "work"]).ok();
    home.run(["rmi", "one:1"]).ok();
    assert_eq!(home.names(), [""; 0]);
}
