//! Builds a layer stack from directories and mounts it through the library, as `unionfs -o
//! lowerdir=...` does.
//!
//! ```sh
//! mkdir -p /tmp/demo/{lower,upper,work,mnt} && echo hello > /tmp/demo/lower/file
//! cargo run --example mount_stack -- /tmp/demo/mnt /tmp/demo/lower --upper /tmp/demo/upper /tmp/demo/work
//! ```
//!
//! It serves until the mount is unmounted (`fusermount3 -u /tmp/demo/mnt`) or Ctrl-C.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use unionfs::fuse::{self, MountConfig};
use unionfs::layer::{Dialect, LayerSpec, OpenDir, StackSpec, UpperSpec};
use unionfs::union::{Options, Union};

const USAGE: &str = "usage: mount_stack MOUNTPOINT LOWER... [--upper UPPER WORK]";

fn main() -> Result<()> {
    let (mountpoint, stack) = parse(std::env::args_os().skip(1).map(PathBuf::from))?;
    let mut config = MountConfig::new(&mountpoint);
    config.fsname = "mount_stack".into();
    // `unionfs ps` shows this.
    config.description = fuse::Description::of(&stack);
    if stack.upper.is_none() {
        config.apply_option("ro".as_ref());
    }
    fuse::raise_nofile_limit();
    let union = Union::new(&stack, Options::default()).context("cannot open the layers")?;
    let mounted = fuse::mount(union, &config)?;
    mounted.serve_with(|| println!("serving {}", mountpoint.display()))?;
    Ok(())
}

fn parse(mut args: impl Iterator<Item = PathBuf>) -> Result<(PathBuf, StackSpec)> {
    let layer = |path| LayerSpec::open(path, Dialect::ALL);
    let mountpoint = args.next().context(USAGE)?;
    let mut stack = StackSpec {
        lowers: Vec::new(),
        data_only: Vec::new(),
        upper: None,
    };
    while let Some(arg) = args.next() {
        if arg.as_os_str() == "--upper" {
            stack.upper = Some(UpperSpec {
                layer: layer(args.next().context(USAGE)?)?,
                work: OpenDir::open(args.next().context(USAGE)?)?,
            });
        } else {
            stack.lowers.push(layer(arg)?);
        }
    }
    if stack.lowers.is_empty() {
        bail!(USAGE);
    }
    Ok((mountpoint, stack))
}
