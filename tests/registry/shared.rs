//! Concurrent pulls, loads and pushes of images that have layers in common: they share incoming
//! layers and never wait for each other in a cycle, in whatever order they need the layers.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use testkit::home::Home;
use testkit::{need, program};
use unionfs::layer_tar::Limits;
use unionfs::oci::Reference;
use unionfs::store::Writable;

use crate::images::{assert_whole, id};
use crate::proxy::{Act, Asked, Proxy};
use crate::server::{Server, can_serve};

/// The orders in which three layers can be in an image.
const ORDERS: [[usize; 3]; 6] = [
    [0, 1, 2],
    [2, 1, 0],
    [1, 2, 0],
    [0, 2, 1],
    [2, 0, 1],
    [1, 0, 2],
];

/// Returns the tar of a layer that differs from all others.
fn layer(number: usize) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    let mut state = number as u32 + 1;
    let noise: Vec<u8> = (0..100_000)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    header.set_size(noise.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, format!("file{number}"), noise.as_slice())
        .unwrap();
    tar.into_inner().unwrap()
}

/// Makes a registry with an image `order:N` for each order.
fn registry() -> (Home, Server) {
    let home = Home::new();
    let server = Server::start(&home);
    {
        let store = Writable::open(&home.path("maker")).unwrap();
        let store = store.lock().unwrap();
        for (number, order) in ORDERS.iter().enumerate() {
            let (mut parent, mut diff_ids) = (None, Vec::new());
            for layer_number in order {
                let mut staged = store.stage_layer(parent.as_ref()).unwrap();
                let tar = layer(*layer_number);
                let unpacked = staged.unpack(tar.as_slice(), &Limits::default()).unwrap();
                diff_ids.push(unpacked.diff_id);
                parent = Some(staged.commit(unpacked.diff_id, unpacked.size).unwrap());
            }
            let config = json!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
            let id = store.register_image(config.to_string().as_bytes()).unwrap();
            let name = format!("order:{number}");
            store.tag(&Reference::parse(&name).unwrap(), &id).unwrap();
        }
    }
    let maker = home.text("maker");
    for number in 0..ORDERS.len() {
        let name = format!("order:{number}");
        let to = server.name(&name);
        home.run(["--root", &maker, "push", "-q", &name, &to]).ok();
    }
    (home, server)
}

/// Starts a proxy that delays each blob.
fn slow(server: &Server) -> Proxy {
    Proxy::start(server.port, |asked: &Asked| {
        if asked.is_blob() {
            std::thread::sleep(Duration::from_millis(300));
        }
        Act::Pass
    })
}

