//! Generates layers and scripts from a seed. There are few names, so that the actors often use the
//! same ones.

use testkit::descriptor::HOp;
use testkit::layers::{self, Layer};
use testkit::script::{Flags, Op, P};

use crate::act::{Act, Step};
use crate::actor::ALL;
use crate::data::WAYS;
use crate::decoys::INSIDE;

/// A case.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The layers, the top one first.
    pub(crate) layers: Vec<Layer>,
    pub(crate) script: Vec<Step>,
}

/// Numbers from a seed (splitmix64).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

pub(crate) const DIRS: [(&str, u32, (u32, u32)); 6] = [
    ("pub", 0o777, (0, 0)),
    ("one", 0o755, (1000, 1000)),
    ("grp", 0o2775, (0, 2000)),
    ("sticky", 0o1777, (0, 0)),
    ("priv", 0o700, (0, 0)),
    ("pub/d", 0o777, (1001, 1001)),
];

pub(crate) const NAMES: [&str; 5] = ["a", "b", "c", "d", "prog"];

const MODES: [u32; 16] = [
    0o644, 0o755, 0o4755, 0o2755, 0o6755, 0o4770, 0o2770, 0o4777, 0o2777, 0o6777, 0o600, 0o4711,
    0o2745, 0o666, 0o1777, 0o6775,
];

const OWNERS: [(u32, u32); 7] = [
    (0, 0),
    (0, 2000),
    (1000, 1000),
    (1001, 1001),
    (1000, 2000),
    (1001, 2000),
    (0, 1000),
];

/// Generates the layers of a case; `program` is the content of set-id files.
pub(crate) fn layers(rng: &mut Rng, program: &[u8]) -> Vec<Layer> {
    let count = 1 + rng.below(2);
    (0..count)
        .map(|n| layer(rng, program, n + 1 < count))
        .collect()
}

fn layer(rng: &mut Rng, program: &[u8], over: bool) -> Layer {
    let mut layer = Layer::new().file("readme", "readme\n");
    let mut cut_off = Vec::new();
    for (dir, mode, (uid, gid)) in DIRS {
        layer = layer.dir(dir).mode(mode).own(uid, gid);
        // overlayfs leaves no whiteouts in an opaque directory.
        let opaque = over && rng.one_in(8);
        if opaque {
            layer = layer.opaque();
            cut_off.push(format!("{dir}/"));
        }
        for name in NAMES {
            let below = |o: &String| format!("{dir}/").starts_with(o);
            let whiteouts = over && !cut_off.iter().any(below);
            layer = entry(layer, rng, &format!("{dir}/{name}"), program, whiteouts);
        }
    }
    layer
        .file("pub/source", "source of copies\n")
        .mode(0o644)
        .file("priv/secret", INSIDE)
        .mode(0o600)
        .file("pub/secret", INSIDE)
        .mode(0o600)
}

fn entry(mut layer: Layer, rng: &mut Rng, path: &str, program: &[u8], whiteouts: bool) -> Layer {
    let is_dir = DIRS.iter().any(|(dir, ..)| *dir == path);
    if is_dir || rng.one_in(4) {
        return layer;
    }
    if whiteouts && rng.one_in(6) {
        return layer.whiteout(path);
    }
    if rng.one_in(10) {
        return layer.symlink(path, rng.pick(&["a", "prog", "../readme"]));
    }
    let is_program = path.ends_with("prog") || rng.one_in(4);
    let data = if is_program { program } else { b"text\n" };
    let (uid, gid) = rng.pick(&OWNERS);
    layer = layer.file(path, data).own(uid, gid).mode(rng.pick(&MODES));
    if rng.one_in(6) {
        layer = layer.xattr("security.capability", layers::net_raw_capability());
    }
    if rng.one_in(8) {
        let acl = layers::acl(7, &[(1001, 7)], 5, 7, 5);
        layer = layer.xattr("system.posix_acl_access", acl);
    }
    if rng.one_in(8) {
        layer = layer.xattr("user.x", "blue").xattr("trusted.t", "red");
    }
    if rng.one_in(8) {
        layer = layer.link(format!("{path}2"), path);
    }
    layer
}

pub(crate) fn path(rng: &mut Rng) -> P {
    let (dir, ..) = rng.pick(&DIRS);
    if rng.one_in(12) {
        return dir.into();
    }
    let name = match rng.below(12) {
        0 => "new",
        1 => "prog2",
        2 => "secret",
        3..=5 => "prog",
        _ => rng.pick(&NAMES),
    };
    format!("{dir}/{name}").into()
}

