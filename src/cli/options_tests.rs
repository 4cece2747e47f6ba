//! Tests of the option parser: the options of known callers, and properties.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use proptest::prelude::*;

use super::options::*;
use super::owner_options::OwnersOf;
use unionfs::fuse::{IoPolicy, Transport};
use unionfs::layer::recorded::Form;
use unionfs::union::{IdMap, IdRange};

fn parse(text: &str) -> Result<MountOptions, OptionError> {
    let mut options = MountOptions::default();
    options.parse(OsStr::new(text))?;
    Ok(options)
}

fn ok(text: &str) -> MountOptions {
    parse(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn refused(text: &str, why: &str) {
    let e = parse(text).expect_err(text);
    assert!(e.message.contains(why), "{text}: {e}");
    assert!(!e.message.contains('\n'), "one line: {e}");
}

/// A name as one directory of a `lowerdir=` list.
fn escape(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    for &b in name {
        if matches!(b, b'\\' | b':' | b',') {
            out.push(b'\\');
        }
        out.push(b);
    }
    out
}

fn paths(list: &[&str]) -> Vec<PathBuf> {
    list.iter().map(PathBuf::from).collect()
}

#[test]
fn transports() {
    assert_eq!(ok("transport=uring").transport, Some(Transport::Uring));
    assert_eq!(ok("transport=classic").transport, Some(Transport::Classic));
    assert_eq!(ok("transport=uring,transport=auto").transport, None);
    for wrong in ["transport", "transport=", "transport=URING"] {
        refused(wrong, "transport=");
    }
}

#[test]
fn what_podman_passes() {
    let o = ok(
        "lowerdir=l/ABC:l/DEF,upperdir=/s/1/diff,workdir=/s/1/work,,volatile,\
         context=\"system_u:object_r:container_file_t:s0:c1,c2\",private",
    );
    assert_eq!(o.lowers, paths(&["l/ABC", "l/DEF"]));
    assert_eq!(o.upper, Some("/s/1/diff".into()));
    assert_eq!(o.work, Some("/s/1/work".into()));
    assert!(o.volatile);
    assert_eq!(
        o.other,
        [
            "context=\"system_u:object_r:container_file_t:s0:c1,c2\"",
            "private"
        ]
    );
}

#[test]
fn empty_options_are_skipped() {
    assert_eq!(ok(""), MountOptions::default());
    assert_eq!(ok(",,,"), MountOptions::default());
    assert_eq!(ok(",ro,").read_only, Some(true));
}

#[test]
fn escaped_colons_and_commas_belong_to_the_name() {
    assert_eq!(ok(r"lowerdir=a\:b:c").lowers, paths(&["a:b", "c"]));
    assert_eq!(ok(r"lowerdir=a\,b,ro").lowers, paths(&["a,b"]));
    assert_eq!(ok(r"lowerdir=a\\:b").lowers, paths(&[r"a\", "b"]));
    assert_eq!(ok(r"upperdir=u\:\,x").upper, Some("u:,x".into()));
    assert_eq!(ok(r"upperdir=u:x").upper, Some("u:x".into()));
}

#[test]
fn data_only_lowers() {
    let o = ok("lowerdir=a:b::c::d");
    assert_eq!(o.lowers, paths(&["a", "b"]));
    assert_eq!(o.data_only, paths(&["c", "d"]));
    refused("lowerdir=a::b:c", "data-only");
    refused("lowerdir=::a", "empty directory name");
    refused("lowerdir=a:::b", "empty directory name");
    refused("lowerdir=a:", "empty directory name");
    refused("lowerdir=:a", "empty directory name");
    refused("lowerdir=", "empty directory name");
}

#[test]
fn a_later_lowerdir_replaces_and_a_plus_appends() {
    assert_eq!(ok("lowerdir=a::b,lowerdir=c").lowers, paths(&["c"]));
    assert!(ok("lowerdir=a::b,lowerdir=c").data_only.is_empty());
    let o = ok("lowerdir+=a,lowerdir+=b,datadir+=d");
    assert_eq!((o.lowers, o.data_only), (paths(&["a", "b"]), paths(&["d"])));
}

#[test]
fn mappings_of_owners() {
    let users = |text: &str| ok(text).owners.users;
    let range = |disk, shown, len| IdRange { disk, shown, len };
    let map = |ranges: &[IdRange]| IdMap::new(ranges.to_vec()).unwrap();
    let podman = ":0:1:1005:1005:0:1:1006:1006:64531";
    assert_eq!(
        users(&format!("uidmapping={podman}")),
        map(&[
            range(0, 1, 1005),
            range(1005, 0, 1),
            range(1006, 1006, 64531)
        ])
    );
    assert_eq!(users("uidmapping=::0:5:1:"), map(&[range(0, 5, 1)]));
    for none in [
        "uidmapping=",
        "uidmapping=:",
        "uidmapping=0:1:2,uidmapping=",
    ] {
        assert_eq!(users(none), IdMap::default(), "{none}");
    }
    assert!(users("gidmapping=0:5:1").is_identity());
    refused("gidmapping=0:0", "divisible by three");
    refused("uidmapping=0:0:99999999999", "not all fields are numbers");
    refused("uidmapping=0:0:10:5:5:10", "have IDs in common");
    refused("uidmapping=5:5:4294967295", "beyond the last ID");
    refused("uidmapping=5:5:0", "is empty");
    refused("uidmapping=0:-1:1", "DISK:SHOWN:LENGTH");
    refused("uidmapping", "needs a value");
}

#[test]
fn squashed_owners() {
    let owners = |text: &str| ok(text).owners;
    assert!(owners("squash_to_root").squash_to_root);
    assert_eq!(owners("squash_to_uid=1000").squash_to_uid, Some(1000));
    assert_eq!(owners("squash_to_gid=5").squash_to_gid, Some(5));
    assert!(owners("squash_to_gid=5").squashes() && !owners("").squashes());
    refused("squash_to_uid=x", "not an ID");
    refused("squash_to_gid=4294967295", "not an ID");
    refused("squash_to_uid", "needs a value");
    refused("owners=theirs", "use owners=image or owners=mine");
    assert_eq!(owners("owners=mine").of, Some(OwnersOf::Mine));
    assert_eq!(owners("user_as=5:6").user_as, Some((5, 6)));
    assert_eq!(owners("user_as=5").user_as, Some((5, 5)));
    for wrong in ["user_as=x", "user_as=5:", "user_as=5:4294967295"] {
        refused(wrong, "user_as=UID:GID");
    }
    assert_eq!(owners("xattr_permissions=0").records, None);
    assert_eq!(
        owners("xattr_permissions=1").records,
        Some(Form::Privileged)
    );
    assert_eq!(
        owners("xattr_permissions=2").records,
        Some(Form::Containers)
    );
}

#[test]
fn what_is_not_the_unions_is_kept_in_order() {
    let o = ok("ro,nodev,xino=off,x-foo=\"a,b\",rw,bar,volatile");
    assert_eq!(o.read_only, Some(false));
    assert_eq!(o.other, ["nodev", "xino=off", "x-foo=\"a,b\"", "bar"]);
}

#[test]
fn other_values() {
    assert_eq!(ok("fsname=a\\,b").fsname, Some("a,b".into()));
    assert_eq!(ok("redirect_dir=on").redirect_dir, Some(true));
    assert_eq!(ok("redirect_dir=nofollow").redirect_dir, Some(false));
    assert_eq!(ok("dialect=overlay").markers, Some(Markers::Overlay));
    refused("dialect=x", "dialect=all or dialect=overlay");
    refused("redirect_dir=x", "redirect_dir=on");
    assert_eq!(ok("metacopy=on,metacopy=off").metacopy, Some(false));
    refused("metacopy=x", "metacopy=on");
    refused("metacopy", "needs a value");
    assert!(ok("metacopy=on,redirect_dir=on").check().is_ok());
    let conflict = ok("metacopy=on,redirect_dir=off").check().unwrap_err();
    assert!(conflict.message.contains("redirect_dir=on"), "{conflict}");
    assert_eq!(ok("io=auto").io, Some(IoPolicy::Auto));
    assert_eq!(
        ok("io=cached,io=passthrough").io,
        Some(IoPolicy::Passthrough)
    );
    refused("io=fast", "io=cached");
    assert!(ok("writeback").writeback && !ok("writeback,writeback=0").writeback);
    refused("writeback=on", "0 or 1");
    assert!(ok("noxattrs").noxattrs && ok("noxattrs=1").noxattrs && !ok("noxattrs=0").noxattrs);
    refused("noxattrs=off", "0 or 1");
    assert!(ok("nobtime").nobtime && !ok("ro").nobtime);
    assert!(ok("allow_idmap").allow_idmap && !ok("ro").allow_idmap);
    assert!(ok("io=passthrough,writeback").check().is_err());
    assert!(ok("io=cached,writeback").check().is_ok());
    refused("io", "io=…");
    refused("upperdir=", "names no directory");
    refused("lowerdir", "needs a value");
}

#[test]
fn an_open_quote_protects_nothing() {
    let o = ok("context=\"a,ro");
    assert_eq!(o.other, ["context=\"a"]);
    assert_eq!(o.read_only, Some(true));
    assert_eq!(ok("upperdir=\"a,b\"").upper, Some("\"a".into()));
}

/// Any file name except the empty one and those with NUL, often with special bytes.
fn any_name() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        3 => prop::sample::select(br#"\:,="a/"#.to_vec()),
        1 => 1u8..=255,
    ];
    prop::collection::vec(byte, 1..12)
}

proptest! {
    #[test]
    fn never_panics(text in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = MountOptions::default().parse(OsStr::from_bytes(&text));
    }

    #[test]
    fn never_panics_on_near_misses(
        text in prop::collection::vec(
            prop::sample::select(vec![
                "lowerdir=", "upperdir=", "uidmapping=", "context=", ",", ":", "\\", "\"", "::",
                "a", "0", "=", "ro", "squash_to_uid=",
            ]),
            0..20,
        )
    ) {
        let _ = parse(&text.concat());
    }

    #[test]
    fn round_trip(
        lowers in prop::collection::vec(any_name(), 1..6),
        data in prop::collection::vec(any_name(), 0..4),
        upper in any_name(),
        fsname in any_name(),
    ) {
        let path = |name: &Vec<u8>| PathBuf::from(OsString::from_vec(name.clone()));
        let mut text = b"ro,,lowerdir=".to_vec();
        text.extend(lowers.iter().map(|name| escape(name)).collect::<Vec<_>>().join(&b':'));
        for name in &data {
            text.extend_from_slice(b"::");
            text.extend(escape(name));
        }
        text.extend_from_slice(b",upperdir=");
        text.extend(escape(&upper));
        text.extend_from_slice(b",fsname=");
        text.extend(escape(&fsname));
        text.extend_from_slice(b",volatile");

        let mut o = MountOptions::default();
        o.parse(OsStr::from_bytes(&text)).unwrap();
        prop_assert_eq!(&o.lowers, &lowers.iter().map(path).collect::<Vec<_>>());
        prop_assert_eq!(&o.data_only, &data.iter().map(path).collect::<Vec<_>>());
        prop_assert_eq!(o.upper.clone(), Some(path(&upper)));
        prop_assert_eq!(o.fsname.clone(), Some(OsString::from_vec(fsname)));
        prop_assert!(o.volatile && o.read_only == Some(true) && o.other.is_empty());
    }
}
