//! Tests the handshake and a worker, with a socket instead of the kernel: its packets keep messages
//! apart as /dev/fuse does.

use std::sync::Mutex;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use zerocopy::IntoBytes;

use super::*;
use abi::{InHeader, OutHeader};

const LIMITS: Limits = Limits {
    flags: init::DONT_MASK | init::POSIX_ACL,
    flags2: 0,
    max_io: 1 << 20,
    max_background: 64,
    transport: Some(Transport::Classic),
    stack_depth: 0,
};

fn pair() -> (OwnedFd, OwnedFd) {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None).unwrap()
}

fn send(kernel: &OwnedFd, opcode: u32, body: &[u8]) {
    let header = InHeader {
        len: (size_of::<InHeader>() + body.len()) as u32,
        opcode,
        unique: u64::from(opcode),
        ..InHeader::default()
    };
    rustix::io::write(kernel, &[header.as_bytes(), body].concat()).unwrap();
}

fn init(major: u32, minor: u32) -> InitIn {
    InitIn {
        major,
        minor,
        max_readahead: 1 << 17,
        flags: u32::MAX,
    }
}

fn answered(kernel: &OwnedFd) -> (OutHeader, Vec<u8>) {
    let mut space = [0; 512];
    let len = rustix::io::read(kernel, &mut space).unwrap();
    let (header, body) = OutHeader::read_from_prefix(&space[..len]).unwrap();
    (header, body.to_vec())
}

#[test]
fn shakes_hands() {
    let (kernel, ours) = pair();
    // A kernel with a newer major version sends INIT again.
    send(&kernel, op::INIT, init(8, 1).as_bytes());
    send(&kernel, op::INIT, init(7, 99).as_bytes());
    let connection = Connection::open(ours, &LIMITS).unwrap();
    let (_, first) = answered(&kernel);
    assert_eq!(InitOut::read_from_bytes(&first).unwrap().major, 7);
    let (header, second) = answered(&kernel);
    assert_eq!(header.error, 0);
    let out = InitOut::read_from_bytes(&second).unwrap();
    assert_eq!((out.major, out.minor), (7, abi::MINOR));
    let sizes = init::BIG_WRITES | init::MAX_PAGES;
    assert_eq!(out.flags, LIMITS.flags | sizes);
    assert_eq!((out.flags2, out.max_stack_depth), (0, 0));
    assert_eq!(connection.flags(), out.flags);
    assert_eq!(connection.transport(), Transport::Classic);
    assert_eq!((out.max_write, out.max_readahead), (1 << 20, 1 << 17));
    let page = rustix::param::page_size();
    assert_eq!(usize::from(out.max_pages) * page, 1 << 20);
}

/// Tests that truncation by OPEN is agreed on with passthrough only.
#[test]
fn passthrough_where_both_sides_know_it() {
    let limits = Limits {
        stack_depth: 2,
        ..LIMITS
    };
    let offer = [init(7, 45).as_bytes(), u32::MAX.as_bytes(), &[0; 44]].concat();
    let older = init(7, 35);
    let extended = init::INIT_EXT | init::ATOMIC_O_TRUNC;
    for (body, flags2, depth) in [
        (&offer[..], init2::PASSTHROUGH, 2),
        (older.as_bytes(), 0, 0),
    ] {
        let (kernel, ours) = pair();
        send(&kernel, op::INIT, body);
        let connection = Connection::open(ours, &limits).unwrap();
        let out = InitOut::read_from_bytes(&answered(&kernel).1).unwrap();
        assert_eq!((out.flags2, out.max_stack_depth), (flags2, depth));
        assert_eq!(connection.flags2(), flags2);
        let expected = if flags2 == 0 { 0 } else { extended };
        assert_eq!(out.flags & extended, expected);
    }
}

#[test]
fn refuses_what_is_too_old_or_no_handshake() {
    let (kernel, ours) = pair();
    send(&kernel, op::INIT, init(7, 30).as_bytes());
    let error = Connection::open(ours, &LIMITS).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPROTO));
    assert_eq!(answered(&kernel).0.error, -libc::EPROTO);
    for (opcode, body) in [(op::LOOKUP, &b"a\0"[..]), (op::INIT, &b"short"[..])] {
        let (kernel, ours) = pair();
        send(&kernel, opcode, body);
        Connection::open(ours, &LIMITS).unwrap_err();
        assert_eq!(answered(&kernel).0.error, -libc::EIO);
    }
}

