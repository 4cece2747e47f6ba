//! Tests of the hunt itself: kernel overlayfs equals kernel overlayfs, and each kind of planted
//! difference is reported.

use std::fs;
use std::os::unix::fs::chown;

use testkit::layers::{Layer, net_raw_capability, set_xattr};
use testkit::mount::{Fs, KERNEL, UNIONFS, chmod, poll};
use testkit::need::has_user_namespaces;
use testkit::script::{Op, parse};
use testkit::{need, need_mounts};

use crate::act::{Act, Step};
use crate::actor::{ALL, HANG, Who};
use crate::behind;
use crate::case::{Scene, compare, program, wrong};
use crate::decoys::{INSIDE, OUTSIDE};
use crate::generate::{Plan, plan};
use crate::hunt::caught;
use crate::shrink::shrink;

fn who(name: &str) -> Who {
    *ALL.iter().find(|who| who.name == name).unwrap()
}

/// Returns a plan with three files and a script of one user.
fn small(name: &str, text: &str) -> Plan {
    let layer = Layer::new()
        .dir("pub")
        .mode(0o777)
        .file("pub/prog", program())
        .mode(0o4777)
        .file("pub/source", "source\n")
        .file("pub/secret", INSIDE)
        .mode(0o600);
    let act = |op| Step {
        who: who(name),
        act: Act::Do(op),
    };
    Plan {
        layers: vec![layer],
        script: parse(text).into_iter().map(act).collect(),
    }
}

fn planted(spoil: impl Fn(&Scene)) -> String {
    let plan = small("one", "stat pub/prog\nstat pub/source");
    compare(&KERNEL, &KERNEL, &plan, Some(&spoil)).join("\n")
}

#[test]
fn the_kernel_equals_itself() {
    need_mounts!();
    need!(has_user_namespaces());
    let program = program();
    for seed in 0..12 {
        let plan = plan(seed, &program);
        let found = caught(|| compare(&KERNEL, &KERNEL, &plan, None));
        assert!(found.is_empty(), "seed {seed}:\n{}", found.join("\n"));
    }
}

#[test]
fn planted_differences_are_reported() {
    need_mounts!();
    need!(has_user_namespaces());
    let at = |scene: &Scene, name: &str| scene.mnt().join(name);
    type Plant<'a> = (&'a str, &'a dyn Fn(&Scene));
    let plants: [Plant<'_>; 9] = [
        ("", &|_| ()),
        ("/pub/prog: cached", &|s| chmod(&at(s, "pub/prog"), 0o777)),
        ("/pub/prog: owner", &|s| {
            chown(at(s, "pub/prog"), Some(1000), None).unwrap();
        }),
        ("/pub/prog: size", &|s| {
            fs::write(at(s, "pub/prog"), "x").unwrap();
        }),
        ("security.capability", &|s| {
            set_xattr(
                &at(s, "pub/source"),
                b"security.capability",
                &net_raw_capability(),
            );
        }),
        ("has the secret", &|s| {
            fs::write(at(s, "pub/new"), OUTSIDE).unwrap();
        }),
        ("decoys: /victim: content", &|s| {
            fs::write(s.scratch.path().join("decoys/victim"), "hurt").unwrap();
        }),
        ("decoys: /suid: mode", &|s| {
            chmod(&s.scratch.path().join("decoys/suid"), 0o755);
        }),
        ("lower 0: /pub/source", &|s| {
            fs::write(s.stack.lowers[0].join("pub/source"), "hurt").unwrap();
        }),
    ];
    for (expected, spoil) in plants {
        let found = planted(spoil);
        assert!(found.contains(expected), "no {expected:?} in:\n{found}");
        assert_eq!(expected.is_empty(), found.is_empty(), "{found}");
    }
}

