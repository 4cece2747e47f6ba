//! How long a run takes: said before it starts, and after each turn of a subject.

use std::time::{Duration, Instant};

/// Minutes of a full run: one round, and what is measured only once. On two CPUs with a disk of
/// 300 MB/s.
const MINUTES: (u64, u64) = (7, 2);
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

    /// Whether a round more, after so many `rounds`, would end later than `minutes` after the start.
    pub(crate) fn would_exceed(&self, rounds: usize, minutes: u64) -> bool {
        let next = self.start.elapsed() * (rounds as u32 + 1) / rounds as u32;
        next > Duration::from_secs(minutes * 60)
    }

    /// Notes that there is a turn less to do.
    pub(crate) fn turn_skipped(&mut self) {
        self.all -= 1;
    }

    /// Says how long a turn took, and how long the rest will take if the turns are alike.
    pub(crate) fn turn_done(&mut self, round: usize, subject: &str) {
        self.done += 1;
        let left = self.start.elapsed() * (self.all - self.done) as u32 / self.done as u32;
        eprintln!(
            "round {round}, {} of {} turns: {subject}, {} s; {} so far, about {} left",
            self.done,
            self.all,
            self.turn.elapsed().as_secs(),
            minutes(self.start.elapsed()),
            minutes(left),
        );
        self.turn = Instant::now();
    }
}

fn minutes(time: Duration) -> String {
    format!("{}:{:02} min", time.as_secs() / 60, time.as_secs() % 60)
}
