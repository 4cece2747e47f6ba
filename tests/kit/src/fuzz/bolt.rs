//! The files of containerd's metadata. The input is changes of files that containerd has written: a byte that
//! chooses the file (meta.db or that of the snapshotter), then for each change four bytes of a place and the
//! byte to put there. The check sums of the meta pages are right afterwards.
//!
//! The files have the image `app:1` in the namespaces `default` and `moby`, a snapshot that is written to, and
//! a container (`ctr images import`, `ctr snapshots prepare`, `ctr containers create`).

use std::io::Read as _;
use std::sync::LazyLock;

use unionfs::store::fuzzing;

use super::one_line;

/// Bytes of a page of these files.
const PAGE: usize = 4096;
/// The part of a meta page that its check sum is of, and the check sum.
const SUMMED: std::ops::Range<usize> = 16..72;

static FILES: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    let packed: [&[u8]; 2] = [
        include_bytes!("containerd-meta.db.gz"),
        include_bytes!("containerd-snapshots.db.gz"),
    ];
    packed.map(|packed| {
        let mut bytes = Vec::new();
        let mut reader = flate2::read::GzDecoder::new(packed);
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    })
});

/// FNV-1a of 64 bits, as bolt has it.
fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

pub fn run(bytes: &[u8]) {
    let Some((which, changes)) = bytes.split_first() else {
        return;
    };
    let mut files = FILES.clone();
    let file = &mut files[usize::from(which % 2)];
    for change in changes.chunks_exact(5) {
        let at = u32::from_le_bytes([change[0], change[1], change[2], change[3]]) as usize;
        let length = file.len();
        file[at % length] = change[4];
    }
    for page in file.chunks_exact_mut(PAGE).take(2) {
        let sum = fnv_1a(&page[SUMMED]).to_le_bytes();
        page[SUMMED.end..SUMMED.end + sum.len()].copy_from_slice(&sum);
    }
    let [meta, snapshots] = &files;
    let (found, refused) = fuzzing::containerd(meta, snapshots);
    refused.iter().for_each(one_line);
    if changes.len() < 5 {
        // Two names, a container, and the snapshots of both namespaces, of the container, and `written`.
        assert_eq!((found, refused.len()), ([2, 1, 4, 4], 0), "{refused:?}");
    }
}

/// Nothing changed, and numbers that the reader decides by: of meta pages, and of the headers and first
/// elements of all pages that are used.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![vec![0], vec![1]];
    for (which, file) in FILES.iter().enumerate() {
        let used = file.chunks_exact(PAGE).enumerate();
        let used = used.filter(|(_, page)| page.iter().any(|byte| *byte != 0));
        for (number, _) in used.take(12) {
            for (at, value) in [
                (8, 1),
                (8, 2),
                (10, 9),
                (12, 7),
                (16, 3),
                (20, 0xf0),
                (24, 0xff),
                (28, 5),
            ] {
                let place = ((number * PAGE + at) as u32).to_le_bytes();
                seeds.push([&[which as u8], &place[..], &[value]].concat());
            }
        }
    }
    seeds
}