/// A kernel without redirects answers EXDEV. The hunt finds a case with this difference among
/// random ones and shrinks it.
#[test]
fn a_different_answer_is_found_and_made_small() {
    need_mounts!();
    need!(has_user_namespaces());
    let other = Fs::Kernel("index=on,redirect_dir=off,metacopy=off");
    let program = program();
    let differences = |plan: &Plan| caught(|| compare(&KERNEL, &other, plan, None));
    let cases = (0..60).map(|seed| plan(seed, &program));
    let mut failing = cases.map(|plan| (differences(&plan), plan));
    let (found, plan) = failing.find(|(found, _)| !found.is_empty()).unwrap();
    let steps = plan.script.len();
    let (plan, found) = shrink(plan, found, differences);
    assert!(
        plan.script.len() <= 4,
        "{} of {steps}: {found:?}",
        plan.script.len()
    );
    assert!(found.join("\n").contains("EXDEV"), "{found:?}");
}

/// Each actor has its identity: in a namespace of its own it has all capabilities, and outside it
/// has none.
#[test]
fn actors_are_who_they_say() {
    need_mounts!();
    need!(has_user_namespaces());
    let mut plan = small("one", "");
    plan.script = ALL
        .iter()
        .map(|who| Step {
            who: *who,
            act: Act::Exec(b"pub/prog".to_vec()),
        })
        .collect();
    let mut scene = Scene::set(&KERNEL, &plan).unwrap();
    let answers: Vec<_> = (0..ALL.len())
        .map(|n| scene.actor(&plan.script, n).run(n).unwrap())
        .collect();
    for (who, answer) in ALL.iter().zip(&answers) {
        let (uid, effective, groups) = match who.name {
            "root" => ("0", "0", "Groups:  "),
            "one" => ("1000", "0", "Groups: 2000 2001"),
            "two" => ("1001", "0", "Groups: 2000"),
            // Only the actor's own user ID is mapped there, so the owner of the program is `nobody`
            // to it.
            _ => ("0", "0", "Groups:"),
        };
        let expected = format!("Uid: {uid} {effective} {effective} {effective}");
        assert!(answer.starts_with(&expected), "{}: {answer}", who.name);
        assert!(answer.contains(groups), "{}: {answer}", who.name);
    }
}

/// The check reports an answer that no implementation may give, whichever actor got it.
#[test]
fn secrets_and_hangs_are_wrong() {
    let step = |name| Step {
        who: who(name),
        act: Act::Do(Op::Read(b"pub/secret".to_vec())),
    };
    let is_wrong = |name, text: &str| wrong(&step(name), 0, &Ok(text.to_owned()), false).is_some();
    assert!(is_wrong("one", INSIDE) && !is_wrong("root", INSIDE));
    assert!(is_wrong("one", OUTSIDE) && is_wrong("root", OUTSIDE));
    assert!(is_wrong("root", HANG) && !is_wrong("one", "text"));
}

/// The checks of `behind` report each kind of violation.
#[test]
fn what_is_wrong_behind_is_reported() {
    need_mounts!();
    need!(has_user_namespaces());
    let upper = |s: &Scene| s.stack.upper.as_ref().unwrap().0.clone();
    type Plant<'a> = (&'a str, &'a dyn Fn(&Scene));
    let plants: [Plant<'_>; 5] = [
        ("", &|_| ()),
        ("a new program of root's", &|s| {
            fs::write(upper(s).join("shell"), "mine").unwrap();
            chmod(&upper(s).join("shell"), 0o4755);
        }),
        ("decoys: /secret: content", &|s| {
            fs::write(s.scratch.path().join("decoys/secret"), "hurt").unwrap();
        }),
        ("decoys: /dir/new: only right", &|s| {
            fs::create_dir(s.scratch.path().join("decoys/dir/new")).unwrap();
        }),
        ("the server is gone", &|s| {
            let pid = s.mounted().servers()[0].cast_signed();
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            let gone =
                || !std::path::Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists();
            assert!(poll(gone));
        }),
    ];
    let plan = small("one", "stat pub/prog\nstat pub/source");
    for (expected, spoil) in plants {
        let found = behind::run(&UNIONFS, &plan, Some(spoil)).join("\n");
        assert!(found.contains(expected), "no {expected:?} in:\n{found}");
        assert_eq!(expected.is_empty(), found.is_empty(), "{found}");
    }
}
