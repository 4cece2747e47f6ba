//! An upper in a mount of fuse-overlayfs. It takes all forms of whiteouts for its own: it refuses
//! devices with ENOENT, and hides the xattrs and `.wh.` files that it accepts. Files that were removed
//! in such an upper would be there again after the next mount, so the mount is refused.

use std::process::Command;

use testkit::home::Home;
use testkit::need::has_tools;
use testkit::{need, need_mounts};

#[test]
fn an_upper_that_keeps_no_whiteouts_is_refused() {
    need_mounts!();
    need!(has_tools(&["fuse-overlayfs"]));
    let home = Home::with_layers();
    home.dirs(&["below/l", "below/u", "below/w", "below/m"]);
    let options = "lowerdir=below/l,upperdir=below/u,workdir=below/w";
    let mut below = home.command("fuse-overlayfs");
    assert!(
        below
            .args(["-o", options, "below/m"])
            .status()
            .unwrap()
            .success()
    );
    home.dirs(&["below/m/u", "below/m/w"]);
    let options = "lowerdir=lower,upperdir=below/m/u,workdir=below/m/w";
    let refused = home.run(["-o", options, "mnt"]);
    // As a lower it can be used.
    let read = home.run(["-o", "lowerdir=below/m:lower", "mnt"]);
    let is_there = home.path("mnt/file").exists();
    home.run(["umount", "mnt"]).ok();
    let umount = Command::new("umount").arg(home.path("below/m")).status();
    assert!(umount.unwrap().success());
    refused.failed(1, &["whiteouts cannot be kept", "below/m/w"]);
    read.ok();
    assert!(is_there);
}
