//! Names without a host that registries.conf gives a meaning (aliases, search registries): an image that
//! was pulled by such a name is found by it in the stores, as in podman.
//!
//! The configuration is read before a sandbox is entered, and only for names that may be short. What is
//! learnt of a name is part of [`super::environment`].

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::policy_args;
use unionfs::oci::Reference;
use unionfs::oci::reference::Query;

static KNOWN: Mutex<BTreeMap<String, Vec<Reference>>> = Mutex::new(BTreeMap::new());

/// Reads what else a name may mean; returns whether it means anything else. A configuration that cannot
/// be used means nothing here: the image may still have the name itself.
pub(super) fn learn(text: &str) -> bool {
    let name = bare(text);
    let is_short =
        matches!(Query::parse(name), Ok(Query::Name { .. })) && !Reference::has_host(name);
    if !is_short || known().contains_key(name) {
        return false;
    }
    let meanings = match policy_args::configuration().meanings(name) {
        Ok(meanings) => meanings,
        Err(error) => {
            tracing::debug!(%error, "short names are not looked up");
            Vec::new()
        }
    };
    let has_any = !meanings.is_empty();
    if has_any {
        known().insert(name.to_owned(), meanings);
    }
    has_any
}

/// Returns the other names of a name that was learnt.
pub(super) fn of(text: &str) -> Vec<Reference> {
    known().get(bare(text)).cloned().unwrap_or_default()
}

/// Returns all that was learnt.
pub(super) fn all() -> BTreeMap<String, Vec<Reference>> {
    known().clone()
}

/// Returns the name without the kind of a store.
fn bare(text: &str) -> &str {
    let kinds = ["containers-storage:", "docker-daemon:"];
    let bare = kinds.iter().find_map(|kind| text.strip_prefix(kind));
    bare.unwrap_or(text)
}

fn known() -> MutexGuard<'static, BTreeMap<String, Vec<Reference>>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}
