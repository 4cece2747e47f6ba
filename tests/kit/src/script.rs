//! The script language of the parity runner: one operation a line, words separated by
//! blanks, paths and data with `\xNN` escapes, `-` for empty data. `#` starts a
//! comment line. A failing random case prints as a script that can be pasted into
//! the scenarios.

use std::fmt;

use super::descriptor::{self, HOp};
use super::{escape, layers, unescape};

/// A path below the mount's root.
pub type P = Vec<u8>;

/// The way in which a file is opened: the letters of `open`'s flags word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flags(pub String);

/// One operation. Modes are octal in the text, everything else decimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Following operations run as this uid and gid, without further groups.
    As(u32, u32),
    /// The umask of following operations.
    Umask(u32),
    /// `open(O_CREAT|O_WRONLY|flags)` and close.
    Create(P, u32, Flags),
    /// `open(O_WRONLY|flags)`, pwrite, close.
    Write(P, u64, Vec<u8>, Flags),
    Truncate(P, u64),
    Read(P),
    Mkdir(P, u32),
    Rmdir(P),
    Unlink(P),
    Rename(P, P, u32),
    Link(P, P),
    Symlink(Vec<u8>, P),
    /// The full mode with type bits, major, minor.
    Mknod(P, u32, u32, u32),
    Chmod(P, u32),
    /// lchown; u32::MAX leaves an ID unchanged.
    Chown(P, u32, u32),
    /// Sets atime and mtime, without following symlinks.
    Utimens(P, (i64, i64), (i64, i64)),
    /// Sets both times to now.
    Touch(P),
    Setxattr(P, Vec<u8>, Vec<u8>, u32),
    Getxattr(P, Vec<u8>),
    Listxattr(P),
    Removexattr(P, Vec<u8>),
    /// Mode bits as in `fallocate(2)`, offset, length.
    Fallocate(P, u32, u64, u64),
    CopyRange(P, u64, P, u64, u64),
    SeekData(P, u64),
    SeekHole(P, u64),
    /// Keeps the descriptor under a number.
    Open(usize, P, Flags, u32),
    /// An operation on a kept descriptor.
    Held(usize, HOp),
    /// An operation whose paths begin at a kept directory.
    In(usize, Box<Op>),
    Close(usize),
    Readdir(P),
    Stat(P),
    Readlink(P),
    /// `access(2)` with R=4, W=2, X=1.
    Access(P, u32),
}

/// Parses a script; a bad line fails the test.
pub fn parse(text: &str) -> Vec<Op> {
    let lines = text.lines().map(str::trim);
    lines
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
        .map(|l| parse_line(l).unwrap_or_else(|| panic!("bad script line: {l}")))
        .collect()
}

/// The remaining words of a line.
pub struct Words<'a>(std::str::SplitWhitespace<'a>);

impl Words<'_> {
    pub fn bytes(&mut self) -> Option<Vec<u8>> {
        let word = self.0.next()?;
        Some(match word {
            "-" | "." => Vec::new(),
            _ => unescape(word),
        })
    }
    pub fn num<T: std::str::FromStr>(&mut self) -> Option<T> {
        self.0.next()?.parse().ok()
    }
    pub fn octal(&mut self) -> Option<u32> {
        u32::from_str_radix(self.0.next()?, 8).ok()
    }
    pub fn id(&mut self) -> Option<u32> {
        let word = self.0.next()?;
        if word == "-" {
            return Some(u32::MAX);
        }
        word.parse().ok()
    }
    pub fn flags(&mut self) -> Flags {
        Flags(self.0.next().unwrap_or("-").to_owned())
    }
    pub fn time(&mut self) -> Option<(i64, i64)> {
        let (sec, nsec) = self.0.next()?.split_once('.')?;
        Some((sec.parse().ok()?, nsec.parse().ok()?))
    }
    fn rename_flags(&mut self) -> Option<u32> {
        Some(match self.0.next() {
            None | Some("-") => 0,
            Some("noreplace") => libc::RENAME_NOREPLACE,
            Some("exchange") => libc::RENAME_EXCHANGE,
            Some("whiteout") => libc::RENAME_WHITEOUT,
            Some(_) => return None,
        })
    }
    pub fn xattr_flags(&mut self) -> Option<u32> {
        Some(match self.0.next() {
            None | Some("-") => 0,
            Some("create") => 1,
            Some("replace") => 2,
            Some(_) => return None,
        })
    }
}

