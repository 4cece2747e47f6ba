//! The `-o` options of `unionfs mount` and of the fuse-overlayfs style call, parsed from bytes.
//! Nothing here touches the file system.
//!
//! Grammar (sources: overlayfs.rst, mount(8), and what podman, buildah, Docker and
//! containerd are seen to pass):
//!
//! ```text
//! options  = option *( "," option )            an empty option is skipped
//! option   = key [ "=" value ]
//! value    = DQUOTE *any DQUOTE                commas inside do not count (not for paths)
//!          / *( "\" any / any but "," )        a backslash takes the next byte as it is
//! lowerdir = path *( ":" path ) *( "::" path ) top first; behind "::" data-only
//! ```

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::owner_options::{self, OwnerOptions, OwnersOf};
use unionfs::fuse::{IoPolicy, Transport};
use unionfs::layer::recorded::Form;
use unionfs::sandbox::Mode;
use unionfs::union::IdMap;

/// The maximum number of lower layers of a stack with data-only ones, as in overlayfs.
pub const MAX_LOWERS: usize = 500;

/// The markers that are read in plain directories (`dialect=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Markers {
    /// The markers of all known writers (`dialect=all`).
    #[default]
    All,
    /// Only the markers of kernel overlayfs (`dialect=overlay`).
    Overlay,
}

/// The catalog that is used (`catalog=`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CatalogChoice {
    /// The catalog of the mounted image, or of lowers that cannot change, which is built if there is
    /// none (`catalog=on`).
    #[default]
    On,
    /// No catalog (`catalog=off`).
    Off,
    /// The catalog in this file, if it describes the mounted layers.
    File(PathBuf),
}

/// The options of a mount by name in fstab and for mount(8), where other options of `unionfs mount`
/// cannot be given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// `image=IMAGE`.
    pub image: Option<OsString>,
    /// `name=NAME`: changes go to this read-write layer.
    pub name: Option<String>,
    /// `container=ID`.
    pub container: Option<String>,
    /// `ephemeral`: changes are discarded at unmount.
    pub ephemeral: bool,
    /// `root=DIR`: images are searched only in this store.
    pub root: Option<PathBuf>,
}

impl ImageOptions {
    /// Whether one of them was given.
    pub fn is_given(&self) -> bool {
        *self != Self::default()
    }
}

/// The options after parsing. `None` means that the option was not given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// The lower directories, top first.
    pub lowers: Vec<PathBuf>,
    /// The data-only lower directories.
    pub data_only: Vec<PathBuf>,
    /// The writable directory.
    pub upper: Option<PathBuf>,
    /// The work directory.
    pub work: Option<PathBuf>,
    /// `ro` (true) or `rw` (false). The last one has effect.
    pub read_only: Option<bool>,
    /// `nonempty`: mounting over a directory with entries is allowed.
    pub nonempty: bool,
    /// `volatile`: never fsync the upper.
    pub volatile: bool,
    /// `redirect_dir=on|off`.
    pub redirect_dir: Option<bool>,
    /// `metacopy=on|off`: changes of metadata copy no data.
    pub metacopy: Option<bool>,
    /// `dialect=all|overlay`.
    pub markers: Option<Markers>,
    /// `io=auto|cached|passthrough`.
    pub io: Option<IoPolicy>,
    /// `writeback`: the kernel collects writes.
    pub writeback: bool,
    /// `nobtime`: times of birth are not shown.
    pub nobtime: bool,
    /// `noxattrs`: files have no extended attributes, and so no ACLs and capabilities.
    pub noxattrs: bool,
    /// `allow_idmap`: the mount may be idmapped.
    pub allow_idmap: bool,
    /// `userxattr`: markers are `user.overlay.*`, also for root, as with kernel overlayfs.
    pub userxattr: bool,
    /// `transport=classic|uring|fuser`; `auto` is not given.
    pub transport: Option<Transport>,
    /// `catalog=on|off|FILE`.
    pub catalog: CatalogChoice,
    /// `sandbox=auto|off|strict`.
    pub sandbox: Mode,
    /// `fsname=`: the source shown in /proc/mounts.
    pub fsname: Option<OsString>,
    /// The mapping of owners.
    pub owners: OwnerOptions,
    /// `debug`: log requests.
    pub debug: bool,
    /// The image or container to mount in place of lower directories.
    pub image: ImageOptions,
    /// All other options in order, with quotes and backslashes as given: options of the mount
    /// itself (`nodev`, `context=…`), and unknown ones.
    pub other: Vec<OsString>,
}

/// A wrong option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionError {
    /// The message with the remedy.
    pub message: String,
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for OptionError {}

fn bad(message: impl Into<String>) -> OptionError {
    OptionError {
        message: message.into(),
    }
}

