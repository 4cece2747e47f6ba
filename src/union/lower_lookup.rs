//! Lookup of a name in the lowers: directories are merged, redirects and metacopies are followed
//! from layer to layer, as in fs/overlayfs/namei.c.
//!
//! ```text
//! top     usr/bin/   redirect=/opt/bin
//! middle  opt/bin/   opaque=y
//! bottom  opt/bin/
//! ```
//!
//! Here `usr/bin` merges the directories of top and middle; the bottom one is hidden.

use std::borrow::Cow;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::Union;
use super::error::Result;
use super::inode::{Data, LowerFile};
use super::mounted_catalog::LowerDirs;
use super::types::FileKind;
use crate::layer::at::{At, Stat};
use crate::layer::lower::{LowerDir, Single};
use crate::layer::markers::Markers;
use crate::layer::origin::Origin;

/// What the lowers have under a name.
pub(crate) enum LowerLookup {
    Absent,
    File(LowerFile),
    Dirs(LowerDirs),
}

/// A file of a layer: its directory and its name.
type LayerPath = (Arc<LowerDir>, Arc<[u8]>);

/// Where to look in the next layer.
#[derive(Clone)]
enum Target<'a> {
    /// A name in the parent's directory.
    Name(Cow<'a, [u8]>),
    /// A path from the layer's root, by components.
    Path(Vec<Vec<u8>>),
}

impl Target<'_> {
    fn redirect(&mut self, to: &[u8]) {
        match (to.strip_prefix(b"/"), &mut *self) {
            (Some(path), _) => {
                *self = Target::Path(path.split(|&b| b == b'/').map(<[u8]>::to_vec).collect());
            }
            (None, Target::Name(name)) => *name = Cow::Owned(to.to_vec()),
            (None, Target::Path(path)) => {
                path.pop();
                path.push(to.to_vec());
            }
        }
    }
}

impl Union {
    /// Looks up `name`, or what `redirect` replaces it by, in `lowers`. The first `skip` of them
    /// are known not to have the name.
    ///
    /// # Errors
    /// EIO for a metacopy without data or with a forged redirect; else those of the layers' file
    /// systems.
    pub(crate) fn lookup_lowers(
        &self,
        lowers: &LowerDirs,
        skip: usize,
        name: &[u8],
        redirect: Option<&[u8]>,
    ) -> Result<LowerLookup> {
        // An absolute redirect is resolved in the layers' own directories, not in the merged ones.
        if let Some(dir) = lowers.catalog_dir()
            && redirect.is_none_or(|to| !to.starts_with(b"/"))
        {
            match dir.lookup(redirect.unwrap_or(name)) {
                Ok(Some(below)) => return Ok(below),
                Ok(None) => {}
                Err(damaged) => self.distrust(dir.catalog(), damaged),
            }
        }
        let lowers = lowers.all()?.get(skip..).unwrap_or_default();
        self.lookup_layers(lowers, name, redirect)
    }

    /// As [`Self::lookup_lowers`], without the catalog.
    pub(crate) fn lookup_layers(
        &self,
        lowers: &[Arc<LowerDir>],
        name: &[u8],
        redirect: Option<&[u8]>,
    ) -> Result<LowerLookup> {
        let mut target = Target::Name(Cow::Borrowed(name));
        if let Some(to) = redirect {
            target.redirect(to);
        }
        let mut stack = lowers;
        let mut next = 0;
        // The number of layers that have been searched.
        let mut floor = 0;
        let mut dirs: Vec<Arc<LowerDir>> = Vec::new();
        let mut meta: Option<LowerFile> = None;
        let mut claimed: Option<Vec<u8>> = None;
        loop {
            if matches!(target, Target::Path(_)) && !std::ptr::eq(stack, &*self.roots) {
                (stack, next) = (&self.roots, 0);
            }
            let Some(dir) = stack.get(next) else { break };
            next += 1;
            if dir.index < floor {
                continue;
            }
            let (place, single) = self.look(dir, &mut target)?;
            let redirect = match single {
                Single::Absent => continue,
                Single::Whiteout => break,
                Single::File { .. } if !dirs.is_empty() => break,
                Single::File { stat, .. } if meta.is_some() && stat.kind != FileKind::Regular => {
                    break;
                }
                Single::Dir { .. } if meta.is_some() => break,
                Single::Dir {
                    dir,
                    opaque,
                    redirect,
                } => {
                    dirs.push(dir);
                    if opaque {
                        break;
                    }
                    redirect
                }
                Single::File { stat, markers } => {
                    let (at, at_name) = place;
                    self.check_claim(claimed.take().as_deref(), &at, &at_name)?;
                    let data = self.only_data(&stat, &markers);
                    if data.is_none() && (!markers.metacopy || stat.kind != FileKind::Regular) {
                        return Ok(LowerLookup::File(finish(meta, at, at_name, stat)));
                    }
                    if meta.is_none() && dir.layer.is_foreign {
                        claimed = markers.origin.clone();
                    }
                    meta.get_or_insert(LowerFile {
                        dir: at,
                        name: at_name,
                        stat,
                        data: None,
                        record: None,
                    });
                    if let Some(path) = data {
                        target.redirect(path);
                        break;
                    }
                    markers.redirect
                }
            };
            floor = dir.index + 1;
            if let Some(to) = redirect {
                target.redirect(&to);
            }
        }
        match (meta, dirs.is_empty()) {
            (Some(meta), _) => self.data_only(meta, &target).map(LowerLookup::File),
            (None, true) => Ok(LowerLookup::Absent),
            (None, false) => Ok(LowerLookup::Dirs(dirs.into())),
        }
    }

