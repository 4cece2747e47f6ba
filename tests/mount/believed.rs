//! Trust in markers by the owner of the layer: root mounts layers that a plain user may write. The
//! union follows the markers of such a layer, but shows nothing that its owner may not read.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use testkit::fixture::Fixture;
use testkit::layers::{Layer, Node};
use testkit::mount::{Fs, Scratch, Stack, subject};
use testkit::without::{self, Lack};
use testkit::{need, need_mounts, tree};

const USER: u32 = 4711;
const SECRET: &str = "what root wrote";
const OTHER: &str = "for all to read";

/// Returns a lower of root, with a file and a directory that only root may read.
fn base() -> Layer {
    let layer = Layer::new()
        .dir("etc")
        .file("etc/shadow", SECRET)
        .mode(0o600);
    let layer = layer
        .dir("closed")
        .mode(0o700)
        .file("closed/secret", SECRET);
    layer
        .file("other", OTHER)
        .dir("open")
        .file("open/seen", "seen")
}

/// Returns a file of the user without data and as long as root's file, in the form of a metacopy.
fn hollow(layer: Layer, name: &str) -> Layer {
    let len = SECRET.len() as u64;
    layer
        .add(name, Node::Sparse(len, Vec::new()))
        .own(USER, USER)
}

/// The content of the hollow file: as many zeros as the secret has bytes.
const HOLE: [u8; SECRET.len()] = [0; SECRET.len()];

/// Returns a layer with a file and a directory of the user whose markers refer to root's.
fn claims(prefix: &str) -> Layer {
    let name = |marker: &str| format!("{prefix}{marker}");
    let layer = hollow(Layer::new(), "f").xattr(name("metacopy"), "");
    let layer = layer.xattr(name("redirect"), "/etc/shadow").dir("d");
    let layer = layer.own(USER, USER).xattr(name("redirect"), "/closed");
    hollow(layer, "other").xattr(name("metacopy"), "")
}

/// Mounts a union with these markers in its upper or in its top lower.
fn union(prefix: &str, in_upper: bool, options: &'static str) -> Fixture {
    let scratch = Scratch::disk();
    let (low, claimed) = (scratch.dir("low"), scratch.dir("claimed"));
    base().write(&low);
    claims(prefix).write(&claimed);
    std::os::unix::fs::chown(&claimed, Some(USER), Some(USER)).unwrap();
    let (lowers, upper) = if in_upper {
        (vec![low], claimed)
    } else {
        (vec![claimed, low], scratch.dir("upper"))
    };
    let stack = Stack {
        lowers,
        upper: Some((upper, scratch.dir("work"))),
        mnt: scratch.dir("mnt"),
    };
    Fixture::over(&Fs::Unionfs(options), scratch, stack)
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let name =
        |e: std::io::Result<std::fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = entries.map(name).collect();
    names.sort();
    names
}

/// The kernel refuses these markers with `userxattr`; here they have no effect.
#[test]
fn redirects_and_metacopies_of_users_are_ignored() {
    need_mounts!();
    for prefix in ["user.overlay.", "user.fuseoverlayfs."] {
        for in_upper in [true, false] {
            let options: &[&str] = match prefix {
                "user.overlay." => &["", "userxattr", "io=cached", "dialect=all"],
                _ => &["", "dialect=all"],
            };
            for options in options {
                let f = union(prefix, in_upper, options);
                let what = format!("{prefix} {in_upper} {options}");
                for name in ["f", "other"] {
                    assert_eq!(std::fs::read(f.at(name)).unwrap(), HOLE, "{what}: {name}");
                }
                assert_eq!(names(&f.at("d")), [""; 0], "{what}");
                assert!(f.at("d/secret").symlink_metadata().is_err(), "{what}");
                // A change of the files gives access to no other data.
                std::fs::set_permissions(f.at("f"), PermissionsExt::from_mode(0o666)).unwrap();
                assert_eq!(std::fs::read(f.at("f")).unwrap(), HOLE, "{what}");
                std::fs::write(f.at("d/new"), "new").unwrap();
                assert_eq!(names(&f.at("d")), ["new"], "{what}");
                assert_eq!(
                    std::fs::read_to_string(f.at("closed/secret")).unwrap(),
                    SECRET
                );
            }
        }
    }
}

