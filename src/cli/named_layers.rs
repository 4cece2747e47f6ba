//! The read-write layer of `unionfs mount --name`, which is found or made.

use anyhow::bail;

use super::lookup_answer::Found;
use unionfs::image_mounts::label_below_container;
use unionfs::store::writable::Exclusive;
use unionfs::store::{Image, NamedLayer, Store, Stores};

/// Returns the layer with that name, on `image` if one is given. `None` if there is none.
///
/// `own` is the own store, which contains the layer. `stores` are searched for images.
pub(super) fn find(
    own: &Stores,
    stores: &Stores,
    name: &str,
    image: Option<&str>,
) -> anyhow::Result<Option<Found>> {
    for store in own.all() {
        if let Some(named) = store.named(name)? {
            let image = image_of(stores, image)?;
            check(&named, image.as_ref())?;
            return found(store, named).map(Some);
        }
    }
    Ok(None)
}

/// As [`find`], but makes a missing layer. Without `image` the layer must exist.
pub(super) fn find_or_make(
    locked: &Exclusive<'_>,
    stores: &Stores,
    name: &str,
    image: Option<&str>,
) -> anyhow::Result<Found> {
    let store = locked.writable().store();
    let existing = store.named(name)?;
    let image = image_of(stores, image)?;
    match (existing, image) {
        (Some(named), image) => {
            check(&named, image.as_ref())?;
            found(store, named)
        }
        (None, Some(image)) => Ok(Found {
            made: true,
            ..found(store, locked.create_container(name, &image)?)?
        }),
        (None, None) => bail!(
            "no read-write layer {name:?} in {:?}: name an image to make it \
             (unionfs mount --name {name} IMAGE MOUNTPOINT), or see unionfs ps -a",
            store.root()
        ),
    }
}

/// Finds an image. It is called by the name that the user has given.
fn image_of(stores: &Stores, text: Option<&str>) -> anyhow::Result<Option<Image>> {
    let found = text.map(|text| Ok(stores.find(text)?.called(text)));
    found.transpose()
}

fn found(store: &Store, named: NamedLayer) -> anyhow::Result<Found> {
    let container = store.load_named(&named)?;
    Ok(Found {
        chain: label_below_container(store.root(), &container),
        stack: container.stack_in_place()?,
        label: named.image_name,
        image: Some(named.image),
        made: false,
    })
}

/// Checks that the layer is on this image: a name means one layer on one image.
fn check(named: &NamedLayer, image: Option<&Image>) -> anyhow::Result<()> {
    if let Some(image) = image
        && image.id != named.image
    {
        bail!(
            "read-write layer {0:?} is on {1} ({2}), not on {3} ({4}): use another name, or \
             unionfs rm {0}",
            named.name,
            named.image_name,
            named.image.short(),
            image.label(),
            image.id.short()
        );
    }
    Ok(())
}
