//! Catalogs of arbitrary bytes: no panic, no endless walk, and no object shown that is in no layer.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use testkit::catalogs::{build, observe, seal, stack, walk};
use testkit::layers::{self, Form, Layer};
use testkit::mount::Scratch;
use testkit::need_mounts;
use unionfs::catalog::format;
use unionfs::catalog::view::{Refusal, View};
use unionfs::layer::StackSpec;
use zerocopy::{FromBytes as _, FromZeros as _, IntoBytes as _};

const SECRET: &[u8] = b"in no layer";

/// A stack of layers, and beside it a file that no union of the stack may show.
struct Bench {
    scratch: Scratch,
    stack: StackSpec,
    /// The same layers, and one above that the catalog does not describe.
    above: StackSpec,
    catalog: PathBuf,
    bytes: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let scratch = Scratch::disk();
        let mut all = layers::standard();
        all[0] = std::mem::take(&mut all[0])
            .file("meta", "")
            .xattr("trusted.overlay.metacopy", "")
            .xattr("trusted.overlay.redirect", "/plain.txt");
        all.push(Layer::new().dir("merged").file("merged/last", "last"));
        let lowers = layers::write_all(&all, scratch.path(), Form::Kernel);
        std::fs::write(scratch.path().join("secret"), SECRET).unwrap();
        let stack = stack(&lowers);
        let own = scratch.path().join("own");
        std::fs::create_dir(&own).unwrap();
        let mut files = Layer::new().dir("merged").file("merged/own", "own");
        for dir in ["deep", "deep/a", "deep/a/b", "deep/a/b/c"] {
            files = files.dir(dir);
        }
        files.write(&own);
        let mut above = lowers;
        above.insert(0, own);
        let catalog = scratch.path().join("catalog");
        build(&stack, &catalog);
        Self {
            bytes: std::fs::read(&catalog).unwrap(),
            scratch,
            above: self::stack(&above),
            stack,
            catalog,
        }
    }

    /// Walks a union that has these bytes as its catalog, and checks the bytes alone.
    fn check(&self, bytes: &[u8]) -> Result<(), TestCaseError> {
        if let Ok(view) = View::parse(bytes) {
            let _ = view.walk();
            let _ = (view.verify(), view.store().is_ok());
        }
        self.walk(bytes, &self.catalog)
    }

    fn walk(&self, bytes: &[u8], path: &Path) -> Result<(), TestCaseError> {
        // No process maps the file any more: each union of the test is gone.
        for stack in [&self.stack, &self.above] {
            // A catalog that is given up is removed.
            std::fs::write(path, bytes).unwrap();
            let union = observe(stack, path);
            for (name, data) in walk(&union, 3000) {
                let shown = data.unwrap_or_default();
                prop_assert_ne!(shown, SECRET, "{}", String::from_utf8_lossy(&name));
            }
        }
        Ok(())
    }
}

#[test]
fn whole_catalogs_are_taken() {
    need_mounts!();
    let bench = Bench::new();
    let view = View::parse(&bench.bytes[..]).unwrap();
    assert!(view.verify());
    let names = view.walk().unwrap();
    assert!(names > 40, "{names}");
    let union = observe(&bench.stack, &bench.catalog);
    assert!(union.is_catalogued());
    let files = walk(&union, 3000);
    assert!(files.contains_key(&b"/merged/last"[..]));
    let meta = files[&b"/meta"[..]].as_deref();
    assert_eq!(meta, Ok(&b""[..]), "as long as its metadata says");
    assert!(union.is_catalogued());
    let union = observe(&bench.above, &bench.catalog);
    assert!(union.is_catalogued());
    let files = walk(&union, 3000);
    assert!(files.contains_key(&b"/merged/last"[..]));
    assert!(files.contains_key(&b"/merged/own"[..]));
    assert!(union.is_catalogued());
    drop(bench.scratch);
}

/// A flipped bit in the header or in the layers makes the catalog invalid; `verify` finds a flip
/// elsewhere.
#[test]
fn bit_flips() {
    need_mounts!();
    let bench = Bench::new();
    let covered = u32::from_le_bytes(bench.bytes[12..16].try_into().unwrap()) as usize;
    for at in 0..bench.bytes.len() {
        let mut bytes = bench.bytes.clone();
        bytes[at] ^= 1 << (at % 8);
        match View::parse(&bytes[..]) {
            Ok(view) => assert!(at >= covered && !view.verify(), "byte {at}"),
            Err(_) => assert!(at < covered, "byte {at}"),
        }
    }
}

#[test]
fn cut_short() {
    need_mounts!();
    let bench = Bench::new();
    for len in (0..bench.bytes.len()).step_by(97) {
        assert!(View::parse(&bench.bytes[..len]).is_err());
        let mut sealed = bench.bytes[..len].to_vec();
        seal(&mut sealed);
        bench.check(&sealed).unwrap();
    }
}

/// Each number in turn is replaced by one that points to another place.
#[test]
fn every_number_leads_astray() {
    need_mounts!();
    let bench = Bench::new();
    let covered = u32::from_le_bytes(bench.bytes[12..16].try_into().unwrap()) as usize;
    let strings = bench.bytes.len() - 2000;
    for at in (covered..strings).step_by(4) {
        // Only one in seven is walked: a walk for each would take minutes.
        if at / 4 % 7 != 0 {
            continue;
        }
        for value in [0u32, 1, 7, 0x7fff_ffff, u32::MAX] {
            let mut bytes = bench.bytes.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            if let Ok(view) = View::parse(&bytes[..]) {
                let _ = view.walk();
            }
            if at / 4 % 49 == 0 {
                bench.check(&bytes).unwrap();
            }
        }
    }
}

