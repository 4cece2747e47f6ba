//! Real tools on the mount: dpkg, rpm, git, pip, npm, sqlite, rsync. Each runs on kernel overlayfs
//! and on unionfs, over a lower that an earlier run of the same tool has filled; the trees must
//! agree, also after a remount.

use std::path::Path;
use std::process::Command;

use testkit::layers::Layer;
use testkit::mount::{Fs, KERNEL, Scratch, subject};
use testkit::need::{Needed, has_tools};
use testkit::tree::{self, Mask, Tree};
use testkit::{need, need_mounts};

use super::support::{output_of, stack_in};

/// Runs shell scripts: `base` in the directory that becomes the lower, `change` in the union; `$1`
/// is a directory of files that `prepare` made once.
fn run(fs: &Fs, things: &Path, base: &str, change: &str) -> (Tree, Tree) {
    let scratch = Scratch::disk();
    let stack = stack_in(&scratch, &[Layer::new()]);
    shell(&stack.lowers[0], things, base);
    let lower = tree::list_raw(&stack.lowers[0]);
    let mounted = fs.mount(&stack);
    shell(mounted.path(), things, change);
    let tree = tree::list(mounted.path());
    mounted.unmount();
    let mounted = fs.mount(&stack);
    let again = tree::list(mounted.path());
    mounted.unmount();
    tree::assert_same("remounted", &tree, &again, &Mask::ALL);
    let now = tree::list_raw(&stack.lowers[0]);
    let mask = Mask {
        ino: true,
        ..Mask::ALL
    };
    tree::assert_same("the lower", &lower, &now, &mask);
    (tree, again)
}

fn shell(dir: &Path, things: &Path, script: &str) {
    let mut sh = Command::new("/bin/sh");
    sh.args(["-euc", script, "sh"])
        .arg(things)
        .current_dir(dir)
        .env("HOME", things)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("LC_ALL", "C");
    output_of(&mut sh);
}

/// Compares the two. It ignores the content of files whose path has one of `stamped`, because they
/// contain dates and inode numbers.
fn compare(prepare: &str, base: &str, change: &str, stamped: &[&str]) {
    let scratch = Scratch::disk();
    let things = scratch.dir("things");
    shell(&things, &things, prepare);
    let mask = Mask::from_now();
    let trees = [KERNEL, subject()].map(|fs| {
        let (mut tree, _) = run(&fs, &things, base, change);
        for (path, entry) in &mut tree {
            let path = String::from_utf8_lossy(path);
            if stamped.iter().any(|s| path.contains(s)) {
                (entry.content, entry.size) = (Vec::new(), 0);
            }
        }
        tree
    });
    tree::assert_same("kernel, unionfs", &trees[0], &trees[1], &mask);
}

/// Two versions of a package with a conffile, a link, and a directory that becomes another type;
/// installed, upgraded, removed, purged.
#[test]
fn dpkg() {
    need_mounts!();
    need!(has_tools(&["dpkg"]));
    let prepare = r#"
        umask 022
        for v in 1 2; do
            p=p$v; mkdir -p $p/DEBIAN $p/etc $p/usr/bin $p/usr/share/d$v
            printf 'Package: trap\nVersion: %s\nArchitecture: all\nMaintainer: x <x@y>\nDescription: x\n' $v > $p/DEBIAN/control
            echo /etc/trap.conf > $p/DEBIAN/conffiles
            echo conf$v > $p/etc/trap.conf
            echo "program $v" > $p/usr/bin/trap; chmod 4755 $p/usr/bin/trap
            ln $p/usr/bin/trap $p/usr/bin/trap-link
            ln -s trap $p/usr/bin/trap-sym
            for i in $(seq 60); do echo "$v $i" > $p/usr/share/d$v/f$i; done
            dpkg-deb --root-owner-group -b $p trap$v.deb
        done
    "#;
    let dpkg = "dpkg --root=. --force-not-root --force-script-chrootless --force-unsafe-io --log=/dev/null";
    let base = format!(
        "umask 022; mkdir -p var/lib/dpkg/info var/lib/dpkg/updates; : > var/lib/dpkg/status
         {dpkg} -i \"$1\"/trap1.deb"
    );
    let change = format!(
        "umask 022; {dpkg} -i \"$1\"/trap2.deb; grep 2 usr/bin/trap-link
         {dpkg} -r trap; test ! -e usr/bin/trap; {dpkg} -i \"$1\"/trap1.deb
         {dpkg} -V trap; {dpkg} -P trap; {dpkg} -i \"$1\"/trap2.deb"
    );
    compare(prepare, &base, &change, &[]);
}

