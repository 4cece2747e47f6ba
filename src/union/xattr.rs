//! Extended attributes. Markers are hidden from users, and users cannot create them: see
//! [`crate::layer::markers::Escape`].

use std::ffi::CString;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::XattrFlags as Flags;
use rustix::io::Errno;

use super::Union;
use super::acl;
use super::copy_up::CAPABILITY;
use super::error::Result;
use super::inode::Inode;
use super::types::{FileKind, Ino, XattrFlags};
use crate::layer::Dialect;
use crate::layer::at::At;
use crate::layer::markers::Escape;

impl Union {
    /// Returns the value of an extended attribute.
    ///
    /// # Errors
    /// ENODATA when it is absent, EOPNOTSUPP where the layer has none, ESTALE; else those of
    /// getxattr(2).
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let inode = self.inode(ino)?;
        if let Some(errno) = self.known_absent(&inode, name) {
            return Err(errno.into());
        }
        if Self::is_gone(&inode) {
            return Err(Errno::NODATA.into());
        }
        let is_capability = name == CAPABILITY.to_bytes();
        if is_capability && inode.capability.get() == Some(false) {
            return Err(Errno::NODATA.into());
        }
        let value = self.with_top(&inode, |at, dialect| {
            match Escape(dialect).stored(name) {
                Ok(stored) => Ok(at.xattr_raw(&stored)?),
                // Such a name could only be a marker.
                Err(Errno::PERM) => Err(Errno::NODATA.into()),
                Err(e) => Err(e.into()),
            }
        });
        if is_capability
            && let Err(e) = &value
            && e.errno() == Errno::NODATA.raw_os_error()
        {
            inode.capability.set(false);
        }
        value
    }

    /// Returns the names, each followed by NUL. Those of `trusted.*` are shown only to callers with
    /// CAP_SYS_ADMIN in the initial user namespace, as by every file system of the kernel.
    /// `sees_trusted` is called only where there are such names.
    ///
    /// # Errors
    /// ESTALE; else those of listxattr(2).
    pub fn listxattr(&self, ino: Ino, sees_trusted: &dyn Fn() -> bool) -> Result<Vec<u8>> {
        let inode = self.inode(ino)?;
        if let Some((catalog, record)) = self.catalog_record(&inode)
            && catalog.is_bare(record)
        {
            return Ok(Vec::new());
        }
        if Self::is_gone(&inode) {
            return Ok(Vec::new());
        }
        let (stored, dialect) =
            self.with_top(&inode, |at, dialect| Ok((at.list_xattrs()?, dialect)))?;
        let mut visible = Vec::with_capacity(stored.len());
        let admin = std::cell::OnceCell::new();
        let is_admin = || *admin.get_or_init(sees_trusted);
        for name in stored.split(|&b| b == 0).filter(|n| !n.is_empty()) {
            if let Some(name) = Escape(dialect).visible(name)
                && (!name.starts_with(b"trusted.") || is_admin())
            {
                visible.extend(name);
                visible.push(0);
            }
        }
        Ok(visible)
    }

    /// Sets an extended attribute; copies the file up. Setting an access ACL with `drops_set_gid`
    /// drops the set-group-ID bit: the caller is not in the file's group.
    ///
    /// # Errors
    /// EPERM for a name reserved for markers and for a protected file, EROFS without an upper; else
    /// those of setxattr(2).
    pub fn setxattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
        drops_set_gid: bool,
    ) -> Result<()> {
        let mut how = Flags::empty();
        how.set(Flags::CREATE, flags.create);
        how.set(Flags::REPLACE, flags.replace);
        let (inode, stored) = self.prepare_xattr(ino, name)?;
        if name == CAPABILITY.to_bytes() {
            inode.capability.set(true);
        }
        self.with_upper(&inode, |at| Ok(at.set_xattr(&stored, value, how)?))?;
        if drops_set_gid && name == acl::ACCESS.to_bytes() {
            self.with_upper(&inode, |at| {
                let perm = at.stat()?.perm;
                match perm & 0o2000 {
                    0 => Ok(()),
                    bit => Ok(at.chmod(perm & !bit)?),
                }
            })?;
        }
        self.forget_acl(&inode, name);
        Ok(())
    }

    /// Removes an extended attribute; copies the file up.
    ///
    /// # Errors
    /// ENODATA when it is absent, EROFS without an upper; else those of removexattr(2).
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        let inode = self.inode(ino)?;
        self.writable()?;
        self.check_changeable(&inode)?;
        // No copy-up is needed to find that the xattr is absent.
        self.with_top(&inode, |at, dialect| {
            Ok(at.xattr_raw(&Escape(dialect).stored(name)?)?)
        })?;
        let (inode, stored) = self.prepare_xattr(ino, name)?;
        self.with_upper(&inode, |at| Ok(at.remove_xattr(&stored)?))?;
        self.forget_acl(&inode, name);
        Ok(())
    }

    fn prepare_xattr(&self, ino: Ino, name: &[u8]) -> Result<(Arc<Inode>, CString)> {
        let inode = self.inode(ino)?;
        let dialect = self.writable()?.layer.dialect;
        // user.* exists on regular files and directories only (xattr(7)).
        let has_user = matches!(inode.kind, FileKind::Regular | FileKind::Directory);
        if name.starts_with(b"user.") && !has_user {
            return Err(Errno::PERM.into());
        }
        let stored = Escape(dialect).stored(name)?;
        self.check_changeable(&inode)?;
        self.copy_up(&inode)?;
        Ok((inode, stored))
    }

    fn forget_acl(&self, inode: &Inode, name: &[u8]) {
        if let Some(dir) = &inode.dir
            && name == acl::DEFAULT.to_bytes()
        {
            dir.default_acl.forget();
        }
    }

    /// Calls `f` with the file whose metadata the union shows.
    pub(crate) fn with_top<T>(
        &self,
        inode: &Inode,
        f: impl FnOnce(At<'_>, Dialect) -> Result<T>,
    ) -> Result<T> {
        if inode.in_upper() {
            let dialect = self.readable_upper()?.layer.dialect;
            return self.with_upper(inode, |at| f(at, dialect));
        }
        if let Some(dir) = &inode.dir {
            let top = dir.lowers.top().ok_or(Errno::IO)?;
            return f(At::fd(top.fd(&self.fds)?.as_fd()), top.layer.dialect);
        }
        let file = self.lower_of(inode)?.ok_or(Errno::IO)?;
        let held = self.hold_lower(&file)?;
        f(At::fd(held.as_fd()), file.dir.layer.dialect)
    }

    /// Returns the target of a symlink.
    ///
    /// # Errors
    /// EINVAL for anything else, ESTALE.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let inode = self.inode(ino)?;
        match inode.kind {
            FileKind::Symlink => {
                if let Some((catalog, record)) = self.catalog_record(&inode)
                    && let Ok(target) = catalog.target(record)
                {
                    return Ok(target);
                }
                self.with_top(&inode, |at, _| Ok(at.readlink()?))
            }
            _ => Err(Errno::INVAL.into()),
        }
    }
}
