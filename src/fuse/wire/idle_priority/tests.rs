use std::sync::mpsc::{Sender, TryRecvError, channel};

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

/// Starts a thread that does this on the first CPU, until the returned sender is dropped. Returns
/// it as a member.
fn thread(policy: Policy, mut work: impl FnMut() + Send + 'static) -> (Member, Sender<()>) {
    let (tell, told) = channel();
    let (stop, stopped) = channel::<()>();
    std::thread::spawn(move || {
        sched_setaffinity(None, &only(0)).unwrap();
        set_policy(0, policy).unwrap();
        tell.send(Member::this_thread().unwrap()).unwrap();
        while stopped.try_recv() == Err(TryRecvError::Empty) {
            work();
        }
    });
    (told.recv().unwrap(), stop)
}

fn crew(member: Member) -> CrewState {
    CrewState {
        members: vec![member],
        ..CrewState::default()
    }
}

/// Whether a crew to which so many requests come counts as starved within 100 ticks.
fn is_ever_starved(state: &mut CrewState, came: u64) -> bool {
    (0..100).any(|_| {
        std::thread::sleep(TICK);
        state.is_starved(came)
    })
}

#[test]
fn who_could_run_and_hardly_does_is_starved_and_who_sleeps_is_not() {
    let (hungry, _stop) = thread(Policy::Idle, || ());
    let hogs = [thread(Policy::Other, || ()), thread(Policy::Other, || ())];
    assert!(is_ever_starved(&mut crew(hungry), 0));
    // A thread that waits for work does not count as starved.
    let (wait, waits) = channel::<()>();
    let (sleeper, _stop) = thread(Policy::Idle, move || {
        let _ = waits.recv();
    });
    while stat_of(sleeper.id).unwrap().field(STATE) != Some("S") {}
    assert!(!is_ever_starved(&mut crew(sleeper), 0));
    drop((hogs, wait));
}

/// A thread that wakes up for a request now and then is never seen stuck for a long time. Its
/// requests are nevertheless slow.
#[test]
fn who_waits_for_the_cpu_at_each_request_is_starved_whatever_comes() {
    let (hungry, _stop) = thread(Policy::Idle, || {
        std::thread::sleep(Duration::from_millis(2));
    });
    // Beside a thread of the lowest priority it runs now and then, late each time.
    let mut polite = false;
    let (_, _hog) = thread(Policy::Other, move || {
        if !std::mem::replace(&mut polite, true) {
            rustix::process::setpriority_process(None, 19).unwrap();
        }
    });
    let mut state = crew(hungry);
    assert!((0..20).any(|_| is_ever_starved(&mut state, MANY)));
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