#[test]
fn io_uring_is_promised_only_where_it_is_offered_and_possible() {
    let offer = |flags2: u32| [init(7, 45).as_bytes(), flags2.as_bytes(), &[0; 44]].concat();
    let over_io_uring = init2::OVER_IO_URING;
    let open = |flags2, transport| {
        let (kernel, ours) = pair();
        send(&kernel, op::INIT, &offer(flags2));
        let connection = Connection::open(
            ours,
            &Limits {
                transport,
                ..LIMITS
            },
        );
        let (header, body) = answered(&kernel);
        let out = InitOut::read_from_bytes(&body).unwrap_or_default();
        (connection, header.error, out)
    };
    // The kernel does not offer it.
    let (connection, _, out) = open(0, None);
    assert_eq!(
        (connection.unwrap().transport(), out.flags2),
        (Transport::Classic, 0)
    );
    let (connection, error, _) = open(0, Some(Transport::Uring));
    let text = connection.unwrap_err().to_string();
    assert!(
        text.contains("enable_uring") && error == -libc::EIO,
        "{text}"
    );
    // The kernel offers it, but it is not wanted.
    let (_, _, out) = open(over_io_uring, Some(Transport::Classic));
    assert_eq!((out.flags2, out.flags & init::INIT_EXT), (0, 0));
    // The kernel offers it: the transport is rings, or reported as classic if this process may not
    // have rings.
    let (connection, _, out) = open(over_io_uring, None);
    let connection = connection.unwrap();
    let promised = out.flags2 == over_io_uring && out.flags & init::INIT_EXT != 0;
    assert_eq!(promised, connection.transport() == Transport::Uring);
    // The connection was never served; its threads end.
    drop(connection);
}

/// A handler that answers LOOKUP with the name and WRITE with the distance of its data from the
/// start of a page, panics at GETATTR, and records FORGET.
#[derive(Default)]
struct Echo(Mutex<Vec<u64>>);

impl Handler for Echo {
    fn handle(&self, _: &Header, request: Request<'_>, reply: Reply) {
        match request {
            Request::Lookup { name } => {
                reply.bytes(name);
            }
            Request::Write(write) => {
                let past = (write.data.as_ptr().addr() % 4096) as u64;
                reply.message(&past);
            }
            Request::GetAttr => panic!("expected by the test"),
            Request::Forget { count } => self.0.lock().unwrap().push(count),
            _ => reply.error(libc::EINVAL),
        }
    }
}

#[test]
fn a_worker_survives_what_it_is_sent() {
    let (kernel, ours) = pair();
    let echo = Arc::new(Echo::default());
    let handler = Arc::clone(&echo);
    let worker = std::thread::spawn(move || {
        work(
            &Arc::new(ours),
            &*handler,
            request::parse,
            8192,
            &OnceLock::new(),
        )
    });
    rustix::io::write(&kernel, b"noise").unwrap();
    send(&kernel, op::GETATTR, &[]);
    assert_eq!(answered(&kernel).0.error, -libc::EIO, "the bug is answered");
    send(&kernel, op::LOOKUP, b"no end");
    assert_eq!(answered(&kernel).0.error, -libc::EINVAL);
    send(&kernel, op::FORGET, 3u64.as_bytes());
    send(&kernel, op::LOOKUP, b"name\0");
    let (header, name) = answered(&kernel);
    assert_eq!(
        (header.error, &*name),
        (0, &b"name"[..]),
        "FORGET is not answered"
    );
    assert_eq!(*echo.0.lock().unwrap(), [3]);
    assert_eq!(header.unique, u64::from(op::LOOKUP));
    drop(kernel);
    worker.join().unwrap().unwrap();
}

#[test]
fn beside_the_rings_one_thread_reads_until_they_fail() {
    let (kernel, ours) = pair();
    let connection = Connection {
        device: Arc::new(ours),
        flags: 0,
        flags2: 0,
        buffer: 8192,
        rings: None,
        spares: None,
    };
    let echo = Arc::new(Echo::default());
    let handler: Arc<dyn Handler> = Arc::clone(&echo) as _;
    let reader = std::thread::spawn(move || connection.read_beside_rings(&handler, 3, || false));
    for count in 1..=3u64 {
        send(&kernel, op::FORGET, count.as_bytes());
    }
    // A request that should have come through a ring. From here on all requests come through the
    // device.
    for _ in 0..2 {
        send(&kernel, op::LOOKUP, b"name\0");
        assert_eq!(answered(&kernel).1, b"name");
    }
    assert_eq!(
        *echo.0.lock().unwrap(),
        [1, 2, 3],
        "gathered, and all taken"
    );
    drop(kernel);
    reader.join().unwrap().unwrap();
}

#[test]
fn the_data_of_a_write_lies_as_disks_want_it() {
    let (kernel, ours) = pair();
    let handler = Arc::new(Echo::default());
    let worker = std::thread::spawn(move || {
        work(
            &Arc::new(ours),
            &*handler,
            request::parse,
            8192,
            &OnceLock::new(),
        )
    });
    // The largest size is that of the longest message.
    for size in [1, 4096, 8192 - BEFORE_DATA as u32] {
        let write = abi::WriteIn {
            size,
            ..abi::WriteIn::default()
        };
        let data = vec![b'x'; size as usize];
        send(&kernel, op::WRITE, &[write.as_bytes(), &data].concat());
        let (header, past) = answered(&kernel);
        assert_eq!((header.error, &*past), (0, &[0; 8][..]), "{size} bytes");
    }
    drop(kernel);
    worker.join().unwrap().unwrap();
}
