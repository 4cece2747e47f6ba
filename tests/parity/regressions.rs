//! Past findings of the deep hunts, each with a name: the printed plan, pasted. (`<L255>` stands
//! for a name of 255 bytes.)

use testkit::layers::{self, Layer, Node};
use testkit::{need_mounts, script};

use crate::deep::{LONG, Mode, OFF, ON, PLAIN, USER, differences};
use crate::generate::Plan;

fn check(mode: &Mode, layers: Vec<Layer>, made: &[&str], text: &str) {
    need_mounts!();
    let parse = |text: &str| script::parse(&text.replace(LONG, &"L".repeat(255)));
    let plan = Plan {
        layers,
        made: made.iter().map(|text| parse(text)).collect(),
        script: parse(text),
    };
    let found = differences(mode, &plan);
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// The last name of a lower's link group, changed after the other name was replaced.
#[test]
fn the_last_link_after_the_other_was_replaced() {
    let layer = Layer::new()
        .dir("b")
        .symlink("b/a", "./b")
        .file("b/b", "zyxzxz")
        .mode(0o775)
        .own(1000, 1001)
        .xattr("security.capability", layers::net_raw_capability())
        .link("b/c", "b/b");
    let text = "
        rename b/a b/b
        fallocate b/c 1 3 7
        stat b/c
        write b/c 0 new
        read b/c";
    check(&PLAIN, vec![layer.clone(), Layer::new()], &[], text);
    check(&ON, vec![layer, Layer::new()], &[], text);
}

/// A directory over a whiteout that is in a layer below the upper.
#[test]
fn a_directory_over_a_lowers_whiteout() {
    let layer = || {
        vec![
            Layer::new()
                .dir("a")
                .mode(0o070)
                .own(1000, 1001)
                .fifo("a/c")
                .symlink("b", "a"),
        ]
    };
    for mode in [OFF, PLAIN, ON] {
        check(&mode, layer(), &["rename b/c b/b"], "mkdir a/c 2775");
    }
}

/// A copy without an origin that the kernel looks up again is still the same file.
#[test]
fn a_device_copied_up_without_an_origin() {
    let layer = Layer::new().add("c", Node::Special(libc::S_IFCHR, 1, 3));
    let text = "
        chown c 1000 1001
        rename c c whiteout
        rename c d
        rename d d whiteout
        stat d";
    check(&USER, vec![layer, Layer::new()], &[], text);
}

/// A change through a descriptor of a removed lower file: where the kernel fails, the later answers
/// are not compared, and the earlier ones are.
#[test]
fn attributes_of_a_lower_file_that_is_gone() {
    let layer = Layer::new().file("a", "lower");
    let text = "
        open 1 a r
        unlink a
        hstat 1
        hchown 1 - 1000
        create b 644";
    check(&PLAIN, vec![layer, Layer::new()], &[], text);
}

/// Descriptors that are older than the rename of a file which the kernel left as a metacopy.
#[test]
fn descriptors_of_a_renamed_metacopy() {
    let island = Node::Sparse(300_000, vec![(65536, b"island".to_vec())]);
    let layers = vec![
        Layer::new()
            .dir("d")
            .add("d/f", island)
            .file("d/<L255>".replace(LONG, &"L".repeat(255)), "long"),
    ];
    let made = [
        "chmod d/f 4755\nrename d/f moved",
        "chown moved 1000 1001\nrename d e",
    ];
    let text = "
        open 0 moved r
        open 1 e/<L255> b
        rename moved e/again
        as 1000 1000
        chmod e/again 600
        hstat 0
        as 0 0
        hwrite 1 2 xyz
        unlink e/<L255>
        htruncate 1 4
        hread 1 0 20
        write e/again 65536 ISLAND
        hread 0 65536 6
        unlink e/again
        hread 0 65536 6
        hstat 1";
    check(&ON, layers, &made, text);
}

/// read(2) and fstat through a descriptor from before the copy-up show later writes.
#[test]
fn a_descriptor_from_before_copy_up() {
    let layer = Layer::new().file("f", "lower contents");
    let text = "
        open 0 f r
        hread 0 0 5
        write f 0 UPPER
        hread 0 0 5
        truncate f 3
        hstat 0
        hread 0 0 20";
    check(&PLAIN, vec![layer.clone(), Layer::new()], &[], text);
    check(&ON, vec![layer, Layer::new()], &[], text);
}

/// Attributes of a removed directory of a lower: only the kernel answers ENOTDIR, and if another
/// directory has that name, the kernel changes that one.
#[test]
fn a_removed_directory_changed_through_its_descriptor() {
    let layer = Layer::new().dir("a").dir("a/c").own(1001, 1000);
    let text = "open 1 a/c r 755\nrmdir a/c\nhsetxattr 1 trusted.t x -";
    for mode in [OFF, PLAIN, ON, USER] {
        check(&mode, vec![layer.clone()], &[], text);
        let again = text.replace("hset", "mkdir a/c 755\nhset");
        check(&mode, vec![layer.clone()], &[], &again);
    }
}

/// The kernel's metacopy of a file with a long path would need a redirect that the kernel does not
/// write.
#[test]
fn a_link_to_a_file_with_a_long_path() {
    let long = [&b"a/"[..], &[b'L'; 255]].concat();
    let layer = Layer::new().dir("a").file(&long, "long").dir("b");
    let text = "open 0 a/<L255> r 700\nhlink 0 b/a\nread b/a";
    for mode in [PLAIN, ON] {
        check(&mode, vec![layer.clone()], &[], text);
    }
}

/// A special file of a lower that is removed while open and then changed: on the kernel's overlay
/// it reappears.
#[test]
fn a_removed_device_changed_through_its_descriptor() {
    let layer = || {
        let device = Layer::new().add("b", Node::Special(libc::S_IFBLK, 7, 200));
        vec![device.mode(0o700).own(1001, 1000)]
    };
    for mode in [OFF, PLAIN, ON] {
        check(&mode, layer(), &[], "open 0 b bt 700\nunlink b\nhtouch 0");
    }
}
