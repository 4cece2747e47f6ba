//! The CRC-64 of a file's content, as Go's hash/crc64 with its table ISO. The cost of a hole does not depend on its length: a run of zero
//! bytes changes the register of a CRC by a linear map over GF(2), whose powers of two are computed
//! once.

use std::sync::OnceLock;

use crc::CRC_64_GO_ISO;
use crc_fast::{CrcAlgorithm, Digest};

/// A linear map of the register: the image of each bit.
type Map = [u64; 64];

/// Computes the checksum of bytes and runs of zero bytes.
pub(super) struct Checksum(Digest);

impl Checksum {
    pub(super) fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc64GoIso))
    }

    /// Adds bytes.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Adds `count` zero bytes.
    pub(super) fn zeros(&mut self, count: u64) {
        if count == 0 {
            return;
        }
        let mut register = self.0.get_state();
        for (bit, map) in powers().iter().enumerate() {
            if count >> bit & 1 == 1 {
                register = applied(map, register);
            }
        }
        self.0 = Digest::new_with_init_state(CrcAlgorithm::Crc64GoIso, register);
    }

    /// Returns the checksum.
    pub(super) fn finish(self) -> u64 {
        self.0.finalize()
    }
}

fn applied(map: &Map, register: u64) -> u64 {
    let bits = map.iter().enumerate();
    let set = bits.filter(|(bit, _)| register >> bit & 1 == 1);
    set.fold(0, |sum, (_, becomes)| sum ^ becomes)
}

/// Returns the maps of 1, 2, 4 and so on zero bytes.
fn powers() -> &'static [Map; 64] {
    static POWERS: OnceLock<Box<[Map; 64]>> = OnceLock::new();
    POWERS.get_or_init(|| {
        let polynomial = CRC_64_GO_ISO.poly.reverse_bits();
        let zero_bit = |register: u64| (register >> 1) ^ ((register & 1) * polynomial);
        let zero_byte = |register| (0..8).fold(register, |register, _| zero_bit(register));
        let mut map: Map = std::array::from_fn(|bit| zero_byte(1 << bit));
        let mut powers = Box::new([[0; 64]; 64]);
        for power in powers.iter_mut() {
            *power = map;
            map = map.map(|becomes| applied(power, becomes));
        }
        powers
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn zeros_count_as_zero_bytes(
            parts in prop::collection::vec((any::<Vec<u8>>(), 0u64..70_000), 0..6),
        ) {
            let (mut checksum, mut bytes) = (Checksum::new(), Vec::new());
            for (data, zeros) in parts {
                checksum.update(&data);
                checksum.zeros(zeros);
                bytes.extend(data);
                bytes.resize(bytes.len() + zeros as usize, 0);
            }
            let expected = crc::Crc::<u64>::new(&CRC_64_GO_ISO).checksum(&bytes);
            prop_assert_eq!(checksum.finish(), expected);
        }
    }

    /// Go: crc64.Checksum([]byte("123456789"), crc64.MakeTable(crc64.ISO)).
    #[test]
    fn it_is_that_of_go() {
        let mut checksum = Checksum::new();
        checksum.update(b"123456789");
        assert_eq!(checksum.finish(), 0xb909_56c7_75a4_1001);
    }

    #[test]
    fn a_hole_of_any_length_is_the_sum_of_its_parts() {
        let (mut once, mut twice) = (Checksum::new(), Checksum::new());
        once.update(b"data");
        twice.update(b"data");
        once.zeros(u64::MAX);
        twice.zeros(u64::MAX / 3);
        twice.zeros(u64::MAX / 3 * 2);
        assert_eq!(once.finish(), twice.finish());
    }
}
