//! How long a run takes: said before it starts, and after each turn of a subject.

use std::time::{Duration, Instant};

/// Minutes of a full run: one round, and what is measured only once. On two CPUs.
const MINUTES: (u64, u64) = (17, 40);
/// Minutes that the images of a first run take.
const IMAGES: u64 = 10;

/// Says how long the run will take.
pub(crate) fn announce(quick: bool, rounds: usize) {
    if quick {
        eprintln!("a quick run: about 3 minutes");
        return;
    }
    let (round, once) = MINUTES;
    eprintln!(
        "{rounds} rounds: about {} minutes on two CPUs; the first run makes a root file system and \
         images before, about {IMAGES} minutes",
        round * rounds as u64 + once
    );
}

/// The progress of a run.
pub(crate) struct Progress {
    start: Instant,
    last: Instant,
    turn: Instant,
    /// The time of the turns of this round that each round has.
    repeated: Duration,
    done: usize,
    all: usize,
    verbose: bool,
}

impl Progress {
    /// Starts with `all` turns to do.
    pub(crate) fn new(all: usize, verbose: bool) -> Self {
        let now = Instant::now();
        Self {
            start: now,
            last: now,
            turn: now,
            repeated: Duration::ZERO,
            done: 0,
            all,
            verbose,
        }
    }

    /// Says, if asked, how long a row took since the one before.
    pub(crate) fn row_done(&mut self, name: &str) {
        if self.verbose {
            eprintln!("    {:6.2} s  {name}", self.last.elapsed().as_secs_f64());
        }
        self.last = Instant::now();
    }

    /// Notes that a round begins.
    pub(crate) fn round_begins(&mut self) {
        self.repeated = Duration::ZERO;
    }

    /// Whether a round more would end later than `minutes` after the start.
    pub(crate) fn would_exceed(&self, minutes: u64) -> bool {
        self.start.elapsed() + self.repeated > Duration::from_secs(minutes * 60)
    }

    /// Notes that there are fewer turns to do.
    pub(crate) fn turns_skipped(&mut self, turns: usize) {
        self.all -= turns;
    }

    /// Says how long a turn took, and how long the rest will take if the turns are alike. `again`:
    /// each round has this turn.
    pub(crate) fn turn_done(&mut self, what: &str, again: bool) {
        self.done += 1;
        let took = self.turn.elapsed();
        if again {
            self.repeated += took;
        }
        let left = self.start.elapsed() * (self.all - self.done) as u32 / self.done as u32;
        eprintln!(
            "{what}, {} s, {} of {} turns; {} so far, about {} left",
            took.as_secs(),
            self.done,
            self.all,
            minutes(self.start.elapsed()),
            minutes(left),
        );
        self.turn = Instant::now();
    }
}

fn minutes(time: Duration) -> String {
    format!("{}:{:02} min", time.as_secs() / 60, time.as_secs() % 60)
}
