//! Random cases of the deep hunts (`deep.rs`): stacks of two to six layers with every kind of
//! entry, the upper ones made by kernel overlayfs itself, and scripts of several users over several
//! descriptors. There are few names, so they collide in every way; one has 255 bytes and one has
//! raw bytes.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use testkit::descriptor::HOp;
use testkit::layers::{self, Layer, Node};
use testkit::script::{Flags, Op};

/// Written layers (top first) and the scripts of the layers that the kernel makes: each script of
/// `made` runs on a kernel overlay, whose upper is then the next layer.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) layers: Vec<Layer>,
    pub(crate) made: Vec<Vec<Op>>,
    pub(crate) script: Vec<Op>,
}

/// An object that a layer has under a name.
#[derive(Clone, Debug)]
enum Entry {
    Absent,
    Node(Node, Dress),
    /// Another name of the file that was listed last.
    Link,
    /// Whether it is opaque, its attributes, and its entries by name.
    Dir(bool, Dress, Vec<Self>),
}

/// Owner, mode and xattrs of an entry.
#[derive(Clone, Debug)]
struct Dress {
    owner: (u32, u32),
    mode: u32,
    xattrs: u8,
}

fn names() -> [Vec<u8>; 5] {
    let odd = b"\xff\x01 \n\\".to_vec();
    [b"a", b"b", b"c"]
        .map(|n| n.to_vec())
        .into_iter()
        .chain([vec![b'L'; 255], odd])
        .collect::<Vec<_>>()
        .try_into()
        .unwrap()
}

fn owner() -> impl Strategy<Value = (u32, u32)> {
    select(&[(0, 0), (0, 0), (1000, 1000), (1001, 1000), (1000, 1001)][..])
}

fn mode() -> impl Strategy<Value = u32> {
    let modes = [
        0o644u32, 0o755, 0o600, 0o700, 0o777, 0o1777, 0o2775, 0o4755, 0o444, 0o070, 0,
    ];
    select(modes.to_vec())
}

fn dress() -> impl Strategy<Value = Dress> {
    let xattrs = prop_oneof![2 => Just(0u8), 1 => any::<u8>()];
    (owner(), mode(), xattrs).prop_map(|(owner, mode, xattrs)| Dress {
        owner,
        mode,
        xattrs,
    })
}

fn node() -> impl Strategy<Value = Node> {
    let target = select(&["a", "b/c", "./b"][..]);
    let islands = (0..3u64).prop_map(|n| vec![(n * 65536, b"island".to_vec())]);
    prop_oneof![
        6 => data().prop_map(Node::File),
        1 => islands.prop_map(|i| Node::Sparse(300_000, i)),
        2 => target.prop_map(|t| Node::Symlink(t.as_bytes().to_vec())),
        1 => Just(Node::Special(libc::S_IFIFO, 0, 0)),
        1 => Just(Node::Special(libc::S_IFCHR, 1, 3)),
        1 => Just(Node::Special(libc::S_IFBLK, 7, 200)),
        1 => Just(Node::Special(libc::S_IFSOCK, 0, 0)),
        3 => Just(Node::Whiteout),
    ]
}

fn entry(depth: u32) -> BoxedStrategy<Entry> {
    let leaf = prop_oneof![
        5 => Just(Entry::Absent),
        6 => (node(), dress()).prop_map(|(n, d)| Entry::Node(n, d)),
        1 => Just(Entry::Link),
    ];
    if depth == 0 {
        return leaf.boxed();
    }
    let below = vec(entry(depth - 1), names().len());
    let dir = (prop::bool::weighted(0.2), dress(), below);
    let dir = dir.prop_map(|(o, d, b)| Entry::Dir(o, d, b));
    prop_oneof![2 => leaf, 2 => dir].boxed()
}

/// Tells whether a path ends in the long name.
///
/// Only files have it in a layer: if it is part of a redirect, the kernel refuses to rename
/// directories (256 bytes) and unionfs does not (docs/SEMANTICS.md).
fn long(path: &[u8]) -> bool {
    path.len() >= 255
}

/// Adds an entry; `last` is the file that a further link refers to.
fn add(mut layer: Layer, path: &[u8], entry: &Entry, last: &mut Option<Vec<u8>>) -> Layer {
    match entry {
        Entry::Absent => layer,
        Entry::Link => match last {
            Some(to) => layer.link(path, &to[..]),
            None => layer,
        },
        Entry::Node(node, dress) => {
            if !matches!(node, Node::Whiteout) {
                *last = Some(path.to_vec());
            }
            dressed(layer.add(path, node.clone()), node, dress)
        }
        Entry::Dir(_, dress, _) if long(path) => add(
            layer,
            path,
            &Entry::Node(Node::File(b"long".to_vec()), dress.clone()),
            last,
        ),
        Entry::Dir(opaque, dress, below) => {
            layer = dressed(layer.dir(path), &Node::Dir, dress);
            if *opaque {
                layer = layer.opaque();
            }
            for (name, entry) in names().iter().zip(below) {
                layer = add(layer, &[path, b"/", name].concat(), entry, last);
            }
            layer
        }
    }
}