/// The same holds for a catalog, which is built by the same rule.
#[test]
fn a_catalog_believes_them_as_little() {
    need_mounts!();
    let scratch = Scratch::disk();
    let (low, claimed) = (scratch.dir("low"), scratch.dir("claimed"));
    base().write(&low);
    claims("user.overlay.").write(&claimed);
    let stack = Stack::writable(&scratch, vec![claimed, low]);
    let f = Fixture::over(&Fs::Catalogued(""), scratch, stack);
    assert_eq!(std::fs::read(f.at("f")).unwrap(), HOLE);
    assert_eq!(names(&f.at("d")), [""; 0]);
}

/// Only CAP_SYS_ADMIN sets `trusted.*`; the markers of the kernel's overlayfs of root are followed.
#[test]
fn trusted_ones_are_followed() {
    need_mounts!();
    for in_upper in [true, false] {
        let f = union("trusted.overlay.", in_upper, "");
        assert_eq!(std::fs::read_to_string(f.at("f")).unwrap(), SECRET);
        assert_eq!(names(&f.at("d")), ["secret"]);
    }
}

/// `user.*` markers do not change the meaning of `trusted.*` markers, in whatever order they are
/// listed.
#[test]
fn a_users_redirect_does_not_bend_a_trusted_metacopy() {
    need_mounts!();
    let scratch = Scratch::disk();
    let (low, claimed) = (scratch.dir("low"), scratch.dir("claimed"));
    base().write(&low);
    let layer = hollow(Layer::new(), "other").xattr("trusted.overlay.metacopy", "");
    layer
        .xattr("user.overlay.redirect", "/etc/shadow")
        .write(&claimed);
    let stack = Stack::writable(&scratch, vec![claimed, low]);
    let f = Fixture::over(&subject(), scratch, stack);
    assert_eq!(std::fs::read_to_string(f.at("other")).unwrap(), OTHER);
}

/// Data-only layers have no visible names and exist for this purpose (Linux 6.16 follows them with
/// `userxattr` too); nothing else can be reached.
#[test]
fn into_data_only_layers_users_may_lead() {
    need_mounts!();
    let scratch = Scratch::disk();
    let (low, claimed, data) = (
        scratch.dir("low"),
        scratch.dir("claimed"),
        scratch.dir("data"),
    );
    base().write(&low);
    Layer::new()
        .dir("objects")
        .file("objects/1", OTHER)
        .write(&data);
    let meta = |layer: Layer, name: &str, to: &str| {
        let layer = hollow(layer, name);
        layer
            .xattr("user.overlay.metacopy", "")
            .xattr("user.overlay.redirect", to)
    };
    let layer = meta(Layer::new(), "object", "/objects/1");
    meta(layer, "f", "/etc/shadow").write(&claimed);
    let mut stack = Stack::writable(&scratch, vec![claimed, low]);
    stack.lowers.extend([PathBuf::new(), data]);
    let f = Fixture::over(&subject(), scratch, stack);
    assert_eq!(std::fs::read_to_string(f.at("object")).unwrap(), OTHER);
    let errno = std::fs::read(f.at("f")).unwrap_err().raw_os_error();
    assert_eq!(errno, Some(libc::EIO));
}

/// Returns a stack whose upper belongs to the user, and has a metacopy of the user's own file `mine`
/// that kernel overlayfs has made for root.
fn with_metacopy(scratch: &Scratch) -> (Stack, PathBuf) {
    let low = scratch.dir("low");
    let layer = base().file("mine", vec![b'm'; 300_000]).own(USER, USER);
    layer.write(&low);
    let stack = Stack::writable(scratch, vec![low]);
    let (upper, _) = stack.upper.clone().unwrap();
    let kernel = Fs::Kernel("metacopy=on,redirect_dir=on,index=off").mount(&stack);
    let mine = kernel.path().join("mine");
    std::fs::set_permissions(&mine, PermissionsExt::from_mode(0o644)).unwrap();
    kernel.unmount();
    assert!(tree::xattr(&upper.join("mine"), b"trusted.overlay.metacopy").is_ok());
    std::os::unix::fs::chown(&upper, Some(USER), Some(USER)).unwrap();
    (stack, upper)
}

