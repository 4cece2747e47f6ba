//! Mount options, image names, markers: text that a user, another program or an xattr gives.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use unionfs::layer::origin::Origin;
use unionfs::oci::{Digest, Query, Reference};
use unionfs::store::{CacheId, NamedLayer};

use super::mount_options::MountOptions;
use super::one_line;

pub fn run(bytes: &[u8]) {
    let Some((mode, bytes)) = bytes.split_first() else {
        return;
    };
    match mode % 3 {
        0 => options(bytes),
        1 => names(&String::from_utf8_lossy(bytes)),
        _ => {
            if let Some(origin) = Origin::parse(bytes) {
                assert_eq!(origin.as_bytes(), bytes);
                assert_eq!(origin.index_name().len(), 2 * bytes.len());
                origin.on_file_system(None);
            }
        }
    }
}

fn options(bytes: &[u8]) {
    let mut options = MountOptions::default();
    if let Err(error) = options.parse(OsStr::from_bytes(bytes)) {
        assert!(!error.to_string().is_empty());
    }
    assert!(options.lower_count() <= bytes.len());
    for path in options.lowers.iter().chain(&options.upper) {
        // A path with a backslash before each byte means that path.
        let path = path.as_os_str();
        let escaped = path.as_bytes().iter().flat_map(|byte| [b'\\', *byte]);
        let text: Vec<u8> = b"upperdir=".iter().copied().chain(escaped).collect();
        let mut again = MountOptions::default();
        again.parse(OsStr::from_bytes(&text)).unwrap();
        assert_eq!(again.upper.as_ref().map(|p| p.as_os_str()), Some(path));
    }
}

fn names(text: &str) {
    NamedLayer::is_name(text);
    if let Some(id) = CacheId::parse(text.as_bytes()) {
        assert!(id.as_str() == text && !text.contains('/'));
    }
    if let Some(digest) = Digest::parse(text) {
        assert_eq!(digest.to_string(), text);
    }
    if let Err(error) = Query::parse(text) {
        one_line(&error);
    }
    let Ok(reference) = Reference::parse(text) else {
        return;
    };
    let whole = Reference::parse(&reference.to_string()).unwrap();
    assert_eq!(whole.key(), reference.key());
    assert_eq!(whole.domain(), reference.domain());
    assert_eq!(whole.path(), reference.path());
    let short = Reference::parse(&reference.key()).unwrap();
    assert_eq!(short.key(), reference.key());
    assert_eq!(short.domain(), reference.domain());
    assert_eq!(short.path(), reference.path());
}

pub fn seeds() -> Vec<Vec<u8>> {
    let hex = "0123456789abcdef".repeat(4);
    let options = [
        r"lowerdir=/a:/b\:c::/data,upperdir=/u\,p,workdir=/w",
        r#"ro,nonempty,volatile,redirect_dir=on,dialect=overlay,fsname=x,context="a,b",nodev"#,
        "uidmapping=0:1000:1,squash_to_root,xattr_permissions=2,userxattr,debug,rw,suid",
        r#"lowerdir="/a,b":/c,,lowerdir=:,upperdir="#,
    ];
    let names = [
        "busybox".to_owned(),
        "docker.io/library/app:1.0".to_owned(),
        format!("localhost:5000/a__b/c-d.e:T@sha256:{hex}"),
        format!("sha256:{hex}"),
        hex.clone(),
        "index.docker.io/a".to_owned(),
        "[::1]:80/a".to_owned(),
    ];
    let origin = [&[0, 0xfb, 25, 2, 1][..], &[7; 20]].concat();
    let options = options.into_iter().map(|o| [b"\0", o.as_bytes()].concat());
    let names = names.iter().map(|n| [b"\x01", n.as_bytes()].concat());
    options
        .chain(names)
        .chain([[b"\x02", &origin[..]].concat()])
        .collect()
}
