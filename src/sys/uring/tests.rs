use testkit::need;
use testkit::need::Needed;

use super::*;

fn null() -> std::fs::File {
    let mut options = std::fs::File::options();
    options.read(true).write(true).open("/dev/null").unwrap()
}

/// io_uring may be forbidden.
fn ring(queue: u16) -> Needed<(Ring, Payload)> {
    let ring = Ring::new(null(), queue).map_err(|error| format!("io_uring: {error}"))?;
    Ok((ring, Payload::new(8192).unwrap()))
}

#[test]
fn a_device_that_is_not_fuse_ends_the_command() {
    let (mut takes_all, mut payload) = need!(ring(0));
    assert_eq!(payload.len(), 8192);
    let mut header = [3; HEADER];
    // /dev/null accepts every command.
    for command in [Command::Register, Command::Commit(1)] {
        payload = takes_all.exchange(command, &mut header, payload).unwrap();
    }
    assert_eq!(header, [3; HEADER]);
    let (read, _write) = io::pipe().unwrap();
    let mut ring = Ring::new(read, 0).unwrap();
    // A refused command comes back with everything that another try needs.
    payload[0] = 9;
    let mut refused = ring
        .exchange(Command::Commit(7), &mut header, payload)
        .unwrap_err();
    for _ in 0..2 {
        assert_eq!(refused.error.raw_os_error(), Some(libc::EOPNOTSUPP));
        assert!(matches!(refused.command, Command::Commit(7)));
        assert_eq!(refused.payload.as_ref().unwrap()[0], 9);
        assert!(ring.pending.iter().all(Option::is_none));
        ring.give_again(refused).unwrap();
        ring.wait().unwrap();
        refused = match ring.take(&mut [0; HEADER]).unwrap() {
            Some(Event::Refused(refused)) => refused,
            other => panic!("{other:?}"),
        };
    }
    let mut kept = [0; HEADER];
    refused.payload.unwrap().read_header(&mut kept);
    assert_eq!(kept, header);
}

/// The ring allows no other operation, no other file, and no change of itself.
#[test]
fn a_ring_takes_nothing_but_commands_for_its_device() {
    let (mut ring, _payload) = need!(ring(0));
    let path = c"/etc/passwd";
    let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).build();
    let nothing = opcode::Nop::new().build();
    let other = null();
    let command = opcode::UringCmd80::new(types::Fd(other.as_raw_fd()), REGISTER).build();
    for refused in [open.into(), nothing.into(), command] {
        // SAFETY: the path lives to the end; the others point to nothing.
        unsafe { ring.ring.submission().push(&refused) }.unwrap();
        ring.wait().unwrap();
        let completion = ring.ring.completion().next().unwrap();
        assert_eq!(completion.result(), -libc::EACCES);
    }
    let submitter = ring.ring.submitter();
    let changed = submitter.register_files(&[other.as_raw_fd()]).unwrap_err();
    assert_eq!(changed.raw_os_error(), Some(libc::EACCES));
    let lifted = submitter.register_restrictions(&mut []).unwrap_err();
    assert!(lifted.raw_os_error().is_some(), "{lifted}");
}

/// Requests and rings of the bell come in one ring, and any ring takes a command of any entry.
#[test]
fn a_bell_wakes_the_thread_of_a_ring() {
    need!(ring(0));
    let bell = Bell::new().unwrap();
    let mut many = Ring::with_bell(null(), &bell, 0).unwrap();
    let mut header = [5; HEADER];
    assert!(many.take(&mut header).unwrap().is_none());
    for _ in 0..3 {
        std::thread::scope(|scope| {
            scope.spawn(|| bell.ring());
            many.wait().unwrap();
        });
        assert!(matches!(many.take(&mut header).unwrap(), Some(Event::Rung)));
        while many.take(&mut header).unwrap().is_some() {}
    }
    // This is more than the ring takes at once.
    let mut came = 0;
    for n in 0..200u64 {
        let mut payload = Payload::new(8192).unwrap();
        payload.fill(n as u8);
        many.give(Command::Commit(n), &header, payload).unwrap();
    }
    while let Some(event) = many.take(&mut header).unwrap() {
        let Event::Came(payload) = event else {
            panic!("{event:?}");
        };
        assert!(payload.iter().all(|byte| *byte == payload[0]));
        came += 1;
    }
    assert_eq!(came, 200);
}

#[test]
fn memory_that_is_released_is_empty() {
    let mut payload = Payload::new(1 << 20).unwrap();
    payload.fill(7);
    payload.release();
    assert!(payload.iter().all(|byte| *byte == 0));
    payload.fill(8);
    assert!(payload.iter().all(|byte| *byte == 8));
}

#[test]
fn the_command_is_what_the_kernel_reads() {
    let (ring, mut payload) = need!(ring(3));
    let bytes = |command: squeue::Entry128| -> [u8; 128] {
        // SAFETY: 128 bytes, all initialised.
        unsafe { std::mem::transmute(command) }
    };
    let word = |all: &[u8; 128], at: usize| {
        u32::from_ne_bytes([all[at], all[at + 1], all[at + 2], all[at + 3]])
    };
    let register = bytes(ring.command(Command::Register, &mut payload));
    // opcode, cmd_op, len, and the queue in the command's own bytes.
    assert_eq!(register[0], opcode::UringCmd80::CODE);
    assert_eq!(
        (word(&register, 8), word(&register, SQE_LEN_AT)),
        (REGISTER, 2)
    );
    assert_ne!(register[16..24], [0; 8]);
    assert_eq!(word(&register, 48 + 16), 3);
    let commit = bytes(ring.command(Command::Commit(0x1234), &mut payload));
    assert_eq!(
        (word(&commit, 8), word(&commit, SQE_LEN_AT)),
        (COMMIT_AND_FETCH, 0)
    );
    assert_eq!(word(&commit, 48 + 8), 0x1234);
}