fn dressed(layer: Layer, node: &Node, dress: &Dress) -> Layer {
    let mut layer = layer.own(dress.owner.0, dress.owner.1).mode(dress.mode);
    let is_file = matches!(node, Node::File(_) | Node::Sparse(..));
    let named = layers::acl(7, &[(1000, 5)], 5, 7, 0);
    let bit = |n: u8| dress.xattrs & (1 << n) != 0;
    if bit(0) && !matches!(node, Node::Whiteout) {
        layer = layer.xattr("trusted.t", "secret");
    }
    if bit(1) && (is_file || *node == Node::Dir) {
        layer = layer.xattr("user.x", "blue");
    }
    if bit(2) && (is_file || *node == Node::Dir) {
        layer = layer.xattr("system.posix_acl_access", &named);
    }
    if bit(3) && *node == Node::Dir {
        layer = layer.xattr("system.posix_acl_default", &named);
    }
    if bit(4) && is_file {
        layer = layer.xattr("security.capability", layers::net_raw_capability());
    }
    layer
}

fn layer() -> impl Strategy<Value = Layer> {
    vec(entry(2), names().len()).prop_map(|entries| {
        let mut last = None;
        let names = names();
        let named = names.iter().zip(&entries);
        named.fold(Layer::new(), |l, (name, entry)| {
            add(l, name, entry, &mut last)
        })
    })
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    let above = vec(select(vec![0usize, 0, 1, 1, 2, 2, 4]), 0..3);
    let leaf = select(vec![0usize, 0, 1, 1, 2, 2, 3, 4]);
    (above, leaf).prop_map(|(mut parts, leaf)| {
        parts.push(leaf);
        let names = names();
        let parts: Vec<_> = parts.iter().map(|n| &names[*n][..]).collect();
        parts.join(&b'/')
    })
}

/// Generates a path short enough for a redirect, see [`long`]: metacopies that are renamed have one
/// too.
fn movable() -> impl Strategy<Value = Vec<u8>> {
    path().prop_filter("longer than a redirect", |p| p.len() <= 255)
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    vec(select(&b"xyz"[..]), 1..8)
}

fn flags() -> impl Strategy<Value = Flags> {
    select(&["-", "-", "r", "a", "t", "cx", "n", "d"][..]).prop_map(|f| Flags(f.into()))
}

fn xattr_name() -> impl Strategy<Value = Vec<u8>> {
    let names: [&[u8]; 6] = [
        b"user.x",
        b"user.y",
        b"trusted.t",
        b"trusted.overlay.opaque",
        b"trusted.overlay.redirect",
        b"security.capability",
    ];
    select(names.to_vec()).prop_map(<[u8]>::to_vec)
}

/// Generates operations that make, move and remove names.
fn namespace_op() -> impl Strategy<Value = Op> {
    let rename = prop_oneof![
        6 => Just(0u32),
        1 => Just(libc::RENAME_NOREPLACE),
        2 => Just(libc::RENAME_EXCHANGE),
        1 => Just(libc::RENAME_WHITEOUT),
    ];
    // Only the null device and an unused loop device may be opened.
    let special = select(
        &[
            (libc::S_IFIFO, 0, 0),
            (libc::S_IFSOCK, 0, 0),
            (libc::S_IFCHR, 1, 3),
            (libc::S_IFCHR, 0, 0),
            (libc::S_IFBLK, 7, 200),
        ][..],
    );
    prop_oneof![
        3 => (path(), mode(), flags()).prop_map(|(p, m, f)| Op::Create(p, m, f)),
        3 => (path(), mode()).prop_map(|(p, m)| Op::Mkdir(p, m)),
        4 => path().prop_map(Op::Unlink),
        3 => path().prop_map(Op::Rmdir),
        8 => (movable(), movable(), rename).prop_map(|(a, b, f)| Op::Rename(a, b, f)),
        2 => (movable(), movable()).prop_map(|(a, b)| Op::Link(a, b)),
        1 => path().prop_map(|p| Op::Symlink(b"b/c".to_vec(), p)),
        1 => (path(), special, mode()).prop_map(|(p, (k, a, b), m)| Op::Mknod(p, k | (m & 0o777), a, b)),
    ]
}

