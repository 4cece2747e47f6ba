//! Uses images through the library, without an engine. Each function does the work of the `unionfs`
//! command of that name, without its sandbox, messages and options.
//!
//! ```sh
//! cargo run --example images -- load myapp.tar
//! cargo run --example images -- pull registry.example/myapp:2
//! cargo run --example images -- mount myapp:2 /mnt
//! cargo run --example images -- diff web
//! cargo run --example images -- commit web myapp:3
//! ```

use std::io::Write;
use std::path::Path;

use anyhow::{Result, bail};
use unionfs::archive::{self, Source, Wanted};
use unionfs::changes::Tree;
use unionfs::image_mounts::ImageMount;
use unionfs::layer_tar::Limits;
use unionfs::oci::Reference;
use unionfs::oci::derived_config::Derivation;
use unionfs::registry::{self, PullOptions};
use unionfs::store::discovery::Environment;
use unionfs::store::{Stores, Writable};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["load", file] => load(Path::new(file)),
        ["pull", name] => pull(name),
        ["mount", image, mountpoint] => mount(image, Path::new(mountpoint)),
        ["diff", layer] => diff(layer),
        ["commit", layer, name] => commit(layer, name),
        _ => bail!(
            "usage: images load FILE | pull NAME | mount IMAGE DIR | diff LAYER | commit LAYER NAME"
        ),
    }
}

/// Opens the own store of this user.
fn own_store() -> Result<Writable> {
    Ok(Writable::open(&Environment::current().own_root()?)?)
}

fn load(file: &Path) -> Result<()> {
    let store = own_store()?;
    let wanted = Wanted::default();
    let source = Source::open(file, &store.staging(), wanted.limits.bytes)?;
    for image in archive::load(&store.lock()?, &source, &[], &wanted, &|_| ())? {
        println!("{} {:?}", image.id, image.names);
    }
    Ok(())
}

fn pull(name: &str) -> Result<()> {
    let store = own_store()?;
    let options = PullOptions::default();
    let fetched = registry::fetch(&store, &Reference::parse(name)?, &options, &|_| ())?;
    // The store is locked after the downloads, so that other processes may use it during them.
    let pulled = fetched.register(&store.lock()?, &|_| ())?;
    println!("{} {:?}", pulled.id, pulled.names);
    Ok(())
}

fn mount(image: &str, mountpoint: &Path) -> Result<()> {
    let mounted = ImageMount::find(image)?.with_catalog()?.mount(mountpoint)?;
    println!("changes are kept in {:?}", mounted.upper());
    Ok(mounted.serve()?)
}

fn diff(layer: &str) -> Result<()> {
    let stores = Stores::discover(None, &Environment::current())?;
    let tree = Tree::open(&stores.container(layer)?.changed_stack()?)?;
    for change in tree.changes()? {
        let path = String::from_utf8_lossy(&change.path);
        println!("{} {path}", change.kind.letter());
    }
    Ok(())
}

/// Makes an image of a named layer of the own store (`unionfs mount --name LAYER IMAGE DIR`).
fn commit(layer: &str, name: &str) -> Result<()> {
    let own = own_store()?;
    let store = own.lock()?;
    let stores = Stores::discover(Some(own.root()), &Environment::default())?;
    let container = stores.container(layer)?;
    let Some(base) = container.image else {
        bail!("the image below {layer} is not known");
    };
    let (path, config) = own.store().config_bytes(&base)?;
    let draft = Derivation::default().draft(Some((&path, &config)))?;
    let below: Vec<_> = container.layers.iter().map(|layer| layer.diff_id).collect();

    let tree = Tree::open(&container.changed_stack()?)?;
    let mut import = store.begin_import();
    let mut staged = store.stage_layer(container.parent.as_ref())?;
    let pack = |out: &mut dyn Write| anyhow::Ok(tree.pack_layer(out)?);
    let unpacked = staged.unpack_from(&Limits::default(), pack, |_| ())?;
    import.layer(staged, &unpacked)?;
    let id = import.image(&draft.with_layer(&below, &unpacked.diff_id))?;
    import.finish([(&Reference::parse(name)?, id)])?;
    println!("{id}");
    Ok(())
}