fn mode(rng: &mut Rng) -> u32 {
    rng.pick(&MODES)
}

fn data(rng: &mut Rng) -> Vec<u8> {
    vec![b'x'; 1 + rng.below(6)]
}

fn flags(rng: &mut Rng) -> Flags {
    Flags(rng.pick(&["-", "-", "a", "t", "cx", "n"]).into())
}

fn xattr_name(rng: &mut Rng) -> Vec<u8> {
    let names = [
        "user.x",
        "user.y",
        "trusted.t",
        "trusted.overlay.opaque",
        "trusted.overlay.redirect",
        "user.overlay.metacopy",
        "user.overlay.redirect",
        "user.overlay.opaque",
        "security.capability",
        "security.x",
    ];
    rng.pick(&names).into()
}

fn xattr_value(rng: &mut Rng, name: &[u8]) -> Vec<u8> {
    match name {
        b"security.capability" => layers::net_raw_capability(),
        _ if rng.one_in(2) => b"/priv/secret".to_vec(),
        _ => b"y".to_vec(),
    }
}

fn id(rng: &mut Rng) -> u32 {
    rng.pick(&[0, 1000, 1001, 2000, u32::MAX])
}

/// Generates an operation that makes, moves or removes names.
pub(crate) fn namespace_op(rng: &mut Rng) -> Op {
    let (a, b) = (path(rng), path(rng));
    let special = [
        (libc::S_IFIFO, 0, 0),
        (libc::S_IFSOCK, 0, 0),
        (libc::S_IFCHR, 1, 3),
        (libc::S_IFCHR, 0, 0),
        (libc::S_IFBLK, 7, 200),
        (libc::S_IFREG, 0, 0),
    ];
    match rng.below(22) {
        0..=2 => Op::Create(a, mode(rng), flags(rng)),
        3..=4 => Op::Mkdir(a, mode(rng)),
        5..=7 => Op::Unlink(a),
        8 => Op::Rmdir(a),
        9..=12 => Op::Rename(a, b, 0),
        13 => Op::Rename(a, b, libc::RENAME_NOREPLACE),
        14..=15 => Op::Rename(a, b, libc::RENAME_EXCHANGE),
        16 => Op::Rename(a, b, libc::RENAME_WHITEOUT),
        17..=19 => Op::Link(a, b),
        20 => Op::Symlink(rng.pick(&["a", "prog", "../priv/secret"]).into(), a),
        _ => {
            let (kind, major, minor) = rng.pick(&special);
            Op::Mknod(a, kind | (mode(rng) & 0o777), major, minor)
        }
    }
}

/// Generates an operation on attributes or data by name.
fn change_op(rng: &mut Rng) -> Op {
    let p = path(rng);
    match rng.below(16) {
        0..=4 => Op::Chmod(p, mode(rng)),
        5..=7 => {
            let (uid, gid) = (id(rng), id(rng));
            // Leaving both unchanged at once is a deliberate difference (docs/SEMANTICS.md).
            Op::Chown(p, if gid == u32::MAX { 1000 } else { uid }, gid)
        }
        8 => Op::Truncate(p, rng.below(12) as u64),
        9 => Op::Write(p, rng.below(9) as u64, data(rng), flags(rng)),
        10..=11 => {
            let name = xattr_name(rng);
            let value = xattr_value(rng, &name);
            Op::Setxattr(p, name, value, rng.below(3) as u32)
        }
        12 => Op::Removexattr(p, xattr_name(rng)),
        13..=14 => {
            let which = rng.pick(&["access", "default"]);
            let perm = rng.below(8) as u16;
            let name = format!("system.posix_acl_{which}").into_bytes();
            Op::Setxattr(p, name, layers::acl(7, &[(1000, perm)], 5, 7, 0), 0)
        }
        _ => Op::Utimens(p, (1_000_000, 1), (1_000_001, 2)),
    }
}

pub(crate) fn query_op(rng: &mut Rng) -> Op {
    let p = path(rng);
    match rng.below(7) {
        0 => Op::Readdir(rng.pick(&DIRS).0.into()),
        1 => Op::Stat(p),
        2 => Op::Read(p),
        3 => Op::Readlink(p),
        4 => Op::Listxattr(p),
        5 => Op::Getxattr(p, xattr_name(rng)),
        _ => Op::Access(p, rng.below(8) as u32),
    }
}

