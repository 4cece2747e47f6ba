//! Operations on one file by two threads at once: neither thread waits for the other forever.

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use unionfs::union::{Caching, Ino, ROOT_INO, Union};

use crate::support::{World, caller};

/// There are more files than cached descriptors, so that the first read of most files must open
/// them.
const FILES: usize = 6000;
/// The last of many created files may still have a cached descriptor.
const CACHED: usize = 256;

/// Runs `a` and `b` at the same time, once for every file. Panics if one of them hangs.
fn race(
    world: World,
    files: Vec<(String, Ino)>,
    a: impl Fn(&Union, &str, Ino) + Send + Sync + 'static,
    b: impl Fn(&Union, &str, Ino) + Send + Sync + 'static,
) {
    type Job = Box<dyn Fn(&Union, &str, Ino) + Send + Sync>;
    let (world, files, barrier) = (Arc::new(world), Arc::new(files), Arc::new(Barrier::new(2)));
    let (done, finished) = sync_channel::<()>(0);
    let spawn = |job: Job, delayed: bool| {
        let (world, files) = (Arc::clone(&world), Arc::clone(&files));
        let (barrier, done) = (Arc::clone(&barrier), done.clone());
        std::thread::spawn(move || {
            for (n, (name, ino)) in files.iter().enumerate() {
                barrier.wait();
                // The two threads meet at another point each time.
                let start = Instant::now();
                let delay = Duration::from_nanos(if delayed { n as u64 % 200 * 200 } else { 0 });
                while start.elapsed() < delay {
                    std::hint::spin_loop();
                }
                job(&world.union, name, *ino);
                barrier.wait();
                if !delayed {
                    world.union.forget(*ino, 1);
                }
            }
            drop(done);
        })
    };
    let threads = [spawn(Box::new(a), true), spawn(Box::new(b), false)];
    drop(done);
    let end = finished.recv_timeout(Duration::from_secs(20));
    assert_eq!(end, Err(RecvTimeoutError::Disconnected), "a thread hangs");
    for thread in threads {
        thread.join().unwrap();
    }
}

/// The first read of a file opens it, while its removal keeps it for the processes that have it
/// open.
#[test]
fn a_file_is_opened_while_it_is_removed() {
    let world = World::new(1, |_, _| {});
    let create = |n: usize| {
        let (name, mode) = (format!("f{n}"), libc::S_IFREG | 0o644);
        let caller = caller();
        let union = &world.union;
        let entry = union.mknod(&caller, ROOT_INO, name.as_bytes(), mode, 0o022, (0, 0));
        (name, entry.unwrap().surrender())
    };
    let mut files: Vec<_> = (0..FILES).map(create).collect();
    files.truncate(FILES - CACHED);
    let read = |union: &Union, _: &str, ino| {
        assert_eq!(union.read(ino, 0, &mut [0; 1], Caching::Cached).unwrap(), 0);
    };
    let remove = |union: &Union, name: &str, _| union.unlink(ROOT_INO, name.as_bytes()).unwrap();
    race(world, files, read, remove);
}
