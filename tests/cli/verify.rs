//! `unionfs verify`: its output, and exit code 1 for damage.

use serde_json::Value;
use testkit::home::Home;
use testkit::need;
use testkit::need::can_mount;
use testkit::store::sample;

#[test]
fn damage_is_printed_and_exit_code_1() {
    // Only root can make the device nodes of the sample's layers.
    need!(can_mount());
    let home = Home::new();
    sample::make(&home.path("store")).unwrap();
    let root = home.text("store");
    let run = |args: &[&str]| home.run([&["--root", &root, "verify"], args].concat());
    let text = run(&["--all"]).ok();
    assert!(text.starts_with("2 images, 4 layers, "), "{text}");
    assert!(text.ends_with(" hashed: no damage\n"), "{text}");
    let text = run(&["sample:1"]).ok();
    assert!(text.starts_with("1 image, 3 layers, "), "{text}");
    let json: Value = serde_json::from_str(&run(&["--all", "--json"]).ok()).unwrap();
    assert_eq!(
        (&json["layers"], &json["problems"]),
        (&4.into(), &Value::Array(Vec::new()))
    );
    assert_eq!(run(&[]).code, Some(2));
    assert_eq!(run(&["--all", "sample:1"]).code, Some(2));
    run(&["nobody:1"]).failed(1, &["nobody:1"]);

    let layers = home.path("store/image/overlay2/layerdb/sha256");
    for layer in std::fs::read_dir(layers).unwrap() {
        std::fs::write(layer.unwrap().path().join("size"), "3").unwrap();
    }
    let outcome = run(&["--all"]);
    assert_eq!(outcome.code, Some(1));
    assert_eq!(outcome.stdout.lines().count(), 5, "{outcome:?}");
    assert!(outcome.stdout.contains("/diff\" has "), "{outcome:?}");
    assert!(outcome.stdout.ends_with(": damaged\n"), "{outcome:?}");
    assert_eq!(outcome.stderr, "unionfs: 4 problems found\n");
    let json = run(&["--all", "--json"]);
    assert_eq!(json.code, Some(1));
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["problems"].as_array().unwrap().len(), 4);
    assert!(
        json["problems"][0]["of"]
            .as_str()
            .unwrap()
            .starts_with("layer sha256:")
    );
}
