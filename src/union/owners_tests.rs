use super::*;

const OTHER: Owner = Owner { uid: 77, gid: 77 };

fn range(disk: u32, shown: u32, len: u32) -> IdRange {
    IdRange { disk, shown, len }
}

fn owners(ranges: Vec<IdRange>) -> Owners {
    let map = IdMap::new(ranges).unwrap();
    Owners {
        users: map.clone(),
        groups: map,
        ..Owners::default()
    }
}

#[test]
fn two_ids_are_exchanged() {
    for (one, other) in [(0, 1000), (1000, 0), (5, 6), (0, u32::MAX - 1)] {
        let map = IdMap::exchange(one, other);
        // Ranges that have IDs in common, or go too far, are refused.
        let checked = IdMap::new(map.ranges.clone()).unwrap();
        assert_eq!(checked, map);
        for (disk, shown) in [
            (one, other),
            (other, one),
            (7, 7),
            (999, 999),
            (70000, 70000),
        ] {
            assert_eq!(map.shown_for(disk), Some(shown), "{one} {other}");
            assert_eq!(map.back(shown), Some(disk), "{one} {other}");
        }
        assert_eq!(map.back(NO_ID), None);
    }
    assert!(IdMap::exchange(5, 5).is_identity());
    assert!(IdMap::exchange(5, NO_ID).is_identity());
}

/// Symlinks have no records: those of the user who made them are root's, then mapped as others.
#[test]
fn symlinks_without_records_are_roots() {
    let mut stat = crate::layer::at::At::new(rustix::fs::CWD, b"/")
        .stat()
        .unwrap();
    let shown = |owners: &Owners, stat: &Stat| {
        let shown = owners.shown(Side::Upper, stat);
        (shown.uid, shown.gid)
    };
    let mut owners = Owners {
        unrecorded: Some((77, 78)),
        ..Owners::default()
    };
    (stat.uid, stat.gid) = (77, 78);
    assert_eq!(shown(&owners, &stat), (77, 78));
    stat.kind = FileKind::Symlink;
    assert_eq!(shown(&owners, &stat), (0, 0));
    owners.users = IdMap::exchange(0, 77);
    assert_eq!(shown(&owners, &stat), (77, 0));
    (stat.uid, stat.gid) = (5, 6);
    assert_eq!(shown(&owners, &stat), (5, 6));
}

#[test]
fn ids_go_forth_and_back() {
    let map = IdMap::new(vec![
        range(0, 1, 1005),
        range(1005, 0, 1),
        range(1006, 1006, 64531),
    ])
    .unwrap();
    for (disk, shown) in [
        (0, 1),
        (1004, 1005),
        (1005, 0),
        (1006, 1006),
        (65536, 65536),
    ] {
        assert_eq!(
            (map.shown_for(disk), map.back(shown)),
            (Some(shown), Some(disk))
        );
    }
    assert_eq!((map.shown_for(65537), map.back(65537)), (None, None));
    assert_eq!(map.back(NO_ID), None);
    assert_eq!(IdMap::default().shown_for(7), Some(7));
    assert_eq!(IdMap::default().back(NO_ID), None);
}

#[test]
fn maps_that_are_none() {
    let refused = |ranges| IdMap::new(ranges).unwrap_err();
    let (a, b) = (range(0, 0, 10), range(5, 50, 10));
    assert_eq!(refused(vec![a, b]), IdMapError::Overlap(a, b));
    let (a, b) = (range(0, 0, 10), range(50, 9, 1));
    assert_eq!(refused(vec![a, b]), IdMapError::Overlap(a, b));
    let far = range(5, 5, u32::MAX);
    assert_eq!(refused(vec![far]), IdMapError::Overflow(far));
    let empty = range(0, 0, 0);
    assert_eq!(refused(vec![empty]), IdMapError::Empty(empty));
    assert!(IdMap::new(vec![range(0, 0, u32::MAX)]).is_ok());
    assert!(IdMap::new(vec![range(0, 10, 10), range(10, 0, 10)]).is_ok());
}

#[test]
fn outside_of_the_mapping() {
    let mut owners = owners(vec![range(0, 1000, 10)]);
    let caller = Caller { uid: 5, gid: 1000 };
    assert_eq!(owners.creator(&caller, OTHER), Err(Errno::OVERFLOW));
    assert_eq!(owners.unsquashed(&owners.users, Side::Upper, 10), NO_ID);
    owners.outside = Outside::Overflow;
    let made = owners.creator(&caller, OTHER).unwrap();
    assert_eq!((made.uid, made.gid), (OVERFLOW_ID, 0));
    assert_eq!(
        owners.unsquashed(&owners.users, Side::Upper, 10),
        OVERFLOW_ID
    );
    let nobody = Caller { uid: NO_ID, gid: 0 };
    assert_eq!(owners.creator(&nobody, OTHER), Err(Errno::OVERFLOW));
    assert_eq!(
        Owners::default().creator(&nobody, OTHER),
        Err(Errno::OVERFLOW)
    );
}