fn start(home: &Home, args: &[&str]) -> Child {
    let mut command = home.command(program());
    let command = command.args(args).stdout(Stdio::null());
    command.stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for all of them; returns what each wrote to stderr. A process that hangs is a deadlock.
#[track_caller]
fn all_end(mut children: Vec<Child>) -> Vec<String> {
    let begun = Instant::now();
    loop {
        let running = children.iter_mut().any(|c| c.try_wait().unwrap().is_none());
        if !running {
            break;
        }
        if begun.elapsed() > Duration::from_secs(120) {
            children.iter_mut().for_each(|child| child.kill().unwrap());
            panic!("they wait for each other");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut texts = Vec::new();
    for mut child in children {
        let mut text = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            stderr.read_to_string(&mut text).unwrap();
        }
        assert!(child.wait().unwrap().success(), "{text}");
        texts.push(text);
    }
    texts
}

#[test]
fn each_pair_of_orders_at_once() {
    need!(can_serve());
    let (home, server) = registry();
    for (a, b) in [(0, 1), (0, 2), (3, 4), (1, 5), (2, 4), (0, 0)] {
        for parallel in ["1", "3"] {
            let proxy = slow(&server);
            let names = [a, b].map(|number: usize| proxy.name(&format!("order:{number}")));
            let pull = |name: &String| start(&home, &["pull", "--parallel", parallel, name]);
            all_end(names.iter().map(pull).collect());
            assert_whole(&home, if a == b { 1 } else { 2 }, 0);
            for name in names.iter().take(if a == b { 1 } else { 2 }) {
                home.run(["rmi", name]).ok();
            }
        }
    }
}

#[test]
fn pulls_of_one_image_share_its_downloads() {
    need!(can_serve());
    let (home, server) = registry();
    // No layer is served before all four have started: each requests the configuration first.
    let config = id(&home, &home.text("maker"), "order:0");
    let begun = AtomicUsize::new(0);
    let proxy = Proxy::start(server.port, move |asked: &Asked| {
        if asked.is_blob() && asked.path.ends_with(&config) {
            begun.fetch_add(1, Ordering::SeqCst);
        } else if asked.is_blob() {
            testkit::home::wait_until("all have begun", || begun.load(Ordering::SeqCst) == 4);
            // Until each has found the downloads of the others.
            std::thread::sleep(Duration::from_secs(1));
        }
        Act::Pass
    });
    let name = proxy.name("order:0");
    let children: Vec<Child> = (0..4).map(|_| start(&home, &["pull", &name])).collect();
    let processes: Vec<String> = children
        .iter()
        .map(|c| format!("process {}", c.id()))
        .collect();
    let texts = all_end(children);
    let mut asked: BTreeMap<String, usize> = BTreeMap::new();
    for blob in proxy.blobs() {
        *asked.entry(blob.path).or_default() += 1;
    }
    // The configuration is small, so each reads it.
    let layers = asked.values().filter(|times| **times < 4);
    assert_eq!(layers.count(), 3, "{asked:?}");
    let waiting = texts.iter().flat_map(|text| text.lines());
    let waiting: Vec<&str> = waiting
        .filter(|line| line.contains("waiting for the download"))
        .collect();
    assert!(!waiting.is_empty(), "{texts:?}");
    let of_one = |line: &&str| {
        processes
            .iter()
            .any(|process| line.ends_with(process.as_str()))
    };
    assert!(waiting.iter().any(of_one), "{waiting:?}, {processes:?}");
    assert_whole(&home, 1, 0);
}

#[test]
fn all_that_takes_in_and_gives_out_at_once() {
    need!(can_serve());
    let (home, server) = registry();
    let maker = home.text("maker");
    let save = [
        "--root", &maker, "save", "-q", "-o", "a.tar", "order:0", "order:3",
    ];
    home.run(save).ok();
    // An image to be pushed.
    home.run(["pull", "-q", &server.name("order:5")]).ok();
    let (proxy, to) = (slow(&server), server.name("other:1"));
    let mut children = Vec::new();
    for number in 0..ORDERS.len() {
        let name = proxy.name(&format!("order:{number}"));
        children.push(start(&home, &["pull", &name]));
        if number % 2 == 0 {
            children.push(start(&home, &["load", "-q", "-i", "a.tar"]));
            children.push(start(&home, &["push", "-q", &server.name("order:5"), &to]));
        }
    }
    all_end(children);
    assert_whole(&home, ORDERS.len(), 0);
    let pulled = id(&home, &home.text("own"), &proxy.name("order:2"));
    assert_eq!(pulled, id(&home, &maker, "order:2"));
}

/// One pull is killed in the middle of a blob: the pull that waits for the blob continues the
/// download.
#[test]
fn what_a_killed_pull_has_begun_another_goes_on_with() {
    need!(can_serve());
    let (home, server) = registry();
    let stalled = Proxy::start(server.port, |asked: &Asked| {
        if asked.is_blob() {
            Act::Stall(1000)
        } else {
            Act::Pass
        }
    });
    let mut first = start(&home, &["pull", &stalled.name("order:0")]);
    let downloads = home.path("own/unionfs/downloads");
    testkit::home::wait_until("parts are there", || {
        let entries = std::fs::read_dir(&downloads).into_iter().flatten();
        let sizes = entries.map(|entry| entry.unwrap().metadata().unwrap().len());
        sizes.filter(|size| *size == 1000).count() == 3
    });
    let proxy = Proxy::start(server.port, |_: &Asked| Act::Pass);
    let mut second = start(&home, &["pull", &proxy.name("order:1")]);
    // Not before it waits for all three.
    let mut lines = BufReader::new(second.stderr.take().unwrap()).lines();
    let waiting = |line: &String| line.contains("waiting for the download");
    let waits = lines.by_ref().map(Result::unwrap).filter(waiting).take(3);
    assert_eq!(waits.count(), 3);
    first.kill().unwrap();
    first.wait().unwrap();
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    all_end(vec![second]);
    let going_on = rest
        .iter()
        .filter(|line| line.contains("continuing after 1.00kB"));
    assert_eq!(going_on.count(), 3, "{rest:?}");
    assert_whole(&home, 1, 0);
}
