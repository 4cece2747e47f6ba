//! Attacks from behind: the owner of the upper changes it while others use the mount. The result
//! that they see then is undefined. But nothing outside of the layers changes, no secret is shown,
//! nobody gains a set-id program, nothing hangs, and the server keeps running.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, RenameFlags, XattrFlags, mknodat, renameat_with};
use testkit::descriptor::HOp;
use testkit::layers::{Layer, Node};
use testkit::mount::Fs;
use testkit::need::has_user_namespaces;
use testkit::script::{Flags, Op, P};
use testkit::tree::{self, Tree};
use testkit::{need, need_mounts};

use crate::act::{Act, Step};
use crate::actor::{ALL, BEHIND, OWNER};
use crate::case::{Scene, program, wrong};
use crate::data::{WAYS, Way};
use crate::decoys::TARGETS;
use crate::generate::{self, DIRS, Plan, Rng};
use crate::hunt::{caught, fresh, fs_of, hunt};

/// An object that replaces an object of the upper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Thing {
    Symlink(Vec<u8>),
    Fifo,
    Socket,
    Dir,
    File,
    /// A file with a metacopy marker that names another file for its data.
    Metacopy(Vec<u8>),
    /// A directory with a redirect marker that names another directory for its lowers.
    Redirect(Vec<u8>),
}

/// Puts a thing at `path`; the replaced object stays beside it.
pub(crate) fn swap(path: &Path, thing: &Thing) -> io::Result<String> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".swap");
    let beside = Path::new(&beside);
    let old = beside.with_extension(format!("old{}", std::process::id()));
    let _ = std::fs::rename(beside, old);
    let mode = Mode::from_raw_mode(0o777);
    let mark = |name: &str, value: &[u8]| {
        rustix::fs::lsetxattr(beside, name, value, XattrFlags::empty()).map_err(io::Error::from)
    };
    match thing {
        Thing::Symlink(target) => {
            use std::os::unix::ffi::OsStrExt;
            symlink(std::ffi::OsStr::from_bytes(target), beside)?;
        }
        Thing::Fifo => mknodat(CWD, beside, FileType::Fifo, mode, 0)?,
        Thing::Socket => mknodat(CWD, beside, FileType::Socket, mode, 0)?,
        Thing::Dir | Thing::Redirect(_) => std::fs::create_dir(beside)?,
        // Never opens what is there already, because it may be a FIFO.
        Thing::File | Thing::Metacopy(_) => {
            io::Write::write_all(&mut std::fs::File::create_new(beside)?, b"mine\n")?;
        }
    }
    if let Thing::Metacopy(to) | Thing::Redirect(to) = thing {
        for prefix in ["user.overlay", "user.fuseoverlayfs"] {
            mark(&format!("{prefix}.redirect"), to)?;
            if matches!(thing, Thing::Metacopy(_)) {
                mark(&format!("{prefix}.metacopy"), b"")?;
            }
        }
    }
    // If nothing was at the path, nothing can be exchanged.
    if renameat_with(CWD, beside, CWD, path, RenameFlags::EXCHANGE).is_err() {
        std::fs::rename(beside, path)?;
    }
    Ok(String::new())
}

/// Exchanges two names for a while, as fast as possible.
pub(crate) fn flip(a: &Path, b: &Path) -> String {
    let end = Instant::now() + Duration::from_millis(20);
    while Instant::now() < end {
        let _ = renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE);
    }
    String::new()
}

/// Returns the place of `path` in the upper.
fn upper(path: &[u8]) -> P {
    [b"upper/", path].concat()
}

/// Returns a path that leads out of the upper, relative to the directory of `path`. Seen from the
/// mount it leads nowhere.
fn way_out(rng: &mut Rng, path: &[u8]) -> Vec<u8> {
    let depth = path.iter().filter(|b| **b == b'/').count() + 1;
    format!("{}decoys/{}", "../".repeat(depth), rng.pick(&TARGETS)).into()
}

fn thing(rng: &mut Rng, path: &[u8]) -> Thing {
    let redirects = [
        "/priv/secret",
        "/priv",
        "secret",
        "/../decoys/secret",
        "/../decoys/dir",
        "../decoys",
    ];
    match rng.below(9) {
        0..=2 => Thing::Symlink(way_out(rng, path)),
        3 => Thing::Fifo,
        4 => Thing::Socket,
        5 => Thing::Dir,
        6 => Thing::File,
        7 => Thing::Metacopy(rng.pick(&redirects).into()),
        _ => Thing::Redirect(rng.pick(&redirects).into()),
    }
}

