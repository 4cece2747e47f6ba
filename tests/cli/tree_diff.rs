//! `unionfs diff A B` agrees with a comparison of two mounts, file by file, with and without
//! catalogs; `unionfs squash` keeps every file.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use testkit::home::Home;
use testkit::need;
use testkit::need::{can_mount, has_tools};
use testkit::tree::{self, Entry, Mask, Tree};

/// Makes `app:1`, `app:2` with a layer on top of it, `app:3` with another one on top of that, and
/// `other:1`, an image with the files of `app:1` in a layer of its own. The layer `work` has the
/// changes of `app:2`.
fn home() -> Home {
    let home = Home::new();
    home.dirs(&[
        "mnt",
        "two",
        "in/etc",
        "in/srv/deep/er",
        "in/keep/a/b",
        "in/gone/x",
    ]);
    let script = r"
        echo old > in/etc/conf; echo aaa > in/etc/same-size; echo t > in/etc/time
        echo m > in/etc/mode; echo o > in/etc/owner; echo x > in/etc/xattr; ln -s a in/etc/link
        echo l > in/srv/one; ln in/srv/one in/srv/two; echo d > in/srv/deep/er/d
        head -c 5000 /dev/zero > in/gone/x/zeros; ln in/gone/x/zeros in/gone/again
        echo k > in/keep/a/b/k; mkfifo in/fifo; echo f > in/file-to-dir; mkdir in/dir-to-file
        echo q > in/dir-to-file/q; printf 'odd' > 'in/etc/new
line'; find in -exec touch -h -d @1000000000 {} +
        unionfs import -q in app:1; cp -a in copy; unionfs import -q copy other:1
        unionfs mount --name work app:1 mnt
        cd mnt
        echo longer > etc/conf; echo bbb > etc/same-size; touch -d @1000000000 etc/same-size
        touch -d @2000000000 etc/time; chmod 4711 etc/mode; chown 7:8 etc/owner
        setfattr -n user.k -v v etc/xattr; ln -sfn b etc/link; rm -r gone; echo n > etc/new
        echo changed >> srv/one; rm -r srv/deep; mkdir srv/deep; echo e > srv/deep/e
        rm file-to-dir; mkdir file-to-dir; echo i > file-to-dir/i; rm -r dir-to-file; echo g > dir-to-file
        cd ..; unionfs umount mnt
        unionfs commit -q work app:2
        unionfs mount --name more app:2 mnt
        mkdir mnt/gone; echo back > mnt/gone/back; rm mnt/etc/new; unionfs umount mnt
        unionfs commit -q more app:3; unionfs rm more";
    home.run_script(script).ok_with_progress();
    home
}

/// Returns what differs, by comparing everything.
fn expected(before: &Tree, after: &Tree) -> BTreeMap<String, (char, Vec<&'static str>)> {
    let path = |path: &[u8]| format!("/{}", String::from_utf8_lossy(path));
    let kind = |entry: &Entry| entry.mode & 0o170_000;
    let is_file = |entry: &Entry| kind(entry) == 0o100_000;
    let mut found = BTreeMap::new();
    let mut hidden: Option<Vec<u8>> = None;
    for (name, old) in before {
        let below = |dir: &Vec<u8>| name.starts_with(&[dir, &b"/"[..]].concat());
        if hidden.as_ref().is_some_and(below) {
            continue;
        }
        let Some(new) = after.get(name) else {
            found.insert(path(name), ('D', Vec::new()));
            hidden = Some(name.clone());
            continue;
        };
        let mut how = Vec::new();
        let mut note = |differs: bool, what| {
            if differs {
                how.push(what);
            }
        };
        let same_type = kind(old) == kind(new);
        note(!same_type, "type");
        note(old.mode & 0o7777 != new.mode & 0o7777, "mode");
        note((old.uid, old.gid) != (new.uid, new.gid), "owner");
        note(same_type && is_file(old) && old.size != new.size, "size");
        note(same_type && old.content != new.content, "content");
        note(same_type && old.xattrs != new.xattrs, "xattrs");
        note(old.mtime != new.mtime, "time");
        if old.is_dir() && !new.is_dir() {
            hidden = Some(name.clone());
        }
        let only_time_of_directory = new.is_dir() && how == ["time"];
        if !how.is_empty() && !only_time_of_directory {
            found.insert(path(name), ('C', how));
        }
    }
    for name in after.keys() {
        let was = before.get(name);
        let parent_was_none = || {
            let mut dirs = name.iter().enumerate().filter(|(_, byte)| **byte == b'/');
            dirs.any(|(at, _)| before.get(&name[..at]).is_none_or(|dir| !dir.is_dir()))
        };
        if was.is_none() || parent_was_none() {
            found.insert(path(name), ('A', Vec::new()));
        }
    }
    found
}

