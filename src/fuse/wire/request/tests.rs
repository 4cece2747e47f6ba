//! Well-formed messages are parsed completely; malformed ones are refused, and no message causes a
//! panic.

use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::*;

fn message(opcode: u32, body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    let header = InHeader {
        len: (size_of::<InHeader>() + body.len()) as u32,
        opcode,
        unique: 2,
        nodeid: 3,
        uid: 4,
        gid: 5,
        pid: 6,
        ..InHeader::default()
    };
    [header.as_bytes(), &body].concat()
}

fn shown(opcode: u32, body: &[&[u8]]) -> String {
    format!("{:?}", parse(opcode, &body.concat()))
}

#[test]
fn headers_are_split_off() {
    let expected = Header {
        unique: 2,
        ino: 3,
        uid: 4,
        gid: 5,
        pid: 6,
    };
    let (header, opcode, body) = split(&message(op::LOOKUP, &[b"a\0"])).map_or_else(
        || unreachable!("it is well-formed"),
        |(header, opcode, body)| (header, opcode, body.to_vec()),
    );
    assert_eq!(
        (header, opcode, &*body),
        (expected, op::LOOKUP, &b"a\0"[..])
    );
}

#[test]
fn a_message_without_its_own_length_has_no_sender() {
    let good = message(op::LOOKUP, &[b"a\0"]);
    assert!(split(&good[..good.len() - 1]).is_none());
    assert!(split(&[&good[..], b"x"].concat()).is_none());
    assert!(split(&good[..39]).is_none());
    assert!(split(b"").is_none());
    // The extensions are longer than the message.
    let mut long = good;
    long[36..38].copy_from_slice(&1u16.to_ne_bytes());
    assert!(split(&long).is_none());
}

#[test]
fn names_are_bytes_up_to_their_nul() {
    assert!(matches!(
        parse(op::LOOKUP, b"\xff/\n\0"),
        Request::Lookup { name: b"\xff/\n" }
    ));
    assert!(matches!(
        parse(op::SYMLINK, b"name\0target\0"),
        Request::SymLink {
            name: b"name",
            target: b"target"
        }
    ));
    let to = 9u64;
    assert!(matches!(
        parse(op::RENAME, &[to.as_bytes(), b"a\0b\0"].concat()),
        Request::Rename {
            name: b"a",
            to: Name {
                parent: Ino(9),
                name: b"b"
            },
            flags: 0
        }
    ));
}

#[test]
fn data_is_as_long_as_it_says() {
    let write = abi::WriteIn {
        offset: 5,
        size: 3,
        write_flags: abi::WRITE_KILL_SUIDGID,
        ..abi::WriteIn::default()
    };
    let body = [write.as_bytes(), b"abc"].concat();
    assert!(matches!(
        parse(op::WRITE, &body),
        Request::Write(WriteData {
            offset: Offset(5),
            data: b"abc",
            how: Write {
                caching: Caching::Cached,
                append: false,
                pages: false
            },
            set_id: SetIdBits::Dropped,
        })
    ));
    assert!(matches!(parse(op::WRITE, &body[..42]), Request::Malformed));
    let set = abi::SetxattrIn {
        size: 2,
        flags: 1,
        setxattr_flags: abi::SETXATTR_ACL_KILL_SGID,
        padding: 0,
    };
    assert!(matches!(
        parse(op::SETXATTR, &[set.as_bytes(), b"user.a\0vv"].concat()),
        Request::SetXattr {
            name: b"user.a",
            value: b"vv",
            flags: 1,
            kill_sgid: Some(true)
        }
    ));
    let set = abi::ShortSetxattrIn { size: 2, flags: 1 };
    assert!(matches!(
        parse_short(op::SETXATTR, &[set.as_bytes(), b"user.a\0vv"].concat()),
        Request::SetXattr {
            name: b"user.a",
            value: b"vv",
            flags: 1,
            kill_sgid: None
        }
    ));
    assert!(matches!(
        parse_short(op::SETXATTR, set.as_bytes()),
        Request::Malformed
    ));
}

#[test]
fn only_the_kernels_own_ioctls_are_answered() {
    let ioctl = |cmd, arg, (in_size, out_size), data: &[u8]| {
        let head = abi::IoctlIn {
            cmd,
            arg,
            in_size,
            out_size,
            ..abi::IoctlIn::default()
        };
        format!("{:?}", parse(op::IOCTL, &[head.as_bytes(), data].concat()))
    };
    let get = libc::FS_IOC_GETFLAGS as u32;
    let set = libc::FS_IOC_SETFLAGS as u32;
    let refused = "Ioctl";
    assert_eq!(ioctl(get, 0, (0, 4), b""), "Flags(Flags)");
    assert_eq!(
        ioctl(set, 0, (4, 0), &7u32.to_ne_bytes()),
        "SetFlags(Flags(7))"
    );
    assert_eq!(ioctl(0x801c_581f, 0, (0, 28), b""), "Flags(Xflags)");
    assert!(ioctl(0x401c_5820, 0, (28, 0), &[1; 28]).starts_with("SetFlags(Xflags("));
    // The kernel does not send this itself: a program chose its size and address.
    assert_eq!(ioctl(get, 0x1000, (0, 8), b""), refused);
    assert_eq!(ioctl(set, 0x1000, (8, 0), &[0; 8]), refused);
    assert_eq!(ioctl(set, 0, (8, 0), &[0; 8]), refused);
    assert_eq!(ioctl(0x401c_5820, 0x1000, (28, 0), &[0; 28]), refused);
    assert_eq!(ioctl(get, 0, (0, u32::MAX), b""), refused);
    assert_eq!(ioctl(0x1234, 0, (0, 0), b""), refused);
    // The data is shorter than its length field.
    assert_eq!(ioctl(set, 0, (4, 0), b"ab"), "Malformed");
    assert_eq!(ioctl(set, 0, (u32::MAX, 0), b""), "Malformed");
}

