//! Tests with files that are made here, byte by byte. Tests with containerd's files are in
//! `tests/cli/containerd.rs`.

use std::io::Write as _;

use proptest::prelude::*;

use super::*;

const PAGE: usize = 4096;

/// A page of elements: flag, key and value in a leaf; first key and page in a branch.
fn page(number: u64, flags: u16, elements: &[(u32, &[u8], &[u8])]) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend(flags.to_le_bytes());
    bytes.extend((elements.len() as u16).to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    let mut data = Vec::new();
    for (at, (flag, key, value)) in elements.iter().enumerate() {
        let position = (HEADER * (elements.len() - at) + data.len()) as u32;
        let fields = match flags {
            BRANCH => [position, key.len() as u32, *flag, 0],
            _ => [*flag, position, key.len() as u32, value.len() as u32],
        };
        bytes.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
        data.extend_from_slice(key);
        if flags == LEAF {
            data.extend_from_slice(value);
        }
    }
    bytes.extend(data);
    bytes
}

fn meta(number: u64, root: u64, pages: u64) -> Vec<u8> {
    let mut bytes = number.to_le_bytes()[..8].to_vec();
    bytes[0] = (number % 2) as u8;
    bytes.extend(META.to_le_bytes());
    bytes.extend([0; 6]);
    let mut meta = Vec::new();
    for field in [MAGIC, VERSION, PAGE as u32, 0] {
        meta.extend(field.to_le_bytes());
    }
    for field in [root, 0, 2, pages, number] {
        meta.extend(field.to_le_bytes());
    }
    let sum = fnv_1a(&meta);
    meta.extend(sum.to_le_bytes());
    bytes.extend(meta);
    bytes
}

fn bucket(root: u64, inline: &[u8]) -> Vec<u8> {
    [&root.to_le_bytes()[..], &[0; 8], inline].concat()
}

/// A file of pages from number 3 on; the last one is the root. The transaction is number 7.
fn file_of(pages: &[Vec<u8>]) -> File {
    let root = 2 + pages.len() as u64;
    let last = root + 1;
    let free = page(2, 0x10, &[]);
    let metas = [meta(6, 99, last), meta(7, root, last)];
    let mut file = tempfile::tempfile().unwrap();
    for page in metas.iter().chain([&free]).chain(pages) {
        let mut bytes = page.clone();
        assert!(bytes.len() <= PAGE);
        bytes.resize(PAGE, 0);
        file.write_all(&bytes).unwrap();
    }
    file
}

/// A tree of two leaves below a branch, with a bucket of its own page and a small one.
fn sample() -> File {
    let small = page(0, LEAF, &[(0, b"key", b"small")]);
    let own = page(3, LEAF, &[(0, b"a", b"1"), (0, b"b", b"2")]);
    let first = page(
        4,
        LEAF,
        &[(IS_BUCKET, b"k1", &bucket(3, b"")), (0, b"k2", b"two")],
    );
    let second = page(
        5,
        LEAF,
        &[(IS_BUCKET, b"k3", &bucket(0, &small)), (0, b"k4", b"four")],
    );
    let root = page(6, BRANCH, &[(4, b"k1", b""), (5, b"k3", b"")]);
    file_of(&[own, first, second, root])
}

fn all(db: &Transaction<'_>, bucket: &Bucket) -> Result<Vec<String>, Fault> {
    let mut lines = Vec::new();
    let mut below = Vec::new();
    db.each(bucket, &mut |key, entry| {
        let key = String::from_utf8_lossy(key).into_owned();
        match entry {
            Entry::Value(value) => lines.push(format!("{key}={}", String::from_utf8_lossy(value))),
            Entry::Bucket(bucket) => below.push((key, bucket)),
        }
        Ok::<(), Fault>(())
    })?;
    for (key, bucket) in below {
        lines.extend(
            all(db, &bucket)?
                .into_iter()
                .map(|line| format!("{key}/{line}")),
        );
    }
    Ok(lines)
}

#[test]
fn keys_are_found_and_listed_in_branches_leaves_and_small_buckets() {
    let file = sample();
    let look = |db: &Transaction<'_>| {
        let root = db.root();
        assert_eq!(
            all(db, &root)?,
            ["k2=two", "k4=four", "k1/a=1", "k1/b=2", "k3/key=small"]
        );
        assert_eq!(db.value(&root, b"k2")?.as_deref(), Some(&b"two"[..]));
        assert_eq!(db.value(&root, b"k4")?.as_deref(), Some(&b"four"[..]));
        for absent in [&b""[..], b"k", b"k1", b"k22", b"k9"] {
            assert_eq!(db.value(&root, absent)?, None, "{absent:?}");
        }
        let small = db.bucket(&root, &[b"k3"])?.unwrap();
        assert_eq!(db.value(&small, b"key")?.as_deref(), Some(&b"small"[..]));
        assert!(db.bucket(&root, &[b"k2"])?.is_none());
        assert!(db.bucket(&root, &[b"k1", b"a"])?.is_none());
        Ok::<(), Fault>(())
    };
    read(&file, look).unwrap();
}