fn show(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// Returns the value of an option whose value may be missing.
fn switch(key: &[u8], value: &[u8]) -> Result<bool, OptionError> {
    match value {
        b"0" => Ok(false),
        b"1" => Ok(true),
        _ => Err(bad(format!(
            "{} is an option without a value, or with 0 or 1",
            show(key)
        ))),
    }
}

impl MountOptions {
    /// Parses one `-o` argument into `self`; later options override earlier ones.
    pub fn parse(&mut self, text: &OsStr) -> Result<(), OptionError> {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let (option, tail) = next_option(rest);
            if !option.is_empty() {
                self.option(option)?;
            }
            rest = tail;
        }
        Ok(())
    }

    /// Refuses options that exclude each other.
    pub fn check(&self) -> Result<(), OptionError> {
        let insisting = self.io.filter(|policy| policy.insists());
        if let (true, Some(policy)) = (self.writeback, insisting) {
            return Err(bad(format!(
                "writeback does not go with io={}, where the kernel needs none: leave one of them out",
                policy.name()
            )));
        }
        if self.metacopy == Some(true) && self.redirect_dir == Some(false) {
            return Err(bad(
                "metacopy=on needs redirects, which lead to the data of files that were renamed: \
                 use redirect_dir=on or metacopy=off",
            ));
        }
        Ok(())
    }

    /// Returns all lower layers, including data-only ones.
    pub fn lower_count(&self) -> usize {
        self.lowers.len() + self.data_only.len()
    }

    fn option(&mut self, option: &[u8]) -> Result<(), OptionError> {
        let (key, value) = match option.iter().position(|&b| b == b'=') {
            Some(at) => (&option[..at], Some(&option[at + 1..])),
            None => (option, None),
        };
        match value {
            None => self.flag(key),
            Some(value) => self.valued(key, value),
        }
    }

    fn flag(&mut self, key: &[u8]) -> Result<(), OptionError> {
        match key {
            b"ro" => self.read_only = Some(true),
            b"rw" => self.read_only = Some(false),
            b"nonempty" => self.nonempty = true,
            b"volatile" => self.volatile = true,
            b"writeback" => self.writeback = true,
            b"nobtime" => self.nobtime = true,
            b"noxattrs" => self.noxattrs = true,
            b"allow_idmap" => self.allow_idmap = true,
            b"debug" => self.debug = true,
            b"ephemeral" => self.image.ephemeral = true,
            b"userxattr" => self.userxattr = true,
            b"squash_to_root" => self.owners.squash_to_root = true,
            b"lowerdir" | b"upperdir" | b"workdir" | b"fsname" | b"redirect_dir" | b"metacopy"
            | b"dialect" | b"image" | b"name" | b"container" | b"root" | b"io" | b"transport"
            | b"catalog" | b"sandbox" | b"owners" | b"user_as" | b"uidmapping" | b"gidmapping"
            | b"squash_to_uid" | b"squash_to_gid" | b"xattr_permissions" => {
                return Err(bad(format!("option {0} needs a value: {0}=…", show(key))));
            }
            _ => self.other.push(OsStr::from_bytes(key).into()),
        }
        Ok(())
    }

    fn valued(&mut self, key: &[u8], value: &[u8]) -> Result<(), OptionError> {
        match key {
            b"lowerdir" => self.set_lowers(value)?,
            // The form of fsconfig(2): one directory for each option. Only mount(8) escapes
            // anything.
            b"lowerdir+" => self.lowers.push(dir(key, value)?),
            b"datadir+" => self.data_only.push(dir(key, value)?),
            b"upperdir" => self.upper = Some(dir(key, value)?),
            b"workdir" => self.work = Some(dir(key, value)?),
            b"image" => self.image.image = Some(OsString::from_vec(unescape(value))),
            b"name" => self.image.name = Some(text(key, value)?),
            b"container" => self.image.container = Some(text(key, value)?),
            b"root" => self.image.root = Some(dir(key, value)?),
            b"fsname" => self.fsname = Some(OsString::from_vec(unescape(value))),
            b"catalog" => self.catalog = catalog(value)?,
            b"redirect_dir" => self.redirect_dir = redirect_dir(value)?,
            b"metacopy" => self.metacopy = Some(metacopy(value)?),
            b"io" => self.io = Some(io_policy(value)?),
            // This is the rule of fuse-overlayfs.
            b"writeback" => self.writeback = switch(key, value)?,
            b"noxattrs" => self.noxattrs = switch(key, value)?,
            b"dialect" => {
                self.markers = match value {
                    b"all" => Some(Markers::All),
                    b"overlay" => Some(Markers::Overlay),
                    _ => {
                        return Err(bad(format!(
                            "dialect={} is not known: use dialect=all or dialect=overlay",
                            show(value)
                        )));
                    }
                }
            }
            b"transport" => self.transport = transport(value)?,
            b"sandbox" => self.sandbox = sandbox(value)?,
            b"uidmapping" => self.owners.users = mapping(key, value)?,
            b"gidmapping" => self.owners.groups = mapping(key, value)?,
            b"squash_to_root" => self.owners.squash_to_root = switch(key, value)?,
            b"squash_to_uid" => self.owners.squash_to_uid = squashed(key, value)?,
            b"squash_to_gid" => self.owners.squash_to_gid = squashed(key, value)?,
            b"owners" => self.owners.of = owners_of(value)?,
            b"user_as" => self.owners.user_as = Some(user_and_group(value)?),
            b"xattr_permissions" => match value {
                b"0" => self.owners.records = None,
                b"1" => self.owners.records = Some(Form::Privileged),
                b"2" => self.owners.records = Some(Form::Containers),
                _ => {
                    return Err(bad(format!(
                        "xattr_permissions={} is not known: use 0, 1 or 2",
                        show(value)
                    )));
                }
            },
            _ => {
                let option = [key, b"=", value].concat();
                self.other.push(OsString::from_vec(option));
            }
        }
        Ok(())
    }

    fn set_lowers(&mut self, value: &[u8]) -> Result<(), OptionError> {
        self.lowers.clear();
        self.data_only.clear();
        // After the first "::" every directory is data-only, and "::" precedes each.
        let mut data = false;
        let mut parts = split_unescaped(value, b':').into_iter().peekable();
        let mut first = true;
        while let Some(part) = parts.next() {
            if !part.is_empty() {
                let path = PathBuf::from(OsString::from_vec(unescape(part)));
                if data {
                    self.data_only.push(path);
                } else {
                    self.lowers.push(path);
                }
                if data && parts.peek().is_some_and(|next| !next.is_empty()) {
                    return Err(bad(format!(
                        "lowerdir={}: a plain lower cannot be below a data-only one: \
                         separate data-only directories by ::",
                        show(value)
                    )));
                }
            } else if first || parts.peek().is_none_or(|next| next.is_empty()) {
                return Err(bad(format!(
                    "lowerdir={}: an empty directory name: write lowerdir=TOP:…:BOTTOM",
                    show(value)
                )));
            } else {
                data = true;
            }
            first = false;
        }
        Ok(())
    }
}