/// The same with rpm: its database is sqlite.
#[test]
fn rpm() {
    need_mounts!();
    need!(has_tools(&["rpmbuild"]));
    let prepare = r#"
        for v in 1 2; do
            cat > trap$v.spec <<END
Name: trap
Version: $v
Release: 1
Summary: x
License: x
BuildArch: noarch
%description
x
%install
mkdir -p %{buildroot}/usr/bin %{buildroot}/etc %{buildroot}/usr/share/d$v
echo program $v > %{buildroot}/usr/bin/trap
ln %{buildroot}/usr/bin/trap %{buildroot}/usr/bin/trap-link
echo conf$v > %{buildroot}/etc/trap.conf
for i in \$(seq 60); do echo $v \$i > %{buildroot}/usr/share/d$v/f\$i; done
%files
%attr(4755,root,root) /usr/bin/trap
%attr(4755,root,root) /usr/bin/trap-link
%config(noreplace) /etc/trap.conf
/usr/share/d$v
END
            rpmbuild -bb --define "_topdir $1/top" trap$v.spec
        done
    "#;
    let db = "rpm --root=\"$PWD\" --dbpath=/var/lib/rpm";
    let rpm = format!("{db} --noplugins --nodeps");
    let base = format!("{db} --initdb; {rpm} -i \"$1\"/top/RPMS/noarch/trap-1-1.noarch.rpm");
    let change = format!(
        "{rpm} -U \"$1\"/top/RPMS/noarch/trap-2-1.noarch.rpm; {rpm} -V trap
         {rpm} -e trap; test ! -e usr/bin/trap
         {rpm} -i \"$1\"/top/RPMS/noarch/trap-1-1.noarch.rpm; {rpm} -V trap"
    );
    compare(prepare, &base, &change, &["rpm/"]);
}

#[test]
fn git() {
    need_mounts!();
    need!(has_tools(&["git"]));
    let settings = "export GIT_AUTHOR_DATE='2020-01-01 00:00 +0000' GIT_COMMITTER_DATE='2020-01-01 00:00 +0000'
        export GIT_AUTHOR_NAME=x GIT_AUTHOR_EMAIL=x GIT_COMMITTER_NAME=x GIT_COMMITTER_EMAIL=x
        umask 022; git config --global safe.directory '*'; git config --global gc.auto 0
        git config --global maintenance.auto false";
    let base = format!(
        "{settings}; git init -q -b main r; cd r
         for i in $(seq 50); do mkdir -p d$i; echo $i > d$i/f; echo x > d$i/g; done
         git add .; git commit -qm one"
    );
    let change = format!(
        "{settings}; cd r; test -z \"$(git status --porcelain)\"
         echo changed > d1/f; git rm -rq d2; git mv d3 moved; git mv d4/f d5/h
         git add -A; git commit -qm two; git checkout -q -b other HEAD~1
         rm -rf d6; mkdir d6; echo y > d6/f; git add -A; git commit -qm three
         git merge -q -m merged main; git stash list; git reset -q --hard HEAD~1
         git checkout -q main; git gc -q --prune=now; git fsck --strict
         test -z \"$(git status --porcelain)\"; git clone -q . ../clone; git -C ../clone fsck"
    );
    compare(
        "true",
        &base,
        &change,
        &[
            ".git/index",
            "/pack/",
            "/packs",
            "commit-graph",
            "/logs/",
            ".git/config",
        ],
    );
}

/// A write-ahead log with its shared memory, mapped reads, two processes, a vacuum.
#[test]
fn sqlite() {
    need_mounts!();
    need!(has_tools(&["sqlite3"]));
    let base = "sqlite3 db 'pragma journal_mode=wal; create table t(a integer primary key, b);
        with recursive n(i) as (select 1 union all select i+1 from n where i<5000)
        insert into t select i, hex(zeroblob(40)) from n'";
    let change = "
        sqlite3 db 'pragma mmap_size=268435456; update t set b=a where a%3=0; select sum(a) from t' >/dev/null
        for w in 1 2 3; do
            for i in $(seq 8); do
                sqlite3 -cmd '.timeout 60000' db \"pragma mmap_size=268435456; insert into t(b) values('w$w-$i')\" >/dev/null
            done &
        done; wait
        test \"$(sqlite3 db 'select count(*) from t')\" = 5024
        test \"$(sqlite3 db 'pragma integrity_check')\" = ok
        sqlite3 db 'pragma journal_mode=delete; delete from t where a%2=0; vacuum' >/dev/null
        sqlite3 db 'create index i on t(b); pragma wal_checkpoint(truncate)' >/dev/null
        test \"$(sqlite3 db 'pragma integrity_check')\" = ok";
    // Rows of three writers come in any order.
    compare("true", base, change, &["db"]);
}

/// Checks whether pip is installed. The test makes a wheel, installs and upgrades it, and removes
/// it again.
fn has_pip() -> Needed {
    let asked = Command::new("/usr/bin/python3")
        .args(["-m", "pip", "-V"])
        .output();
    if asked.is_ok_and(|output| output.status.success()) {
        Ok(())
    } else {
        Err("python3-pip is not installed".into())
    }
}

