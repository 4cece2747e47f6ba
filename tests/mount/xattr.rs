//! Extended attributes: set, listed, limits, and that overlay markers can neither be seen nor
//! forged through the mount.

use testkit::fixture::Fixture;
use testkit::layers::{self, Form, Layer, net_raw_capability};
use testkit::mount::{Fs, KERNEL, subject};
use testkit::stats::requests_of;
use testkit::tree::{self, Mask, is_private};
use testkit::{need, need_mounts, without};

#[test]
fn set_get_list_remove() {
    need_mounts!();
    need!(without::lists_trusted());
    let mut f = Fixture::standard();
    f.expect(&[
        ("listxattr tagged", "trusted.note user.colour"),
        ("getxattr tagged user.colour", "\"blue\""),
        ("getxattr tagged user.none", "ENODATA"),
        ("setxattr tagged user.colour red create", "EEXIST"),
        ("setxattr tagged user.new x replace", "ENODATA"),
        ("setxattr tagged user.colour red replace", ""),
        ("removexattr tagged trusted.note", ""),
        ("removexattr tagged trusted.note", "ENODATA"),
        ("setxattr merged user.dir 1", ""),
        ("setxattr fifo user.x 1", "EPERM"),
        ("setxattr plain.txt user.empty -", ""),
    ]);
    let check = [
        ("listxattr tagged", "user.colour"),
        ("getxattr tagged user.colour", "\"red\""),
        ("getxattr merged user.dir", "\"1\""),
        ("getxattr plain.txt user.empty", "\"\""),
    ];
    f.expect(&check);
    f.remount();
    f.expect(&check);
}

