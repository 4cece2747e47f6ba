//! A killed builder leaves either no catalog or a whole one.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use testkit::catalogs::{observe, stack};
use testkit::layers::{self, Form, Layer};
use testkit::mount::Scratch;
use testkit::{need_mounts, program};
use unionfs::catalog;

#[test]
fn killed_while_building() {
    need_mounts!();
    let scratch = Scratch::disk();
    let many = (0..2000).fold(Layer::new(), |l, n| l.file(format!("f{n}"), ""));
    let lowers = layers::write_all(
        &[layers::standard(), vec![many]].concat(),
        scratch.path(),
        Form::Kernel,
    );
    let stack = stack(&lowers);
    let path = scratch.path().join("catalogs/c");
    let names: Vec<_> = lowers.iter().map(|l| l.to_str().unwrap()).collect();
    let command = || {
        let mut command = Command::new(program());
        command
            .args(["catalog", "build", "-o"])
            .arg(format!("lowerdir={}", names.join(":")))
            .arg(&path)
            .stdout(Stdio::null());
        command
    };
    let start = Instant::now();
    assert!(command().status().unwrap().success());
    let whole = start.elapsed();
    std::fs::remove_file(&path).unwrap();
    let mut survived = 0;
    for n in 0..30u32 {
        let mut child = command().spawn().unwrap();
        std::thread::sleep(whole * n / 25 + Duration::from_micros(u64::from(n) * 50));
        // The process may be gone already.
        let _ = child.kill();
        child.wait().unwrap();
        let union = observe(&stack, &path);
        assert_eq!(union.is_catalogued(), path.exists(), "a part of one");
        if path.exists() {
            assert!(catalog::open(&path).unwrap().verify());
            std::fs::remove_file(&path).unwrap();
            survived += 1;
        }
    }
    assert!(survived < 30, "none was killed in time");
    // The leftovers of killed processes do not stop a later command.
    assert!(command().status().unwrap().success());
    assert!(observe(&stack, &path).is_catalogued());
    let left = std::fs::read_dir(path.parent().unwrap()).unwrap();
    assert_eq!(left.count(), 1);
}
