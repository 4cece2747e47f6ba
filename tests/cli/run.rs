//! `run` and `bundle` with crun, runc and bwrap, as root and as a plain user. podman runs the same
//! image, and the outcome must be the same.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use testkit::home::{Home, Outcome, wait_until};
use testkit::need;
use testkit::need::{Needed, can_mount, has_tools};
use testkit::program;

use super::engines::shell;

const RUNTIMES: [&str; 3] = ["crun", "runc", "bwrap"];

/// A plain user.
const USER: u32 = 65534;

/// The beginning of scripts in a mount namespace: crun refuses machines with both versions of
/// cgroups, and all users may open /dev/fuse, as is usual.
const PLACE: &str = r"
    if [ -e /sys/fs/cgroup/unified ]; then
        umount -l /sys/fs/cgroup
        mount -t tmpfs none /sys/fs/cgroup
        mount -t cgroup2 none /sys/fs/cgroup
    fi
    mount -t tmpfs none dev && mknod dev/fuse c 10 229 && chmod 666 dev/fuse
    mount --bind dev/fuse /dev/fuse
";

/// Who runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Root,
    User,
}

/// A home with the image `app:1` in the stores of both, and nothing else.
fn home() -> Needed<Home> {
    can_mount()?;
    has_tools(&["busybox", "unshare", "setpriv", "fusermount3"])?;
    has_tools(&RUNTIMES)?;
    let home = Home::new();
    home.dirs(&["dev", "data", "tmp", "out", "volume"]);
    fs::copy(program(), home.path("unionfs")).unwrap();
    shell(
        &home,
        r#"
        mkdir -p rootfs/bin rootfs/etc rootfs/root rootfs/tmp rootfs/home/app rootfs/proc rootfs/sys \
            rootfs/dev
        cp -L "$(command -v busybox)" rootfs/bin/busybox
        for applet in sh cat ls id env pwd hostname sleep kill touch mount sort grep readlink tty; do
            ln -s busybox rootfs/bin/$applet
        done
        for applet in chown chmod chgrp stat mkdir ln cp chroot; do ln -s busybox rootfs/bin/$applet; done
        printf 'root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n' > rootfs/etc/passwd
        printf 'root:x:0:\napp:x:1001:\nmore:x:55:app\n' > rootfs/etc/group
        echo plain > rootfs/etc/plain; echo hosts > rootfs/etc/hosts
        echo theirs > rootfs/etc/theirs; chown 1000:1001 rootfs/etc/theirs
        chmod 1777 rootfs/tmp
        echo in > volume/file; chmod 777 volume
        "#,
    );
    let import = ["import", "-q", "rootfs", "app:1"];
    let changes = [
        "ENV A=b",
        "WORKDIR /home/app",
        r#"CMD ["/bin/cat", "/etc/plain"]"#,
    ];
    let changes = changes.iter().flat_map(|change| ["-c", change]);
    home.run(import.into_iter().chain(changes)).ok();
    home.run(["save", "-q", "-o", "app.tar", "app:1"]).ok();
    for name in ["run", "data", "tmp", "out", "volume"] {
        std::os::unix::fs::chown(home.path(name), Some(USER), Some(USER)).unwrap();
    }
    sh(&home, Who::User, "./unionfs load -q -i app.tar").ok();
    Ok(home)
}

/// Returns the command that runs a script as this user.
fn script(home: &Home, who: Who, script: &str) -> Command {
    let become_user = match who {
        Who::Root => "",
        Who::User => "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all",
    };
    let mut command = home.command("unshare");
    let text = format!("{PLACE}\nexec {become_user} sh -e -c \"$0\"");
    command.args(["-m", "sh", "-e", "-c", &text, script]);
    command.env("TMPDIR", home.path("tmp"));
    if who == Who::User {
        let data = home.path("data");
        command.env_remove("UNIONFS_ROOT");
        for variable in ["XDG_DATA_HOME", "XDG_RUNTIME_DIR", "HOME"] {
            command.env(variable, &data);
        }
    }
    command
}

fn sh(home: &Home, who: Who, text: &str) -> Outcome {
    script(home, who, text).output().unwrap().into()
}

/// Runs `unionfs run` with these arguments, and asserts that nothing is left.
fn run(home: &Home, who: Who, runtime: &str, args: &str) -> Outcome {
    let outcome = sh(
        home,
        who,
        &format!("./unionfs run --runtime {runtime} {args}"),
    );
    let left: Vec<_> = fs::read_dir(home.path("tmp")).unwrap().collect();
    assert!(left.is_empty(), "{who:?} {runtime} {args}: {left:?}");
    // The kernel removes the namespaces of the container a moment later.
    wait_until("no mount is left", || {
        sh(home, who, "./unionfs ps --json").ok().trim() == "[]"
    });
    outcome
}

