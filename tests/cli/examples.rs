//! Runs the examples of `--help`, README and guide as they are printed, on sample images. Only
//! absolute paths are replaced, so that no example writes to the machine. What cannot run here has a
//! reason in [`LEFT_OUT`].

use std::collections::BTreeSet;
use std::path::Path;

use testkit::home::{Home, Outcome};
use testkit::need;
use testkit::need::{can_mount, has_tools};

/// Parts of examples that cannot run here, with the reason.
const LEFT_OUT: [(&str, &str); 28] = [
    ("docker save", "needs dockerd"),
    ("docker load", "needs dockerd"),
    ("docker export", "needs dockerd"),
    ("/var/lib/docker", "needs the store of a dockerd"),
    ("/old/docker", "needs the store of a dockerd"),
    ("docker-daemon:", "needs the store of a dockerd"),
    ("/srv/old", "needs a second store of podman"),
    ("/backup/docker", "needs a copy of Docker's store"),
    ("--pool-data", "needs a thin pool"),
    ("unionfs pull", "needs a registry (tests/registry)"),
    ("unionfs push", "needs a registry (tests/registry)"),
    ("unionfs login", "needs a registry (tests/registry)"),
    ("unionfs logout", "needs a registry (tests/registry)"),
    ("unionfs tags", "needs a registry (tests/registry)"),
    ("unionfs digest", "needs a registry (tests/registry)"),
    ("unionfs delete", "needs a registry (tests/registry)"),
    ("unionfs copy", "needs a registry (tests/registry)"),
    ("docker://", "needs a registry (tests/registry)"),
    ("debian:12", "is pulled first"),
    ("bookworm", "is made by skopeo first"),
    ("1f0c", "stands for an ID"),
    ("NAME", "stands for a name"),
    ("IMAGE", "stands for an image"),
    ("DIR", "stands for a directory"),
    ("MOUNTPOINT", "stands for a directory"),
    ("unionfs push | save", "is a list of commands"),
    ("uidmapping", "needs another owner of the directories"),
    ("crun run", "needs a cgroup that crun accepts"),
];

/// The paths of examples, and those that stand for them in the test's directory.
const PATHS: [(&str, &str); 16] = [
    ("/etc/bash_completion.d/", "out-"),
    ("/usr/local/share/zsh/site-functions/", "out-"),
    ("~/.config/fish/completions/", "out-"),
    ("/usr/local/share/man", "pages"),
    ("/var/cache/ab.catalog", "./ab.catalog"),
    ("/mnt/union", "mnt"),
    (" /mnt", " mnt"),
    ("~/mnt", "mnt"),
    ("/data/", "data/"),
    ("/srv/rootfs", "rootfs"),
    ("/tmp/srv", "copied"),
    ("lowerdir=/lower", "lowerdir=a"),
    ("lowerdir=/b:/a", "lowerdir=b:a"),
    ("upperdir=/u", "upperdir=u"),
    ("upper,workdir=/work", "upper,workdir=work"),
    ("workdir=/w", "workdir=w"),
];

/// Returns the examples of a help text.
fn of_help(help: &str) -> Vec<String> {
    let Some((_, examples)) = help
        .split_once("Examples:\n")
        .or(help.split_once("Example:\n"))
    else {
        return Vec::new();
    };
    let lines = examples.lines().take_while(|line| line.starts_with("  "));
    lines.map(|line| line.trim().to_owned()).collect()
}

/// Returns the commands of all help texts, README and guide.
fn all(home: &Home) -> BTreeSet<String> {
    let help = home.run(["--help"]).ok();
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let commands = commands.lines().take_while(|line| !line.is_empty());
    let commands = commands.filter(|line| !line.starts_with("   "));
    let mut examples = of_help(&help);
    let mut few = Vec::new();
    for command in commands.filter_map(|line| line.split_whitespace().next()) {
        if command != "help" {
            let of_command = of_help(&home.run([command, "--help"]).ok());
            if of_command.len() < 2 {
                few.push(command.to_owned());
            }
            examples.extend(of_command);
        }
    }
    assert!(few.is_empty(), "help with fewer than two examples: {few:?}");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec![root.join("README.md")];
    for entry in std::fs::read_dir(root.join("docs/guide")).unwrap() {
        pages.push(entry.unwrap().path());
    }
    for page in pages {
        let text = std::fs::read_to_string(page).unwrap();
        let lines = text.lines().filter_map(|line| line.strip_prefix("    "));
        let lines = lines.filter(|line| line.starts_with("unionfs "));
        examples.extend(lines.map(str::to_owned));
    }
    let bare = |line: String| {
        // A remark stands behind two spaces.
        let command = line.split("  ").next().unwrap_or_default().trim();
        command.to_owned()
    };
    examples.into_iter().map(bare).collect()
}

