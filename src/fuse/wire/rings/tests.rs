//! Tests that need no kernel with FUSE over io_uring. Mounts over io_uring are in
//! `tests/mount/uring.rs`.

use testkit::need;
use zerocopy::IntoBytes;

use super::super::slot::Parked;
use super::machine::count;
use super::queue::Due;
use super::*;
use crate::fuse::operations::{EmptyReply, Offset};
use crate::fuse::wire::abi::{InHeader, ReadIn, UringEntInOut, WriteIn};
use crate::fuse::wire::request::{Header, Request};
use crate::sys::uring::HEADER;

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

/// A handler that answers LOOKUP with the name twice, WRITE with its data, UNLINK from another
/// thread and with too much data, and READ in place if the offset is 0. It panics at GETATTR and
/// drops all other requests without an answer.
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

/// Returns what `Odd` answers to a request.
fn asked(opcode: u32, op: &[u8], rest: &[u8]) -> (i32, Vec<u8>) {
    let mut payload = Payload::new(8192).unwrap();
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
    let (answer, payload) = match answer(&served(Odd), &header, payload, &mut Vec::new(), &slot) {
        Outcome::Answered(answer, payload) => (answer, payload),
        Outcome::Waits(mut kept) => slot.wait(&mut kept, || false).unwrap(),
        Outcome::Ours(_) => panic!("not of ours"),
    };
    (answer.error, payload[..answer.len].to_vec())
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
        // The data is shorter than the size field of WRITE.
        (op::WRITE, write.as_bytes(), b"dat", eio),
    ] {
        let (error, data) = asked(opcode, op, rest);
        assert_eq!((error, &*data), expected, "{opcode}");
    }
}

/// A handler that keeps its replies, as slow work does.
#[derive(Default)]
struct Keeper(parking_lot::Mutex<Vec<Reply>>);

impl Handler for Arc<Keeper> {
    fn handle(&self, _: &Header, _: Request<'_>, reply: Reply) {
        self.0.lock().push(reply);
    }
}

/// Returns a request without data. It has a commit ID.
fn request(opcode: u32) -> uring::Header {
    let fixed = InHeader {
        len: size_of::<InHeader>() as u32,
        opcode,
        ..InHeader::default()
    };
    let mut header = [0; HEADER];
    fixed.write_to_prefix(&mut header).unwrap();
    header
}

#[test]
fn nobody_waits_for_slow_work_once_the_connection_is_gone() {
    let keeper = Arc::new(Keeper::default());
    let served = served(Arc::clone(&keeper));
    let payload = Payload::new(8192).unwrap();
    let slot = Arc::default();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let header = request(op::READLINK);
            let outcome = answer(&served, &header, payload, &mut Vec::new(), &slot);
            assert!(matches!(outcome, Outcome::Waits(None)));
            slot.wait(&mut None, || served.is_over())
        });
        while keeper.0.lock().is_empty() {
            std::thread::yield_now();
        }
        assert!(!waiting.is_finished());
        served.give_up();
        assert!(waiting.join().unwrap().is_none());
    });
    // A late answer is discarded without any effect.
    keeper.0.lock().drain(..).for_each(EmptyReply::ok);
}

fn queue() -> Arc<Queue> {
    let null = Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
    Arc::new(Queue::new(0, &null, 8192, 1, 1, None).unwrap())
}

/// Tests an answer before and after the thread continues with others, with its data in the payload
/// and beside it.
#[test]
fn the_answer_to_a_request_that_no_thread_waits_for_goes_to_the_queue() {
    let (keeper, queue) = (Arc::new(Keeper::default()), queue());
    let served = served(Arc::clone(&keeper));
    let park = |slot: &Slot, kept| {
        let parked = Parked {
            queue: Arc::clone(&queue),
            commit_id: 9,
            held: 0,
        };
        slot.park(kept, parked)
    };
    for (opcode, early) in [
        (op::READLINK, false),
        (op::READLINK, true),
        (op::WRITE, false),
        (op::WRITE, true),
    ] {
        let slot = Arc::default();
        let payload = Payload::new(8192).unwrap();
        let header = request(opcode);
        let outcome = answer(&served, &header, payload, &mut Vec::new(), &slot);
        let Outcome::Waits(kept) = outcome else {
            panic!("answered");
        };
        assert_eq!(kept.is_some(), opcode == op::WRITE);
        let reply = keeper.0.lock().pop().unwrap();
        if early {
            assert!(reply.bytes(b"early"));
            let (answer, payload) = park(&slot, kept).unwrap();
            assert_eq!(&payload[..answer.len], b"early");
            assert!(queue.all_due().is_empty());
            continue;
        }
        assert!(park(&slot, kept).is_none());
        assert!(reply.bytes(b"late"));
        let all = queue.all_due();
        let [due] = &*all else {
            panic!("{} answers", all.len());
        };
        assert_eq!((due.commit_id, due.answer.error), (9, 0));
        assert_eq!(&due.payload[..due.answer.len], b"late");
    }
}

