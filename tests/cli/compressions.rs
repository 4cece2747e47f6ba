//! Archives and layers that are compressed with xz and bzip2, as docker and podman accept them; and
//! the limits for a hostile stream.

use std::fs;
use std::process::Stdio;

use serde_json::Value;
use testkit::home::Home;
use testkit::need;
use testkit::need::{Needed, can_mount, has_tools};
use unionfs::oci::Digest;

use super::engines::shell;

/// Returns a home with `app:1` in `app.tar` and an empty store, and the image's ID.
fn home(tools: &[&str]) -> Needed<(Home, Value)> {
    can_mount()?;
    has_tools(&["xz", "bzip2"])?;
    has_tools(tools)?;
    let home = Home::new();
    home.dirs(&["mnt"]);
    shell(
        &home,
        "mkdir rootfs; seq 200000 > rootfs/file; chmod 644 rootfs/file",
    );
    home.run(["import", "-q", "rootfs", "app:1"]).ok();
    home.run(["save", "-q", "-o", "app.tar", "app:1"]).ok();
    let id = id(&home);
    forget(&home);
    Ok((home, id))
}

fn id(home: &Home) -> Value {
    home.json(["inspect", "--json", "app:1"])[0]["id"].clone()
}

fn forget(home: &Home) {
    fs::remove_dir_all(home.path("own")).unwrap();
    home.dirs(&["own"]);
}

#[test]
fn compressed_archives_are_loaded_and_imported() {
    let (home, expected) = need!(home(&["podman"]));
    shell(
        &home,
        "xz -k app.tar; bzip2 -k app.tar
         # Several streams, as pxz and pbzip2 write them, and several blocks.
         split -n 3 app.tar part.; for part in part.*; do xz -k --check=sha256 $part; bzip2 -k $part; done
         cat part.*.xz > parts.tar.xz; cat part.*.bz2 > parts.tar.bz2
         xz -9 --block-size=100000 -c app.tar > blocks.tar.xz
         podman=\"podman --root $PWD/p --runroot $PWD/r --storage-driver vfs\"
         $podman load -q -i app.tar.xz; $podman load -q -i app.tar.bz2
         tar -C rootfs -cf root.tar .; xz root.tar",
    );
    for archive in [
        "app.tar.xz",
        "app.tar.bz2",
        "parts.tar.xz",
        "parts.tar.bz2",
        "blocks.tar.xz",
    ] {
        home.run(["load", "-q", "-i", archive]).ok();
        assert_eq!(id(&home), expected, "{archive}");
        home.run(["verify", "--all"]).ok();
        forget(&home);
    }
    let piped = home.run_script("unionfs load -q < app.tar.xz");
    piped.ok();
    home.run(["import", "-q", "root.tar.xz", "root:1"]).ok();
    home.run(["mount", "root:1", "mnt"]).ok();
    let (ours, theirs) = (home.path("mnt/file"), home.path("rootfs/file"));
    assert!(fs::read(ours).unwrap() == fs::read(theirs).unwrap());
    home.run(["umount", "mnt"]).ok();
    // A truncated file: nothing is taken in.
    shell(
        &home,
        "head -c 1000 app.tar.xz > cut.xz; head -c 1000 app.tar.bz2 > cut.bz2",
    );
    forget(&home);
    for archive in ["cut.xz", "cut.bz2"] {
        let refused = home.run(["load", "-q", "-i", archive]);
        refused.failed(1, &[archive]);
    }
}

#[test]
fn compressed_layers_are_loaded() {
    let (home, expected) = need!(home(&["skopeo"]));
    for (program, end) in [("xz", "xz"), ("bzip2", "bz2")] {
        shell(
            &home,
            "rm -rf dir; skopeo copy -q docker-archive:app.tar dir:dir",
        );
        let manifest = home.path("dir/manifest.json");
        let mut value: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
        let digest = value["layers"][0]["digest"].as_str().unwrap()[7..].to_owned();
        shell(&home, &format!("{program} dir/{digest}"));
        let packed = fs::read(home.path(&format!("dir/{digest}.{end}"))).unwrap();
        let new = Digest::of(&packed);
        fs::write(home.path("dir").join(new.hex()), &packed).unwrap();
        value["layers"][0]["digest"] = new.to_string().into();
        value["layers"][0]["size"] = packed.len().into();
        fs::write(&manifest, value.to_string()).unwrap();
        home.run(["load", "-q", "-i", "dir", "--tag", "app:1"]).ok();
        assert_eq!(id(&home), expected, "{program}");
        home.run(["verify", "--all"]).ok();
        forget(&home);
    }
}

/// A stream of a few bytes can request gigabytes of memory.
#[test]
fn the_dictionary_of_a_stream_is_bounded() {
    let (home, _) = need!(home(&[]));
    shell(
        &home,
        "xz -k --lzma2=dict=1GiB app.tar; head -c 100000000 /dev/zero | xz -9e > zeros.xz",
    );
    let mut command = home.command("sh");
    let limited = "ulimit -v 1000000; exec \"$0\" load -q -i app.tar.xz";
    let output = command
        .args(["-c", limited, testkit::program()])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains("asks for more than 129 MiB of memory"),
        "{error}"
    );
    let args = [
        "load",
        "-q",
        "-i",
        "zeros.xz",
        "--max-layer-size",
        "1000000",
    ];
    home.run(args).failed(1, &["more than 1000000 bytes"]);
}