/// Leaving both unchanged at once is a deliberate difference (docs/SEMANTICS.md).
fn owners() -> impl Strategy<Value = (u32, u32)> {
    let id = || select(&[0u32, 1000, 1001, u32::MAX][..]);
    (id(), id()).prop_filter("no owner", |ids| *ids != (u32::MAX, u32::MAX))
}

/// Generates changes of data and attributes by name.
fn change_op() -> impl Strategy<Value = Op> {
    let stamp = (-1_000..1_000_001_000i64, 0..1_000_000_000i64);
    let acl = |(p, default, perm): (Vec<u8>, bool, u16)| {
        let which: &[u8] = if default { b"default" } else { b"access" };
        let name = [b"system.posix_acl_", which].concat();
        Op::Setxattr(p, name, layers::acl(7, &[(1000, perm)], 5, 7, 0), 0)
    };
    let fallocate = select(&[0u32, 1, 3][..]);
    prop_oneof![
        3 => (path(), 0..10u64, data(), flags()).prop_map(|(p, o, d, f)| Op::Write(p, o, d, f)),
        2 => (path(), 0..12u64).prop_map(|(p, n)| Op::Truncate(p, n)),
        3 => (path(), mode()).prop_map(|(p, m)| Op::Chmod(p, m)),
        2 => (path(), owners()).prop_map(|(p, (u, g))| Op::Chown(p, u, g)),
        1 => (path(), stamp).prop_map(|(p, t)| Op::Utimens(p, t, t)),
        1 => path().prop_map(Op::Touch),
        2 => (path(), xattr_name(), data(), 0..3u32).prop_map(|(p, n, v, f)| Op::Setxattr(p, n, v, f)),
        1 => (path(), xattr_name()).prop_map(|(p, n)| Op::Removexattr(p, n)),
        1 => (path(), any::<bool>(), 0..8u16).prop_map(acl),
        1 => (path(), fallocate, 0..5u64, 1..9u64).prop_map(|(p, m, o, l)| Op::Fallocate(p, m, o, l)),
        1 => (path(), path(), 0..4u64).prop_map(|(a, b, o)| Op::CopyRange(a, o, b, 1, 5)),
    ]
}

fn query_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        path().prop_map(Op::Readdir),
        path().prop_map(Op::Stat),
        path().prop_map(Op::Read),
        path().prop_map(Op::Readlink),
        path().prop_map(Op::Listxattr),
        (path(), xattr_name()).prop_map(|(p, n)| Op::Getxattr(p, n)),
        (path(), 0..8u32).prop_map(|(p, m)| Op::Access(p, m)),
        (path(), 0..70_000u64).prop_map(|(p, n)| Op::SeekHole(p, n)),
        (path(), 0..70_000u64).prop_map(|(p, n)| Op::SeekData(p, n)),
    ]
}

/// Generates operations on descriptors, which outlive copy-up, unlink and rename of their object:
/// files, directories and files that never had a name.
fn handle_op() -> impl Strategy<Value = Op> {
    let how = select(
        &[
            "r", "r", "w", "b", "b", "ba", "bt", "bc", "d", "d", "bp", "wp",
        ][..],
    );
    let how = how.prop_map(|f| Flags(f.into()));
    let h = || 0..3usize;
    let inner = prop_oneof![
        4 => namespace_op(),
        1 => change_op(),
        2 => query_op(),
    ];
    prop_oneof![
        8 => (h(), path(), how, mode()).prop_map(|(h, p, f, m)| Op::Open(h, p, f, m)),
        8 => (h(), held_data()).prop_map(|(h, op)| Op::Held(h, op)),
        6 => (h(), held_attr()).prop_map(|(h, op)| Op::Held(h, op)),
        3 => (h(), held_name()).prop_map(|(h, op)| Op::Held(h, op)),
        3 => (h(), inner).prop_map(|(h, op)| Op::In(h, Box::new(op))),
        1 => h().prop_map(Op::Close),
    ]
}

