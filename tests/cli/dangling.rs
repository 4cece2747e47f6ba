//! `prune --dangling`: which images without a name it removes and which it keeps.

use serde_json::{Value, json};
use testkit::need;
use testkit::need::can_mount;
use unionfs::oci::Reference;
use unionfs::store::Writable;

use crate::own_store::{counts, home, image};

/// Image `two:1` is made from one without a name. Another image of three layers has no child.
#[test]
fn images_without_a_name_go_when_asked_for_unless_something_needs_them() {
    let home = home();
    home.dirs(&["mnt"]);
    {
        let store = Writable::open(&home.path("own")).unwrap();
        let store = store.lock().unwrap();
        image(&store, &["step:1"], &["base"]);
        image(&store, &["loose:1"], &["base", "loose", "end"]);
        image(&store, &["below:1"], &["base", "loose"]);
        image(&store, &["used:1"], &["base", "used"]);
        image(&store, &["busy:1"], &["busy"]);
        let id = |name: &str| store.find(name).unwrap().0;
        store.set_parent(&id("two:1"), &id("step:1")).unwrap();
        // The base is removed together with the image that was made from it.
        store.set_parent(&id("loose:1"), &id("below:1")).unwrap();
        let used = store.writable().store().image(&id("used:1")).unwrap();
        store.create_container("work", &used).unwrap();
    }
    let mounts = need::part(can_mount());
    if mounts {
        home.run(["mount", "-r", "-o", "catalog=off", "busy:1", "mnt"])
            .ok();
    }
    {
        let store = Writable::open(&home.path("own")).unwrap();
        let store = store.lock().unwrap();
        for name in ["step:1", "loose:1", "below:1", "used:1", "busy:1"] {
            store.untag(&Reference::parse(name).unwrap()).unwrap();
        }
    }
    let snapshot = home.snapshot();
    let nothing = home.json(["prune", "--json"]);
    assert_eq!(nothing["items"], json!([]), "without being asked");
    let kinds = |report: &Value| -> Vec<String> {
        let items = report["items"].as_array().unwrap().iter();
        items
            .map(|item| item["kind"].as_str().unwrap().to_owned())
            .collect()
    };
    let expected = if mounts {
        ["image", "image", "layer", "layer"].as_slice()
    } else {
        ["image", "image", "image", "layer", "layer", "layer"].as_slice()
    };
    let dry = home.json(["prune", "--dangling", "-n", "--json"]);
    assert_eq!(kinds(&dry), expected, "{dry}");
    assert_eq!(home.snapshot(), snapshot, "a dry run writes nothing");
    let done = home.json(["prune", "--dangling", "--json"]);
    assert_eq!(done["items"], dry["items"]);
    if mounts {
        assert_eq!(
            std::fs::read(home.path("mnt/busy")).unwrap(),
            b"busy",
            "what is mounted stays"
        );
        home.run(["umount", "mnt"]).ok();
        assert_eq!(
            kinds(&home.json(["prune", "--dangling", "--json"])),
            ["image", "layer"]
        );
    }
    home.run(["rm", "work"]).ok();
    let text = home.run(["prune", "--dangling"]).ok();
    assert!(text.contains("image without a name"), "{text}");
    assert_eq!(home.names(), ["one:1", "one:latest", "two:1"]);
    // The intermediate image of two:1 has no name either: it stays as long as two:1 does.
    assert_eq!(counts(&home), (4, 4));
    home.run(["verify", "--all"]).ok();
}
