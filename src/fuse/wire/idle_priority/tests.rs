use testkit::need;
use testkit::need::is_root;

use super::*;

/// What is seen of a crew that does not give way.
fn awake(came: u64) -> Seen {
    Seen {
        gives_way: false,
        came,
        many: MANY,
        starved: false,
    }
}

fn giving_way(came: u64) -> Seen {
    Seen {
        gives_way: true,
        ..awake(came)
    }
}

#[test]
fn many_requests_make_a_crew_give_way_and_silence_ends_it() {
    let mut view = View::default();
    assert!(!view.decide(awake(MANY - 1)));
    assert!(view.decide(awake(MANY)));
    // Fewer requests and pauses do not end it.
    assert!(view.decide(giving_way(1)));
    for _ in 1..QUIET {
        assert!(view.decide(giving_way(0)));
    }
    assert!(!view.decide(giving_way(0)));
    assert!(view.decide(awake(MANY)));
}

/// Returns how many ticks of many requests pass until the crew gives way again.
fn left_alone(view: &mut View) -> u32 {
    (0..).find(|_| view.decide(awake(100))).unwrap()
}

#[test]
fn who_was_starved_is_left_alone_longer_each_time() {
    let mut view = View::default();
    let mut waited = Vec::new();
    for _ in 0..8 {
        assert!(!view.decide(Seen {
            starved: true,
            ..giving_way(0)
        }));
        waited.push(left_alone(&mut view) + 1);
    }
    assert_eq!(waited, [25, 50, 100, 200, 400, 800, 800, 800]);
    // After a second without starvation, the wait is short again.
    for _ in 0..FORGIVEN {
        assert!(view.decide(giving_way(100)));
    }
    assert!(!view.decide(Seen {
        starved: true,
        ..giving_way(0)
    }));
    assert_eq!(left_alone(&mut view) + 1, PATIENCE);
}

#[test]
fn who_follows_waits_until_one_has_asked_alone() {
    let mut view = View::default();
    assert!(view.decide(awake(MANY)));
    assert!(!view.keep_apart());
    assert_eq!(left_alone(&mut view) + 1, APART);
}

/// Starts a thread that uses all of the first CPU until the returned sender is dropped. Returns its
/// ID.
fn busy(policy: Policy) -> (i32, std::sync::mpsc::Sender<()>) {
    let (tell, told) = std::sync::mpsc::channel();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        sched_setaffinity(None, &only(0)).unwrap();
        set_policy(0, policy).unwrap();
        tell.send(this_thread()).unwrap();
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {}
    });
    (told.recv().unwrap(), stop)
}

#[test]
fn who_could_run_and_hardly_does_is_starved_and_who_sleeps_is_not() {
    let looks = |state: &mut CrewState| {
        (0..100).any(|_| {
            std::thread::sleep(TICK);
            state.is_starved()
        })
    };
    let crew = |thread| CrewState {
        members: vec![thread],
        ..CrewState::default()
    };
    let (hungry, _stop) = busy(Policy::Idle);
    let hogs = [busy(Policy::Other), busy(Policy::Other)];
    assert!(looks(&mut crew(hungry)), "{:?}", has_run(hungry));
    // A thread that waits for work does not count as starved.
    let (wait, waits) = std::sync::mpsc::channel::<()>();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        tell.send(this_thread()).unwrap();
        let _ = waits.recv();
    });
    let sleeper = told.recv().unwrap();
    while stat_of(sleeper).unwrap().field(STATE) != Some("S") {}
    assert!(!looks(&mut crew(sleeper)));
    drop((hogs, wait));
}

#[test]
fn the_watch_sleeps_wakes_and_ends() {
    let Some(watch) = Watch::of_rings(2) else {
        // Without root, the process cannot leave SCHED_IDLE again.
        need!(is_root());
        panic!("root has a watch");
    };
    assert!(Watch::of_rings(1).is_none());
    assert!(watch.join(2).is_none());
    watch.start();
    let ends = {
        let watch = Arc::clone(&watch);
        std::thread::spawn(move || {
            let mut place = watch.join(1).unwrap();
            let is = |wanted| policy(this_thread()).unwrap() == Some(wanted);
            let start = Instant::now();
            while !is(Policy::Idle) {
                place.took();
                std::thread::sleep(Duration::from_micros(100));
                assert!(start.elapsed() < Duration::from_secs(20));
            }
            assert!(!place.watch.asleep.load(Ordering::Relaxed));
            while !is(Policy::Other) || !place.watch.asleep.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
                assert!(start.elapsed() < Duration::from_secs(20));
            }
        })
    };
    ends.join().unwrap();
    // The watch thread ends with the last member, and drops its handle of the watch.
    let start = Instant::now();
    while Arc::strong_count(&watch) > 1 {
        std::thread::sleep(Duration::from_millis(1));
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}