#[test]
fn data_that_is_held_is_counted_and_given_back() {
    let queue = queue();
    queue.hold(100 << 20);
    assert!(queue.is_full());
    let mut payload = queue.new_payload().unwrap();
    payload[..4].copy_from_slice(b"data");
    payload[8191] = 1;
    queue.finish(Due {
        payload,
        commit_id: 1,
        answer: Answer { error: 0, len: 4 },
        held: 100 << 20,
    });
    assert!(!queue.is_full());
    let due = queue.all_due().remove(0);
    assert_eq!((&due.payload[..4], due.payload[8191]), (&b"data"[..], 0));
    queue.keep(due);
    queue.wait_for_spare();
    assert!(queue.spare().is_some());
    assert!(queue.spare().is_none());
}

/// A thread fails to start, for example without memory for its first entry. The mount continues
/// with the other threads.
#[test]
fn a_thread_whose_entry_is_refused_ends_alone() {
    // A pipe has no io_uring commands.
    let (read, _write) = io::pipe().unwrap();
    let device = Arc::new(OwnedFd::from(read));
    let queue = Arc::new(Queue::new(0, &device, 8192, 1, 4, None).unwrap());
    queue.threads.store(2, Ordering::Relaxed);
    let aborted = Arc::new(AtomicBool::new(false));
    let abort = Arc::clone(&aborted);
    let abort = Box::new(move || abort.store(true, Ordering::Relaxed));
    let served = Arc::new(Served::new(Arc::new(Odd), abort));
    let (ends, all_ends) = mpsc::channel();
    let place =
        RingThread::new(Arc::clone(&queue), ends).map_err(|error| format!("io_uring: {error}"));
    need!(place).work(served);
    assert!(all_ends.recv().unwrap().is_ok());
    assert!(!queue.is_over(), "the overflow thread would end");
    assert!(!aborted.load(Ordering::Relaxed));
    assert_eq!(queue.threads.load(Ordering::Relaxed), 1);
    assert_eq!(queue.idle.load(Ordering::Relaxed), 0);
}

#[test]
fn a_refused_answer_is_given_again_or_ends_the_connection() {
    let (new, answer) = (Command::Register, Command::Commit(1));
    for (command, errno, expected) in [
        (new, libc::ENOTCONN, Refusal::Over),
        (answer, libc::ENOTCONN, Refusal::Over),
        (answer, libc::ECANCELED, Refusal::Over),
        (new, libc::ENOMEM, Refusal::NoEntry),
        (new, libc::EINVAL, Refusal::NoEntry),
        (answer, libc::ENOMEM, Refusal::NotNow),
        (answer, libc::ENOENT, Refusal::Broken),
    ] {
        let error = io::Error::from_raw_os_error(errno);
        assert_eq!(refusal(command, &error), expected, "{command:?} {errno}");
    }
}

#[test]
fn an_overflow_thread_that_cannot_start_is_tried_again() {
    let queue = queue();
    assert!(queue.wants_overflow() && !queue.wants_overflow());
    queue.cannot_overflow(&io::ErrorKind::WouldBlock.into());
    assert!(queue.wants_overflow() && !queue.has_overflow());
}

/// A handler whose drop takes some time, as a union that removes its staged files.
struct Slow(Arc<AtomicBool>);

impl Handler for Slow {
    fn handle(&self, _: &Header, _: Request<'_>, _: Reply) {}
}

impl Drop for Slow {
    fn drop(&mut self) {
        std::thread::sleep(Duration::from_millis(200));
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Tests that the process, which ends when the last sender is dropped, does not end before the
/// handler.
#[test]
fn the_handler_ends_before_the_last_thread_is_said_to() {
    let (read, _write) = io::pipe().unwrap();
    let device = Arc::new(OwnedFd::from(read));
    let queue = Arc::new(Queue::new(0, &device, 8192, 1, 4, None).unwrap());
    let is_gone = Arc::new(AtomicBool::new(false));
    let served = Arc::new(served(Slow(Arc::clone(&is_gone))));
    let (ends, all_ends) = mpsc::channel();
    assert!(grow(&queue, &served, &ends));
    overflow::start(&queue, &served, &ends);
    drop((served, ends));
    queue.end();
    all_ends.iter().for_each(|end| assert!(end.is_ok()));
    assert!(is_gone.load(Ordering::SeqCst));
}