/// Splits the first option off. Quotes and backslashes protect commas.
fn next_option(text: &[u8]) -> (&[u8], &[u8]) {
    let key_end = text.iter().position(|&b| b == b'=' || b == b',');
    if let Some(at) = key_end
        && text[at] == b'='
        && !is_path_key(&text[..at])
        && let Some(len) = quoted(&text[at + 1..])
    {
        let end = at + 1 + len;
        return (&text[..end], text.get(end + 1..).unwrap_or_default());
    }
    let mut at = 0;
    while at < text.len() {
        match text[at] {
            b'\\' => at += 2,
            b',' => return (&text[..at], &text[at + 1..]),
            _ => at += 1,
        }
    }
    (text, &[])
}

/// Paths may begin with a quote, so quotes have no meaning in them.
fn is_path_key(key: &[u8]) -> bool {
    matches!(
        key,
        b"lowerdir"
            | b"lowerdir+"
            | b"datadir+"
            | b"upperdir"
            | b"workdir"
            | b"fsname"
            | b"catalog"
    )
}

/// Returns the length of a leading `"…"` that is a whole value, including the quotes.
fn quoted(value: &[u8]) -> Option<usize> {
    if value.first() != Some(&b'"') {
        return None;
    }
    let close = 1 + value[1..].iter().position(|&b| b == b'"')?;
    matches!(value.get(close + 1), None | Some(b',')).then_some(close + 1)
}

fn unescape(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.iter();
    while let Some(&b) = bytes.next() {
        match b {
            b'\\' => out.push(*bytes.next().unwrap_or(&b'\\')),
            _ => out.push(b),
        }
    }
    out
}

fn split_unescaped(value: &[u8], separator: u8) -> Vec<&[u8]> {
    let (mut parts, mut start, mut at) = (Vec::new(), 0, 0);
    while at < value.len() {
        match value[at] {
            b'\\' => at += 2,
            b if b == separator => {
                parts.push(&value[start..at]);
                at += 1;
                start = at;
            }
            _ => at += 1,
        }
    }
    parts.push(&value[start.min(value.len())..]);
    parts
}