    /// Looks the target up in one layer. Markers of directories on an absolute path change the
    /// target for the layers below.
    fn look(&self, dir: &Arc<LowerDir>, target: &mut Target<'_>) -> Result<(LayerPath, Single)> {
        let path = match target {
            Target::Name(name) => {
                let single = dir.lookup(&self.fds, name)?;
                return Ok(((Arc::clone(dir), name.as_ref().into()), single));
            }
            Target::Path(path) => path.clone(),
        };
        let mut at = Arc::clone(dir);
        let Some((last, ancestors)) = path.split_last() else {
            return Ok(((at, Arc::default()), Single::Absent));
        };
        let mut opaque_above = false;
        for (depth, component) in ancestors.iter().enumerate() {
            match at.lookup(&self.fds, component)? {
                Single::Absent => return Ok(((at, Arc::default()), Single::Absent)),
                Single::Whiteout | Single::File { .. } => {
                    return Ok(((at, Arc::default()), Single::Whiteout));
                }
                Single::Dir {
                    dir,
                    opaque,
                    redirect,
                } => {
                    opaque_above |= opaque;
                    if let Some(to) = redirect {
                        let mut prefix = Target::Path(path[..=depth].to_vec());
                        prefix.redirect(&to);
                        if let Target::Path(mut new) = prefix {
                            new.extend_from_slice(&path[depth + 1..]);
                            *target = Target::Path(new);
                        }
                    }
                    at = dir;
                }
            }
        }
        let single = match at.lookup(&self.fds, last)? {
            Single::Dir { dir, redirect, .. } if opaque_above => Single::Dir {
                dir,
                opaque: true,
                redirect,
            },
            Single::Absent if opaque_above => Single::Whiteout,
            other => other,
        };
        Ok(((at, last.as_slice().into()), single))
    }

    /// Checks that the data file of a metacopy is the one in its origin marker
    /// (`ovl_verify_origin`). The owner of a layer could otherwise redirect a metacopy to a file
    /// that they may not read. Not done for layers of trusted owners, which may be copies whose
    /// origins are out of date.
    ///
    /// # Errors
    /// EIO when it is another file.
    pub(crate) fn check_claim(
        &self,
        claimed: Option<&[u8]>,
        dir: &LowerDir,
        name: &[u8],
    ) -> Result<()> {
        let Some(claimed) = claimed.and_then(Origin::parse) else {
            return Ok(());
        };
        let fd = dir.fd(&self.fds)?;
        match Origin::of(At::new(fd.as_fd(), name), dir.layer.uuid) {
            Ok(origin) if origin != claimed => Err(Errno::IO.into()),
            _ => Ok(()),
        }
    }

    /// Returns the path of a file's data in the data-only layers, from a metacopy whose `user.*`
    /// markers are trusted for nothing else.
    fn only_data<'m>(&self, stat: &Stat, markers: &'m Markers) -> Option<&'m [u8]> {
        let data = markers.from_user.data.as_deref()?;
        (stat.kind == FileKind::Regular && !self.data_roots.is_empty()).then_some(data)
    }

    /// Completes a metacopy from the data-only layers.
    ///
    /// # Errors
    /// EIO when no layer has the data.
    fn data_only(&self, mut meta: LowerFile, target: &Target<'_>) -> Result<LowerFile> {
        if let Target::Path(_) = target {
            for root in &self.data_roots {
                let mut target = target.clone();
                if let ((dir, name), Single::File { stat, markers }) =
                    self.look(root, &mut target)?
                    && stat.kind == FileKind::Regular
                    && !markers.metacopy
                {
                    let ino = stat.ino;
                    meta.data = Some(Box::new(Data { dir, name, ino }));
                    return Ok(meta);
                }
            }
        }
        Err(Errno::IO.into())
    }
}

/// The file that was found: the data of the metacopy above it, or the file itself.
fn finish(meta: Option<LowerFile>, dir: Arc<LowerDir>, name: Arc<[u8]>, stat: Stat) -> LowerFile {
    match meta {
        None => LowerFile {
            dir,
            name,
            stat,
            data: None,
            record: None,
        },
        Some(mut meta) => {
            let ino = stat.ino;
            meta.data = Some(Box::new(Data { dir, name, ino }));
            meta
        }
    }
}