/// Returns the xattr names that several callers see; each has fewer rights than the one before.
fn names_seen(path: &std::path::Path) -> Vec<String> {
    let list = ["getfattr", "-h", "-m", "-"];
    let callers: [&[&str]; 4] = [
        &[],
        &[
            "setpriv",
            "--bounding-set=-sys_admin",
            "--inh-caps=-sys_admin",
        ],
        &["unshare", "--user", "--map-root-user"],
        &["setpriv", "--reuid=4711", "--regid=4711", "--clear-groups"],
    ];
    let run = |caller: &&[&str]| {
        let words: Vec<_> = caller.iter().chain(&list).collect();
        let mut command = std::process::Command::new(words[0]);
        let output = command.args(&words[1..]).arg(path).output().unwrap();
        assert!(output.status.success(), "{caller:?}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter(|line| !line.starts_with('#')).collect()
    };
    callers.iter().map(run).collect()
}

/// `trusted.*` is listed for callers with CAP_SYS_ADMIN over the machine, as by the kernel: not for
/// root of a container, with or without a user namespace of its own.
#[test]
fn trusted_names_are_for_administrators() {
    need_mounts!();
    need!(without::lists_trusted());
    let layers = layers::standard();
    let kernel = Fixture::with(&KERNEL, &layers, Form::Kernel, true);
    let expected = names_seen(&kernel.at("tagged"));
    assert!(expected[0].contains("trusted.note"), "{expected:?}");
    assert!(!expected[1].contains("trusted"), "{expected:?}");
    let f = Fixture::with(&subject(), &layers, Form::Kernel, true);
    assert_eq!(names_seen(&f.at("tagged")), expected);
    for fixture in [&kernel, &f] {
        fixture.ok("setxattr tagged trusted.new x");
    }
    assert_eq!(
        names_seen(&f.at("tagged")),
        names_seen(&kernel.at("tagged"))
    );
}

/// The two-step protocol: a query for the length, and a buffer that is too small.
#[test]
fn sizes() {
    need_mounts!();
    let f = Fixture::standard();
    let path = f.at("tagged");
    assert_eq!(rustix::fs::lgetxattr_query(&path, "user.colour"), Ok(4));
    let mut small = [0u8; 2];
    let range = Err(rustix::io::Errno::RANGE);
    assert_eq!(
        rustix::fs::lgetxattr(&path, "user.colour", &mut small[..]),
        range
    );
    assert_eq!(rustix::fs::llistxattr(&path, &mut small[..]), range);
    let mut exact = [0u8; 4];
    assert_eq!(
        rustix::fs::lgetxattr(&path, "user.colour", &mut exact[..]),
        Ok(4)
    );
    assert_eq!(&exact, b"blue");
}

/// Copy-up and rename keep capabilities; a write clears them.
#[test]
fn capabilities() {
    need_mounts!();
    let f = Fixture::standard();
    let capability = || tree::xattr(&f.at("caps"), b"security.capability");
    f.ok("chmod caps 755\nrename caps x\nrename x caps");
    assert_eq!(capability(), Ok(net_raw_capability()));
    f.ok("write caps 0 X");
    assert_eq!(capability(), Err(rustix::io::Errno::NODATA));
}

#[test]
fn markers_are_hidden() {
    need_mounts!();
    let layer = Layer::new()
        .dir("d")
        .xattr("user.overlay.origin", "x")
        .xattr("trusted.overlay.impure", "y")
        .xattr("user.fuseoverlayfs.opaque", "y")
        .xattr("user.mine", "1")
        .file("d/f", "");
    let f = Fixture::new(&[layer, Layer::new().dir("d").file("d/low", "")]);
    f.ok("create d/new 644\nrename d moved");
    f.expect(&[("listxattr moved", "user.mine")]);
    for (path, entry) in tree::list_raw(f.root()) {
        for name in entry.xattrs.keys() {
            let (path, shown) = (tree::at(f.root(), &path), String::from_utf8_lossy(name));
            assert!(!is_private(name), "{} shows {shown}", path.display());
        }
    }
}

/// The next mount reads no marker from an attribute that a user sets through the mount.
#[test]
fn markers_cannot_be_forged() {
    need_mounts!();
    let mut f = Fixture::standard();
    let before = f.tree();
    let names = [
        "trusted.overlay.opaque",
        "trusted.overlay.redirect",
        "trusted.overlay.whiteout",
        "trusted.overlay.metacopy",
        "user.overlay.opaque",
        "user.overlay.redirect",
        "user.overlay.whiteout",
        "user.overlay.metacopy",
        "user.fuseoverlayfs.opaque",
    ];
    for name in names {
        for target in ["merged", "deep", "merged/sub", "empty.txt", "plain.txt"] {
            // The name may be refused or stored without effect: both are correct.
            let _ = f.run(&format!("setxattr {target} {name} y"));
        }
    }
    f.remount();
    tree::assert_same("after a remount", &before, &f.tree(), &Mask::ALL);
}

/// With `noxattrs` the kernel learns once that there are none. A copy-up keeps them.
#[test]
fn noxattrs_shows_none_and_asks_for_none() {
    need_mounts!();
    let fs = Fs::Unionfs("noxattrs");
    let f = Fixture::with(&fs, &layers::standard(), Form::Kernel, true);
    let unknown = Err(rustix::io::Errno::OPNOTSUPP);
    let first = requests_of(f.root(), || {
        assert_eq!(tree::xattr(&f.at("tagged"), b"user.colour"), unknown);
        assert_eq!(tree::xattr(&f.at("caps"), b"security.capability"), unknown);
    });
    assert_eq!(first.get("GETXATTR"), Some(&1), "{first:?}");
    f.expect(&[
        ("setxattr plain.txt user.new x", "EOPNOTSUPP"),
        ("removexattr tagged user.colour", "EOPNOTSUPP"),
    ]);
    let sent = requests_of(f.root(), || {
        std::fs::write(f.at("made"), "data").unwrap();
        std::os::unix::fs::chown(f.at("made"), Some(0), Some(0)).unwrap();
        f.ok("chmod tagged 600\nchmod caps 755");
    });
    assert_eq!(std::fs::read(f.upper("made")).unwrap(), b"data");
    assert!(!sent.contains_key("GETXATTR"), "{sent:?}");
    let stored = |name: &str, key: &[u8]| tree::xattr(&f.upper(name), key);
    assert_eq!(stored("tagged", b"user.colour"), Ok(b"blue".to_vec()));
    let capability = || stored("caps", b"security.capability");
    assert_eq!(capability(), Ok(net_raw_capability()));
    f.ok("write caps 0 X");
    assert_eq!(capability(), Err(rustix::io::Errno::NODATA));
}
