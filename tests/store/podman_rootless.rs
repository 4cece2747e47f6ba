//! podman's store of a plain user, made by a rootless podman in the default place. The user finds
//! it by name and mounts it read-only: directly (owners are those that the files have outside) and
//! in `podman unshare` (owners are the image's; there it is also written to and committed). Part of
//! `mounted`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use testkit::need;
use testkit::store::listing;
use testkit::store::listing::Listing;

use super::export;
use super::podman_image::{Demo, NAME};

/// The user, who exists only in the test's mount namespace, and the user's subordinate IDs.
const UID: u32 = 23456;
const SUBORDINATE: u32 = 300_000;

/// Runs `script` as the user in `home`, which must succeed. All processes of the user end with it:
/// podman leaves one. Mounts of other tests, which the namespace would keep alive, are removed
/// first.
fn as_user(demo: &Demo, script: &str) {
    let outer = format!(
        "set -e
        awk '$3 == \"fuse.unionfs\" {{ print $2 }}' /proc/self/mounts | xargs -r umount -l
        for file in passwd subuid subgid; do mount --bind etc/$file /etc/$file; done
        mount --bind fuse-node /dev/fuse
        cd home
        exec setpriv --reuid={UID} --regid={UID} --clear-groups --inh-caps=-all \
            env -i PATH=\"$PATH\" HOME=\"$PWD\" XDG_RUNTIME_DIR=\"$PWD/run\" sh -ec '{script}'"
    );
    let namespaces = ["--mount", "--pid", "--fork", "--mount-proc"];
    let output = Command::new("unshare")
        .args(namespaces)
        .args(["--propagation=private", "sh", "-c", &outer])
        .current_dir(demo.at(""))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Prepares the user's system files, and the user's home with our program and the image.
fn prepare(demo: &Demo) {
    demo.sh(&format!(
        "mkdir -p etc home/run home/mnt
        {{ cat /etc/passwd; echo \"unionfs-test:x:{UID}:{UID}::$PWD/home:/bin/sh\"; }} > etc/passwd
        echo unionfs-test:{SUBORDINATE}:65536 > etc/subuid
        cp etc/subuid etc/subgid
        mknod -m 666 fuse-node c 10 229
        skopeo copy -q oci:oci:demo docker-archive:home/demo.tar:{NAME}"
    ));
    std::fs::copy(testkit::program(), demo.at("home/unionfs")).unwrap();
    demo.sh(&format!("chown -R {UID}:{UID} home; chmod 700 home/run"));
    let open = std::fs::Permissions::from_mode(0o711);
    std::fs::set_permissions(demo.at(""), open).unwrap();
}

/// Returns the image as a plain user sees it: owners are the IDs of the user. `a/b` belongs to
/// another ID and has mode 700, so it is closed.
fn seen_outside(truth: &Listing) -> Listing {
    let outside = |id: u64| match id {
        0 => u64::from(UID),
        id => u64::from(SUBORDINATE) + id - 1,
    };
    let shown = truth.iter().filter(|(name, _)| !name.starts_with(b"a/b"));
    let moved = shown.map(|(name, entry)| {
        let mut entry = entry.clone();
        entry.owner = (outside(entry.owner.0), outside(entry.owner.1));
        (name.clone(), entry)
    });
    moved.collect()
}

fn check(how: &str, found: &Path, expected: &Listing) {
    let found = export::as_exported(export::of_export(found));
    listing::assert_same(how, &found, expected);
}

/// Loads the image with podman, mounts it by name in both ways and compares.
fn found_by_its_user(options: &str, driver: &str) {
    let demo = need!(Demo::make());
    prepare(&demo);
    as_user(
        &demo,
        &format!(
            "podman {options} load -q -i demo.tar
            ./unionfs images | grep -F {NAME}
            ./unionfs mount --read-only demo:1 mnt
            (cd mnt; tar -cf ../outside.tar --exclude=a/b *)
            stat -c %u:%g:%a mnt/a/b | grep -x {}:{}:700
            ./unionfs umount mnt
            podman {options} unshare sh -ec \"
                ./unionfs mount --read-only {NAME} mnt
                cd mnt; tar -cf ../inside.tar *; cd ..
                ./unionfs umount mnt
                ./unionfs verify {NAME}
                ./unionfs mount --name work {NAME} mnt
                echo changed > mnt/a/keep; rm mnt/gone; chown 5:6 mnt/opaque/new
                cd mnt; tar -cf ../changed.tar *; cd ..
                ./unionfs umount mnt
                ./unionfs commit work derived:1
                ./unionfs verify derived:1\"
            ./unionfs images | grep -F derived:1
            podman {options} unshare sh -ec \"
                ./unionfs mount --read-only derived:1 mnt
                cd mnt; tar -cf ../derived.tar *; cd ..
                ./unionfs umount mnt\"",
            SUBORDINATE + 11,
            SUBORDINATE + 33,
        ),
    );
    let store = demo.at("home/.local/share/containers/storage");
    assert!(store.join(driver).is_dir(), "podman used another driver");
    let truth = demo.truth();
    check(
        "outside",
        &demo.at("home/outside.tar"),
        &seen_outside(&truth),
    );
    check("podman unshare", &demo.at("home/inside.tar"), &truth);
    let changed = export::of_export(&demo.at("home/changed.tar"));
    assert_eq!(changed[&b"opaque/new"[..]].owner, (5, 6));
    assert!(!changed.contains_key(&b"gone"[..]) && changed.len() == truth.len() - 1);
    let changed = export::as_exported(changed);
    check("derived", &demo.at("home/derived.tar"), &changed);
}

#[test]
fn a_user_finds_his_overlay_store() {
    found_by_its_user("--storage-driver overlay", "overlay");
}

#[test]
fn a_user_finds_his_store_of_fuse_overlayfs() {
    found_by_its_user(
        "--storage-driver overlay --storage-opt overlay.mount_program=/usr/bin/fuse-overlayfs",
        "overlay",
    );
}

#[test]
fn a_user_finds_his_vfs_store() {
    found_by_its_user("--storage-driver vfs", "vfs");
}