#[test]
fn the_server_itself_creates_its_own_files() {
    let owners = owners(vec![range(0, 1000, 10)]);
    let own = Owner { uid: 0, gid: 0 };
    let made = |uid, gid| owners.creator(&Caller { uid, gid }, own);
    assert_eq!(made(0, 5), Ok(Caller { uid: 0, gid: 0 }));
    assert_eq!(made(0, 1003), Ok(Caller { uid: 0, gid: 3 }));
    assert_eq!(made(1003, 5), Err(Errno::OVERFLOW));
    assert_eq!(made(0, NO_ID), Err(Errno::OVERFLOW));
}

#[test]
fn squashed_ids_are_only_shown() {
    let mut owners = Owners::default();
    owners.users.squash_to(7);
    assert!(!owners.is_identity() && owners.is_squashed());
    let caller = Caller { uid: 5, gid: 6 };
    assert_eq!(owners.creator(&caller, OTHER), Ok(caller));
}

#[test]
fn idmapped_lowers_have_shown_ids() {
    let mut owners = owners(vec![range(0, 1000, 10)]);
    owners.lowers = LowerIds::Shown;
    let users = owners.users.clone();
    assert_eq!(owners.unsquashed(&users, Side::Lower, 1003), 1003);
    assert_eq!(owners.unsquashed(&users, Side::Lower, 3), NO_ID);
    assert_eq!(owners.unsquashed(&users, Side::Upper, 3), 1003);
}

fn capability(root: Option<u32>) -> Vec<u8> {
    let revision: u32 = if root.is_some() { 3 } else { 2 };
    let mut value = (revision << 24 | 1).to_le_bytes().to_vec();
    value.extend([9; 16]);
    value.extend(root.map(u32::to_le_bytes).into_iter().flatten());
    value
}

#[test]
fn capabilities_are_those_of_the_mapped_root() {
    let owners = owners(vec![range(0, 1000, 10)]);
    let name = b"security.capability";
    let shown = |root| owners.shown_xattr(Side::Upper, name, capability(root));
    assert_eq!(shown(None), Ok(capability(Some(1000))));
    assert_eq!(shown(Some(3)), Ok(capability(Some(1003))));
    assert_eq!(shown(Some(10)), Err(Errno::NODATA));
    let stored = |root| {
        owners
            .disk_xattr(name, &capability(root))
            .map(Cow::into_owned)
    };
    assert_eq!(stored(Some(1000)), Ok(capability(None)));
    assert_eq!(stored(Some(1003)), Ok(capability(Some(3))));
    assert_eq!(stored(None), Err(Errno::INVAL));
    let short = owners.shown_xattr(Side::Upper, name, vec![1]);
    assert_eq!(short, Err(Errno::NODATA));
}

#[test]
fn acl_entries_are_mapped() {
    let mut owners = owners(vec![range(0, 1000, 10)]);
    let acl = |entries: &[(u16, u32)]| {
        let mut value = vec![2, 0, 0, 0];
        for (tag, id) in entries {
            value.extend(tag.to_le_bytes());
            value.extend(7u16.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    };
    let disk = acl(&[
        (1, NO_ID),
        (2, 3),
        (2, 77),
        (4, NO_ID),
        (8, 4),
        (0x10, NO_ID),
    ]);
    let name = b"system.posix_acl_default";
    let shown = acl(&[(1, NO_ID), (2, 1003), (4, NO_ID), (8, 1004), (0x10, NO_ID)]);
    assert_eq!(
        owners.shown_xattr(Side::Upper, name, disk.clone()),
        Ok(shown.clone())
    );
    let back = acl(&[(1, NO_ID), (2, 3), (4, NO_ID), (8, 4), (0x10, NO_ID)]);
    assert_eq!(owners.disk_xattr(name, &shown).unwrap(), back);
    assert_eq!(owners.disk_xattr(name, &disk), Err(Errno::INVAL));
    owners.outside = Outside::Overflow;
    let shown = owners.shown_xattr(Side::Upper, name, acl(&[(2, 77)]));
    assert_eq!(shown, Ok(acl(&[(2, OVERFLOW_ID)])));
    for odd in [vec![], vec![2], vec![2, 0, 0, 0, 1]] {
        assert_eq!(owners.shown_xattr(Side::Upper, name, odd.clone()), Ok(odd));
    }
}
