use super::*;

#[test]
fn many_requests_make_a_crew_give_way_and_silence_ends_it() {
    let mut view = View::default();
    assert!(!view.decide(false, MANY - 1, false));
    assert!(view.decide(false, MANY, false));
    // Fewer, and pauses, do not end it.
    assert!(view.decide(true, 1, false));
    for _ in 1..QUIET {
        assert!(view.decide(true, 0, false));
    }
    assert!(!view.decide(true, 0, false));
    assert!(view.decide(false, MANY, false));
}

/// How many ticks of many requests pass until it gives way again.
fn left_alone(view: &mut View) -> u32 {
    (0..).find(|_| view.decide(false, 100, false)).unwrap()
}

#[test]
fn who_was_starved_is_left_alone_longer_each_time() {
    let mut view = View::default();
    let mut waited = Vec::new();
    for _ in 0..8 {
        assert!(!view.decide(true, 0, true));
        waited.push(left_alone(&mut view) + 1);
    }
    assert_eq!(waited, [25, 50, 100, 200, 400, 800, 800, 800]);
    // A second without: the CPU is its own again.
    for _ in 0..FORGIVEN {
        assert!(view.decide(true, 100, false));
    }
    assert!(!view.decide(true, 0, true));
    assert_eq!(left_alone(&mut view) + 1, PATIENCE);
}

#[test]
fn the_watch_sleeps_wakes_and_ends() {
    // A plain user has no way back and therefore no watch.
    let Some(watch) = Watch::new(2) else {
        assert!(!rustix::process::geteuid().is_root());
        return;
    };
    assert!(Watch::new(1).is_none());
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
    // With its last thread the watch is gone, too: it holds the watch no longer.
    let start = Instant::now();
    while Arc::strong_count(&watch) > 1 {
        std::thread::sleep(Duration::from_millis(1));
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}
