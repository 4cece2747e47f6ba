//! Extended attributes. Markers are hidden from users, and users cannot create them: see
//! [`crate::layer::markers::Escape`].

use std::ffi::CString;
use std::sync::Arc;

use rustix::fs::XattrFlags as Flags;
use rustix::io::Errno;

use super::Union;
use super::acl;
use super::copy_up::CAPABILITY;
use super::error::Result;
use super::inode::Inode;
use super::protect::check_changeable;
use super::types::{FileKind, Ino, XattrFlags};
use crate::layer::markers::Escape;

impl Union {
    /// Returns the value of an extended attribute.
    ///
    /// # Errors
    /// ENODATA when it is absent, EOPNOTSUPP if the layer has no xattrs, ESTALE; else those of
    /// getxattr(2).
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let inode = self.names.inode(ino)?;
        if let Some(errno) = self.stack.known_absent(&inode, name) {
            return Err(errno.into());
        }
        if inode.is_gone() {
            return Err(Errno::NODATA.into());
        }
        let is_capability = name == CAPABILITY.to_bytes();
        if is_capability && (inode.capability.get() == Some(false) || inode.is_bare_below()) {
            return Err(Errno::NODATA.into());
        }
        let value = self.stack.with_top_side(&inode, |at, dialect, side| {
            match Escape(dialect).stored(name) {
                Ok(stored) => Ok((at.xattr_raw(&stored)?, side)),
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
        let (value, side) = value?;
        Ok(self.stack.owners().shown_xattr(side, name, value)?)
    }

    /// Returns the names, each followed by NUL. Those of `trusted.*` are shown only to callers with
    /// CAP_SYS_ADMIN in the initial user namespace, as every file system of the kernel does.
    /// `sees_trusted` is called only if there are such names.
    ///
    /// # Errors
    /// ESTALE; else those of listxattr(2).
    pub fn listxattr(&self, ino: Ino, sees_trusted: &dyn Fn() -> bool) -> Result<Vec<u8>> {
        let inode = self.names.inode(ino)?;
        if let Some(id) = self.stack.lower_id(&inode)
            && self.stack.lowers().has_no_xattrs(id)
        {
            return Ok(Vec::new());
        }
        if inode.is_gone() {
            return Ok(Vec::new());
        }
        let (stored, dialect) = self
            .stack
            .with_top(&inode, |at, dialect| Ok((at.list_xattrs()?, dialect)))?;
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

    /// Sets an extended attribute; copies the file up.
    ///
    /// # Errors
    /// EPERM for a name reserved for markers and for a protected file, EROFS without an upper, EINVAL
    /// for IDs outside of the mapping of owners; else those of setxattr(2).
    pub fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<()> {
        let mut how = Flags::empty();
        how.set(Flags::CREATE, flags.create);
        how.set(Flags::REPLACE, flags.replace);
        let value = &*self.stack.owners().disk_xattr(name, value)?;
        let (inode, stored) = self.prepare_xattr(ino, name)?;
        if name == CAPABILITY.to_bytes() {
            inode.capability.set(true);
        }
        self.stack
            .with_upper_metadata(&inode, |at| Ok(at.set_xattr(&stored, value, how)?))?;
        if flags.drops_set_gid && name == acl::ACCESS.to_bytes() {
            self.stack.with_upper_metadata(&inode, |at| {
                let perm = at.stat()?.perm;
                match perm & 0o2000 {
                    0 => Ok(()),
                    bit => Ok(at.chmod(perm & !bit)?),
                }
            })?;
        }
        forget_acl(&inode, name);
        Ok(())
    }

    /// Removes an extended attribute; copies the file up.
    ///
    /// # Errors
    /// ENODATA when it is absent, EROFS without an upper; else those of removexattr(2).
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        let inode = self.names.inode(ino)?;
        self.stack.writable()?;
        check_changeable(&self.stack, &inode)?;
        // No copy-up is needed to find that the xattr is absent.
        self.stack.with_top(&inode, |at, dialect| {
            Ok(at.xattr_raw(&Escape(dialect).stored(name)?)?)
        })?;
        let (inode, stored) = self.prepare_xattr(ino, name)?;
        self.stack
            .with_upper_metadata(&inode, |at| Ok(at.remove_xattr(&stored)?))?;
        forget_acl(&inode, name);
        Ok(())
    }

    fn prepare_xattr(&self, ino: Ino, name: &[u8]) -> Result<(Arc<Inode>, CString)> {
        let inode = self.names.inode(ino)?;
        let dialect = self.stack.writable()?.layer.dialect;
        // user.* exists on regular files and directories only (xattr(7)).
        let has_user = matches!(inode.kind, FileKind::Regular | FileKind::Directory);
        if name.starts_with(b"user.") && !has_user {
            return Err(Errno::PERM.into());
        }
        let stored = Escape(dialect).stored(name)?;
        check_changeable(&self.stack, &inode)?;
        self.copying().copy_up_metadata(&inode)?;
        Ok((inode, stored))
    }

    /// Returns the target of a symlink.
    ///
    /// # Errors
    /// EINVAL for anything else, ESTALE.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let inode = self.names.inode(ino)?;
        match inode.kind {
            FileKind::Symlink => {
                if let Some(id) = self.stack.lower_id(&inode)
                    && let Some(target) = self.stack.lowers().target(id)
                {
                    return Ok(target);
                }
                self.stack.with_top(&inode, |at, _| Ok(at.readlink()?))
            }
            _ => Err(Errno::INVAL.into()),
        }
    }
}

/// Records that the default ACL of a directory may have changed, if `name` is its xattr.
fn forget_acl(inode: &Inode, name: &[u8]) {
    if let Some(dir) = &inode.dir
        && name == acl::DEFAULT.to_bytes()
    {
        dir.default_acl.forget();
    }
}