#[test]
fn forgets_are_counted_before_they_are_believed() {
    let batch = |count| abi::BatchForgetIn { count, dummy: 0 };
    let one = |nodeid, nlookup| abi::ForgetOne { nodeid, nlookup };
    let two = [one(1, 2), one(3, 4)];
    let body = [batch(2).as_bytes(), two.as_bytes()].concat();
    let Request::BatchForget(forgets) = parse(op::BATCH_FORGET, &body) else {
        unreachable!("it is well-formed");
    };
    assert_eq!(forgets.iter().collect::<Vec<_>>(), [(1, 2), (3, 4)]);
    for count in [3, 1 << 28, u32::MAX] {
        let body = [batch(count).as_bytes(), two.as_bytes()].concat();
        assert!(matches!(parse(op::BATCH_FORGET, &body), Request::Malformed));
    }
}

#[test]
fn what_is_unknown_is_not_offered() {
    for opcode in [0, 7, 48, 49, 54, 4096, u32::MAX] {
        assert_eq!(shown(opcode, &[]), "Unknown");
    }
}

/// Opcodes whose body has a minimum, and that minimum.
const WITH_BODY: &[(u32, usize)] = &[
    (op::LOOKUP, 1),
    (op::FORGET, 8),
    (op::SETATTR, 88),
    (op::IOCTL, 32),
    (op::SYMLINK, 2),
    (op::MKNOD, 17),
    (op::MKDIR, 9),
    (op::UNLINK, 1),
    (op::RMDIR, 1),
    (op::RENAME, 10),
    (op::RENAME2, 18),
    (op::LINK, 9),
    (op::READ, 40),
    (op::WRITE, 40),
    (op::FSYNC, 16),
    (op::FSYNCDIR, 16),
    (op::READDIR, 40),
    (op::READDIRPLUS, 40),
    (op::SETXATTR, 17),
    (op::GETXATTR, 9),
    (op::LISTXATTR, 8),
    (op::REMOVEXATTR, 1),
    (op::BATCH_FORGET, 8),
    (op::FALLOCATE, 32),
    (op::LSEEK, 24),
    (op::COPY_FILE_RANGE, 56),
    (op::COPY_FILE_RANGE_64, 56),
    (op::TMPFILE, 16),
    (op::CREATE, 17),
    (op::OPEN, 8),
    (op::RELEASE, 24),
    (op::STATX, 24),
];

#[test]
fn short_bodies_are_malformed() {
    for &(opcode, least) in WITH_BODY {
        for len in 0..least {
            let body = vec![0; len];
            assert_eq!(shown(opcode, &[&body]), "Malformed", "{opcode} of {len}");
        }
        assert_ne!(shown(opcode, &[&vec![0; least]]), "Malformed", "{opcode}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_without_a_panic(
        opcode in prop_oneof![0u32..60, any::<u32>()],
        body in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        if let Request::BatchForget(forgets) = parse(opcode, &body) {
            prop_assert!(forgets.iter().count() * 16 <= body.len());
        }
    }

    #[test]
    fn any_message_is_split_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        if let Some((_, _, body)) = split(&bytes) {
            prop_assert!(body.len() + 40 <= bytes.len());
        }
    }

    #[test]
    fn no_name_holds_a_nul(body in prop::collection::vec(0u8..3, 0..40)) {
        if let Request::SymLink { name, target } = parse(op::SYMLINK, &body) {
            prop_assert!(!name.contains(&0) && !target.contains(&0));
            prop_assert!(name.len() + target.len() + 2 <= body.len());
        }
    }
}

/// Parses requests as the kernel sends them over io_uring: the struct of the operation in one
/// place, the rest in another.
#[test]
fn a_body_in_two_places_is_the_same_request() {
    let mknod = abi::MknodIn {
        mode: 1,
        rdev: 2,
        umask: 3,
        padding: 0,
    };
    let set = abi::SetxattrIn {
        size: 2,
        flags: 1,
        ..abi::SetxattrIn::default()
    };
    let cases: [(u32, &[u8], &[u8]); 6] = [
        (op::LOOKUP, b"", b"name\0"),
        (op::SYMLINK, b"", b"name\0target\0"),
        (op::MKNOD, mknod.as_bytes(), b"name\0"),
        (op::SETXATTR, set.as_bytes(), b"name\0va"),
        (op::GETATTR, &[0; 16], b""),
        (op::RENAME2, &[0; 16], b"a\0b\0"),
    ];
    for (opcode, head, rest) in cases {
        let parts = parse_parts(opcode, head, rest);
        assert!(!matches!(parts, Request::Malformed), "{opcode}");
        assert_eq!(format!("{parts:?}"), shown(opcode, &[head, rest]));
    }
    // No value is assembled from both parts.
    for (opcode, head, rest) in [
        (op::LOOKUP, &b"na"[..], &b"me\0"[..]),
        (op::MKNOD, b"12345678", b"123456789\0"),
    ] {
        assert!(matches!(
            parse_parts(opcode, head, rest),
            Request::Malformed
        ));
    }
}
