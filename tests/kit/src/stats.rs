//! Reads `unionfs stats MOUNTPOINT --json`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::{caches, program};

/// The counters of the server.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Requests by operation.
    pub requests: BTreeMap<String, u64>,
    /// The union's counters.
    pub union: BTreeMap<String, u64>,
}

/// Reads the counters of the server of a mount.
pub fn stats(mnt: &Path) -> Stats {
    let output = Command::new(program())
        .arg("stats")
        .arg(mnt)
        .arg("--json")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "unionfs stats: {stderr}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let numbers = |key: &str| {
        let map = json[key].as_object();
        let map = map.unwrap_or_else(|| panic!("no {key} in {json}"));
        let number = |(name, value): (&String, &Value)| Some((name.clone(), value.as_u64()?));
        map.iter().filter_map(number).collect()
    };
    Stats {
        requests: numbers("requests"),
        union: numbers("union"),
    }
}

fn grown(before: &Stats, after: &Stats) -> BTreeMap<String, u64> {
    let delta = |(name, now): (&String, &u64)| {
        let was = before.requests.get(name).copied().unwrap_or(0);
        (*now > was).then(|| (name.clone(), now - was))
    };
    after.requests.iter().filter_map(delta).collect()
}

/// Returns the requests that `action` caused. The requests that reading the statistics causes are
/// measured first and subtracted. No test drops the kernel's caches meanwhile.
pub fn requests_of(mnt: &Path, action: impl FnOnce()) -> BTreeMap<String, u64> {
    let _undisturbed = caches::undisturbed();
    // The first call may look the mountpoint up.
    stats(mnt);
    let first = stats(mnt);
    let before = stats(mnt);
    let asking = grown(&first, &before);
    action();
    let mut caused = grown(&before, &stats(mnt));
    for (name, cost) in asking {
        if let Some(n) = caused.get_mut(&name) {
            *n = n.saturating_sub(cost);
        }
    }
    caused.retain(|_, n| *n > 0);
    caused
}
