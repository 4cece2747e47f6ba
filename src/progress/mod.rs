//! Progress of long work, as the library reports it to its caller.
//!
//! Each function that takes long has a callback that takes a [`Progress`]. The function names its
//! items by a type of its own: layers and blobs by their digests, and `()` where all work is one item.
//!
//! ```
//! use unionfs::progress::Progress;
//!
//! let mut bytes = 0;
//! let mut show = |progress: Progress<'_, &str>| {
//!     if let Progress::Advance { count, .. } = progress {
//!         bytes += count;
//!     }
//! };
//! show(Progress::Begin { item: "layer", size: 5, have: 0 });
//! show(Progress::Advance { item: "layer", count: 5 });
//! show(Progress::Done { item: "layer" });
//! assert_eq!(bytes, 5);
//! ```

mod counted;

use std::error::Error;
use std::time::Duration;

pub use counted::Counted;

/// A step of long work. Sizes and counts are bytes, if the function does not name another unit.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Progress<'a, Item> {
    /// All the work is known.
    Total {
        /// The number of items.
        items: usize,
        /// The size of all items.
        size: u64,
    },
    /// An item waits for its turn.
    Waiting {
        /// The item.
        item: Item,
        /// Its size; 0 if the size is not known.
        size: u64,
    },
    /// What an earlier command has left of an item is checked.
    Verifying {
        /// The item.
        item: Item,
    },
    /// The work on an item begins.
    Begin {
        /// The item.
        item: Item,
        /// Its size; 0 if the size is not known.
        size: u64,
        /// The part that an earlier command has left.
        have: u64,
    },
    /// The work on an item advances.
    Advance {
        /// The item.
        item: Item,
        /// The amount of work since the last step.
        count: u64,
    },
    /// The work on an item continues after a failure.
    Again {
        /// The item.
        item: Item,
        /// The failure.
        why: &'a dyn Error,
        /// The part that is done and kept.
        have: u64,
    },
    /// Another process works on the item. The work waits for its result.
    Elsewhere {
        /// The item.
        item: Item,
        /// The ID of that process, if it is known.
        process: Option<u32>,
    },
    /// A request will be sent again.
    Later {
        /// The object of the request.
        what: &'a str,
        /// The failure of the last request.
        why: &'a dyn Error,
        /// The time until then.
        pause: Duration,
    },
    /// The work on an item is done.
    Done {
        /// The item.
        item: Item,
    },
    /// The item exists. There is no work on it.
    Exists {
        /// The item.
        item: Item,
    },
}
