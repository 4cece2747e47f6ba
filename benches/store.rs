//! Criterion benches of the store code that needs no store: digests and chain IDs, names of images,
//! unpacking a layer's tar into a directory and rebuilding it through tar-split, and the changes of
//! an upper. Run them by `cargo bench --bench store`. No time is asserted.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::hint::black_box;
use std::io::sink;
use std::os::fd::AsFd as _;
use std::path::Path;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use unionfs::changes::Tree;
use unionfs::layer::{Dialect, LayerSpec, OpenDir, StackSpec, UpperSpec};
use unionfs::layer_tar::{Limits, rebuild, unpack};
use unionfs::oci::{Digest, Reference, chain_id};

/// The number of files in the layers.
const FILES: usize = 1000;
/// The size of each file in bytes.
const SIZE: usize = 16 << 10;

fn names(c: &mut Criterion) {
    let diffs: Vec<_> = (0..128_u8).map(|n| Digest::of(&[n])).collect();
    let mut group = c.benchmark_group("names");
    group.bench_function("chain IDs of 128 layers", |b| {
        b.iter(|| chain_id::chain_ids(black_box(&diffs)));
    });
    group.bench_function("reference", |b| {
        let name = "registry.example.com:5000/team/project/image:v1.2.3";
        b.iter(|| Reference::parse(black_box(name)).unwrap());
    });
    group.finish();
}

fn tree(dir: &Path, files: usize, size: usize) {
    let data: Vec<u8> = (0..size).map(|n| ((n * 7) >> 3) as u8).collect();
    for n in 0..files {
        let dir = dir.join(format!("d{}", n % 20));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("f{n}")), &data).unwrap();
    }
}

fn layer(path: &Path) -> LayerSpec {
    LayerSpec::open(path, Dialect::KERNEL).unwrap()
}

fn tars(c: &mut Criterion) {
    let base = tempfile::tempdir().unwrap();
    tree(&base.path().join("tree"), FILES, SIZE);
    let stack = StackSpec {
        lowers: vec![layer(&base.path().join("tree"))],
        data_only: Vec::new(),
        upper: None,
    };
    let mut tar = Vec::new();
    Tree::open(&stack).unwrap().pack_all(&mut tar).unwrap();
    let mut group = c.benchmark_group("layer tar");
    group.throughput(Throughput::Bytes(tar.len() as u64));
    group.sample_size(10);
    let put = |dir: &Path, split: &mut Vec<u8>| {
        let diff = fs::File::open(dir).unwrap();
        let limits = Limits::default();
        unpack(
            tar.as_slice(),
            diff.as_fd(),
            Dialect::KERNEL,
            split,
            &limits,
        )
        .unwrap()
    };
    group.bench_function("hash alone", |b| b.iter(|| Digest::of(black_box(&tar))));
    group.bench_function("unpack", |b| {
        let empty = || tempfile::tempdir_in(base.path()).unwrap();
        let put = |dir: tempfile::TempDir| {
            put(dir.path(), &mut Vec::new());
            dir
        };
        b.iter_batched(empty, put, BatchSize::PerIteration);
    });
    let (dir, mut split) = (tempfile::tempdir_in(base.path()).unwrap(), Vec::new());
    let diff_id = put(dir.path(), &mut split).diff_id;
    let diff = fs::File::open(dir.path()).unwrap();
    group.bench_function("rebuild", |b| {
        b.iter(|| {
            let again = rebuild(split.as_slice(), diff.as_fd(), sink()).unwrap();
            assert_eq!(again, diff_id);
        });
    });
    group.bench_function("pack", |b| {
        b.iter(|| Tree::open(&stack).unwrap().pack_all(sink()).unwrap());
    });
    group.finish();
}

/// Lists ten changes among more and more files that did not change.
fn diff(c: &mut Criterion) {
    let base = tempfile::tempdir().unwrap();
    let mut group = c.benchmark_group("diff of ten changes");
    for files in [1000, 10_000, 100_000] {
        let dir = |name: &str| base.path().join(format!("{name}-{files}"));
        tree(&dir("lower"), files, 0);
        tree(&dir("upper"), 10, 1);
        fs::create_dir(dir("work")).unwrap();
        let stack = StackSpec {
            lowers: vec![layer(&dir("lower"))],
            data_only: Vec::new(),
            upper: Some(UpperSpec {
                layer: layer(&dir("upper")),
                work: OpenDir::open(dir("work")).unwrap(),
            }),
        };
        group.bench_function(BenchmarkId::from_parameter(files), |b| {
            b.iter(|| Tree::open(&stack).unwrap().changes().unwrap());
        });
    }
    group.finish();
}

criterion_group!(benches, names, tars, diff);
criterion_main!(benches);
