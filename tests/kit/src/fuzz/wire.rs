//! Messages of the kernel. The first byte chooses: 0 is the message unchanged, else its length
//! field is corrected, so that the body is parsed.

use unionfs::fuse::fuzzing;

/// The size of `struct fuse_in_header` in bytes.
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

/// Returns every opcode with a body that is long enough, and the two opcodes outside of the range.
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