#[test]
fn the_last_whole_transaction_counts() {
    let file = sample();
    // A commit was interrupted within the second meta page.
    file.write_all_at(&[0; 40], PAGE as u64 + 20).unwrap();
    let number = |file: &File| Transaction::last(file).map(|last| (last.number, last.root));
    assert_eq!(number(&file).unwrap(), (6, 99));
    // Its root page does not exist.
    assert!(
        read(&file, |db| all(db, &db.root())).is_err_and(|f| matches!(f, Fault::Damaged { .. }))
    );
    let file = sample();
    file.write_all_at(&[0; 40], 20).unwrap();
    assert_eq!(number(&file).unwrap(), (7, 6));
    file.write_all_at(&[0; 40], PAGE as u64 + 20).unwrap();
    assert!(number(&file).is_err());
}

#[test]
fn a_file_that_changes_meanwhile_is_read_again() {
    let file = sample();
    let looks = Cell::new(0);
    let look = |db: &Transaction<'_>| {
        looks.set(looks.get() + 1);
        if looks.get() < 3 {
            // A writer commits.
            let next = meta(7 + looks.get(), 6, 7);
            file.write_all_at(&next, PAGE as u64 * ((7 + looks.get()) & 1))
                .unwrap();
        }
        Ok::<u64, Fault>(db.number)
    };
    assert_eq!(read(&file, look).unwrap(), 9);
    assert_eq!(looks.get(), 3);
    let always = |_: &Transaction<'_>| {
        looks.set(looks.get() + 1);
        let next = meta(100 + looks.get(), 6, 7);
        file.write_all_at(&next, PAGE as u64 * (looks.get() & 1))
            .unwrap();
        Ok::<(), Fault>(())
    };
    assert!(matches!(read(&file, always), Err(Fault::Busy)));
}

#[test]
fn a_page_that_leads_to_itself_ends() {
    let root = page(3, BRANCH, &[(3, b"a", b""), (3, b"b", b"")]);
    let file = file_of(&[root]);
    assert!(read(&file, |db| all(db, &db.root())).is_err());
    assert!(read(&file, |db| db.value(&db.root(), b"a")).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    /// For any content of the pages, reading ends with a result or an error.
    #[test]
    fn damage_is_an_error(changes in prop::collection::vec((2 * PAGE..7 * PAGE, any::<u8>()), 1..40)) {
        let file = sample();
        for (at, byte) in changes {
            // Only the beginnings of most pages have content.
            let at = at / PAGE * PAGE + at % PAGE / 16;
            file.write_all_at(&[byte], at as u64).unwrap();
        }
        let _ = read(&file, |db| all(db, &db.root()));
        let _ = read(&file, |db| db.value(&db.root(), b"k2"));
    }
}

#[test]
fn copies_of_overlapping_buckets_are_limited() {
    // The bucket of each element is the rest of the page.
    let (count, size) = (400, 4 * PAGE);
    let mut leaf = 3_u64.to_le_bytes().to_vec();
    leaf.extend(LEAF.to_le_bytes());
    leaf.extend((count as u16).to_le_bytes());
    leaf.extend(3_u32.to_le_bytes());
    let data = HEADER * (1 + count);
    for at in 0..count {
        let position = (data - HEADER * (1 + at)) as u32;
        let fields = [IS_BUCKET, position, 1, (size - data - 1) as u32];
        leaf.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
    }
    leaf.resize(size, 0);
    let mut pages: Vec<Vec<u8>> = leaf.chunks(PAGE).map(<[u8]>::to_vec).collect();
    pages.push(page(7, BRANCH, &[(3, b"\0", b"")]));
    let file = file_of(&pages);
    let mut seen = Cell::new(0);
    let listed = read(&file, |db| {
        db.each(&db.root(), &mut |_, _| {
            seen.set(seen.get() + 1);
            Ok::<(), Fault>(())
        })
    });
    assert!(matches!(listed, Err(Fault::Damaged { .. })), "{listed:?}");
    assert!((1..count).contains(seen.get_mut()), "{seen:?}");
}
