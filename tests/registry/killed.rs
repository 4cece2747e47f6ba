//! Pulls that are killed while they change the store, by strace's fault injection: `verify --all`
//! accepts the store that is left, and the next pull completes it.

use std::os::unix::process::ExitStatusExt as _;

use testkit::need::has_tools;
use testkit::{need, program};

use crate::images::{home, id, serve};
use crate::server::{Server, can_serve};

/// The calls that make a change visible.
const CALLS: &str = "?rename,?renameat,?renameat2,syncfs";

#[test]
fn a_pull_killed_at_any_step_of_taking_in_can_be_repeated() {
    need!(can_serve());
    need!(has_tools(&["strace"]));
    let home = home();
    let server = Server::start(&home);
    serve(&home, &server, "1", "app:1", &["--format", "v2s2"]);
    let (docker, name) = (home.text("docker"), server.name("app:1"));
    let expected = id(&home, &docker, "sample:1");
    let mut killed = 0;
    // Every second one, so that all kinds of steps are covered.
    for step in (1..).step_by(2) {
        assert!(step < 200, "an endless loop");
        let own = home.text(&format!("own-{step}"));
        let output = home
            .command("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-e"])
            .arg(format!("trace={CALLS}"))
            .arg("-e")
            .arg(format!("inject={CALLS}:signal=KILL:when={step}"))
            .args([program(), "--store", &own, "pull", "-q", &name])
            .output()
            .unwrap();
        let whole = || {
            let verified = home.run(["--root", &own, "verify", "--all"]);
            assert_eq!(verified.code, Some(0), "step {step}: {verified:?}");
        };
        if output.status.success() {
            whole();
            break;
        }
        // strace dies by the same signal as its child.
        assert_eq!(output.status.signal(), Some(9), "step {step}: {output:?}");
        killed += 1;
        if home.path(&format!("own-{step}/unionfs/format")).exists() {
            whole();
        }
        let pulled = home.json(["--store", &own, "pull", "-q", "--json", &name]);
        assert_eq!(pulled["id"], expected, "step {step}");
        home.run(["--store", &own, "prune"]).ok();
        whole();
        let left = home.json(["--store", &own, "prune", "-n", "--json"]);
        assert_eq!(left["items"].as_array().unwrap().len(), 0, "{left}");
    }
    assert!(killed > 5, "only {killed} steps were met");
}
