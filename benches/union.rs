//! Criterion benches of the union core through its public interface, without a mount: lookup (hit,
//! negative, first time), merging directories, the same from a catalog, and the inode table. Run
//! them by `cargo bench --bench union`. No time is asserted.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::path::Path;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use unionfs::catalog::{self, Label};
use unionfs::layer::{Dialect, LayerSpec, StackSpec};
use unionfs::union::{Options, ROOT_INO, Union};

const FILES: usize = 200;
const DEPTHS: [usize; 3] = [1, 8, 32];

/// Creates a read-only stack of `depth` layers, each with `FILES` files of its own in one
/// directory.
fn stack(base: &Path, depth: usize) -> StackSpec {
    let layer = |n: usize| {
        let path = base.join(format!("{depth}-{n}"));
        std::fs::create_dir_all(path.join("dir")).unwrap();
        for i in 0..FILES {
            std::fs::write(path.join(format!("dir/l{n}-f{i}")), "").unwrap();
        }
        LayerSpec::open(path, Dialect::KERNEL).unwrap()
    };
    StackSpec {
        lowers: (0..depth).map(layer).collect(),
        data_only: Vec::new(),
        upper: None,
    }
}

fn open(stack: &StackSpec, cache: usize) -> Union {
    let options = Options {
        lookup_cache: cache,
        ..Options::default()
    };
    Union::new(stack, options).unwrap()
}

/// Looks up the directory of a union. It stays counted until the end.
fn dir(union: &Union) -> u64 {
    let entry = union.lookup(ROOT_INO, b"dir").unwrap().unwrap();
    entry.surrender()
}

fn lookup(c: &mut Criterion) {
    let base = tempfile::tempdir().unwrap();
    let mut group = c.benchmark_group("lookup");
    for depth in DEPTHS {
        let stack = stack(base.path(), depth);
        let bottom = format!("l{}-f0", depth - 1).into_bytes();
        let cached = open(&stack, 65536);
        let parent = dir(&cached);
        group.bench_function(BenchmarkId::new("hit", depth), |b| {
            b.iter(|| black_box(cached.lookup(parent, black_box(&bottom)).unwrap().is_some()));
        });
        group.bench_function(BenchmarkId::new("negative hit", depth), |b| {
            b.iter(|| black_box(cached.lookup(parent, black_box(b"no")).unwrap().is_none()));
        });
        // A cache of one name never hits when two names are looked up in turn.
        let uncached = open(&stack, 1);
        let parent = dir(&uncached);
        group.bench_function(BenchmarkId::new("miss", depth), |b| {
            b.iter(|| {
                black_box(
                    uncached
                        .lookup(parent, black_box(&bottom))
                        .unwrap()
                        .is_some(),
                );
                black_box(uncached.lookup(parent, black_box(b"no")).unwrap().is_none());
            });
        });
    }
    group.finish();
}

fn readdir(c: &mut Criterion) {
    let base = tempfile::tempdir().unwrap();
    let mut group = c.benchmark_group("readdir");
    for depth in DEPTHS {
        let stack = stack(base.path(), depth);
        for plus in [false, true] {
            let name = if plus { "merge plus" } else { "merge" };
            group.bench_function(BenchmarkId::new(name, depth), |b| {
                // Each iteration opens a new union, in which nothing has been merged yet.
                let fresh = || open(&stack, 65536);
                let list = |union: Union| {
                    let mut names = 0;
                    let sink = &mut |_: unionfs::union::DirItem<'_, '_>| {
                        names += 1;
                        true
                    };
                    let listed = if plus {
                        union.readdirplus(dir(&union), 0, sink)
                    } else {
                        union.readdir(dir(&union), 0, sink)
                    };
                    listed.unwrap();
                    assert!(names >= depth * FILES);
                    union
                };
                b.iter_batched(fresh, list, BatchSize::LargeInput);
            });
        }
    }
    group.finish();
}

/// Measures a catalog, whose cost does not depend on the number of layers.
fn catalogued(c: &mut Criterion) {
    let base = tempfile::tempdir().unwrap();
    let mut group = c.benchmark_group("catalog");
    for depth in DEPTHS {
        let stack = stack(base.path(), depth);
        let file = base.path().join(format!("{depth}.catalog"));
        catalog::build(&stack, &Label::default(), &file, &mut |_| true).unwrap();
        let fresh = |cache| {
            let options = Options {
                lookup_cache: cache,
                names: Some(catalog::CatalogFile::source(&file)),
                ..Options::default()
            };
            let union = Union::new(&stack, options).unwrap();
            assert!(union.is_catalogued());
            union
        };
        let bottom = format!("l{}-f0", depth - 1).into_bytes();
        let union = fresh(1);
        let parent = dir(&union);
        group.bench_function(BenchmarkId::new("miss", depth), |b| {
            b.iter(|| {
                black_box(union.lookup(parent, black_box(&bottom)).unwrap().is_some());
                black_box(union.lookup(parent, black_box(b"no")).unwrap().is_none());
            });
        });
        group.bench_function(BenchmarkId::new("readdir plus of 200", depth), |b| {
            let list = |union: Union| {
                let mut names = 0;
                let sink = &mut |_: unionfs::union::DirItem<'_, '_>| {
                    names += 1;
                    names < FILES
                };
                union.readdirplus(dir(&union), 0, sink).unwrap();
                assert_eq!(names, FILES);
                union
            };
            b.iter_batched(|| fresh(65536), list, BatchSize::LargeInput);
        });
    }
    group.finish();
}

fn inode_table(c: &mut Criterion) {
    let base = tempfile::tempdir().unwrap();
    let stack = stack(base.path(), 1);
    let union = open(&stack, 65536);
    let parent = dir(&union);
    let names: Vec<_> = (0..FILES)
        .map(|n| format!("l0-f{n}").into_bytes())
        .collect();
    let mut group = c.benchmark_group("inode table");
    group.bench_function("lookup, surrender, forget", |b| {
        b.iter(|| {
            for name in &names {
                let entry = union.lookup(parent, name).unwrap().unwrap();
                union.forget(entry.surrender(), 1);
            }
        });
    });
    group.bench_function("getattr of a known inode", |b| {
        let entry = union.lookup(parent, &names[0]).unwrap().unwrap();
        let ino = entry.attr().ino;
        b.iter(|| black_box(union.getattr(black_box(ino)).unwrap()));
    });
    group.finish();
}

criterion_group!(benches, lookup, readdir, catalogued, inode_table);
criterion_main!(benches);