/// Generates operations on data through a descriptor.
fn held_data() -> impl Strategy<Value = HOp> {
    // The kernel's FUSE client refuses to collapse and insert ranges (docs/SEMANTICS.md).
    let fallocate = select(&[0u32, 0, 1, 3, 0x10, 0x11][..]);
    prop_oneof![
        2 => (0..4u64).prop_map(|o| HOp::Read(o, 20)),
        3 => (0..9u64, data()).prop_map(|(o, d)| HOp::Write(o, d)),
        1 => (0..9usize).prop_map(HOp::Get),
        2 => data().prop_map(HOp::Put),
        1 => data().prop_map(HOp::Append),
        1 => (0..4u64).prop_map(|o| HOp::MapRead(o, 20)),
        2 => (0..9u64, data()).prop_map(|(o, d)| HOp::MapWrite(o, d)),
        2 => (0..9u64).prop_map(HOp::Truncate),
        2 => (fallocate, 0..5u64, 1..9u64).prop_map(|(m, o, l)| HOp::Fallocate(m, o, l)),
        1 => (0..4u64, 0..3usize, 0..4u64).prop_map(|(o, to, at)| HOp::CopyRange(o, to, at, 5)),
        1 => (0..70_000u64).prop_map(HOp::SeekData),
        1 => (0..70_000u64).prop_map(HOp::SeekHole),
        1 => any::<bool>().prop_map(HOp::Sync),
    ]
}

/// Generates operations on attributes through a descriptor.
fn held_attr() -> impl Strategy<Value = HOp> {
    let stamp = (-1_000..1_000_001_000i64, 0..1_000_000_000i64);
    prop_oneof![
        3 => Just(HOp::Stat),
        2 => mode().prop_map(HOp::Chmod),
        2 => owners().prop_map(|(u, g)| HOp::Chown(u, g)),
        1 => stamp.prop_map(|t| HOp::Utimens(t, t)),
        1 => Just(HOp::Touch),
        2 => (xattr_name(), data(), 0..3u32).prop_map(|(n, v, f)| HOp::Setxattr(n, v, f)),
        1 => xattr_name().prop_map(HOp::Getxattr),
        1 => Just(HOp::Listxattr),
        1 => xattr_name().prop_map(HOp::Removexattr),
    ]
}

/// Generates operations on names by a descriptor, and further descriptors.
fn held_name() -> impl Strategy<Value = HOp> {
    let again = select(&["r", "b", "a", "wt", "d"][..]);
    prop_oneof![
        2 => Just(HOp::List),
        2 => movable().prop_map(HOp::Link),
        1 => movable().prop_map(HOp::LinkEmpty),
        2 => (0..3usize, again).prop_map(|(to, f)| HOp::Reopen(to, Flags(f.into()))),
    ]
}

fn user_op() -> impl Strategy<Value = Op> {
    let user = select(&[(0, 0), (0, 0), (1000, 1000), (1001, 1000)][..]);
    prop_oneof![
        4 => user.prop_map(|(u, g)| Op::As(u, g)),
        1 => select(&[0o022u32, 0, 0o077][..]).prop_map(Op::Umask),
    ]
}

/// Generates the script of a layer that the kernel makes: root's changes of names, modes and data.
fn made() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![3 => namespace_op(), 2 => change_op()];
    let no_long_dirs = |op: &Op| match op {
        Op::Mkdir(p, _) => !long(p),
        Op::Rename(a, b, _) => !long(a) && !long(b),
        _ => true,
    };
    vec(
        op.prop_filter("a directory of a long name", no_long_dirs),
        1..15,
    )
}

fn script() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        8 => namespace_op(),
        5 => change_op(),
        4 => query_op(),
        8 => handle_op(),
        1 => user_op(),
    ];
    vec(op, 1..40)
}

/// Generates a stack of two to six layers (without the script's upper) and a script.
pub(crate) fn plan() -> impl Strategy<Value = Plan> {
    let written = vec(layer(), 1..4).prop_map(super::random::prune);
    let stack = (written, vec(made(), 0..4));
    let stack = stack.prop_filter("two layers at least", |(w, m)| w.len() + m.len() >= 2);
    (stack, script()).prop_map(|((layers, made), script)| {
        without_both(Plan {
            layers,
            made,
            script,
        })
    })
}

/// Removes set-id bits if a file has a capability: root's write to a file with both is a known
/// difference, which `mount/differences` shows.
fn without_both(mut plan: Plan) -> Plan {
    let is_capability = |xattr: &(Vec<u8>, Vec<u8>)| xattr.0 == b"security.capability";
    let mut items = plan.layers.iter().flat_map(|layer| &layer.items);
    if !items.any(|item| item.xattrs.iter().any(is_capability)) {
        return plan;
    }
    let items = plan.layers.iter_mut().flat_map(|layer| &mut layer.items);
    for item in items.filter(|item| item.node != Node::Dir) {
        item.mode &= 0o1777;
    }
    for op in plan.made.iter_mut().flatten().chain(&mut plan.script) {
        drop_set_id(op);
    }
    plan
}

fn drop_set_id(op: &mut Op) {
    match op {
        Op::Chmod(_, mode) | Op::Held(_, HOp::Chmod(mode)) => *mode &= 0o1777,
        Op::In(_, op) => drop_set_id(op),
        _ => {}
    }
}