/// Returns a change that the owner of the upper makes to it.
fn change_behind(rng: &mut Rng) -> Act {
    let path = if rng.one_in(3) {
        rng.pick(&DIRS).0.into()
    } else {
        generate::path(rng)
    };
    let other = generate::path(rng);
    match rng.below(10) {
        0..=3 => {
            let thing = thing(rng, &path);
            Act::Swap(upper(&path), thing)
        }
        4..=5 => Act::Flip(upper(&path), upper(&[&path[..], b".swap"].concat())),
        6 => Act::Do(Op::Rename(
            upper(&path),
            upper(&other),
            libc::RENAME_EXCHANGE,
        )),
        7 => Act::Do(Op::Rename(upper(&path), upper(&other), 0)),
        8 => Act::Do(Op::Link(upper(&path), upper(&other))),
        _ => {
            let markers: [(&str, &str); 5] = [
                ("opaque", "y"),
                ("redirect", "/priv"),
                ("metacopy", ""),
                ("whiteout", "y"),
                ("origin", "forged"),
            ];
            let (name, value) = rng.pick(&markers);
            let prefix = rng.pick(&["user.overlay", "user.fuseoverlayfs"]);
            let name = format!("{prefix}.{name}").into_bytes();
            Act::Do(Op::Setxattr(upper(&path), name, value.into(), 0))
        }
    }
}

/// Returns an action of root. `writes` says whether root also writes; after that the content of a
/// set-id program proves nothing any more. `opens` says whether root changes owners and modes;
/// after that others may read.
fn roots(rng: &mut Rng, (writes, opens): (bool, bool)) -> Act {
    let path = generate::path(rng);
    let mode = rng.pick(&[0o644u32, 0o755, 0o600, 0o777]);
    match rng.below(12) {
        0..=1 if opens => Act::Do(Op::Chmod(path, mode)),
        2 if opens => Act::Do(Op::Chown(path, 1000, 1000)),
        3 => Act::Do(Op::Utimens(path, (1, 1), (2, 2))),
        4 => Act::Do(Op::Setxattr(path, b"user.x".to_vec(), b"root".to_vec(), 0)),
        5 => Act::Do(Op::Removexattr(path, b"user.x".to_vec())),
        6 => Act::Handle(path),
        7..=8 => match generate::namespace_op(rng) {
            Op::Create(p, ..) => Act::Do(Op::Create(p, mode, Flags("n".into()))),
            op => Act::Do(op),
        },
        9..=10 if writes => Act::Change(rng.pick(&WAYS), path),
        _ => Act::Do(generate::query_op(rng)),
    }
}

fn plan(seed: u64, program: &[u8]) -> Plan {
    let mut rng = Rng(seed);
    let layers = generate::layers(&mut rng, program);
    let may = (rng.one_in(2), rng.one_in(2));
    let mut script = Vec::new();
    let mut push = |who, act| script.push(Step { who, act });
    // The upper starts with some objects.
    for _ in 0..8 {
        push(
            ALL[0],
            Act::Do(Op::Utimens(generate::path(&mut rng), (3, 3), (4, 4))),
        );
    }
    for _ in 0..15 + rng.below(40) {
        match rng.pick(&ALL) {
            _ if rng.one_in(3) => push(BEHIND, change_behind(&mut rng)),
            who if who.uid == 0 => push(who, roots(&mut rng, may)),
            who => push(who, generate::act(&mut rng)),
        }
    }
    for _ in 0..10 {
        let who = rng.pick(&ALL);
        push(who, Act::Do(Op::Readdir(rng.pick(&DIRS).0.into())));
        push(who, Act::Do(Op::Read(generate::path(&mut rng))));
    }
    Plan { layers, script }
}

/// Returns the regular files that run as root or with its group: owner, bits and content.
fn programs(tree: &Tree) -> BTreeSet<(u32, u32, u32, Vec<u8>)> {
    let rights = |e: &&tree::Entry| {
        let (user, group) = (e.mode & 0o4000 != 0, e.mode & 0o2010 == 0o2010);
        e.kind() == libc::S_IFREG && (e.uid == 0 && user || e.gid == 0 && group)
    };
    let all = tree.values().filter(rights);
    all.map(|e| (e.uid, e.gid, e.mode & 0o6010, e.content.clone()))
        .collect()
}

