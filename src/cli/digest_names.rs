//! Names by digest beside tags: `app@sha256:…` records the meaning of a tag of `app` when it was
//! pulled or pushed.

use unionfs::oci::Reference;
use unionfs::store::Name;

/// Returns the names to show. Names by digest are shown only if their repository has no tag here.
pub(super) fn shown(names: &[Name]) -> impl Iterator<Item = &Name> {
    let has_tag = |repository: &str| {
        let mut tags = names.iter().filter(|name| name.tag.is_some());
        tags.any(|name| name.repository == repository)
    };
    let all = names.iter();
    all.filter(move |name| name.tag.is_some() || !has_tag(&name.repository))
}

/// Splits names into those that are removed with `asked`, and the others. As in Docker, a name by
/// digest is removed with the last tag of its repository.
pub(super) fn split(names: &[Name], asked: &Reference) -> (Vec<Name>, Vec<Name>) {
    let repository = asked.familiar_name();
    let mut near = names.iter().filter(|n| n.repository == repository);
    let last_tag = asked.digest().is_none() && near.all(|n| n.tag.is_none() || n.is(asked));
    let goes_too = |name: &Name| last_tag && name.repository == repository;
    let names = names.iter().cloned();
    names.partition(|name| name.is(asked) || goes_too(name))
}
