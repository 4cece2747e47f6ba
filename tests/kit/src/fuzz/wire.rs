//! Messages of the kernel. The first byte chooses: 0 as they are, else with the length that is
//! theirs, so that the body is looked at.

use unionfs::fuse::fuzzing;

/// Bytes of `struct fuse_in_header`.
const HEADER: usize = 40;

pub fn run(bytes: &[u8]) {
    let Some((mode, bytes)) = bytes.split_first() else {
        return;
    };
    let mut message = bytes.to_vec();
    if *mode != 0 {
        message.resize(message.len().max(HEADER), 0);
        let length = message.len() as u32;
        message[..4].copy_from_slice(&length.to_ne_bytes());
    }
    fuzzing::message(&message);
}

/// Every opcode with a body that is long enough, and the two that are out of the row.
pub fn seeds() -> Vec<Vec<u8>> {
    let opcodes = (0..=53u32).chain([4096, 1_000_000]);
    opcodes
        .map(|opcode| {
            let mut seed = vec![0; 1 + HEADER];
            seed[0] = 1;
            seed[5..9].copy_from_slice(&opcode.to_ne_bytes());
            seed.extend([1, 0, 0, 0, 0, 0, 0, 0]);
            seed.extend([1; 56]);
            seed.extend(b"name\0target\0");
            seed
        })
        .collect()
}