fn parse_line(line: &str) -> Option<Op> {
    let mut words = Words(line.split_whitespace());
    let w = &mut words;
    let op = match w.0.next()? {
        "as" => Op::As(w.num()?, w.num()?),
        "umask" => Op::Umask(w.octal()?),
        "create" => Op::Create(w.bytes()?, w.octal()?, w.flags()),
        "write" => Op::Write(w.bytes()?, w.num()?, w.bytes()?, w.flags()),
        "truncate" => Op::Truncate(w.bytes()?, w.num()?),
        "read" => Op::Read(w.bytes()?),
        "mkdir" => Op::Mkdir(w.bytes()?, w.octal()?),
        "rmdir" => Op::Rmdir(w.bytes()?),
        "unlink" => Op::Unlink(w.bytes()?),
        "rename" => Op::Rename(w.bytes()?, w.bytes()?, w.rename_flags()?),
        "link" => Op::Link(w.bytes()?, w.bytes()?),
        "symlink" => Op::Symlink(w.bytes()?, w.bytes()?),
        "mknod" => Op::Mknod(w.bytes()?, w.octal()?, w.num()?, w.num()?),
        "chmod" => Op::Chmod(w.bytes()?, w.octal()?),
        "chown" => Op::Chown(w.bytes()?, w.id()?, w.id()?),
        "utimens" => Op::Utimens(w.bytes()?, w.time()?, w.time()?),
        "touch" => Op::Touch(w.bytes()?),
        "setxattr" => Op::Setxattr(w.bytes()?, w.bytes()?, w.bytes()?, w.xattr_flags()?),
        "getxattr" => Op::Getxattr(w.bytes()?, w.bytes()?),
        "listxattr" => Op::Listxattr(w.bytes()?),
        "removexattr" => Op::Removexattr(w.bytes()?, w.bytes()?),
        // setacl PATH access|default UID PERM: the named user's entry of a fixed ACL.
        "setacl" => {
            let (path, which) = (w.bytes()?, w.bytes()?);
            let name = [b"system.posix_acl_", &which[..]].concat();
            let value = layers::acl(7, &[(w.num()?, w.num()?)], 5, 7, 0);
            Op::Setxattr(path, name, value, 0)
        }
        "fallocate" => Op::Fallocate(w.bytes()?, w.num()?, w.num()?, w.num()?),
        "copyrange" => Op::CopyRange(w.bytes()?, w.num()?, w.bytes()?, w.num()?, w.num()?),
        "seekdata" => Op::SeekData(w.bytes()?, w.num()?),
        "seekhole" => Op::SeekHole(w.bytes()?, w.num()?),
        other => return parse_handle_or_query(other, w),
    };
    words.0.next().is_none().then_some(op)
}

fn parse_handle_or_query(word: &str, w: &mut Words<'_>) -> Option<Op> {
    let op = match word {
        "in" => {
            let dir = w.num()?;
            let rest: Vec<_> = w.0.by_ref().collect();
            Op::In(dir, Box::new(parse_line(&rest.join(" "))?))
        }
        "open" => Op::Open(w.num()?, w.bytes()?, w.flags(), w.octal().unwrap_or(0o644)),
        "close" => Op::Close(w.num()?),
        "readdir" => Op::Readdir(w.bytes()?),
        "stat" => Op::Stat(w.bytes()?),
        "readlink" => Op::Readlink(w.bytes()?),
        "access" => Op::Access(w.bytes()?, w.num()?),
        held => Op::Held(w.num()?, descriptor::parse(held, w)?),
    };
    w.0.next().is_none().then_some(op)
}