/// Calls `check` for each user and runtime.
fn each(mut check: impl FnMut(Who, &'static str)) {
    for who in [Who::Root, Who::User] {
        for runtime in RUNTIMES {
            check(who, runtime);
        }
    }
}

#[test]
fn settings_of_the_image_and_options_reach_the_command() {
    let home = need!(home());
    let env = "HOME=/root\nHOSTNAME=unionfs\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    each(|who, runtime| {
        let run = |args: &str| run(&home, who, runtime, args);
        assert_eq!(run("app:1").ok(), "plain\n");
        let seen =
            run("app:1 sh -c 'id -u; id -g; pwd; hostname; env | grep -v SHLVL | sort'").ok();
        assert_eq!(
            seen,
            format!("0\n0\n/home/app\nunionfs\nA=b\n{env}\nPWD=/home/app\n")
        );
        let seen = run(
            "-e A=c -e X=1 -e GONE -w /tmp --hostname other --entrypoint /bin/sh app:1 \
                        -c 'echo $A $X ${GONE-none}; pwd; hostname'",
        );
        assert_eq!(seen.ok(), "c 1 none\n/tmp\nother\n");
        let volumes = "-v ./volume:/in -v ./volume/file:/etc/plain:ro";
        let seen = run(&format!(
            "{volumes} app:1 sh -c 'cat /in/file /etc/plain; echo new > /in/new; echo x > /etc/plain'"
        ));
        assert_eq!(
            (seen.code, seen.stdout.as_str()),
            (Some(1), "in\nin\n"),
            "{seen:?}"
        );
        assert!(seen.stderr.contains("Read-only file system"), "{seen:?}");
        assert_eq!(
            fs::read_to_string(home.path("volume/new")).unwrap(),
            "new\n"
        );
        fs::remove_file(home.path("volume/new")).unwrap();
        assert_eq!(
            fs::read_to_string(home.path("volume/file")).unwrap(),
            "in\n"
        );
        let seen = run("--read-only app:1 touch /x");
        assert!(
            seen.code == Some(1) && seen.stderr.contains("Read-only"),
            "{seen:?}"
        );
        let seen = run("--net=none app:1 sh -c 'grep -c : /proc/net/dev; cat /etc/hosts'").ok();
        assert_eq!(seen, "1\nhosts\n");
        let seen = sh(
            &home,
            who,
            &format!("echo typed | ./unionfs run -i --runtime {runtime} app:1 cat"),
        );
        assert_eq!(seen.ok(), "typed\n");
    });
}

/// The user of the image, where the runtime can have it.
/// The image and the read-write layer are those of the store that the options name.
#[test]
fn options_of_the_whole_program_reach_all_steps() {
    let home = need!(home());
    for who in [Who::Root, Who::User] {
        let text = "\
            ./unionfs --store data/other load -q -i app.tar
            ./unionfs --store data/other tag app:1 only:1
            ./unionfs --store data/other run --runtime crun only:1
            ./unionfs --store data/other run --runtime crun --name kept only:1 sh -c 'echo x > /x'
            ./unionfs --store data/other --insecure-policy run --runtime crun kept cat /x
            ./unionfs --store data/other ps -a -q
            ./unionfs ps -a -q
            rm -r data/other";
        let seen = sh(&home, who, text).ok();
        let lines: Vec<&str> = seen.lines().collect();
        assert_eq!(
            lines[lines.len() - 3..],
            ["plain", "x", "kept"],
            "{who:?} {seen}"
        );
        sh(&home, who, "./unionfs run --runtime crun only:1").failed(125, &["only:1"]);
    }
}

#[test]
fn the_user_is_that_of_the_image() {
    let home = need!(home());
    each(|who, runtime| {
        let seen = run(
            &home,
            who,
            runtime,
            "-u app app:1 sh -c 'id -u; id -g; id -G; echo $HOME'",
        );
        match (who, runtime) {
            (Who::Root, "bwrap") | (Who::User, "runc") => {
                seen.failed(125, &["another user of the image", "install crun"]);
            }
            (Who::Root, _) => assert_eq!(seen.ok(), "1000\n1001\n1001 55\n/home/app\n"),
            (Who::User, _) => assert_eq!(seen.ok(), "1000\n1001\n1001\n/home/app\n"),
        }
        run(&home, who, runtime, "-u nobody app:1").failed(125, &["no user \"nobody\""]);
    });
}

#[test]
fn exit_codes_and_signals_are_those_of_engines() {
    let home = need!(home());
    each(|who, runtime| {
        let run = |args: &str| run(&home, who, runtime, args);
        assert_eq!(run("app:1 sh -c 'exit 7'").code, Some(7));
        assert_eq!(
            run("app:1 sh -c 'sh -c \"kill -9 \\$\\$\"; exit $?'").code,
            Some(137)
        );
        run("app:1 nothere").failed(127, &["nothere", "no such program"]);
        run("app:1 /etc/plain").failed(126, &["/etc/plain", "executed"]);
        run("app:1 /etc").failed(126, &["/etc"]);
        run("app:2").failed(125, &["app:2"]);
        run("-v ./absent:/x app:1").failed(125, &["./absent"]);
        run("-v ./volume app:1").failed(2, &["SOURCE:TARGET"]);
        run("--unknown app:1").failed(2, &["--unknown"]);
        run("-w relative app:1").failed(125, &["not absolute"]);
        // SIGTERM goes to the command.
        let text = format!(
            "exec ./unionfs run --runtime {runtime} app:1 sh -c \
             'trap \"echo got; exit 5\" TERM; echo up; while true; do sleep 0.1; done'"
        );
        let mut child = script(&home, who, &text)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut up = [0; 3];
        stdout.read_exact(&mut up).unwrap();
        testkit::home::kill(child.id() as i32, rustix::process::Signal::TERM);
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(
            (child.wait().unwrap().code(), rest.as_str()),
            (Some(5), "got\n")
        );
        wait_until("nothing is left", || {
            fs::read_dir(home.path("tmp")).unwrap().next().is_none()
        });
    });
    sh(&home, Who::Root, "./unionfs run --runtime ./absent app:1").failed(125, &["absent"]);
    // The path finds no runtime.
    let none = "PATH=/nothing; ./unionfs run app:1";
    sh(&home, Who::Root, none).failed(125, &["crun, runc", "--runtime"]);
}