/// Returns the contents of the files of the layers.
fn contents(layers: &[Layer], scene: &Scene) -> BTreeSet<Vec<u8>> {
    let mut all = BTreeSet::new();
    for (layer, root) in layers.iter().zip(&scene.stack.lowers) {
        let files = layer
            .items
            .iter()
            .filter(|i| matches!(i.node, Node::File(_)));
        all.extend(files.map(|i| tree::hash(&tree::at(root, &i.path)).unwrap()));
    }
    all
}

/// Tells whether set-id programs may change in this plan without losing their bits: by a write of
/// root, or by a mapping, which drops the bits on no file system.
fn bits_may_stay(plan: &Plan) -> bool {
    let writes = |step: &Step| match &step.act {
        Act::Change(way, _) => step.who.uid == 0 || *way == Way::Map,
        Act::Do(Op::Held(_, HOp::MapWrite(..))) => true,
        Act::Chroot(_, act) => matches!(**act, Act::Change(Way::Map, _)),
        _ => false,
    };
    plan.script.iter().any(writes)
}

/// Tells whether root lets others read files in this plan.
fn opens_files(plan: &Plan) -> bool {
    let opens = |step: &Step| matches!(step.act, Act::Do(Op::Chmod(..) | Op::Chown(..)));
    plan.script.iter().any(|s| s.who.uid == 0 && opens(s))
}

/// Runs a plan and returns the violations. `spoil` plants a violation at the end, for the oracle.
pub(crate) fn run(fs: &Fs, plan: &Plan, spoil: Option<&dyn Fn(&Scene)>) -> Vec<String> {
    let mut scene = match Scene::set(fs, plan) {
        Ok(scene) => scene,
        Err(e) => return vec![e],
    };
    let (mut found, mut flipping) = (Vec::new(), None);
    let opened = opens_files(plan);
    for (number, step) in plan.script.iter().enumerate() {
        let behind = step.who.behind;
        if let Some(flip) = flipping.take_if(|_| behind) {
            found.extend(wrong(
                &plan.script[flip],
                flip,
                &scene.actor(&plan.script, flip).receive(),
                opened,
            ));
        }
        let actor = scene.actor(&plan.script, number);
        actor.send(number);
        if matches!(step.act, Act::Flip(..)) {
            flipping = Some(number);
            continue;
        }
        found.extend(wrong(step, number, &actor.receive(), opened));
        if !found.is_empty() {
            return found;
        }
    }
    if let Some(spoil) = spoil {
        spoil(&scene);
    }
    let servers = scene.mounted().servers();
    let lives = |pid: &u32| Path::new(&format!("/proc/{pid}")).exists();
    if servers.is_empty() || !servers.iter().all(lives) {
        found.push("the server is gone".into());
    }
    if let Err(e) = rustix::fs::statfs(scene.mnt()) {
        found.push(format!("statfs: {e}"));
    }
    scene.actors.clear();
    if !bits_may_stay(plan) {
        let known = contents(&plan.layers, &scene);
        let upper = tree::list_raw(&scene.stack.upper.as_ref().unwrap().0);
        let new = programs(&upper)
            .into_iter()
            .filter(|p| !known.contains(&p.3));
        found.extend(new.map(|p| format!("a new program of root's: {p:?}")));
    }
    found.extend(scene.outside());
    scene.unmount();
    found
}

fn from_behind(seed: u64) {
    assert_eq!(BEHIND.uid, OWNER);
    let program = program();
    let differences = |seed: u64, plan: &Plan| {
        let mut found = caught(|| run(&fs_of(seed), plan, None));
        if !found.is_empty() {
            found.insert(0, format!("{:?}", fs_of(seed)));
        }
        found
    };
    hunt(seed, |seed| plan(seed, &program), differences);
}

#[test]
fn fixed_seed() {
    need_mounts!();
    need!(has_user_namespaces());
    from_behind(20_261_129);
}

#[test]
fn fresh_seed() {
    need_mounts!();
    need!(has_user_namespaces());
    from_behind(fresh());
}