/// Makes what the examples name.
const SETUP: &str = r"
mkdir -p mnt mnt2 data/changes data/work data/lower data/upper rootfs/etc rootfs/srv a b u w upper work lower
echo NAME=sample > rootfs/etc/os-release
echo root:x:0:0::/root:/bin/sh > rootfs/etc/passwd
echo page > rootfs/srv/index.html
mkdir rootfs/bin
cp $(command -v busybox) rootfs/bin/busybox
for name in sh id ls cat; do ln -s busybox rootfs/bin/$name; done
for name in base:1 myapp:1 sample:1 app:1; do unionfs import -q rootfs $name > /dev/null; done
echo 2 > rootfs/srv/version
sleep 1
for name in myapp:2 sample:2 app:2; do unionfs import -q -c 'CMD /bin/sh' rootfs $name > /dev/null; done
unionfs save -q -o myapp.tar myapp:1
unionfs save -q -o base.tar base:1
tar -C rootfs -czf rootfs.tar.gz .
mkdir layout
unionfs tag myapp:2 x:v1
unionfs tag myapp:1 x:v2
unionfs save -q --format oci x:v1 x:v2 | tar -x -C layout
unionfs rmi x:v1 x:v2 > /dev/null
for name in web work; do
    unionfs mount --name $name myapp:2 mnt
    echo changed > mnt/etc/changed
    echo new > mnt/new
    rm mnt/srv/version
    unionfs umount mnt
done
";

#[test]
fn every_example_works_as_printed() {
    need!(can_mount());
    need!(has_tools(&["sh", "jq", "tar", "xargs", "zstd", "man"]));
    let template = Home::new();
    let setup = template.run_script(SETUP);
    assert_eq!(setup.code, Some(0), "{setup:?}");
    let examples = all(&template);
    let (mut ran, mut failed) = (0, Vec::new());
    for example in &examples {
        if LEFT_OUT.iter().any(|(part, _)| example.contains(part)) {
            continue;
        }
        let home = Home::new();
        let copied = home.run_script(&format!("cp -a {}/. .", template.text("")));
        assert_eq!(copied.code, Some(0), "{copied:?}");
        let mut command = example.clone();
        for (path, here) in PATHS {
            command = command.replace(path, here);
        }
        let needs_mount = ["umount", "stats", "sync", "remount"];
        if needs_mount
            .iter()
            .any(|word| command.starts_with(&format!("unionfs {word} ")))
        {
            home.run(["mount", "-r", "-o", "catalog=off", "myapp:2", "mnt"])
                .ok();
        }
        // A catalog belongs to the path of its store.
        if command.starts_with("unionfs catalog") {
            home.run(["catalog", "build", "myapp:2"]);
        }
        if command.ends_with("bundle/rootfs") {
            home.run(["bundle", "myapp:2", "bundle"]).ok();
        }
        let outcome: Outcome =
            home.run_script(&format!("{command} > out 2> errors; cat errors >&2"));
        home.run_script("unionfs ps -q | xargs -r -n 1 unionfs umount --lazy");
        if outcome.code != Some(0) {
            let errors = std::fs::read_to_string(home.path("errors")).unwrap_or_default();
            failed.push(format!("{example}: {:?} {errors}", outcome.code));
        }
        ran += 1;
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(ran > 60, "only {ran} of {} examples ran", examples.len());
}

/// A reason without an example is out of date.
#[test]
fn what_is_left_out_exists() {
    let home = Home::new();
    let examples = all(&home);
    for (part, reason) in LEFT_OUT {
        let used = examples.iter().any(|example| example.contains(part));
        assert!(used, "no example has {part:?} ({reason})");
    }
}