#[test]
fn changes_stay_in_a_layer_that_is_run_again_compared_and_committed() {
    let home = need!(home());
    each(|who, runtime| {
        let run = |args: &str| run(&home, who, runtime, args);
        run("app:1 sh -c 'echo lost > /lost'").ok();
        run("--name work app:1 sh -c 'echo kept > /kept; test ! -e /lost'").ok();
        assert_eq!(run("work cat /kept").ok(), "kept\n");
        assert_eq!(run("--name work app:1 cat /kept").ok(), "kept\n");
        assert_eq!(sh(&home, who, "./unionfs diff work").ok(), "A /kept\n");
        sh(
            &home,
            who,
            "./unionfs commit -q work app:2; ./unionfs rm work",
        )
        .ok();
        assert_eq!(run("app:2 cat /kept").ok(), "kept\n");
        sh(&home, who, "./unionfs rmi app:2").ok();
    });
}

/// The command has few rights, whatever the image says.
#[test]
fn the_command_cannot_reach_the_machine() {
    let home = need!(home());
    each(|who, runtime| {
        let seen = run(
            &home,
            who,
            runtime,
            "app:1 sh -c 'grep -E \"NoNewPrivs|^Seccomp:|CapEff\" /proc/self/status
             mount -t tmpfs none /tmp || echo no mount
             cat /proc/kcore | grep -c . ; echo 1 > /proc/sys/kernel/panic || echo no panic
             ls /proc/acpi /sys/firmware | grep -v :; readlink /proc/self; exit 0'",
        );
        assert_eq!(seen.code, Some(0), "{seen:?}");
        let lines: Vec<&str> = seen.stdout.split_whitespace().collect();
        let text = lines.join(" ");
        let effective = match runtime {
            "bwrap" => "0000000000000000",
            _ => "00000000800405fb",
        };
        assert!(text.contains(&format!("CapEff: {effective}")), "{seen:?}");
        assert!(text.contains("NoNewPrivs: 1 Seccomp: 2"), "{seen:?}");
        assert!(text.contains("no mount 0 no panic"), "{seen:?}");
    });
}

/// A plain user's container has one user. Programs that give files to others, or become others, can
/// be told that it worked, or that it failed.
#[test]
fn other_users_are_pretended_or_refused_for_a_plain_user() {
    let home = need!(home());
    let change = "touch /f; chmod 4755 /f; chown 5:6 /f && chown -h 5 /f && chgrp 7 /f";
    let show = "ls -ln /f | grep -c -e \"-rwsr-xr-x.* 0 *0 \"";
    for runtime in RUNTIMES {
        let as_user = |args: &str| run(&home, Who::User, runtime, args);
        let seen = as_user(&format!(
            "--other-users pretend app:1 sh -c '{change}; {show}; id -u'"
        ));
        assert_eq!(seen.ok(), "1\n0\n", "{runtime}");
        let seen = as_user(&format!("--other-users refuse app:1 sh -c '{change}'"));
        assert_eq!(seen.code, Some(1), "{runtime} {seen:?}");
        assert!(seen.stderr.contains("chown: /f: "), "{runtime} {seen:?}");
        // Nothing is pretended for a user who is not root inside.
        if runtime != "runc" {
            let seen = as_user("-u app app:1 sh -c 'chown 5 /tmp'");
            assert_eq!(seen.code, Some(1), "{runtime} {seen:?}");
        }
        if runtime != "bwrap" {
            let seen = run(
                &home,
                Who::Root,
                runtime,
                "app:1 sh -c 'touch /f; chown 5:6 /f; ls -ln /f'",
            );
            assert!(seen.ok().contains(" 5 "), "{runtime}");
        }
    }
}

