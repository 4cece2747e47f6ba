//! Commands that list: columns, `--quiet`, `--no-trunc`, `--format`, `--filter`, patterns of names;
//! `inspect` in Docker's shape; `prune --all`.

use serde_json::json;
use testkit::home::{Home, Outcome};
use testkit::need::{can_mount, has_tools};
use testkit::store::sample;
use testkit::{need, program};

use crate::own_store;

/// Returns a home with an own store (one:1 and others) and, in `docker`, the sample store.
fn home() -> Home {
    let home = Home::new();
    own_store::fill(&home.path("own"));
    home
}

fn lines(outcome: Outcome) -> Vec<String> {
    outcome.ok().lines().map(str::to_owned).collect()
}

#[test]
fn images_are_shown_as_asked_for() {
    let home = home();
    let table = home.run(["images"]).ok();
    let head: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    let columns = [
        "NAME", "ID", "STORE", "PLATFORM", "LAYERS", "SIZE", "UNSHARED", "CREATED",
    ];
    assert_eq!(head, columns);
    assert!(table.contains("unionfs"), "{table}");
    let all = home.json(["images", "--json"]);
    let ids: Vec<&str> = (all.as_array().unwrap().iter())
        .map(|image| image["id"].as_str().unwrap())
        .collect();
    let quiet = lines(home.run(["images", "-q", "--no-trunc"]));
    assert_eq!(quiet, ids, "each image once, also with two names");
    let short = lines(home.run(["images", "--quiet"]));
    assert!(short.iter().all(|id| id.len() == 12), "{short:?}");
    let digests = home.run(["images", "--digests"]).ok();
    assert!(
        digests.lines().next().unwrap().contains("DIGEST"),
        "{digests}"
    );

    let run = |args: &[&str]| lines(home.run([&["images"], args].concat()));
    assert_eq!(
        run(&["--format", "{{.Repository}} {{.Tag}} {{.Store}}", "two"]),
        ["two 1 unionfs"]
    );
    let table = run(&["--format", r"table {{.Name}}\t{{.Layers}}", "one:1"]);
    assert_eq!(
        table[0].split_whitespace().collect::<Vec<_>>(),
        ["NAME", "LAYERS"]
    );
    assert!(table[1].starts_with("one:1"), "{table:?}");
    let row: serde_json::Value =
        serde_json::from_str(&run(&["--format", "json", "two:1"])[0]).unwrap();
    assert_eq!(
        (&row["Name"], &row["Store"]),
        (&json!("two:1"), &json!("unionfs"))
    );
    let row = &run(&["--format", "{{json .}}", "two:1"])[0];
    assert!(
        row.starts_with('{') && row.contains(r#""Name":"two:1""#),
        "{row}"
    );

    home.run(["images", "--format", "{{.Nothing}}"])
        .failed(2, &[".Nothing", ".Repository"]);
    let wrong = home.run(["images", "--format", "{{range .Names}}"]);
    assert!(
        wrong.code == Some(2) && wrong.stderr.contains("not supported"),
        "{wrong:?}"
    );
}

#[test]
fn images_are_chosen_by_filters_and_patterns() {
    let home = home();
    let names = |args: &[&str]| {
        let format = ["images", "--format", "{{.Name}}"];
        lines(home.run([&format, args].concat()))
    };
    assert_eq!(names(&["one"]), ["one:1", "one:latest"]);
    assert_eq!(names(&["one:1"]), ["one:1"]);
    assert_eq!(names(&["t*"]), ["two:1"]);
    assert_eq!(names(&["docker.io/library/two:1"]), ["two:1"]);
    assert_eq!(names(&["--filter", "reference=*:latest"]), ["one:latest"]);
    assert_eq!(names(&["-f", "store=docker"]), Vec::<String>::new());
    assert_eq!(
        names(&["-f", "store=unionfs", "-f", "reference=two"]),
        ["two:1"]
    );
    let root = home.text("own");
    assert_eq!(names(&["-f", &format!("store={root}"), "two"]), ["two:1"]);
    assert_eq!(names(&["-f", "dangling=true"]), Vec::<String>::new());
    assert_eq!(names(&["-f", "label=no.such"]), Vec::<String>::new());
    assert_eq!(names(&["nothing"]), Vec::<String>::new());
    // An image with a label, made later than the others.
    home.dirs(&["rootfs"]);
    let import = [
        "import",
        "-q",
        "--change",
        "LABEL stage=test",
        "rootfs",
        "labelled:1",
    ];
    home.run(import).ok();
    assert_eq!(names(&["-f", "label=stage"]), ["labelled:1"]);
    assert_eq!(names(&["-f", "label=stage=test"]), ["labelled:1"]);
    assert_eq!(names(&["-f", "label=stage=live"]), Vec::<String>::new());
    assert!(!names(&["-f", "label!=stage"]).contains(&"labelled:1".to_owned()));
    assert!(!names(&["-f", "before=labelled:1"]).contains(&"labelled:1".to_owned()));
    assert_eq!(names(&["-f", "since=labelled:1"]), Vec::<String>::new());
    assert_eq!(
        names(&["-f", "until=24h", "labelled"]),
        Vec::<String>::new()
    );
    home.run(["images", "-f", "since=absent:1"])
        .failed(2, &["absent:1"]);
    let wrong = home.run(["images", "-f", "colour=red"]);
    assert!(
        wrong.code == Some(2) && wrong.stderr.contains("reference"),
        "{wrong:?}"
    );
}

#[test]
fn the_other_lists_have_the_same_options() {
    let home = home();
    let format =
        |command: &[&str], format: &str| lines(home.run([command, &["--format", format]].concat()));
    let ids = lines(home.run(["layers", "-q", "--no-trunc", "one:1"]));
    assert!(ids.iter().all(|id| id.starts_with("sha256:")), "{ids:?}");
    assert_eq!(format(&["layers", "one:1", "--no-trunc"], "{{.ID}}"), ids);
    let history = home.run(["history", "one:1"]).ok();
    let rows = history.lines().count() - 1;
    assert_eq!(format(&["history", "one:1"], "{{.CreatedBy}}").len(), rows);
    let df = format(&["df"], "{{.Kind}} {{.Name}}");
    assert!(df.contains(&"image two:1".to_owned()), "{df:?}");
    assert_eq!(format(&["ps"], "{{.Mountpoint}}"), Vec::<String>::new());
    for command in [&["history", "one:1"][..], &["layers"], &["df"], &["ps"]] {
        home.run([command, &["--format", "{{.No}}"]].concat())
            .failed(2, &[".No"]);
    }
}

#[test]
fn layers_steps_and_disk_usage_are_chosen_by_filters() {
    need!(can_mount());
    let home = home();
    home.dirs(&["rootfs", "mnt"]);
    let import = ["import", "-q", "--change", "LABEL stage=test"];
    home.run([&import[..], &["rootfs", "labelled:1"]].concat())
        .ok();
    home.run(["mount", "--name", "web", "one:1", "mnt"]).ok();
    home.run(["umount", "mnt"]).ok();

    let layers = |args: &[&str]| {
        let format = ["layers", "--format", "{{.Layer}} {{.Images}}", "--no-trunc"];
        let rows = lines(home.run([&format, args].concat()));
        let counts = rows.iter().map(|row| row.rsplit(' ').next().unwrap());
        // A shown layer whose parent is hidden has no lines of the tree.
        assert!(
            rows.iter().all(|row| row.starts_with("sha256:")),
            "{rows:?}"
        );
        counts.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(layers(&["-f", "shared=true"]), ["2"]);
    assert_eq!(
        layers(&["-f", "shared=false", "-f", "reference=one"]),
        ["1", "1"]
    );
    assert_eq!(layers(&["-f", "reference=two:*"]), ["2", "1"]);
    assert_eq!(layers(&["-f", "label=stage=test"]), ["1"]);
    assert_eq!(layers(&["-f", "store=docker"]), Vec::<String>::new());
    assert_eq!(layers(&["-f", "shared=true", "two:1"]), ["2"]);

    let df = |args: &[&str]| {
        let format = ["df", "--format", "{{.Kind}} {{.Name}}"];
        lines(home.run([&format, args].concat()))
    };
    assert_eq!(df(&["-f", "kind=layer"]), ["read-write layer web"]);
    assert_eq!(df(&["-f", "name=web"]), ["read-write layer web"]);
    assert_eq!(df(&["-f", "reference=two"]), ["image two:1"]);
    assert_eq!(df(&["-f", "label=stage"]), ["image labelled:1"]);
    assert_eq!(df(&["-f", "kind=changes"]), Vec::<String>::new());
    assert_eq!(df(&["-f", "kind=image", "-f", "name=web"]), [""; 0]);
    // The totals are those of the rows.
    let report = home.json(["df", "-f", "reference=two", "--json"]);
    assert_eq!(report["layers"], report["images"][0]["size"]);
    assert_eq!(report["read_write"], 0);

    let steps = |filter: &str| {
        let args = ["history", "-f", filter, "--format", "{{.ID}}", "labelled:1"];
        lines(home.run(args)).len()
    };
    let all = lines(home.run(["history", "--format", "{{.ID}}", "labelled:1"])).len();
    assert_eq!(steps("empty=false"), 1);
    assert_eq!(steps("empty=true"), all - 1);
    assert_eq!(steps("created-by=no such command"), 0);
    assert_eq!(steps("until=24h"), 0);
    assert_eq!(steps("since=24h"), all);

    for (command, key) in [
        (&["df"][..], "kind"),
        (&["layers"], "shared"),
        (&["history", "one:1"], "created-by"),
        (&["images"], "reference"),
        (&["ps"], "mountpoint"),
        (&["prune"], "until"),
    ] {
        let wrong = home.run([command, &["--filter", "colour=red"]].concat());
        assert_eq!(wrong.code, Some(2), "{wrong:?}");
        assert!(wrong.stderr.contains("\"colour\""), "{wrong:?}");
        assert!(wrong.stderr.contains(key), "{wrong:?}");
    }
}

#[test]
fn mounts_are_chosen_by_filters() {
    need!(can_mount());
    let home = home();
    home.dirs(&["mnt", "other"]);
    home.run(["mount", "--name", "web", "one:1", "mnt"]).ok();
    home.run(["mount", "--name", "idle", "two:1", "other"]).ok();
    home.run(["umount", "other"]).ok();
    let ps = |args: &[&str]| lines(home.run([&["ps", "-a", "-q"], args].concat()));
    let mnt = home.text("mnt");
    assert_eq!(ps(&[]), [&mnt, "idle"]);
    assert_eq!(ps(&["-f", "status=running"]), [&*mnt]);
    assert_eq!(ps(&["-f", "status=stopped"]), ["idle"]);
    assert_eq!(ps(&["-f", "name=web"]), [&*mnt]);
    assert_eq!(ps(&["-f", "image=two:1"]), ["idle"]);
    assert_eq!(
        ps(&["-f", "name=idle", "-f", "status=live"]),
        Vec::<String>::new()
    );
    home.run(["umount", "mnt"]).ok();
}

#[test]
fn inspect_prints_what_docker_prints() {
    need!(can_mount());
    let home = Home::new();
    let made = sample::make(&home.path("store")).unwrap();
    let root = home.text("store");
    let all = home.json(["--root", &root, "inspect", "--json", "sample:1", "sample:2"]);
    assert_eq!(all.as_array().unwrap().len(), 2);
    let image = &all[1];
    assert_eq!(image["Id"], *made.images[1].1);
    assert_eq!(image["Id"], image["id"]);
    assert_eq!(image["RepoTags"], json!(["sample:2"]));
    assert_eq!(image["RepoDigests"], json!([]));
    assert_eq!(image["Config"], image["config"]);
    assert_eq!(image["Os"], image["os"]);
    assert_eq!(image["RootFS"]["Type"], "layers");
    assert_eq!(image["RootFS"]["Layers"], image["diff_ids"]);
    assert_eq!(image["GraphDriver"]["Name"], "overlay2");
    assert_eq!(
        image["GraphDriver"]["Data"]["UpperDir"],
        image["layers"][2]["path"]
    );
    let show = |args: &[&str]| home.run([&["--root", &root, "inspect"], args].concat());
    let id = made.images[0].1.clone() + "\n";
    assert_eq!(show(&["-f", "{{.Id}}", "sample:1"]).ok(), id);
    assert_eq!(
        show(&["-f", "{{json .RepoTags}} {{.RootFS.Type}}", "sample:2"]).ok(),
        "[\"sample:2\"] layers\n"
    );
    let text = show(&["sample:1", "sample:2"]).ok();
    assert_eq!(text.matches("ID: ").count(), 2, "{text}");
    // One that does not exist hides no other.
    let outcome = show(&["-f", "{{.Id}}", "absent:1", "sample:1"]);
    assert_eq!((outcome.code, &outcome.stdout), (Some(1), &id));
    assert!(outcome.stderr.contains("absent:1"), "{outcome:?}");
}

#[test]
fn tables_fit_a_terminal_and_are_whole_in_a_pipe() {
    need!(has_tools(&["script", "stty"]));
    let home = home();
    let long = format!(
        "registry.example.org/{}/app:2",
        "team/".repeat(15).trim_end_matches('/')
    );
    home.run(["tag", "one:1", &long]).ok();
    assert!(home.run(["images"]).ok().contains(&long));
    for command in [
        "images",
        "df",
        "layers",
        "history one:1",
        "prune -n",
        "info",
    ] {
        let line = format!("stty cols 100; {} {command}", program());
        let output = home
            .command("script")
            .args(["-qec", &line, "/dev/null"])
            .output();
        let outcome = Outcome::from(output.unwrap());
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        for line in outcome.stdout.lines() {
            assert!(line.trim_end().chars().count() <= 100, "{command}: {line}");
        }
        if command == "images" {
            let mut lines = outcome.stdout.lines();
            assert!(
                lines.any(|line| line.contains('…') && line.contains("app:2")),
                "{outcome:?}"
            );
        }
    }
}

#[test]
fn prune_all_removes_unused_images_with_names() {
    let home = home();
    home.run(["prune", "--all"])
        .failed(2, &["--force", "--dry-run"]);
    home.run(["prune", "--filter", "until=24h"])
        .failed(2, &["--all"]);
    home.dirs(&["rootfs"]);
    home.run([
        "import",
        "-q",
        "--change",
        "LABEL keep=yes",
        "rootfs",
        "kept:1",
    ])
    .ok();
    let before = home.names();
    let dry = home
        .run(["prune", "--all", "-n", "--filter", "label!=keep"])
        .ok();
    assert!(
        dry.contains("unused image") && dry.contains("two:1"),
        "{dry}"
    );
    assert!(!dry.contains("kept:1"), "{dry}");
    assert_eq!(home.names(), before);
    home.run(["prune", "-a", "-f", "--filter", "until=10000days"])
        .ok();
    assert_eq!(home.names(), before, "no image is so old");
    home.run(["prune", "-a", "-f", "--filter", "label!=keep"])
        .ok();
    assert_eq!(home.names(), ["kept:1"]);
    home.run(["verify", "--all"]).ok();
    home.run(["prune", "-a", "-f"]).ok();
    assert_eq!(home.names(), Vec::<String>::new());
    assert_eq!(home.json(["prune", "--json"])["items"], json!([]));
}

#[test]
fn prune_all_keeps_what_is_in_use() {
    need!(can_mount());
    let home = home();
    home.dirs(&["mnt", "other"]);
    home.run(["mount", "-r", "-o", "catalog=off", "one:1", "mnt"])
        .ok();
    home.run([
        "mount",
        "--name",
        "work",
        "-o",
        "catalog=off",
        "two:1",
        "other",
    ])
    .ok();
    home.run(["umount", "other"]).ok();
    home.run(["prune", "-a", "-f"]).ok();
    let names = home.names();
    assert!(
        names.contains(&"one:1".to_owned()) && names.contains(&"two:1".to_owned()),
        "{names:?}"
    );
    home.run(["umount", "mnt"]).ok();
    home.run(["prune", "-a", "-f"]).ok();
    assert_eq!(home.names(), ["two:1"]);
    home.run(["verify", "--all"]).ok();
}