/// Gives it the name of a file that the user may not read.
fn rename_to_secret(upper: &Path) -> PathBuf {
    std::fs::create_dir(upper.join("etc")).unwrap();
    let renamed = upper.join("etc/shadow");
    std::fs::rename(upper.join("mine"), &renamed).unwrap();
    renamed
}

/// The metacopy has no origin, as where the lowers have no file handles, and the user may add one. It
/// could be that of any file: it has no data, in an upper and in a lower.
#[test]
fn a_metacopy_that_nothing_ties_to_its_data_has_none() {
    need_mounts!();
    need!(without::has_file_handles());
    for forged in [false, true] {
        let scratch = Scratch::disk();
        let (mut stack, upper) = with_metacopy(&scratch);
        let renamed = rename_to_secret(&upper);
        let flags = rustix::fs::XattrFlags::empty();
        let origin = origin_of(&stack.lowers[0], "etc/shadow");
        rustix::fs::removexattr(&renamed, "trusted.overlay.origin").unwrap();
        if forged {
            rustix::fs::setxattr(&renamed, "user.overlay.origin", &origin, flags).unwrap();
        }
        for in_upper in [true, false] {
            if !in_upper {
                stack.lowers.insert(0, upper.clone());
                stack.upper = None;
            }
            let mounted = subject().mount(&stack);
            let read = std::fs::read(mounted.path().join("etc/shadow"));
            let errno = read.unwrap_err().raw_os_error();
            assert_eq!(errno, Some(libc::EIO), "{forged} {in_upper}");
            mounted.unmount();
        }
    }
}

/// Without file handles nothing can compare the origin.
#[test]
fn without_file_handles_a_metacopy_of_users_has_no_data() {
    need_mounts!();
    let scratch = Scratch::disk();
    let (stack, upper) = with_metacopy(&scratch);
    rename_to_secret(&upper);
    let mounted = without::mount(&stack, "", &[Lack::FileHandles]);
    let read = std::fs::read(mounted.path().join("etc/shadow"));
    assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::EIO));
    mounted.unmount();
}

/// The owner of an upper gives the metacopy of their own file the name of one that they may not
/// read. Its data is that of the file it was copied from, or none.
#[test]
fn a_metacopy_cannot_take_another_files_name() {
    need_mounts!();
    need!(without::has_file_handles());
    let scratch = Scratch::disk();
    let (stack, upper) = with_metacopy(&scratch);
    let mut f = Fixture::over(&subject(), scratch, stack);
    assert_eq!(std::fs::read(f.at("mine")).unwrap().len(), 300_000);
    f.unmount();
    rename_to_secret(&upper);
    f.remount();
    let read = std::fs::read(f.at("etc/shadow"));
    assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::EIO));
}

/// Redirects that would not be followed are not written, as with the kernel's `userxattr`.
#[test]
fn redirects_of_users_cannot_be_asked_for() {
    need_mounts!();
    let scratch = Scratch::disk();
    let stack = Stack::writable(&scratch, vec![scratch.dir("low")]);
    let refused = Fs::Unionfs("userxattr,redirect_dir=on").try_mount(&stack);
    let why = refused.err().unwrap();
    assert!(why.contains("redirect_dir=off"), "{why}");
    assert!(
        Fs::Kernel("userxattr,redirect_dir=on")
            .try_mount(&stack)
            .is_err()
    );
}

/// Returns the encoded handle of a file in the form that origins have.
fn origin_of(lower: &Path, name: &str) -> Vec<u8> {
    let scratch = Scratch::disk();
    let stack = Stack::writable(&scratch, vec![lower.to_path_buf()]);
    let f = Fixture::over(&subject(), scratch, stack);
    std::fs::set_permissions(f.at(name), PermissionsExt::from_mode(0o640)).unwrap();
    tree::xattr(&f.upper(name), b"trusted.overlay.origin").unwrap()
}

