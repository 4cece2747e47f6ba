//! The `-o` options that map owners, in the syntax of fuse-overlayfs: `uidmapping`, `gidmapping`,
//! `squash_to_root`, `squash_to_uid`, `squash_to_gid`.

use rustix::process::{getegid, geteuid};
use unionfs::fuse::mountinfo;
use unionfs::layer::recorded::Form;
use unionfs::layer::{Records, StackSpec};
use unionfs::sys::process::{in_initial_user_namespace, is_root_of_machine};
use unionfs::sys::stat::mount_id;
use unionfs::sys::walk::Trust;
use unionfs::union::{IdMap, IdRange, LowerIds, Outside, Owners};

/// Whose owners a mount shows (`owners=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnersOf {
    /// Those of the image, as far as they are recorded beside the files.
    Image,
    /// Those of the files.
    Mine,
}

/// The owner options as given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerOptions {
    /// `uidmapping=`
    pub users: IdMap,
    /// `gidmapping=`
    pub groups: IdMap,
    /// `squash_to_root`
    pub squash_to_root: bool,
    /// `squash_to_uid=`
    pub squash_to_uid: Option<u32>,
    /// `squash_to_gid=`
    pub squash_to_gid: Option<u32>,
    /// `owners=image|mine`
    pub of: Option<OwnersOf>,
    /// `user_as=UID:GID`: the owner in the image whose files are those of the mounting user.
    pub user_as: Option<(u32, u32)>,
    /// `xattr_permissions=`: the form of owners that are recorded beside the files.
    pub records: Option<Form>,
    /// What happens to IDs outside of the mapping.
    pub outside: Outside,
}

impl OwnerOptions {
    /// Whether all files are shown with one user or group.
    pub fn squashes(&self) -> bool {
        self.squash_to_root || self.squash_to_uid.is_some() || self.squash_to_gid.is_some()
    }

    /// Makes the layers show and keep owners that are recorded beside their files.
    ///
    /// # Errors
    /// Those of the xattrs of the upper's root directory.
    pub fn record_in(&self, stack: &mut StackSpec, default: OwnersOf) -> rustix::io::Result<()> {
        let form = match (self.records, self.of.unwrap_or(default)) {
            (Some(form), _) => form,
            (None, OwnersOf::Mine) => return Ok(()),
            (None, OwnersOf::Image) => {
                let Some(top) = stack.lowers.first() else {
                    return Ok(());
                };
                if !top.has_records()? {
                    return Ok(());
                }
                if let Some(upper) = &stack.upper {
                    upper.layer.begin_records_of(top)?;
                }
                Form::Containers
            }
        };
        for lower in stack.lowers.iter_mut().chain(&mut stack.data_only) {
            lower.dialect.records = Records::Learnt;
        }
        if let Some(upper) = &mut stack.upper {
            upper.layer.dialect.records = Records::Made(form);
        }
        Ok(())
    }

    /// Returns the users whose symlinks are followed on the way to a layer.
    pub fn trust(&self) -> Trust {
        match (Trust::of_root(), self.users.shown_for(0)) {
            (Trust::RootAndUs, Some(root)) if root != 0 => Trust::RootAndMapped(root),
            (trust, _) => trust,
        }
    }

    /// Returns the owners that the union shows for these layers.
    ///
    /// # Errors
    /// A message: some lowers, and not all, are idmapped mounts.
    pub fn for_layers(&self, stack: &StackSpec) -> Result<Owners, String> {
        let mut owners = Owners {
            users: self.users.clone(),
            groups: self.groups.clone(),
            outside: self.outside,
            lowers: LowerIds::Disk,
            unrecorded: None,
        };
        let is_recorded = self.records.is_none() && shows_records(stack);
        let plain = in_initial_user_namespace() && !is_root_of_machine();
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        if is_recorded && plain {
            owners.unrecorded = Some((uid, gid));
        }
        if !owners.is_identity() {
            owners.lowers = ids_of_lowers(stack)?;
        } else if is_recorded && !in_initial_user_namespace() {
            owners.users = of_namespace("/proc/self/uid_map");
            owners.groups = of_namespace("/proc/self/gid_map");
            owners.outside = Outside::Root;
        } else if let (true, Some((user, group))) = (is_recorded && plain, self.user_as) {
            owners.users = IdMap::exchange(user, uid);
            owners.groups = IdMap::exchange(group, gid);
        }
        let root = self.squash_to_root.then_some(0);
        if let Some(uid) = self.squash_to_uid.or(root) {
            owners.users.squash_to(uid);
        }
        if let Some(gid) = self.squash_to_gid.or(root) {
            owners.groups.squash_to(gid);
        }
        Ok(owners)
    }
}

/// Whether recorded owners of the image are shown.
fn shows_records(stack: &StackSpec) -> bool {
    let top = stack.lowers.first();
    top.is_some_and(|top| top.dialect.records != Records::Ignored)
}

/// Returns the IDs that a user namespace has. All others can neither be seen nor given there.
fn of_namespace(map: &str) -> IdMap {
    let text = std::fs::read_to_string(map).unwrap_or_default();
    let ranges = text.lines().filter_map(|line| {
        let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
        let (inside, _, len) = (numbers.next()??, numbers.next()?, numbers.next()??);
        Some(IdRange {
            disk: inside,
            shown: inside,
            len,
        })
    });
    IdMap::new(ranges.collect()).unwrap_or_default()
}

/// Returns the IDs that the lowers have. podman hands over idmapped mounts of the layers and the
/// mapping as well: such lowers are mapped already.
fn ids_of_lowers(stack: &StackSpec) -> Result<LowerIds, String> {
    let idmapped: Vec<u64> = mountinfo::list().map_or_else(
        |_| Vec::new(),
        |mounts| {
            let mapped = mounts.iter().filter(|mount| mount.is_idmapped());
            mapped.map(|mount| mount.id).collect()
        },
    );
    if idmapped.is_empty() {
        return Ok(LowerIds::Disk);
    }
    let lowers = || stack.lowers.iter().chain(&stack.data_only);
    let is_idmapped = |dir: &dyn std::os::fd::AsFd| {
        mount_id(dir.as_fd()).is_ok_and(|mount| idmapped.contains(&mount))
    };
    match lowers().filter(|lower| is_idmapped(&lower.dir)).count() {
        0 => Ok(LowerIds::Disk),
        some if some == lowers().count() => Ok(LowerIds::Shown),
        _ => Err(
            "uidmapping and gidmapping do not go with lower layers of which only some are \
             idmapped mounts: map all of them or none"
                .into(),
        ),
    }
}

/// Parses `[:]DISK:SHOWN:LENGTH[:…]`. Empty fields are skipped, as fuse-overlayfs does. No fields
/// mean no mapping.
///
/// # Errors
/// The reason why it is no mapping.
pub(super) fn mapping(value: &[u8]) -> Result<IdMap, String> {
    let fields = value.split(|&b| b == b':').filter(|part| !part.is_empty());
    let numbers: Option<Vec<u32>> = fields.map(number).collect();
    let numbers = numbers.ok_or("not all fields are numbers below 4294967296")?;
    if numbers.len() % 3 != 0 {
        return Err("the number of fields is not divisible by three".into());
    }
    let ranges = numbers.chunks_exact(3).map(|triple| IdRange {
        disk: triple[0],
        shown: triple[1],
        len: triple[2],
    });
    IdMap::new(ranges.collect()).map_err(|error| error.to_string())
}

/// Parses a decimal number without sign.
pub(super) fn number(text: &[u8]) -> Option<u32> {
    let digits = text.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(text).ok().filter(|_| digits)?;
    text.parse().ok()
}