#[test]
fn pip() {
    need_mounts!();
    let pip = "/usr/bin/python3 -m pip --disable-pip-version-check --no-cache-dir";
    need!(has_pip());
    let prepare = r"cat > make.py <<'END'
import zipfile
for v in '1', '2':
    with zipfile.ZipFile(f'trap-{v}-py3-none-any.whl', 'w') as z:
        info = f'trap-{v}.dist-info/'
        for i in range(60):
            z.writestr(f'trap/m{v}_{i}.py', f'x = {i}\n')
        z.writestr('trap/__init__.py', f'v = {v}\n')
        z.writestr(info + 'METADATA', f'Metadata-Version: 2.1\nName: trap\nVersion: {v}\n')
        z.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        z.writestr(info + 'RECORD', '')
END
/usr/bin/python3 make.py";
    let install = |v: u32| {
        format!(
            "{pip} install -q --no-index --root-user-action=ignore --upgrade --target site \"$1\"/trap-{v}-py3-none-any.whl"
        )
    };
    let base = format!("umask 022; {}", install(1));
    let change = format!(
        "umask 022; {}; test \"$(PYTHONPATH=site /usr/bin/python3 -c 'import trap; print(trap.v)')\" = 2
         test ! -e site/trap/m1_0.py; rm -r site/trap; {}",
        install(2),
        install(1)
    );
    compare(prepare, &base, &change, &[".pyc"]);
}

/// A package of this machine, installed, replaced and removed by npm.
#[test]
fn npm() {
    need_mounts!();
    need!(has_tools(&["npm"]));
    let prepare = r##"
        for v in 1 2; do
            mkdir -p p$v/lib; printf '{"name":"trap","version":"%s.0.0","bin":"x.js"}' $v > p$v/package.json
            echo "#!/usr/bin/env node" > p$v/x.js
            for i in $(seq 40); do echo "// $v $i" > p$v/lib/m${v}_$i.js; done
            tar cf trap$v.tgz --transform "s,^p$v,package," -z p$v
        done"##;
    let npm = "npm --offline --no-audit --no-fund --no-update-notifier --silent";
    let base = format!("umask 022; echo '{{}}' > package.json; {npm} install \"$1\"/trap1.tgz");
    let change = format!(
        "umask 022; {npm} install \"$1\"/trap2.tgz; test -e node_modules/trap/lib/m2_1.js
         test ! -e node_modules/trap/lib/m1_1.js; {npm} uninstall trap
         test ! -e node_modules/trap; {npm} install \"$1\"/trap1.tgz"
    );
    compare(prepare, &base, &change, &["package.json", "lock.json"]);
}

/// rsync copies into the mount, over the files of a lower, within it and out of it, with hard
/// links, ACLs, xattrs, holes and all other attributes of a tree; rsync itself finds each copy
/// equal.
#[test]
fn rsync() {
    need_mounts!();
    need!(has_tools(&["rsync"]));
    let prepare =
        "mkdir -p src/d/sub src/gone; cd src; echo 1 > d/f; ln d/f d/sub/linked; ln -s f d/link
        echo tool > tool; chown 12:34 tool; chmod 4711 tool; mkfifo pipe; mknod null c 1 3
        truncate -s 8M sparse; printf x | dd of=sparse bs=1 seek=5000000 conv=notrunc status=none
        setfacl -m u:1000:rx d; setfacl -d -m g:7:rwx d; setfattr -n user.colour -v green d/f
        setfattr -n trusted.t -v secret tool; setcap cap_net_raw+ep d/f; echo x > gone/x
        chmod 700 d/sub; touch -h -d @1000000000.123456789 d/link tool d/sub d pipe";
    // The content of the lower: an older copy.
    let base = "rsync -aHAXS \"$1\"/src/ copy; echo stale > copy/extra; echo older > copy/tool
        touch -d @900000000 copy/tool; rm copy/d/link; echo y > copy/gone/y; touch -d @900000000 copy/gone";
    let change = "rsync -aHAXS --delete \"$1\"/src/ copy
        test -z \"$(rsync -aHAXSni --delete \"$1\"/src/ copy)\"
        rsync -aHAXS copy/ again; test -z \"$(rsync -aHAXSnci copy/ again)\"
        echo new >> again/d/f; rm -r again/gone; mv again/tool again/d/tool
        rsync -aHAXS --inplace --no-whole-file --delete again/ copy
        test -z \"$(rsync -aHAXSnci --delete again/ copy)\"
        out=$(mktemp -d -p \"$1\"); rsync -aHAXS copy/ \"$out\"
        test -z \"$(rsync -aHAXSnci --delete copy/ \"$out\")\"
        test $(stat -c %b \"$out\"/sparse) -lt 2000; test $(stat -c %b copy/sparse) -lt 2000";
    compare(prepare, base, change, &[]);
}