fn handle_op(rng: &mut Rng) -> Op {
    let h = rng.below(3);
    let how = ["r", "r", "w", "b", "b", "ba", "bt", "bc", "d", "bp", "wp"];
    match rng.below(12) {
        0..=4 => Op::Open(h, path(rng), Flags(rng.pick(&how).into()), mode(rng)),
        5 => Op::In(h, Box::new(namespace_op(rng))),
        6 => Op::Close(h),
        _ => Op::Held(h, held(rng)),
    }
}

fn held(rng: &mut Rng) -> HOp {
    let at = rng.below(9) as u64;
    match rng.below(20) {
        0 => HOp::Read(at, 20),
        1..=2 => HOp::Write(at, data(rng)),
        3 => HOp::Put(data(rng)),
        4 => HOp::Append(data(rng)),
        5 => HOp::MapWrite(at, data(rng)),
        6 => HOp::Stat,
        7 => HOp::Truncate(at),
        8..=9 => HOp::Chmod(mode(rng)),
        10 => HOp::Chown(id(rng).min(2000), id(rng)),
        11 => {
            let name = xattr_name(rng);
            let value = xattr_value(rng, &name);
            HOp::Setxattr(name, value, 0)
        }
        12 => HOp::Fallocate(rng.pick(&[0, 1, 3]), at, 5),
        13 => HOp::CopyRange(0, rng.below(3), at, 5),
        14 => HOp::List,
        15..=16 => HOp::Link(path(rng)),
        17 => HOp::LinkEmpty(path(rng)),
        _ => HOp::Reopen(rng.below(3), Flags(rng.pick(&["r", "b", "a", "wt"]).into())),
    }
}

/// Generates an action that is safe below another root: no path there goes through /proc.
fn below_root(rng: &mut Rng) -> Act {
    let name = |rng: &mut Rng| -> P { rng.pick(&NAMES).into() };
    match rng.below(5) {
        0 => Act::Do(Op::Create(name(rng), mode(rng), flags(rng))),
        1 => Act::Do(Op::Chmod(name(rng), mode(rng))),
        2 => Act::Change(rng.pick(&WAYS), name(rng)),
        3 => Act::Do(Op::Read(b"../priv/secret".to_vec())),
        _ => Act::Do(Op::Readdir(Vec::new())),
    }
}

pub(crate) fn act(rng: &mut Rng) -> Act {
    match rng.below(100) {
        0..=24 => Act::Change(rng.pick(&WAYS), path(rng)),
        25..=32 => Act::Exec(path(rng)),
        33..=35 => Act::Mode(path(rng)),
        36..=54 => Act::Do(namespace_op(rng)),
        55..=68 => Act::Do(change_op(rng)),
        69..=74 => Act::Do(query_op(rng)),
        75..=87 => Act::Do(handle_op(rng)),
        88..=89 => Act::Fcntl(rng.below(3), rng.one_in(2), rng.one_in(2)),
        90 => Act::Flock(rng.below(3), rng.below(3) as u8),
        91 => Act::Lock(rng.below(3), rng.below(3) as u8, rng.below(4) as i64),
        92 => Act::Handle(path(rng)),
        93 => Act::Nodump(path(rng)),
        94..=95 => Act::Chroot(rng.pick(&DIRS).0.into(), Box::new(below_root(rng))),
        96 => Act::Cd(rng.pick(&DIRS).0.into()),
        97..=98 => Act::Here(match rng.below(3) {
            0 => Op::Create(rng.pick(&NAMES).into(), mode(rng), flags(rng)),
            1 => Op::Unlink(rng.pick(&NAMES).into()),
            _ => Op::Readdir(Vec::new()),
        }),
        _ => Act::Forge(
            path(rng),
            rng.pick(&[
                "user.fuseoverlayfs.opaque",
                "user.fuseoverlayfs.override_stat",
            ])
            .into(),
            b"0:0:104755".to_vec(),
        ),
    }
}

/// Generates a case of the comparison with the kernel.
pub(crate) fn plan(seed: u64, program: &[u8]) -> Plan {
    let mut rng = Rng(seed);
    let layers = layers(&mut rng, program);
    let steps = 10 + rng.below(50);
    let script = (0..steps)
        .map(|_| Step {
            who: rng.pick(&ALL),
            act: act(&mut rng),
        })
        .collect();
    Plan { layers, script }
}
