//! An upper in a mount of fuse-overlayfs, which takes a device 0:0 for a whiteout of its own and
//! answers ENOENT: whiteouts get another form.

use std::fs;
use std::process::Command;

use testkit::home::Home;
use testkit::need::has_tools;
use testkit::{need, need_mounts};

/// The mount of fuse-overlayfs, which ends with the test.
struct Below<'h>(&'h Home);

impl<'h> Below<'h> {
    fn mount(home: &'h Home) -> Self {
        let mut program = home.command("fuse-overlayfs");
        let options = "lowerdir=below/l,upperdir=below/u,workdir=below/w";
        let out = program.args(["-o", options, "below/m"]).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        Self(home)
    }
}

impl Drop for Below<'_> {
    fn drop(&mut self) {
        let umount = Command::new("umount").arg(self.0.path("below/m")).status();
        if !std::thread::panicking() {
            assert!(umount.unwrap().success());
        }
    }
}

#[test]
fn files_can_be_removed_and_renamed() {
    need_mounts!();
    need!(has_tools(&["fuse-overlayfs"]));
    let home = Home::with_layers();
    home.dirs(&["lower/dir", "below/l", "below/u", "below/w", "below/m"]);
    fs::write(home.path("lower/dir/in"), "in").unwrap();
    fs::write(home.path("lower/moved"), "moved").unwrap();
    let options = "lowerdir=lower,upperdir=below/m/u,workdir=below/m/w";
    let mount = || home.run(["-o", options, "mnt"]).ok();
    let names = || {
        let entries = fs::read_dir(home.path("mnt")).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    {
        let _below = Below::mount(&home);
        home.dirs(&["below/m/u", "below/m/w"]);
        mount();
        fs::remove_file(home.path("mnt/file")).unwrap();
        fs::rename(home.path("mnt/moved"), home.path("mnt/to")).unwrap();
        fs::remove_dir_all(home.path("mnt/dir")).unwrap();
        fs::create_dir(home.path("mnt/dir")).unwrap();
        assert_eq!(names(), ["dir", "to"]);
        home.run(["umount", "mnt"]).ok();
    }
    let _below = Below::mount(&home);
    mount();
    assert_eq!(names(), ["dir", "to"]);
    assert_eq!(fs::read(home.path("mnt/to")).unwrap(), b"moved");
    assert_eq!(fs::read_dir(home.path("mnt/dir")).unwrap().count(), 0);
    home.run(["umount", "mnt"]).ok();
}
