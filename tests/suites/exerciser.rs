//! A test that fsx does not cover: a file that starts with its content in a lower is read and
//! changed through descriptors opened before and after copy-up, buffered and with O_DIRECT mixed;
//! each read is checked against a model in memory.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use rustix::fs::FallocateFlags;
use testkit::fixture::Fixture;
use testkit::layers::{Layer, big_data};
use testkit::need_mounts;

const FILES: usize = 4;
const OPERATIONS: usize = 50_000;
/// The maximum size of the files.
const MAX: usize = 1 << 19;
/// Alignment of O_DIRECT.
const BLOCK: usize = 4096;
/// The longest read or write.
const LONGEST: usize = 16 * BLOCK;

/// A small generator (Knuth's MMIX constants): the same sequence in every run.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n.max(1)
    }
}

/// One file: its expected content, and the descriptors on it.
struct Subject {
    name: String,
    model: Vec<u8>,
    /// Opened before the first change, for reading.
    early: File,
    buffered: File,
    direct: File,
}

impl Subject {
    fn open(f: &Fixture, name: String, model: Vec<u8>) -> Self {
        let path = f.at(&name);
        let open = |write, flags| {
            let mut options = OpenOptions::new();
            let options = options.read(true).write(write).custom_flags(flags);
            options.open(&path).unwrap()
        };
        Self {
            early: open(false, 0),
            buffered: open(true, 0),
            direct: open(true, libc::O_DIRECT),
            name,
            model,
        }
    }

    /// Reads through `file` and compares.
    fn check(&self, file: &File, offset: usize, buf: &mut [u8], step: usize) {
        let n = file.read_at(buf, offset as u64).unwrap();
        let end = self.model.len().min(offset + buf.len());
        let expected = self.model.get(offset..end).unwrap_or_default();
        assert_eq!(n, expected.len(), "{} step {step}: length", self.name);
        if buf[..n] != *expected {
            let at = (0..n).find(|i| buf[*i] != expected[*i]).unwrap_or(n);
            panic!("{} step {step}: byte {} differs", self.name, offset + at);
        }
    }

    fn wrote(&mut self, offset: usize, data: &[u8]) {
        let end = offset + data.len();
        if self.model.len() < end {
            self.model.resize(end, 0);
        }
        self.model[offset..end].copy_from_slice(data);
    }

    /// Does one random operation; `space` is aligned.
    fn step(&mut self, rng: &mut Rng, space: &mut [u8], step: usize) {
        let offset = rng.below(MAX - LONGEST);
        let len = 1 + rng.below(LONGEST);
        let (block, blocks) = (offset / BLOCK * BLOCK, len.next_multiple_of(BLOCK));
        let fill = rng.below(256) as u8;
        match rng.below(10) {
            0 | 1 => self.check(&self.early, offset, &mut space[..len], step),
            2 => self.check(&self.buffered, offset, &mut space[..len], step),
            3 | 4 => self.check(&self.direct, block, &mut space[..blocks], step),
            5 => {
                space[..len].fill(fill);
                self.buffered
                    .write_all_at(&space[..len], offset as u64)
                    .unwrap();
                self.wrote(offset, &space[..len]);
            }
            6 | 7 => {
                space[..blocks].fill(fill);
                let data = &space[..blocks];
                self.direct.write_all_at(data, block as u64).unwrap();
                self.wrote(block, data);
            }
            8 => {
                let len = rng.below(MAX);
                self.buffered.set_len(len as u64).unwrap();
                self.model.resize(len, 0);
            }
            _ => {
                let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&self.buffered, mode, offset as u64, len as u64).unwrap();
                let end = self.model.len().min(offset + len);
                if let Some(hole) = self.model.get_mut(offset..end) {
                    hole.fill(0);
                }
            }
        }
    }
}

#[test]
fn buffered_and_direct_descriptors_from_before_and_after_copy_up() {
    need_mounts!();
    let names = (0..FILES).map(|n| format!("f{n}"));
    let layer = names.fold(Layer::new(), |l, name| l.file(name, big_data()));
    let mut f = Fixture::new(&[layer]);
    let mut subjects: Vec<_> = (0..FILES)
        .map(|n| Subject::open(&f, format!("f{n}"), big_data()))
        .collect();
    let mut space = vec![0; LONGEST + 2 * BLOCK];
    let start = space.as_ptr().align_offset(BLOCK);
    let space = &mut space[start..start + LONGEST + BLOCK];
    let mut rng = Rng(7);
    for step in 0..OPERATIONS {
        let n = rng.below(FILES);
        subjects[n].step(&mut rng, space, step);
    }
    let expected: Vec<_> = subjects.into_iter().map(|s| (s.name, s.model)).collect();
    f.remount();
    for (name, model) in expected {
        assert!(
            std::fs::read(f.at(&name)).unwrap() == model,
            "{name} after a remount"
        );
    }
}
