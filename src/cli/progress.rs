//! The progress of commands on stderr, as `--progress` says.
//!
//! [`Items`] shows items one by one: on a terminal a line for each of them that is redrawn, with a
//! verb, a bar, the bytes and their rate, and a line for the total; else a line for each step that
//! is done, or an object of JSON for each event. [`Work`] shows all work as one bar that goes when
//! the work is done; lines and events only if they are asked for.

mod display;
mod item;
mod items;
mod work;

use std::io::IsTerminal as _;

use clap::ValueEnum as _;
use indicatif::MultiProgress;

use display::Display;
pub(super) use item::Unit;
pub(super) use items::Items;
use work::Parts;
pub(super) use work::Work;

/// The help of `--progress` for commands that show [`Work`].
pub(super) const ON_TERMINAL: &str = "Show progress on stderr: tty (a redrawn line), plain (a line for \
    each step), json (an object in a line for each event), quiet [default: tty on a terminal, else quiet]";

/// The options that decide how progress is shown.
#[derive(Debug, Default, clap::Args)]
pub(super) struct ProgressArgs {
    /// Show progress on stderr: auto (tty on a terminal, else plain), tty (redrawn lines), plain (a
    /// line for each step), json (an object in a line for each event), quiet
    #[arg(long, value_name = "HOW", value_enum, hide_possible_values = true)]
    progress: Option<How>,
    /// Do not show progress, as --progress=quiet
    #[arg(long, short = 'q', conflicts_with = "progress")]
    quiet: bool,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum How {
    Auto,
    Tty,
    Plain,
    Json,
    Quiet,
}

/// What happens to items: a word for the time of it, one for afterwards.
#[derive(Clone, Copy, Debug)]
pub(super) struct Verb {
    pub(super) doing: &'static str,
    pub(super) done: &'static str,
}

pub(super) const fn verb(doing: &'static str, done: &'static str) -> Verb {
    Verb { doing, done }
}

impl ProgressArgs {
    /// Returns a display of items.
    pub(super) fn items(&self, verb: Verb) -> Items {
        Items::with(self.display(), verb)
    }

    /// As [`Self::items`], for a command that may print JSON: then only an explicit option shows
    /// progress.
    pub(super) fn items_beside(&self, json: Json, verb: Verb) -> Items {
        match (json, self.progress) {
            (Json::Printed, None) => Items::with(Display::Nothing, verb),
            _ => self.items(verb),
        }
    }

    /// Returns a display of work whose items the library names. Without the option it shows something
    /// only on a terminal ([`ON_TERMINAL`]).
    pub(super) fn work(&self, unit: Unit, verb: Verb) -> Work {
        Work::new(self.display_of_work(), unit, verb, Parts::Items)
    }

    /// As [`Self::work`], for work that is one item.
    pub(super) fn work_on(&self, name: &str, unit: Unit, verb: Verb) -> Work {
        let work = Work::new(self.display_of_work(), unit, verb, Parts::One);
        work.begin(name, None);
        work
    }

    fn display_of_work(&self) -> Display {
        match self.progress {
            None if !std::io::stderr().is_terminal() => Display::Nothing,
            _ => self.display(),
        }
    }

    /// Returns the option for another process of this program, if one was given.
    pub(super) fn word(&self) -> Option<String> {
        let how = self.progress.and_then(|how| how.to_possible_value());
        match how {
            _ if self.quiet => Some("--quiet".to_owned()),
            how => how.map(|how| format!("--progress={}", how.get_name())),
        }
    }

    fn display(&self) -> Display {
        let is_terminal = std::io::stderr().is_terminal();
        match self.progress.unwrap_or(How::Auto) {
            _ if self.quiet => Display::Nothing,
            How::Quiet => Display::Nothing,
            How::Json => Display::Json,
            // What is no terminal cannot be redrawn.
            How::Auto | How::Tty if is_terminal => Display::Bars(MultiProgress::new()),
            How::Auto | How::Tty | How::Plain => Display::Lines,
        }
    }
}

/// Whether a command prints its result as JSON.
#[derive(Clone, Copy, Debug)]
pub(super) enum Json {
    Printed,
    NotPrinted,
}

impl Json {
    pub(super) fn of(printed: bool) -> Self {
        if printed {
            Self::Printed
        } else {
            Self::NotPrinted
        }
    }
}