#[test]
fn random_damage() {
    need_mounts!();
    let bench = Bench::new();
    let len = bench.bytes.len();
    let places = prop::collection::vec((0..len, any::<u8>()), 1..40);
    let config = ProptestConfig {
        cases: 150,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    // Damage at any place, including the positions of the tables in the header, with a correct
    // checksum.
    proptest!(config, |(places in places, keep in any::<bool>())| {
        let mut bytes = bench.bytes.clone();
        let magic = 24..120;
        for (at, byte) in places {
            if at >= 24 && !magic.contains(&at) {
                bytes[at] = byte;
            }
        }
        if !keep {
            // The layers that the catalog belongs to must stay the same, else the catalog is not
            // read.
            let layers = 264..264 + 4 * 56;
            bytes[layers.clone()].copy_from_slice(&bench.bytes[layers]);
        }
        seal(&mut bytes);
        bench.check(&bytes)?;
    });
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 500,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Bytes that are no catalog, with the header of a catalog.
    #[test]
    fn random_bytes(mut bytes in prop::collection::vec(any::<u8>(), 264..4000), small in any::<bool>()) {
        bytes[..8].copy_from_slice(b"UNIONCAT");
        bytes[8..12].copy_from_slice(&format::VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&264u32.to_le_bytes());
        if small {
            // Tables that begin and end somewhere in the file.
            for table in 0..16 {
                let at = 120 + 8 * table;
                let (byte, half) = (u64::from(bytes[at]), bytes.len() as u64 / 2);
                let value = [byte * 8 % half, byte % 8][table % 2];
                bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
        }
        seal(&mut bytes);
        match View::parse(&bytes[..]) {
            Ok(view) => drop((view.walk(), view.notes().map(<[u8]>::len))),
            Err(refusal) => prop_assert_eq!(refusal, Refusal::Header),
        }
    }
}

/// Memory is allocated by the size that a directory's record states.
#[test]
fn a_directory_is_in_no_more_layers_than_there_are() {
    need_mounts!();
    let bench = Bench::new();
    let (header, _) = format::Header::read_from_prefix(&bench.bytes).unwrap();
    let root = header.dirs.offset.get() as usize;
    for (field, value) in [(4, u32::MAX), (8, 1 << 30), (12, 5), (12, 1 << 26)] {
        let mut bytes = bench.bytes.clone();
        bytes[root + field..root + field + 4].copy_from_slice(&value.to_le_bytes());
        let view = View::parse(&bytes[..]).unwrap();
        assert!(view.root().is_err(), "{field}: {value}");
        bench.check(&bytes).unwrap();
    }
    let mut bytes = bench.bytes;
    bytes.truncate(root);
    seal(&mut bytes);
    assert!(View::parse(bytes).is_err());
}

/// A walk of directories that all have the same entries would not end in reasonable time.
#[test]
fn entries_belong_to_one_directory() {
    let catalog = |dirs: u32, files: u32| {
        let table = |offset: usize, count: u32| format::Table {
            offset: (offset as u64).into(),
            count: u64::from(count).into(),
        };
        let record = |parent: u32, aux: u32, flags: u16| format::Record {
            parent: parent.into(),
            aux: aux.into(),
            flags: flags.into(),
            name_len: 1.into(),
            ..format::Record::new_zeroed()
        };
        let (first, all) = (1 + dirs, 1 + dirs + files);
        let mut records = vec![record(format::NONE, 0, format::MERGED)];
        records.extend((1..=dirs).map(|n| record(0, n, format::MERGED)));
        // Each directory is in the one before: a chain of directories.
        records.extend((first..all).map(|n| record(n - 1, 0, 0)));
        let dir = |first: u32, count: u32| format::Dir {
            first: first.into(),
            count: count.into(),
            ..format::Dir::new_zeroed()
        };
        let mut merged = vec![dir(1, dirs)];
        merged.extend((0..dirs).map(|_| dir(first, files)));
        let class = format::Class {
            mode: 0o40755.into(),
            ..format::Class::new_zeroed()
        };
        let mut header = format::Header::new_zeroed();
        let mut bytes = vec![0; size_of::<format::Header>()];
        header.magic = format::MAGIC;
        header.version = format::VERSION.into();
        header.layers = table(bytes.len(), 1);
        bytes.extend(format::LayerRecord::new_zeroed().as_bytes());
        header.header_len = (bytes.len() as u32).into();
        header.records = table(bytes.len(), all);
        bytes.extend(records.as_bytes());
        header.dirs = table(bytes.len(), 1 + dirs);
        bytes.extend(merged.as_bytes());
        header.classes = table(bytes.len(), 1);
        bytes.extend(class.as_bytes());
        header.strings = table(bytes.len(), 1);
        bytes.push(b'n');
        bytes[..size_of::<format::Header>()].copy_from_slice(header.as_bytes());
        seal(&mut bytes);
        View::parse(bytes).unwrap().walk()
    };
    assert_eq!(catalog(1, 500), Ok(501));
    assert!(catalog(2, 500).is_err());
    // A walk of it would take minutes.
    assert!(catalog(20_000, 20_000).is_err());
}
