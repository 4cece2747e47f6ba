//! A request and its answer in the memory of an entry of a ring: `struct fuse_uring_req_header` and
//! the payload.
//!
//! ```text
//! header   0 fuse_in_header, then fuse_out_header   128 the operation's struct
//!        256 fuse_uring_ent_in_out
//! payload  the rest: names, data; then the data of the answer
//! ```

use zerocopy::{FromBytes, IntoBytes};

use super::abi::{InHeader, OutHeader, UringEntInOut};
use super::request::Header;
use crate::sys::uring;

const OP_AT: usize = 128;
const ENT_AT: usize = 256;

/// A request whose lengths have been checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    pub(super) header: Header,
    pub(super) opcode: u32,
    /// The struct of the operation.
    pub(super) op: &'a [u8],
    /// The length of the request's part of the payload.
    pub(super) payload: usize,
}

/// Returns the number for the answer, even if the rest of the header is malformed.
pub(super) fn commit_id(header: &uring::Header) -> u64 {
    ent(header).map_or(0, |ent| ent.commit_id)
}

fn ent(header: &uring::Header) -> Option<UringEntInOut> {
    let bytes = header.get(ENT_AT..)?;
    UringEntInOut::read_from_bytes(bytes).ok()
}

/// Returns the request in `header`. `None` if its lengths contradict each other, or exceed `room`,
/// the length of the payload.
pub(super) fn read(header: &uring::Header, room: usize) -> Option<Message<'_>> {
    let (fixed, _) = InHeader::read_from_prefix(header).ok()?;
    let ent = ent(header)?;
    let payload = usize::try_from(ent.payload_sz).ok()?;
    let op = usize::try_from(fixed.len)
        .ok()?
        .checked_sub(size_of::<InHeader>())?
        .checked_sub(payload)?;
    let op = header.get(OP_AT..ENT_AT)?.get(..op)?;
    let extensions = usize::from(fixed.total_extlen) * 8;
    let payload = (payload <= room).then(|| payload.checked_sub(extensions))??;
    Some(Message {
        opcode: fixed.opcode,
        op,
        payload,
        header: Header::from(fixed),
    })
}

/// Writes the answer to request `commit_id`: 0 or a negative errno, with `len` bytes in the
/// payload.
pub(super) fn answer(header: &mut uring::Header, commit_id: u64, error: i32, len: usize) {
    // The length always fits: a payload is 1 MiB.
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    let out = OutHeader {
        len: len.saturating_add(size_of::<OutHeader>() as u32),
        error,
        unique: commit_id,
    };
    let ent = UringEntInOut {
        commit_id,
        payload_sz: len,
        ..UringEntInOut::default()
    };
    let (start, end) = header.split_at_mut(ENT_AT);
    // Both have enough room for the written struct. `OutHeader` needs only the prefix.
    let _ = out.write_to_prefix(start);
    let _ = ent.write_to(end);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuse::wire::abi::op;
    use proptest::prelude::*;

    fn message(len: u32, payload_sz: u32, total_extlen: u16) -> uring::Header {
        let mut header = [0xaa; uring::HEADER];
        let fixed = InHeader {
            len,
            opcode: op::WRITE,
            unique: 9,
            nodeid: 3,
            total_extlen,
            ..InHeader::default()
        };
        let ent = UringEntInOut {
            commit_id: 9,
            payload_sz,
            ..UringEntInOut::default()
        };
        fixed.write_to_prefix(&mut header).unwrap();
        ent.write_to(&mut header[ENT_AT..]).unwrap();
        header
    }

    #[test]
    fn a_request_is_in_three_places() {
        let header = message(40 + 24 + 100, 100, 0);
        let read = read(&header, 4096).unwrap();
        assert_eq!((read.opcode, read.payload), (op::WRITE, 100));
        assert_eq!(commit_id(&header), 9);
        assert_eq!((read.header.unique, read.header.ino), (9, 3));
        assert_eq!(read.op, &[0xaa; 24]);
    }

    #[test]
    fn extensions_are_no_part_of_the_payload() {
        assert_eq!(read(&message(140, 100, 2), 4096).unwrap().payload, 84);
        assert!(read(&message(140, 100, 13), 4096).is_none());
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        for (len, payload, room) in [
            (0, 0, 4096),               // shorter than the header
            (39, 0, 4096),              // likewise
            (40, 1, 4096),              // a payload the length does not count
            (40 + 129, 0, 4096),        // an operation longer than its place
            (u32::MAX, 0, 4096),        // likewise
            (40 + 5000, 5000, 4096),    // a payload longer than there is room
            (u32::MAX, u32::MAX, 4096), // likewise
        ] {
            let header = message(len, payload, 0);
            assert!(read(&header, room).is_none(), "{len} {payload}");
            assert_eq!(commit_id(&header), 9, "it can be answered");
        }
    }

    #[test]
    fn an_answer_names_its_request() {
        let mut header = message(40, 0, 0);
        answer(&mut header, 9, -libc::ENOENT, 5);
        let (out, _) = OutHeader::read_from_prefix(&header).unwrap();
        assert_eq!((out.unique, out.error, out.len), (9, -libc::ENOENT, 21));
        let ent = ent(&header).unwrap();
        assert_eq!((ent.commit_id, ent.payload_sz), (9, 5));
    }

    proptest! {
        #[test]
        fn no_header_panics(bytes in prop::collection::vec(any::<u8>(), uring::HEADER), room in 0usize..5000) {
            let header: uring::Header = bytes.try_into().unwrap();
            if let Some(message) = read(&header, room) {
                prop_assert!(message.payload <= room && message.op.len() <= 128);
            }
        }
    }
}