fn ino(f: &Fixture, name: &str) -> u64 {
    f.at(name).symlink_metadata().unwrap().ino()
}

/// A file of the user claims to be a copy of another file of the layer, and of one outside.
#[test]
fn a_forged_origin_takes_nobodys_number() {
    need_mounts!();
    need!(without::has_file_handles());
    for linked in [false, true] {
        let scratch = Scratch::disk();
        let (low, outside) = (scratch.dir("low"), scratch.dir("outside"));
        let mut layer = Layer::new().file("victim", SECRET);
        if linked {
            layer = layer.link("link", "victim");
        }
        layer.write(&low);
        Layer::new().file("far", SECRET).write(&outside);
        if linked {
            std::fs::hard_link(outside.join("far"), outside.join("far2")).unwrap();
        }
        let (victim, far) = (origin_of(&low, "victim"), origin_of(&outside, "far"));
        let stack = Stack::writable(&scratch, vec![low.clone()]);
        let (upper, work) = stack.upper.clone().unwrap();
        std::fs::create_dir(work.join("index")).unwrap();
        for (name, origin) in [("forged", &victim), ("forged2", &victim), ("distant", &far)] {
            let path = upper.join(name);
            std::fs::write(&path, name).unwrap();
            testkit::layers::set_xattr(&path, b"user.overlay.origin", origin);
            testkit::layers::set_xattr(&path, b"user.overlay.nlink", b"L+7");
        }
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        for (name, origin) in [("forged", &victim), ("distant", &far)] {
            std::fs::hard_link(upper.join(name), work.join("index").join(hex(origin))).unwrap();
        }
        let impure: &[u8] = b"y";
        testkit::layers::set_xattr(&upper, b"user.overlay.impure", impure);
        for dir in [&upper, &work, &work.join("index")] {
            std::os::unix::fs::chown(dir, Some(USER), Some(USER)).unwrap();
        }
        let number = |path: PathBuf| path.metadata().unwrap().ino();
        let (of_victim, of_far) = (number(low.join("victim")), number(outside.join("far")));
        let mut f = Fixture::over(&subject(), scratch, stack);
        for order in [
            ["forged", "forged2", "distant", "victim"],
            ["victim", "distant", "forged2", "forged"],
        ] {
            let numbers: Vec<_> = order.iter().map(|name| ino(&f, name)).collect();
            let mut unique = numbers.clone();
            unique.sort_unstable();
            unique.dedup();
            assert_eq!(unique.len(), 4, "{order:?}: {numbers:?}");
            assert_eq!(ino(&f, "victim") & 0xffff_ffff_ffff, of_victim, "{order:?}");
            assert!(!numbers.contains(&of_far), "{order:?}");
            assert_eq!(std::fs::read_to_string(f.at("victim")).unwrap(), SECRET);
            for name in ["forged", "forged2", "distant"] {
                assert_eq!(std::fs::read_to_string(f.at(name)).unwrap(), name);
                let links = f.upper(name).metadata().unwrap().nlink();
                assert_eq!(f.at(name).metadata().unwrap().nlink(), links, "{name}");
            }
            f.remount();
        }
    }
}

/// A file that was copied up with an origin in `user.*` keeps its inode number.
#[test]
fn true_origins_of_users_keep_the_number() {
    need_mounts!();
    need!(without::has_file_handles());
    let scratch = Scratch::disk();
    let low = scratch.dir("low");
    Layer::new()
        .file("f", "f")
        .file("l", "l")
        .link("l2", "l")
        .write(&low);
    let stack = Stack::writable(&scratch, vec![low]);
    let mut f = Fixture::over(&Fs::Unionfs("userxattr"), scratch, stack);
    let before = [ino(&f, "f"), ino(&f, "l")];
    f.ok("chmod f 600\nchmod l 600\nrename l moved");
    f.remount();
    assert_eq!([ino(&f, "f"), ino(&f, "moved")], before);
    assert_eq!(ino(&f, "l2"), before[1]);
}