/// Formats a path or data as a word of a script.
pub fn word(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        "-".into()
    } else {
        escape(bytes)
    }
}

/// Formats a user or group as a word; u32::MAX leaves it unchanged.
pub fn id(id: u32) -> String {
    if id == u32::MAX {
        "-".into()
    } else {
        id.to_string()
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::As(u, g) => write!(f, "as {u} {g}"),
            Self::Umask(m) => write!(f, "umask {m:o}"),
            Self::Create(p, m, fl) => write!(f, "create {} {m:o} {}", word(p), fl.0),
            Self::Write(p, o, d, fl) => write!(f, "write {} {o} {} {}", word(p), word(d), fl.0),
            Self::Truncate(p, n) => write!(f, "truncate {} {n}", word(p)),
            Self::Read(p) => write!(f, "read {}", word(p)),
            Self::Mkdir(p, m) => write!(f, "mkdir {} {m:o}", word(p)),
            Self::Rmdir(p) => write!(f, "rmdir {}", word(p)),
            Self::Unlink(p) => write!(f, "unlink {}", word(p)),
            Self::Rename(a, b, fl) => {
                let flags = ["-", "noreplace", "exchange", "-", "whiteout"][*fl as usize];
                write!(f, "rename {} {} {flags}", word(a), word(b))
            }
            Self::Link(a, b) => write!(f, "link {} {}", word(a), word(b)),
            Self::Symlink(t, p) => write!(f, "symlink {} {}", word(t), word(p)),
            Self::Mknod(p, m, ma, mi) => write!(f, "mknod {} {m:o} {ma} {mi}", word(p)),
            Self::Chmod(p, m) => write!(f, "chmod {} {m:o}", word(p)),
            Self::Chown(p, u, g) => write!(f, "chown {} {} {}", word(p), id(*u), id(*g)),
            Self::Utimens(p, a, m) => {
                write!(f, "utimens {} {}.{} {}.{}", word(p), a.0, a.1, m.0, m.1)
            }
            Self::Touch(p) => write!(f, "touch {}", word(p)),
            Self::Setxattr(p, n, v, fl) => {
                let flags = ["-", "create", "replace"][*fl as usize];
                write!(f, "setxattr {} {} {} {flags}", word(p), word(n), word(v))
            }
            Self::Getxattr(p, n) => write!(f, "getxattr {} {}", word(p), word(n)),
            Self::Listxattr(p) => write!(f, "listxattr {}", word(p)),
            Self::Removexattr(p, n) => write!(f, "removexattr {} {}", word(p), word(n)),
            other => fmt_more(other, f),
        }
    }
}

fn fmt_more(op: &Op, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match op {
        Op::Fallocate(p, m, o, l) => write!(f, "fallocate {} {m} {o} {l}", word(p)),
        Op::CopyRange(a, oa, b, ob, l) => {
            write!(f, "copyrange {} {oa} {} {ob} {l}", word(a), word(b))
        }
        Op::SeekData(p, o) => write!(f, "seekdata {} {o}", word(p)),
        Op::SeekHole(p, o) => write!(f, "seekhole {} {o}", word(p)),
        Op::Open(h, p, fl, m) => write!(f, "open {h} {} {} {m:o}", word(p), fl.0),
        Op::Held(h, op) => descriptor::show_line(*h, op, f),
        Op::In(dir, op) => write!(f, "in {dir} {op}"),
        Op::Close(h) => write!(f, "close {h}"),
        Op::Readdir(p) => write!(f, "readdir {}", word(p)),
        Op::Stat(p) => write!(f, "stat {}", word(p)),
        Op::Readlink(p) => write!(f, "readlink {}", word(p)),
        Op::Access(p, m) => write!(f, "access {} {m}", word(p)),
        _ => Err(fmt::Error),
    }
}
