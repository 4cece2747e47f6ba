//! Redirects: markers that say where the lowers have a directory that was moved, or the data of a
//! metacopy that was moved or linked.
//!
//! A redirect may be written before the change that needs it: it names what the lowers have there
//! anyway.

use std::sync::Arc;

use rustix::io::Errno;

use super::error::{Error, Result};
use super::inode::{Inode, Link};
use super::rename_upper::RenameSide;
use super::stack::Stack;
use super::upper::Upper;
use crate::layer::markers::Marker;

/// The maximum length of a redirect in bytes: that of a path.
const REDIRECT_LIMIT: usize = 4095;

/// Writes the redirect of a directory that moves. It is a name while the directory stays in its
/// parent, else an absolute path (fs/overlayfs/dir.c, `ovl_set_redirect`).
///
/// # Errors
/// EXDEV if it cannot be written, which makes mv(1) copy, as with overlayfs.
pub(super) fn redirect_dir(
    stack: &Stack,
    upper: &Upper,
    inode: &Inode,
    old: &RenameSide<'_>,
    new: &RenameSide<'_>,
) -> Result<()> {
    let same_dir = Arc::ptr_eq(old.parent, new.parent);
    let current = redirect_of(stack, upper, inode)?;
    if let Some(current) = &current
        && (same_dir || current.starts_with(b"/"))
    {
        return Ok(());
    }
    let own = current.unwrap_or_else(|| old.name.to_vec());
    let redirect = if same_dir {
        own
    } else {
        absolute_redirect(stack, upper, old.parent, own)?
    };
    write(stack, upper, inode, &redirect)
}

/// Writes the redirect of a metacopy that gets another name. It is always an absolute path: another
/// thread may give the file a name in another directory meanwhile, and both write the same path.
/// The kernel writes a name where that suffices (`ovl_need_absolute_redirect`), and reads both.
///
/// # Errors
/// EXDEV if it cannot be written; the data must then be copied.
pub(super) fn redirect_metacopy(stack: &Stack, upper: &Upper, inode: &Inode) -> Result<()> {
    // The name is read first. A rename writes the redirect before it changes the name.
    let link = inode.loc.read().links.first().cloned();
    let current = redirect_of(stack, upper, inode)?;
    if current.as_ref().is_some_and(|to| to.starts_with(b"/")) {
        return Ok(());
    }
    let Link { parent, name, .. } = link.ok_or(Errno::XDEV)?;
    let own = current.unwrap_or_else(|| name.to_vec());
    let redirect = absolute_redirect(stack, upper, &parent, own)?;
    write(stack, upper, inode, &redirect)
}

/// Whether an operation failed because a redirect could not be written.
pub(super) fn is_refused(error: &Error) -> bool {
    error.errno() == Errno::XDEV.raw_os_error()
}

fn write(stack: &Stack, upper: &Upper, inode: &Inode, redirect: &[u8]) -> Result<()> {
    if redirect.len() > REDIRECT_LIMIT {
        return Err(Errno::XDEV.into());
    }
    let set = stack.with_upper(inode, |at| {
        Ok(upper.markers.set(at, Marker::Redirect, redirect))
    });
    // There is no space for the xattr.
    set?.map_err(|_| Errno::XDEV.into())
}

fn redirect_of(stack: &Stack, upper: &Upper, inode: &Inode) -> Result<Option<Vec<u8>>> {
    stack.with_upper(inode, |at| Ok(upper.layer.markers(at)?.redirect))
}

/// Returns the path of `name` in the lowers of `parent`, following redirects.
fn absolute_redirect(
    stack: &Stack,
    upper: &Upper,
    parent: &Arc<Inode>,
    name: Vec<u8>,
) -> Result<Vec<u8>> {
    let mut parts = vec![name];
    let mut at = Arc::clone(parent);
    loop {
        let link = at.loc.read().links.first().cloned();
        let Some(link) = link else { break };
        match redirect_of(stack, upper, &at)? {
            Some(redirect) if redirect.starts_with(b"/") => {
                parts.push(redirect[1..].to_vec());
                break;
            }
            Some(redirect) => parts.push(redirect),
            None => parts.push(link.name.to_vec()),
        }
        at = link.parent;
    }
    parts.push(Vec::new()); // the leading slash
    parts.reverse();
    Ok(parts.join(&b'/'))
}
