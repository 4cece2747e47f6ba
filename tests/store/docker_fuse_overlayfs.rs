//! A real dockerd with its driver fuse-overlayfs and this program under that name: builds, runs,
//! changes, starts again, exports and commits. Its layers keep whiteouts as `.wh.` files.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use testkit::need::{can_mount, has_tools};
use testkit::{need, program};

use super::docker_store::has_dockerd;

/// The commands for dockerd. The answers are files in the current directory, which has the tar of
/// a root directory.
const QUESTIONS: &str = r#"
set -e
docker info --format '{{.Driver}}' > driver
docker import -c 'CMD ["/bin/sh"]' rootfs.tar base:1 > /dev/null
mkdir context
cat > context/Dockerfile <<'E'
FROM base:1
RUN cd /data; rm gone; rm -r opaque; mkdir opaque; echo new > opaque/new
RUN cd /data; echo again >> changed; mv moved elsewhere; chmod 700 dir
E
DOCKER_BUILDKIT=0 docker build -q --network none -t built:1 context > /dev/null
docker run --rm --network none built:1 /bin/sh -ec 'cd /data; ls; ls opaque; cat changed' > built
docker run --network none --name named built:1 /bin/sh -ec '
    cd /data
    if [ -e .wh.kept ]; then
        cat .wh.kept kept; ls -A dir .wh..wh..opq; exit
    fi
    echo not-a-whiteout > .wh.kept; mkdir .wh..wh..opq dir/.wh..wh..opq; ln -s x dir/.wh.x
    rm changed'
docker start --attach named > again
docker diff named | sort > diff
docker export named | tar -tvf - data | sed 's/  */ /g' | cut -d' ' -f 1,6- | sort > export
docker commit named committed:1 > /dev/null
docker run --rm --network none committed:1 /bin/sh -ec 'cd /data; ls -A' > committed
docker rm named > /dev/null
docker rmi committed:1 built:1 base:1 > /dev/null
"#;

fn make_rootfs(dir: &Path) {
    let script = r#"
        mkdir -p rootfs/bin rootfs/etc rootfs/dev rootfs/proc rootfs/sys rootfs/data/dir rootfs/data/opaque
        cp -L "$(command -v busybox)" rootfs/bin/sh
        for tool in cat ls rm mv mkdir chmod ln; do ln rootfs/bin/sh rootfs/bin/$tool; done
        cd rootfs/data; for f in kept gone changed moved dir/x opaque/old; do echo $f > $f; done
        tar -C .. -cf ../../rootfs.tar ."#;
    let mut shell = Command::new("sh");
    let made = shell.args(["-ec", script]).current_dir(dir).status();
    assert!(made.unwrap().success());
}

#[test]
fn dockerd_runs_on_this_program_as_fuse_overlayfs() {
    need!(has_dockerd());
    need!(can_mount());
    need!(has_tools(&["docker", "busybox"]));
    let temp = tempfile::tempdir().unwrap();
    let at = |name: &str| temp.path().join(name);
    for name in ["bin", "answers", "root"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    symlink(program(), at("bin/fuse-overlayfs")).unwrap();
    make_rootfs(&at("answers"));
    let path = std::env::var("PATH").unwrap();
    let asked = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/ci/with-dockerd.sh"))
        .arg(at("root"))
        .args(["sh", "-c", QUESTIONS])
        .env("STORAGE_DRIVER", "fuse-overlayfs")
        .env("PATH", format!("{}:{path}", at("bin").display()))
        .current_dir(at("answers"))
        .output()
        .unwrap();
    assert!(asked.status.success(), "{asked:?}");
    let answer = |name: &str| std::fs::read_to_string(at("answers").join(name)).unwrap();
    assert_eq!(answer("driver"), "fuse-overlayfs\n");
    let built = "changed\ndir\nelsewhere\nkept\nopaque\nnew\nchanged\nagain\n";
    assert_eq!(answer("built"), built);
    // The same container, mounted again: its files are as it left them.
    let again = "not-a-whiteout\nkept\n.wh..wh..opq:\n\ndir:\n.wh..wh..opq\n.wh.x\nx\n";
    assert_eq!(answer("again"), again);
    let diff = answer("diff");
    for line in [
        "A /data/.wh.kept",
        "A /data/.wh..wh..opq",
        "A /data/dir/.wh.x",
        "D /data/changed",
    ] {
        assert!(diff.lines().any(|l| l == line), "{line}: {diff}");
    }
    let export = answer("export");
    for line in [
        "-rw-r--r-- data/.wh.kept",
        "-rw-r--r-- data/kept",
        "drwxr-xr-x data/.wh..wh..opq/",
        "lrwxrwxrwx data/dir/.wh.x -> x",
        "-rw-r--r-- data/dir/x",
    ] {
        assert!(export.lines().any(|l| l == line), "{line}: {export}");
    }
    assert!(!export.contains("data/changed"), "{export}");
    // The layer of an image cannot say that such names are files: Docker reads them as whiteouts,
    // whatever its driver.
    assert_eq!(answer("committed"), "dir\n");
}
