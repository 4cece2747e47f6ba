//! What needs no kernel that offers it; mounts over io_uring are in `tests/mount/uring.rs`.

use zerocopy::IntoBytes;

use super::*;
use crate::fuse::operations::{EmptyReply, Offset};
use crate::fuse::wire::abi::{InHeader, ReadIn, UringEntInOut, WriteIn};
use crate::fuse::wire::request::{Header, Request};

#[test]
fn cpus_are_counted() {
    assert_eq!(count("0"), Some(1));
    assert_eq!(count("0-3"), Some(4));
    assert_eq!(count("0-3,8,10-11"), Some(7));
    for wrong in ["", "a", "3-0", "0-", "0-70000", "-1", "0,,1"] {
        assert_eq!(count(wrong), None, "{wrong}");
    }
    assert!(possible_cpus().unwrap() >= 1);
}

/// Answers LOOKUP with its name twice, WRITE with its data, UNLINK from another thread and
/// with too much, READ in place where the offset is 0; panics at GETATTR and forgets to answer the rest.
struct Odd;

impl Handler for Odd {
    fn handle(&self, _: &Header, request: Request<'_>, reply: Reply) {
        match request {
            Request::Lookup { name } => assert!(reply.bytes(&[name, name].concat())),
            Request::Write(write) => assert!(reply.bytes(write.data)),
            Request::Unlink { name } => {
                let name = name.to_vec();
                std::thread::spawn(move || reply.bytes(&name));
            }
            Request::RmDir { .. } => assert!(!reply.bytes(&[0; 10_000])),
            Request::Read { offset, size, .. } => {
                let fill = |room: &mut [u8]| {
                    assert_ne!(offset, Offset(2), "expected by the test");
                    room.fill(b'x');
                    (offset == Offset(0)).then_some(room.len() - 1)
                };
                if let Some(reply) = reply.filled(size, fill) {
                    assert!(reply.bytes(b"copied"));
                }
            }
            Request::GetAttr => panic!("expected by the test"),
            _ => {}
        }
    }
}

fn served(handler: impl Handler) -> Served {
    Served::new(Arc::new(handler), Box::new(|| ()))
}

/// What `Odd` answers to a request; `None` where io_uring is forbidden.
fn asked(opcode: u32, op: &[u8], rest: &[u8]) -> Option<(i32, Vec<u8>)> {
    let null = std::fs::File::open("/dev/null").unwrap();
    let (_entry, mut payload) = match Entry::new(null, 0, 8192) {
        Ok(both) => both,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "io_uring: {error}");
            eprintln!("skipped: io_uring: {error}");
            return None;
        }
    };
    payload[..rest.len()].copy_from_slice(rest);
    let fixed = InHeader {
        len: (size_of::<InHeader>() + op.len() + rest.len()) as u32,
        opcode,
        unique: 5,
        ..InHeader::default()
    };
    let ent = UringEntInOut {
        commit_id: 5,
        payload_sz: rest.len() as u32,
        ..UringEntInOut::default()
    };
    let mut header = [0; HEADER];
    fixed.write_to_prefix(&mut header).unwrap();
    header[128..128 + op.len()].copy_from_slice(op);
    ent.write_to(&mut header[256..]).unwrap();
    let slot = Arc::default();
    let (answer, payload) = answer(&served(Odd), &header, payload, &mut Vec::new(), &slot).unwrap();
    Some((answer.error, payload[..answer.len].to_vec()))
}

#[test]
fn every_request_is_answered_once_whatever_becomes_of_it() {
    let write = WriteIn {
        size: 4,
        ..WriteIn::default()
    };
    let read = |offset, size| ReadIn {
        offset,
        size,
        ..ReadIn::default()
    };
    let (in_place, failing) = (read(0, 4), read(1, 4));
    let (panicking, too_long) = (read(2, 4), read(0, 10_000));
    let eio: (i32, &[u8]) = (-libc::EIO, b"");
    for (opcode, op, rest, expected) in [
        (op::LOOKUP, &b""[..], &b"ab\0"[..], (0, &b"abab"[..])),
        (op::WRITE, write.as_bytes(), b"data", (0, b"data")),
        (op::UNLINK, b"", b"name\0", (0, b"name")),
        (op::RMDIR, b"", b"name\0", eio),
        (op::GETATTR, &[0; 16], b"", eio),
        (op::READLINK, b"", b"", eio),
        (op::READ, in_place.as_bytes(), b"", (0, b"xxx")),
        (op::READ, failing.as_bytes(), b"", (0, b"copied")),
        (op::READ, panicking.as_bytes(), b"", eio),
        (op::READ, too_long.as_bytes(), b"", (0, b"copied")),
        // Shorter than WRITE's own struct says.
        (op::WRITE, write.as_bytes(), b"dat", eio),
    ] {
        match asked(opcode, op, rest) {
            Some((error, data)) => assert_eq!((error, &*data), expected, "{opcode}"),
            None => return,
        }
    }
}

/// Keeps its replies, as slow work does.
#[derive(Default)]
struct Keeper(parking_lot::Mutex<Vec<Reply>>);

impl Handler for Arc<Keeper> {
    fn handle(&self, _: &Header, _: Request<'_>, reply: Reply) {
        self.0.lock().push(reply);
    }
}

#[test]
fn nobody_waits_for_slow_work_once_the_connection_is_gone() {
    let null = std::fs::File::open("/dev/null").unwrap();
    let Ok((_entry, payload)) = Entry::new(null, 0, 8192) else {
        // `asked` says so.
        return;
    };
    let keeper = Arc::new(Keeper::default());
    let served = served(Arc::clone(&keeper));
    let fixed = InHeader {
        len: size_of::<InHeader>() as u32,
        opcode: op::READLINK,
        ..InHeader::default()
    };
    let mut header = [0; HEADER];
    fixed.write_to_prefix(&mut header).unwrap();
    let slot = Arc::default();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| answer(&served, &header, payload, &mut Vec::new(), &slot));
        while keeper.0.lock().is_empty() {
            std::thread::yield_now();
        }
        assert!(!waiting.is_finished());
        served.give_up();
        assert!(waiting.join().unwrap().is_none());
    });
    // The answer that comes too late goes nowhere, and harms nobody.
    keeper.0.lock().drain(..).for_each(EmptyReply::ok);
}
