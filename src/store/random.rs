//! Random names: of files that are being written, of layer directories, of short names.

use std::path::Path;

use rustix::io::Errno;

use super::error::{Error, Result};

/// Returns `count` random bytes in hexadecimal.
pub(crate) fn hex(count: usize) -> Result<String> {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(2 * count);
    for byte in random(count)? {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

/// Returns a layer's short name: 26 characters of base32, as Docker makes them.
pub(crate) fn link() -> Result<String> {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let letter = |byte: u8| char::from(ALPHABET[usize::from(byte % 32)]);
    Ok(random(26)?.into_iter().map(letter).collect())
}

fn random(count: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    let flags = rustix::rand::GetRandomFlags::empty();
    // getrandom(2) never returns fewer bytes for such a small buffer.
    match rustix::rand::getrandom(&mut bytes[..], flags) {
        Ok(got) if got == count => Ok(bytes),
        Ok(_) => Err(Error::io("read", Path::new("random bytes"), Errno::IO)),
        Err(errno) => Err(Error::io("read", Path::new("random bytes"), errno)),
    }
}
