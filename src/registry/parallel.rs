//! Runs a few tasks in parallel.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::error::Result;

/// Calls `work` with every item, `at_once` at a time, in threads. After a failure no new item is
/// begun, and the flag tells running ones that they may end. The results are in the order of the
/// items.
pub(super) fn each<T: Sync, R: Send>(
    items: &[T],
    at_once: usize,
    work: impl Fn(&T, &AtomicBool) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let results: Vec<_> = items.iter().map(|_| Mutex::new(None)).collect();
    let first_failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..at_once.clamp(1, 64).min(items.len()) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let (Some(item), Some(result)) = (items.get(at), results.get(at)) else {
                        return;
                    };
                    match work(item, &stop) {
                        Ok(value) => *result.lock() = Some(value),
                        Err(error) => {
                            stop.store(true, Ordering::Relaxed);
                            first_failure.lock().get_or_insert(error);
                        }
                    }
                }
            });
        }
    });
    match first_failure.into_inner() {
        Some(error) => Err(error),
        None => Ok(results.into_iter().filter_map(Mutex::into_inner).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Error;

    #[test]
    fn results_are_in_order_and_a_failure_ends_it() {
        let items: Vec<usize> = (0..100).collect();
        let doubled = each(&items, 3, |item, _| Ok(item * 2)).unwrap();
        assert!(
            doubled
                .iter()
                .enumerate()
                .all(|(at, value)| *value == at * 2)
        );
        assert_eq!(doubled.len(), 100);
        let begun = AtomicUsize::new(0);
        let failed: Result<Vec<()>> = each(&items, 1, |item, _| {
            begun.fetch_add(1, Ordering::Relaxed);
            match item {
                5 => Err(Error::malformed("five", "")),
                _ => Ok(()),
            }
        });
        assert!(failed.unwrap_err().to_string().contains("five"));
        assert_eq!(begun.into_inner(), 6);
        assert!(each(&[], 3, |_: &u8, _| Ok(())).unwrap().is_empty());
    }
}
