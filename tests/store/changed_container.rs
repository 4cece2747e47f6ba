//! A container's own read-write layer that `unionfs mount --container --in-place` changed while the
//! container was stopped: dockerd starts it again, diffs, exports and commits it, and all of these
//! show the changes.

use std::path::Path;
use std::process::Command;

use testkit::need;

use super::docker_store::has_dockerd;

/// A script that runs beside a private dockerd; answers are files in the current directory.
const SESSION: &str = r#"
set -e
mkdir -p base/bin base/dev base/proc base/sys base/etc base/dir/sub base/kept mnt
cp -L "$(command -v busybox)" base/bin/busybox
for tool in sh ls cat rm mkdir find sort stat mv; do ln -s busybox base/bin/$tool; done
echo old > base/dir/file; echo sub > base/dir/sub/file; echo gone > base/gone; echo k > base/kept/f
echo linked > base/one; ln base/one base/two
tar -C base -c . | docker import - base:1 > /dev/null
docker create --name box --network none base:1 /bin/sh -c '
    cd /; if [ -e again ]; then find dir moved kept made gone one two own* -type f | sort > /listed
        while read f; do echo "$f: $(cat $f)"; done < /listed; stat -c "%h %a %u" one made
    else echo by-docker > own; rm kept/f; mkdir -p own-dir; echo x > own-dir/x; echo y > dir/sub/new; fi' > /dev/null
docker start -a box
"$UNIONFS" --root "$1" mount --container box --in-place mnt > /dev/null
cd mnt
test "$(cat own)" = by-docker && test ! -e kept/f
echo by-unionfs > own; echo copied-up > dir/file; rm gone; mkdir gone; echo in > gone/in
mv dir/sub moved; mkdir dir/sub; echo fresh > dir/sub/fresh
rm -r own-dir; echo back > kept/f; echo through-two > two
echo made > made; chown 1000 made; chmod 4711 made; touch again
cd ..
find mnt -mindepth 1 -printf '%P %y %m %U %s\n' | grep -vE '^(dev|proc|sys|etc)' | sort > ours
"$UNIONFS" umount mnt
docker diff box | sort > diff
docker commit box committed:1 > /dev/null
docker run --rm --network none committed:1 /bin/sh -c 'cd /; find dir moved gone kept -type f | sort; cat moved/file moved/new' > committed
docker export box | tar -tf - | sort > export
docker start -a box > started
"$UNIONFS" --root "$1" mount --container box --read-only mnt > /dev/null
cat mnt/listed > listed
"$UNIONFS" umount mnt
"#;

fn read(dir: &Path, name: &str) -> String {
    std::fs::read_to_string(dir.join(name)).unwrap()
}

#[test]
fn dockerd_starts_diffs_and_commits_what_we_wrote() {
    need!(has_dockerd());
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let root = dir.join("docker");
    std::fs::create_dir(&root).unwrap();
    let asked = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/ci/with-dockerd.sh"))
        .arg(&root)
        .args(["sh", "-c", SESSION, "sh"])
        .arg(&root)
        .env("UNIONFS", testkit::program())
        .env("UNIONFS_ROOT", dir.join("own-store"))
        .current_dir(dir)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&asked.stderr);
    assert!(asked.status.success(), "{stderr}");
    // Docker mounts without the index, so a change of one link of a lower file separates it from
    // the others (docs/SEMANTICS.md, "Hard links").
    let started = "\
dir/file: copied-up
dir/sub/fresh: fresh
gone/in: in
kept/f: back
made: made
moved/file: sub
moved/new: y
one: linked
own: by-unionfs
two: through-two
2 644 0
1 4711 1000
";
    assert_eq!(read(dir, "started"), started);
    let files: Vec<_> = started.lines().filter_map(|l| l.split_once(": ")).collect();
    let listed: Vec<_> = files.iter().map(|(name, _)| *name).collect();
    assert_eq!(read(dir, "listed").lines().collect::<Vec<_>>(), listed);
    let committed = "\
dir/file
dir/sub/fresh
gone/in
kept/f
moved/file
moved/new
sub
y
";
    assert_eq!(read(dir, "committed"), committed, "docker commit");
    let export = read(dir, "export");
    for name in listed {
        assert!(export.lines().any(|l| l == name), "{name} of\n{export}");
    }
    let diff = read(dir, "diff");
    for line in [
        "A /moved",
        "A /made",
        "A /own",
        "C /dir/file",
        "A /dir/sub/fresh",
    ] {
        assert!(diff.lines().any(|l| l == line), "{line} of\n{diff}");
    }
    let ours = read(dir, "ours");
    assert!(ours.lines().any(|l| l == "made f 4711 1000 5"), "{ours}");
}