/// Returns what `diff` says.
fn said(home: &Home, one: &str, two: &str) -> BTreeMap<String, (char, Vec<String>)> {
    let report = home.json(["diff", "--json", one, two]);
    let rows = report["changes"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let all = rows.iter().map(|row| {
        let how = row["how"].as_array().cloned().unwrap_or_default();
        let kind = text(&row["kind"]).chars().next().unwrap();
        (text(&row["path"]), (kind, how.iter().map(text).collect()))
    });
    all.collect()
}

#[test]
fn two_trees_differ_as_their_mounts_do() {
    need!(can_mount());
    need!(has_tools(&["setfattr"]));
    let home = home();
    let names = ["app:1", "app:2", "app:3", "other:1"];
    let mut trees = BTreeMap::new();
    // The mounts make catalogs. Without them the answers are the same.
    let before = said(&home, "app:1", "app:3");
    for name in names {
        home.run(["mount", "-r", name, "mnt"]).ok();
        trees.insert(name, tree::list(&home.path("mnt")));
        home.run(["umount", "mnt"]).ok();
        home.run(["catalog", "build", name]);
    }
    assert_eq!(said(&home, "app:1", "app:3"), before);
    for one in names {
        for two in names {
            let expected = expected(&trees[one], &trees[two]);
            let expected: BTreeMap<_, _> = expected
                .into_iter()
                .map(|(path, (kind, how))| {
                    let how = how.into_iter().map(str::to_owned).collect();
                    (path, (kind, how))
                })
                .collect();
            assert_eq!(said(&home, one, two), expected, "{one} {two}");
        }
    }
    // A named layer is the image that was committed from it.
    assert_eq!(said(&home, "work", "app:2"), BTreeMap::new());
    assert_eq!(said(&home, "app:1", "work"), said(&home, "app:1", "app:2"));
    assert_eq!(said(&home, "app:1", "other:1"), BTreeMap::new());
    // Layers by their digests.
    let layers = home.json(["layers", "--json", "app:3"]);
    let chain = |at: usize| layers[at]["chain_id"].as_str().unwrap().to_owned();
    assert_eq!(
        said(&home, &chain(0), &chain(1)),
        said(&home, "app:1", "app:2")
    );
}

#[test]
fn sizes_are_told_in_lines_a_tree_and_json() {
    need!(can_mount());
    need!(has_tools(&["setfattr"]));
    let home = home();
    let lines = home.run(["diff", "app:1", "app:2"]).ok();
    for line in [
        "C /etc/conf  size, content, time  4B → 7B\n",
        "C /etc/mode  mode  0644 → 4711\n",
        "C /etc/owner  owner  0:0 → 7:8\n",
        "A /etc/new  2B\n",
        // The two names of one file count once.
        "D /gone  3 files, 5.00kB\n",
        "C /file-to-dir  type, mode, time  0644 → 0755  2B → 0B\n",
    ] {
        assert!(lines.contains(line), "no {line:?} in {lines}");
    }
    let drawn = home.run(["diff", "--tree", "app:1", "app:2"]).ok();
    assert!(drawn.contains("├── etc/\n│   ├── C conf  size"), "{drawn}");
    assert!(drawn.contains("├── D gone/  3 files, 5.00kB\n"), "{drawn}");
    let report = home.json(["diff", "--json", "app:1", "app:2"]);
    // gone, gone/again, gone/x, gone/x/zeros, srv/deep/er, srv/deep/er/d.
    assert_eq!(report["deleted"], json!({"files": 6, "bytes": 5002}));
    assert_eq!(
        home.run(["diff", "app:2", "app:2"]).ok(),
        "no differences\n"
    );
    home.run(["diff", "--tree", "work"]).failed_usage();
    home.run(["diff", "app:1", "none:1"]).failed(1, &["none:1"]);
    // One name means what it always meant.
    assert!(home.run(["diff", "work"]).ok().contains("C /etc\n"));
}

trait FailedUsage {
    fn failed_usage(&self);
}

impl FailedUsage for testkit::home::Outcome {
    fn failed_usage(&self) {
        assert_eq!(self.code, Some(2), "{self:?}");
    }
}

#[test]
fn a_squashed_image_has_the_same_files_and_settings() {
    need!(can_mount());
    need!(has_tools(&["setfattr"]));
    let home = home();
    let changes = [
        "-c",
        "CMD [\"/run\"]",
        "-c",
        "HEALTHCHECK --interval=1m30s CMD check",
    ];
    let args = [&["commit", "-q", "work", "set:1", "-a", "me"][..], &changes].concat();
    home.run(args).ok();
    home.run(["squash", "-q", "set:1", "flat:1"]).ok();
    home.run(["squash", "-q", "--from", "app:2", "app:3", "part:1"])
        .ok();
    let layer = home.json(["layers", "--json", "app:3"])[0]["chain_id"].clone();
    let layer = layer.as_str().unwrap();
    home.run(["squash", "-q", "--from", &layer[..20], "app:3", "part:2"])
        .ok();
    for (squashed, image, layers) in [
        ("flat:1", "set:1", 1),
        ("part:1", "app:3", 3),
        ("part:2", "app:3", 2),
    ] {
        home.run(["mount", "-r", image, "mnt"]).ok();
        home.run(["mount", "-r", squashed, "two"]).ok();
        let mask = Mask {
            // A link count includes names that only other layers have.
            nlink: false,
            ..Mask::ALL
        };
        let (one, two) = (tree::list(&home.path("mnt")), tree::list(&home.path("two")));
        tree::assert_same(squashed, &one, &two, &mask);
        home.run(["umount", "mnt"]).ok();
        home.run(["umount", "two"]).ok();
        let about = |name: &str| {
            let about = home.json(["inspect", "--json", name]);
            about
                .as_array()
                .map_or_else(|| about.clone(), |all| all[0].clone())
        };
        let (old, new) = (about(image), about(squashed));
        assert_eq!(new["config"], old["config"], "{squashed}");
        assert_eq!(new["author"], old["author"], "{squashed}");
        assert_eq!(
            new["layers"].as_array().unwrap().len(),
            layers,
            "{squashed}"
        );
        let steps = new["history"].as_array().unwrap();
        let made = steps.iter().filter(|step| step["empty_layer"] != true);
        assert!(made.count() <= layers, "{new:#}");
        let last = steps.last().unwrap()["created_by"].as_str().unwrap();
        assert_eq!(last, format!("unionfs squash {image}"));
    }
    home.run(["verify", "--all"]).ok();
    // Files that are gone take no room.
    let size = |name: &str| {
        let about = home.json(["inspect", "--json", name]);
        let about = about.as_array().map_or(&about, |all| &all[0]);
        about["size"].as_u64().unwrap()
    };
    assert!(size("flat:1") < size("set:1"));
    home.run(["squash", "app:3", "x:1", "--from", "none"])
        .failed(1, &["app:3", "no layer \"none\""]);
    home.run(["squash", "none:1", "x:1"]).failed(1, &["none:1"]);
}