/// The owners of an image in a plain user's container are shown as far as it has them, and those that
/// its root gives are recorded, whatever names a file. `commit` keeps them.
#[test]
fn owners_that_a_plain_user_gives_are_committed() {
    let home = need!(home());
    let change = r#"
        stat -c "%n %u:%g" / /etc/plain /bin/cat
        mkdir /d /jail /jail/bin; cd /d; touch a b c e f g h i j; ln -s a link; ln -s /d/c far
        cp /bin/busybox /jail/bin/busybox; touch /jail/x
        chown 5:6 a; chmod 4755 a; chown 7 ../d/b; chgrp 8 /d/./b; chown 9:9 far; chown -h 1:1 link
        exec 3< e; chown 2:3 /proc/self/fd/3; chown 4:4 f; chown 0:0 f; chown 65534:65534 g
        chmod 6755 h; chown 3:3 h; chroot /jail /bin/busybox chown 3:4 /x
        cd /jail; chown 11:12 ../d/../../../d/i
        chown 5 absent || chown 5 /d/a/ || chown 5 /in/file
        stat -c "%n %u:%g" /d/f /d/j /in/file; id -u"#;
    let expected = "\
        /d 0:0 755\n/d/a 5:6 4755\n/d/b 7:8 644\n/d/c 9:9 644\n/d/e 2:3 644\n/d/f 0:0 644\n\
        /d/far 0:0 777\n/d/g 0:0 644\n/d/h 3:3 755\n/d/i 11:12 644\n/d/j 0:0 644\n\
        /d/link 0:0 777\n/jail/x 3:4 644\n";
    for runtime in RUNTIMES {
        let mut change = change.to_owned();
        if runtime == "bwrap" {
            // Its root may not call chroot(2).
            change = change.replace(
                "chroot /jail /bin/busybox chown 3:4 /x",
                "chown 3:4 /jail/x",
            );
        }
        fs::write(home.path("out/change"), change).unwrap();
        let args = "-v ./volume:/in -v ./out/change:/change --name work app:1 sh -e /change";
        let seen = run(&home, Who::User, runtime, args);
        assert_eq!(seen.code, Some(0), "{runtime} {seen:?}");
        let shown =
            "/ 0:0\n/etc/plain 0:0\n/bin/cat 0:0\n/d/f 0:0\n/d/j 0:0\n/in/file 65534:65534\n0\n";
        assert_eq!(seen.stdout, shown, "{runtime}");
        for error in ["absent: No such file", "/d/a/: Not a directory"] {
            assert!(seen.stderr.contains(error), "{runtime} {seen:?}");
        }
        let look = "./unionfs commit -q work app:2 >&2; ./unionfs rm work >&2; mkdir out/mnt
            ./unionfs mount app:2 out/mnt >&2; cd out/mnt
            stat -c '/%n %u:%g %a' d d/* jail/x; cd ../..; ./unionfs umount out/mnt; rmdir out/mnt
            ./unionfs rmi app:2 >&2";
        let seen = sh(&home, Who::User, look);
        assert_eq!(seen.code, Some(0), "{runtime} {seen:?}");
        assert_eq!(seen.stdout, expected, "{runtime} {seen:?}");
    }
    // What cannot be changed says so.
    let seen = run(
        &home,
        Who::User,
        "crun",
        "--read-only app:1 chown 5 /etc/plain",
    );
    assert!(
        seen.code == Some(1) && seen.stderr.contains("Read-only"),
        "{seen:?}"
    );
    // The user of the image is the user who runs it.
    run(
        &home,
        Who::User,
        "crun",
        "-u app --name work app:1 touch /home/app/mine",
    )
    .ok();
    let look = "mkdir out/mnt; ./unionfs mount --name work out/mnt >&2
        stat -c '%u:%g' out/mnt/home/app/mine out/mnt/etc; ./unionfs umount out/mnt; rmdir out/mnt";
    assert_eq!(
        sh(&home, Who::User, look).ok_with_progress(),
        "1000:1001\n0:0\n"
    );
}

/// With `--other-users=show`, programs see the owners that are recorded, by every call that tells them,
/// and no others: the kernel answers for all files that are not those of the image.
#[test]
fn recorded_owners_are_shown_on_request() {
    let home = need!(home());
    let change = r#"
        cd /tmp; touch f g h; ln -s f link; ln -s /tmp/f far
        chown 33:34 f; chown 65534:65534 g; chown 0:7 h
        stat -c "%n %u:%g %a %s" f g h link /etc/theirs /etc/plain /tmp /bin/busybox
        stat -L -c "%n %u:%g" link far /proc/self/cwd/f; ls -ln f | grep -c " 33 *34 "
        exec 3< f; stat -L -c %u:%g /proc/self/fd/3; rm f; stat -L -c %u:%g /proc/self/fd/3
        chown 5:6 /in/file; stat -c "%n %u:%g" /in/file /dev/null /proc/self
        cp -a h copy; stat -c %u:%g copy; chown 0:0 h; stat -c %u:%g h
        mkdir -p jail/bin jail/tmp; cp /bin/busybox jail/bin; touch jail/tmp/x; chown 3:4 jail/tmp/x
        chroot jail /bin/busybox stat -c "/tmp/x %u:%g" /tmp/x
        stat absent || stat f/ || stat "" || id -u"#;
    let expected = "\
        f 33:34 644 0\ng 65534:65534 644 0\nh 0:7 644 0\nlink 0:0 777 1\n\
        /etc/theirs 1000:1001 644 7\n/etc/plain 0:0 644 6\n/tmp 0:0 1777 SIZE\n/bin/busybox 0:0 755 SIZE\n\
        link 33:34\nfar 33:34\n/proc/self/cwd/f 33:34\n1\n33:34\n33:34\n\
        /in/file 65534:65534\n/dev/null 65534:65534\n/proc/self 65534:65534\n0:7\n0:0\n/tmp/x 3:4\n0\n";
    for runtime in RUNTIMES {
        let mut change = change.to_owned();
        if runtime == "bwrap" {
            let (jailed, plain) = ("chroot jail /bin/busybox stat", "cd jail/tmp; stat");
            change = change
                .replace(jailed, plain)
                .replace("\" /tmp/x", "\" x; cd /tmp");
        }
        fs::write(home.path("out/change"), change).unwrap();
        let args = "-v ./volume:/in -v ./out/change:/change --name work app:1 sh -e /change";
        let seen = run(
            &home,
            Who::User,
            runtime,
            &format!("--other-users show {args}"),
        );
        assert_eq!(seen.code, Some(0), "{runtime} {seen:?}");
        // The sizes of a directory and of a program are those that they are.
        let stdout: String = seen.stdout.lines().fold(String::new(), |all, line| {
            let masked = match line.rsplit_once(' ') {
                Some((rest, _))
                    if line.starts_with("/tmp 0") || line.starts_with("/bin/busybox") =>
                {
                    format!("{rest} SIZE")
                }
                _ => line.to_owned(),
            };
            all + &masked + "\n"
        });
        assert_eq!(stdout, expected, "{runtime} {seen:?}");
        let look = "mkdir out/mnt; ./unionfs mount --name work out/mnt >&2; cd out/mnt/tmp
            stat -c '%n %u:%g' g h copy jail/tmp/x; cd ../../..; ./unionfs umount out/mnt
            rmdir out/mnt; ./unionfs rm work >&2";
        let seen = sh(&home, Who::User, look).ok_with_progress();
        let kept = "g 65534:65534\nh 0:0\ncopy 0:7\njail/tmp/x 3:4\n";
        assert_eq!(seen, kept, "{runtime}");
    }
}

/// A function of the shell: puts programs of this machine into `rootfs`, with their libraries.
const ADD: &str = r#"
        add() {
            for program; do
                file=$(readlink -f "$(command -v "$program")")
                place=rootfs/bin/$program
                [ "${program#/}" = "$program" ] || place=rootfs$program
                mkdir -p "$(dirname "$place")"
                rm -f "$place"
                cp "$file" "$place"
                for library in $(ldd "$file" | grep -o '/[^ ]*'); do
                    mkdir -p "rootfs$(dirname "$library")"
                    cp -Ln "$library" "rootfs$library"
                done
            done
        }
"#;

/// Package managers, and tar as root, work in the container of a plain user who has one user ID. The
/// packages have files of several owners and with set-id bits.
#[test]
fn packages_are_installed_by_a_plain_user() {
    let home = need!(home());
    need!(has_tools(&["dpkg", "dpkg-deb", "rpm", "rpmbuild", "tar"]));
    let pack = r#"
        add dpkg dpkg-deb dpkg-split dpkg-query tar rpm
        for applet in rm diff ldconfig start-stop-daemon ls stat cat; do
            [ -e rootfs/bin/$applet ] || ln -s busybox rootfs/bin/$applet
        done
        mkdir -p rootfs/var/lib/dpkg/info rootfs/var/lib/dpkg/updates rootfs/usr/lib rootfs/var/lib/rpm
        : > rootfs/var/lib/dpkg/status
        cp -r /usr/lib/rpm rootfs/usr/lib/
        printf 'root:x:0:0::/:/bin/sh
uucp:x:10:11::/:/bin/sh
' > rootfs/etc/passwd
        printf 'root:x:0:
uucp:x:11:
' > rootfs/etc/group

        mkdir -p tree/opt/here tree/DEBIAN
        echo data > tree/opt/here/file; echo tool > tree/opt/here/tool; ln -s file tree/opt/here/link
        chown -h 10:11 tree/opt/here tree/opt/here/file tree/opt/here/link
        chmod 4755 tree/opt/here/tool
        printf 'Package: here
Version: 1
Architecture: all
Maintainer: x <x@x>
Description: x
'             > tree/DEBIAN/control
        printf '#!/bin/sh
set -e
chown 10:11 /opt/here/tool
chmod 4755 /opt/here/tool
'             > tree/DEBIAN/postinst
        chmod 755 tree/DEBIAN/postinst
        mkdir in
        dpkg-deb --build tree in/here.deb >&2
        tar -C tree -cf in/here.tar --numeric-owner opt
        cat > here.spec <<'END'
Name: here
Version: 1
Release: 1
Summary: x
License: x
BuildArch: noarch
%description
x
%install
mkdir -p %{buildroot}/opt/here
echo data > %{buildroot}/opt/here/file
echo tool > %{buildroot}/opt/here/tool
%files
%attr(0755, uucp, uucp) %dir /opt/here
%attr(0644, uucp, uucp) /opt/here/file
%attr(4755, root, root) /opt/here/tool
END
        rpmbuild -bb --define "_topdir $PWD/rpm" here.spec >&2
        cp rpm/RPMS/noarch/here-1-1.noarch.rpm in/here.rpm
        chmod 755 in
        "#;
    shell(&home, &[ADD, pack].concat());
    home.run(["import", "-q", "rootfs", "pkg:1"]).ok();
    home.run(["save", "-q", "-o", "pkg.tar", "pkg:1"]).ok();
    sh(&home, Who::User, "./unionfs load -q -i pkg.tar").ok();
    let check = "cat /opt/here/file; ls -ln /opt/here/tool | grep -c -e -rwsr-xr-x";
    for runtime in RUNTIMES {
        for install in [
            "/bin/dpkg -i /in/here.deb >&2 && dpkg-query -W -f \"\\${Status}\" here | grep -q \"install ok installed\"",
            "/bin/rpm -i --nodeps /in/here.rpm >&2",
            "/bin/tar -C / -xpf /in/here.tar",
        ] {
            let seen = run(
                &home,
                Who::User,
                runtime,
                &format!("-v ./in:/in:ro pkg:1 sh -c '{install} && {check}'"),
            );
            assert_eq!(seen.code, Some(0), "{runtime} {install} {seen:?}");
            assert_eq!(seen.stdout, "data\n1\n", "{runtime} {install} {seen:?}");
        }
    }
    // The owners of the packages are kept.
    for (install, owners) in [
        ("dpkg -i /in/here.deb", "10:11\n10:11\n"),
        ("rpm -i --nodeps /in/here.rpm", "10:11\n0:0\n"),
        ("tar -C / -xpf /in/here.tar", "10:11\n0:0\n"),
    ] {
        let args = format!("-v ./in:/in:ro --name work pkg:1 {install}");
        let seen = run(&home, Who::User, "crun", &args);
        assert_eq!(seen.code, Some(0), "{install} {seen:?}");
        let look = "mkdir out/mnt; ./unionfs mount --name work out/mnt >&2; cd out/mnt/opt/here
            stat -c %u:%g file tool; cd ../../../..; ./unionfs umount out/mnt; rmdir out/mnt
            ./unionfs rm work >&2";
        let seen = sh(&home, Who::User, look);
        assert_eq!(seen.ok_with_progress(), owners, "{install}");
    }
    // Without the pretence they fail, as the kernel answers.
    let install = "--other-users refuse -v ./in:/in:ro pkg:1 dpkg -i /in/here.deb";
    let seen = run(&home, Who::User, "crun", install);
    assert_eq!(seen.code, Some(1), "{seen:?}");
}

/// apt fetches as another user, and checks that it has become that user. In the container of a plain
/// user it is told that there is none, unless the image or an option says something else.
#[test]
fn apt_installs_as_a_plain_user() {
    let home = need!(home());
    need!(has_tools(&["apt-get", "dpkg-deb", "tar"]));
    let pack = r"
        mkdir -p rootfs/usr/share rootfs/var/log/apt
        ln -s ../bin rootfs/usr/bin
        cp -r /usr/share/dpkg rootfs/usr/share/
        add dpkg dpkg-deb dpkg-split dpkg-query tar /usr/bin/apt-get
        for method in file copy store; do add /usr/lib/apt/methods/$method; done
        for applet in rm diff ldconfig start-stop-daemon; do ln -sf busybox rootfs/bin/$applet; done
        mkdir -p rootfs/var/lib/dpkg/info rootfs/var/lib/dpkg/updates rootfs/var/lib/apt/lists/partial \
            rootfs/var/cache/apt/archives/partial rootfs/etc/apt/apt.conf.d rootfs/etc/apt/preferences.d
        : > rootfs/var/lib/dpkg/status
        chown 42 rootfs/var/lib/apt/lists/partial rootfs/var/cache/apt/archives/partial
        chmod 700 rootfs/var/lib/apt/lists/partial rootfs/var/cache/apt/archives/partial
        printf 'root:x:0:0::/root:/bin/sh\n_apt:x:42:65534::/nonexistent:/usr/sbin/nologin\n' > rootfs/etc/passwd
        printf 'root:x:0:\n' > rootfs/etc/group
        echo 'deb [trusted=yes] file:/in ./' > rootfs/etc/apt/sources.list

        mkdir -p tree/opt/here tree/DEBIAN in
        echo data > tree/opt/here/file
        chown -R 10:11 tree/opt/here
        printf 'Package: here\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n' \
            > tree/DEBIAN/control
        dpkg-deb --build tree in/here.deb >&2
        (cat tree/DEBIAN/control; echo Filename: ./here.deb; echo Size: $(stat -c %s in/here.deb)
        set -- $(sha256sum in/here.deb); echo SHA256: $1) > in/Packages
        chmod 755 in
        ";
    shell(&home, &[ADD, pack].concat());
    home.run(["import", "-q", "rootfs", "apt:1"]).ok();
    home.run(["save", "-q", "-o", "apt.tar", "apt:1"]).ok();
    sh(&home, Who::User, "./unionfs load -q -i apt.tar").ok();
    let install =
        "apt-get update >&2 && apt-get install -y here >&2 && cat /opt/here/file $APT_CONFIG";
    for runtime in ["crun", "bwrap"] {
        let args = format!("-v ./in:/in:ro --name work apt:1 sh -c '{install}'");
        let seen = run(&home, Who::User, runtime, &args);
        assert_eq!(seen.code, Some(0), "{runtime} {seen:?}");
        assert!(seen.stdout.starts_with("data\n"), "{runtime} {seen:?}");
        assert!(
            seen.stdout.contains("APT::Sandbox::User \"root\";"),
            "{runtime} {seen:?}"
        );
        // Nothing of it is in the image.
        let look = "./unionfs diff work | grep -e apt.conf -e '^. /dev' >&2 && exit 1
            mkdir out/mnt; ./unionfs mount --name work out/mnt >&2; stat -c %u:%g out/mnt/opt/here/file
            ./unionfs umount out/mnt; rmdir out/mnt; ./unionfs rm work >&2";
        let seen = sh(&home, Who::User, look);
        assert_eq!(seen.ok_with_progress(), "10:11\n", "{runtime}");
    }
    // A configuration of the image or of the user has precedence, and other containers have none.
    let args = "-e APT_CONFIG=/dev/null -v ./in:/in:ro apt:1 apt-get update";
    let seen = run(&home, Who::User, "crun", args);
    assert_eq!(seen.code, Some(100), "{seen:?}");
    for (who, args) in [
        (Who::User, "app:1"),
        (Who::User, "--other-users refuse apt:1"),
        (Who::Root, "apt:1"),
    ] {
        let seen = run(
            &home,
            who,
            "crun",
            &format!("{args} sh -c 'echo ${{APT_CONFIG-none}}'"),
        );
        assert_eq!(seen.ok(), "none\n", "{who:?} {args}");
    }
}

/// The limits are those of the container's cgroup, which is gone afterwards.
#[test]
fn limits_hold_where_there_is_a_cgroup() {
    let home = need!(home());
    // runc takes both versions of cgroups, and machines with both.
    let text = "exec ./unionfs run --runtime runc --memory 64m --pids-limit 20 --cpus 0.5 app:1 \
                sh -c 'echo up; cat; exit 3'";
    let mut command = home.command("sh");
    command
        .args(["-e", "-c", text])
        .env("TMPDIR", home.path("tmp"));
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut up = [0; 3];
    child.stdout.take().unwrap().read_exact(&mut up).unwrap();
    let name = fs::read_dir(home.path("tmp"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    let name = name.file_name().into_string().unwrap();
    let find = format!("find /sys/fs/cgroup -name '*{name}*' -type d");
    let of = |files: &str| -> Vec<String> {
        let text = format!("for dir in $({find}); do cat {files} 2>/dev/null || :; done");
        shell(&home, &text).lines().map(str::to_owned).collect()
    };
    assert!(of("$dir/memory.max $dir/memory.limit_in_bytes").contains(&"67108864".to_owned()));
    assert_eq!(of("$dir/pids.max"), ["20"]);
    let processors = of("$dir/cpu.max $dir/cpu.cfs_quota_us").join(" ");
    assert!(processors.contains("50000"), "{processors:?}");
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert_eq!(shell(&home, &find), "");
    for (option, value) in [("--memory", "0"), ("--pids-limit", "0"), ("--cpus", "nan")] {
        let seen = home.run(["run", option, value, "app:1"]);
        assert_eq!(seen.code, Some(2), "{seen:?}");
        let named = seen.stderr.contains(option) && seen.stderr.contains("give a number");
        assert!(named, "{seen:?}");
    }
    let limited = "./unionfs run --runtime bwrap --memory 64m app:1";
    sh(&home, Who::Root, limited).failed(125, &["install crun or runc"]);
}

/// Settings of an image are data: none of them adds a mount, a hook or a right, and no symlink leads
/// out of the image.
#[test]
fn a_hostile_image_gains_nothing() {
    let home = need!(home());
    shell(
        &home,
        r#"
        echo 'root:x:7:7::/:' > out/passwd; mkdir -p evil; cp -a rootfs/. evil; cd evil
        rm etc/passwd etc/hosts; ln -s ../../../../../../../../../../"$PWD"/../out/passwd etc/passwd
        ln -s /etc/plain etc/hosts; ln -s /proc/self/exe bin/out
        "#,
    );
    home.run(["import", "-q", "evil", "evil:1"]).ok();
    let configurations = home.path("own/image/overlay2/imagedb/content/sha256");
    let about = home.json(["inspect", "--json", "evil:1"]);
    let id = about.as_array().map_or(&about, |all| &all[0])["id"].clone();
    let hex = id
        .as_str()
        .unwrap()
        .trim_start_matches("sha256:")
        .to_owned();
    let config: Value =
        serde_json::from_slice(&fs::read(configurations.join(&hex)).unwrap()).unwrap();
    let mut config = config;
    config["config"] = serde_json::json!({
        "Cmd": ["/bin/cat", "/etc/hosts"],
        "Env": ["=bad", "noequals", "GOOD=1", "LD_PRELOAD=/x\ny"],
        "WorkingDir": "/",
        "Volumes": {"/etc": {}},
        "mounts": [{"destination": "/host", "source": "/", "type": "bind"}],
        "hooks": {"prestart": [{"path": "/bin/sh"}]},
        "Privileged": true,
        "Capabilities": ["CAP_SYS_ADMIN"],
    });
    shell(
        &home,
        "tar -C evil -cf layer.tar . && mkdir archive && mv layer.tar archive",
    );
    let tar = fs::read(home.path("archive/layer.tar")).unwrap();
    config["rootfs"]["diff_ids"] = serde_json::json!([unionfs::oci::Digest::of(&tar).to_string()]);
    fs::write(home.path("archive/config.json"), config.to_string()).unwrap();
    let manifest = r#"[{"Config":"config.json","RepoTags":["evil:2"],"Layers":["layer.tar"]}]"#;
    fs::write(home.path("archive/manifest.json"), manifest).unwrap();
    shell(
        &home,
        "tar -C archive -cf evil.tar manifest.json config.json layer.tar",
    );
    home.run(["load", "-q", "-i", "evil.tar"]).ok();
    // The machine's /etc/hosts is not put in place of a symlink.
    let seen = run(&home, Who::Root, "runc", "evil:2");
    assert_eq!(seen.ok(), "plain\n");
    // The symlink of the passwd file leads to nothing within the image.
    let seen = run(&home, Who::Root, "runc", "-u root evil:2");
    seen.failed(125, &["no user \"root\""]);
    let bundle = |image: &str, dir: &str| -> Value {
        home.run(["bundle", image, dir]).ok();
        let file = home.path(dir).join("config.json");
        let config = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        home.run(["umount", &format!("{dir}/rootfs")]).ok();
        config
    };
    let (plain, evil) = (bundle("app:1", "plain"), bundle("evil:2", "evilb"));
    assert_eq!(evil["process"]["env"][0], "GOOD=1");
    for key in ["hooks", "annotations"] {
        assert_eq!(evil.get(key), None);
    }
    assert_eq!(evil["linux"], plain["linux"]);
    assert_eq!(
        evil["process"]["capabilities"],
        plain["process"]["capabilities"]
    );
    let targets = |config: &Value| -> Vec<Value> {
        let mounts = config["mounts"].as_array().unwrap();
        let targets = mounts.iter().map(|mount| mount["destination"].clone());
        targets.filter(|target| target != "/etc/hosts").collect()
    };
    assert_eq!(targets(&evil), targets(&plain));
}

/// A bundle is run by a runtime without us.
#[test]
fn a_bundle_is_what_runtimes_run() {
    let home = need!(home());
    for who in [Who::Root, Who::User] {
        for runtime in ["crun --cgroup-manager=disabled", "runc"] {
            let text = format!(
                "cd out; ../unionfs bundle app:1 b sh -c 'id -u; pwd' >&2
                {runtime} --root $PWD/state run --bundle b testing; ../unionfs umount b/rootfs
                rm b/config.json; rmdir b/rootfs b"
            );
            let seen = sh(&home, who, &text);
            let says = seen.stderr.matches("the bundle records no owners").count();
            assert_eq!(says, usize::from(who == Who::User), "{seen:?}");
            assert_eq!(
                seen.ok_with_progress(),
                "0\n/home/app\n",
                "{who:?} {runtime}"
            );
            shell(&home, "rm -rf out/state");
        }
    }
    home.run(["bundle", "app:1", "rootfs"])
        .failed(1, &["not empty"]);
    let quiet =
        "cd out; ../unionfs bundle --other-users pretend app:1 b; ../unionfs umount b/rootfs
        rm b/config.json; rmdir b/rootfs b";
    let seen = sh(&home, Who::User, quiet);
    assert!(!seen.stderr.contains("owners"), "{seen:?}");
    seen.ok_with_progress();
}

/// With a terminal the command has one of its own, and its exit code is passed on.
#[test]
fn a_terminal_is_the_commands_own() {
    let home = need!(home());
    need!(has_tools(&["script"]));
    for (who, runtime) in [
        (Who::Root, "crun"),
        (Who::Root, "runc"),
        (Who::Root, "bwrap"),
        (Who::User, "crun"),
        (Who::User, "bwrap"),
    ] {
        // What is typed reaches the command, and nobody else has this terminal.
        let text = format!(
            "echo typed | script -qec './unionfs run -it --runtime {runtime} app:1 sh -c \
             \"tty; read -r line; echo got \\$line; echo up > /dev/tty; exit 5\"' /dev/null"
        );
        let seen = sh(&home, who, &text);
        assert_eq!(seen.code, Some(5), "{who:?} {runtime} {seen:?}");
        for part in ["/dev/", "got typed", "up"] {
            assert!(seen.stdout.contains(part), "{who:?} {runtime} {seen:?}");
        }
    }
    sh(&home, Who::Root, "./unionfs run -t app:1 </dev/null").failed(2, &["no terminal"]);
}

/// podman runs the same image with the same outcome.
#[test]
fn podman_runs_the_image_in_the_same_way() {
    let home = need!(home());
    need!(has_tools(&["podman"]));
    let podman = "podman --root $PWD/pod --runroot $PWD/pod-run --storage-driver vfs --runtime crun \
                  --cgroup-manager cgroupfs --events-backend none";
    let load = format!("{podman} load -q -i app.tar");
    assert_eq!(sh(&home, Who::Root, &load).code, Some(0));
    let theirs = format!(
        "{podman} run --rm --pull never --network none --cgroups disabled \
                          --security-opt no-new-privileges --hostname unionfs \
                          --ulimit nofile=1024:1024 --ulimit nproc=1024:1024"
    );
    let ours = "./unionfs run --runtime crun --net=none";
    // podman sets `container` and a terminal type too.
    let show = "sh -c 'id; pwd; hostname; env | grep -v -e ^container= -e ^TERM= -e ^SHLVL= | sort
                grep -E \"Cap(Eff|Bnd|Prm)|NoNewPrivs|^Seccomp:\" /proc/self/status'";
    for args in [
        format!("app:1 {show}"),
        format!("-u app app:1 {show}"),
        format!("-u app:more app:1 {show}"),
        format!("-u 1000 -w /tmp -e A=c -e B=d app:1 {show}"),
        // podman adds a line to the passwd file for such a user.
        "-u 4000:4001 app:1 sh -c 'id -u; id -g; id -G'".to_owned(),
        "app:1".to_owned(),
        "app:1 sh -c 'exit 7'".to_owned(),
        "app:1 sh -c 'sh -c \"kill -9 \\$\\$\"; exit $?'".to_owned(),
        "app:1 nothere".to_owned(),
        "app:1 /etc/plain".to_owned(),
        "--entrypoint /bin/id app:1".to_owned(),
        "--entrypoint /bin/id app:1 -u".to_owned(),
        "absent:1".to_owned(),
    ] {
        let theirs = sh(&home, Who::Root, &format!("{theirs} {args}"));
        let ours = sh(&home, Who::Root, &format!("{ours} {args}"));
        assert_eq!(
            (ours.code, &ours.stdout),
            (theirs.code, &theirs.stdout),
            "{args}: {ours:?} {theirs:?}"
        );
    }
}

/// The example does what it says, as a plain user.
#[test]
fn the_example_runs_as_a_plain_user() {
    let home = need!(home());
    need!(has_tools(&["docker-registry"]));
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/engineless.sh");
    fs::copy(example, home.path("engineless.sh")).unwrap();
    let seen = sh(
        &home,
        Who::User,
        "cd out; UNIONFS=../unionfs sh ../engineless.sh ../app.tar",
    );
    assert_eq!(seen.code, Some(0), "{seen:?}");
    assert!(
        seen.stdout
            .ends_with("the image came back with the change\n"),
        "{seen:?}"
    );
}