fn dir(key: &[u8], value: &[u8]) -> Result<PathBuf, OptionError> {
    match unescape(value) {
        path if path.is_empty() => Err(bad(format!("option {0} names no directory", show(key)))),
        path => Ok(PathBuf::from(OsString::from_vec(path))),
    }
}

fn text(key: &[u8], value: &[u8]) -> Result<String, OptionError> {
    let text = String::from_utf8(unescape(value)).ok();
    text.filter(|text| !text.is_empty())
        .ok_or_else(|| bad(format!("option {0} names nothing", show(key))))
}

fn catalog(value: &[u8]) -> Result<CatalogChoice, OptionError> {
    match value {
        b"on" => Ok(CatalogChoice::On),
        b"off" => Ok(CatalogChoice::Off),
        path if path.contains(&b'/') => Ok(CatalogChoice::File(dir(b"catalog", path)?)),
        _ => Err(bad(format!(
            "catalog={} is not known: use on, off, or the path of a file with a slash in it",
            show(value)
        ))),
    }
}

/// Parses the values of overlayfs. `follow` and `nofollow` write no redirects.
fn redirect_dir(value: &[u8]) -> Result<Option<bool>, OptionError> {
    match value {
        b"on" => Ok(Some(true)),
        b"off" | b"follow" | b"nofollow" => Ok(Some(false)),
        _ => Err(bad(format!(
            "redirect_dir={} is not known: use redirect_dir=on or redirect_dir=off",
            show(value)
        ))),
    }
}

fn metacopy(value: &[u8]) -> Result<bool, OptionError> {
    match value {
        b"on" => Ok(true),
        b"off" => Ok(false),
        _ => Err(bad(format!(
            "metacopy={} is not known: use metacopy=on or metacopy=off",
            show(value)
        ))),
    }
}

fn transport(value: &[u8]) -> Result<Option<Transport>, OptionError> {
    match value {
        b"auto" => Ok(None),
        b"classic" => Ok(Some(Transport::Classic)),
        b"uring" => Ok(Some(Transport::Uring)),
        b"fuser" => Ok(Some(Transport::Fuser)),
        _ => Err(bad(format!(
            "transport={} is not known: use transport=auto, transport=classic, transport=uring or \
             transport=fuser",
            show(value)
        ))),
    }
}

fn sandbox(value: &[u8]) -> Result<Mode, OptionError> {
    match value {
        b"auto" => Ok(Mode::Auto),
        b"off" => Ok(Mode::Off),
        b"strict" => Ok(Mode::Strict),
        _ => Err(bad(format!(
            "sandbox={} is not known: use sandbox=auto, sandbox=off or sandbox=strict",
            show(value)
        ))),
    }
}

fn io_policy(value: &[u8]) -> Result<IoPolicy, OptionError> {
    let all = [
        IoPolicy::Auto,
        IoPolicy::Cached,
        IoPolicy::Passthrough,
        IoPolicy::Shared,
    ];
    all.into_iter()
        .find(|policy| policy.name().as_bytes() == value)
        .ok_or_else(|| {
            bad(format!(
                "io={} is not known: use io=auto, io=cached, io=passthrough or io=shared",
                show(value)
            ))
        })
}

fn owners_of(value: &[u8]) -> Result<Option<OwnersOf>, OptionError> {
    match value {
        b"image" => Ok(Some(OwnersOf::Image)),
        b"mine" => Ok(Some(OwnersOf::Mine)),
        _ => Err(bad(format!(
            "owners={} is not known: use owners=image or owners=mine",
            show(value)
        ))),
    }
}

fn user_and_group(value: &[u8]) -> Result<(u32, u32), OptionError> {
    let text = std::str::from_utf8(value).unwrap_or_default();
    let (user, group) = text.split_once(':').unwrap_or((text, text));
    let id = |text: &str| owner_options::number(text.as_bytes()).filter(|&id| id != u32::MAX);
    match (id(user), id(group)) {
        (Some(user), Some(group)) => Ok((user, group)),
        _ => Err(bad(format!(
            "user_as={}: write user_as=UID:GID",
            show(value)
        ))),
    }
}

/// Parses an ID.
fn squashed(key: &[u8], value: &[u8]) -> Result<Option<u32>, OptionError> {
    let id = owner_options::number(value).filter(|&id| id != u32::MAX);
    let id = id.ok_or_else(|| bad(format!("{}={}: not an ID", show(key), show(value))))?;
    Ok(Some(id))
}

fn mapping(key: &[u8], value: &[u8]) -> Result<IdMap, OptionError> {
    owner_options::mapping(value).map_err(|why| {
        bad(format!(
            "{0}={1}: {why}: write {0}=DISK:SHOWN:LENGTH[:…]",
            show(key),
            show(value)
        ))
    })
}
