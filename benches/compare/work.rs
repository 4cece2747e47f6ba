//! Real programs on the mount, as a user of a container runs them. With `--quick` there is no root
//! file system for them, so they run outside of the mount.

use std::time::Instant;

use crate::figures::report::{Group, NOTHING, Sample};
use crate::subjects::{Bed, sh};
use crate::{Workload, messages, row};

/// The scripts of a workload. `$1` is the mount, `$2` a directory outside of it. Only the second
/// script is timed.
struct Script {
    name: &'static str,
    before: &'static str,
    timed: &'static str,
    /// Whether it runs programs of the root file system on the mount.
    rootfs: bool,
}

/// The common preparation: a directory on the mount, and an archive of sources beside the mount.
/// The function `sources` unpacks it on the mount.
const PREPARE: &str = r#"cd "$2"; [ -e src.tar ] || { mkdir -p src; for d in $(seq 40); do mkdir src/d$d
    for f in $(seq 50); do printf 'int f_%s_%s(void){return %s;}\n' $d $f $f >src/d$d/f$f.c; done; done
    tar cf src.tar src; rm -r src; }
    mkdir -p "$1/work"
    sources() { [ -e "$1/work/src" ] || tar xf "$2/src.tar" -C "$1/work"; }
"#;

const SCRIPTS: [Script; 12] = [
    Script {
        name: "untar of a source tree",
        before: r#"rm -rf "$1/work/src""#,
        timed: r#"exec tar xf "$2/src.tar" -C "$1/work""#,
        rootfs: false,
    },
    Script {
        name: "cp -a of a tree",
        before: r#"for tree in usr/share/perl usr/d1; do
            [ ! -e "$1/$tree" ] || ln -sfn "$1/$tree" "$2/tree"; done; ls -R "$2/tree/" >/dev/null"#,
        timed: r#"exec cp -a "$2/tree/" "$1/work/copy""#,
        rootfs: false,
    },
    Script {
        name: "git init, add, commit",
        before: r#"sources "$@"; rm -rf "$1/work/src/.git""#,
        timed: r#"cd "$1/work/src"; git init -q .; git add .
            git -c user.name=n -c user.email=e commit -q -m all"#,
        rootfs: false,
    },
    Script {
        name: "git clone, status",
        before: r#"sources "$@"; cd "$1/work/src"; [ -e .git ] || { git init -q .; git add .
            git -c user.name=n -c user.email=e commit -q -m all; }"#,
        timed: r#"cd "$1/work"; git clone -q src clone; git -C clone status -s"#,
        rootfs: false,
    },
    Script {
        name: "sqlite: 300 transactions",
        before: "true",
        timed: r#"cd "$1/work"; python3 -c 'import sqlite3
c = sqlite3.connect("t.db"); c.execute("pragma journal_mode=wal"); c.execute("create table t(a)")
for i in range(300): c.execute("insert into t values(?)", (i,)); c.commit()'"#,
        rootfs: false,
    },
    Script {
        name: "chroot: gcc of 60 files",
        before: r#"sources "$@"; test -e "$1/dev/null" || mknod -m 666 "$1/dev/null" c 1 3"#,
        timed: r#"chroot "$1" sh -c 'cd /work/src; for f in d1/*.c; do gcc -O1 -c -o /work/o.o $f; done'"#,
        rootfs: true,
    },
    Script {
        name: "chroot: 20 starts of python",
        before: "true",
        timed: r#"chroot "$1" sh -c 'for i in $(seq 20); do python3 -c "import json, email"; done'"#,
        rootfs: true,
    },
    Script {
        name: "chroot: python compileall",
        before: "true",
        timed: r#"chroot "$1" python3 -m compileall -q -f /usr/lib/python3/ /usr/lib/python3*/json /usr/lib/python3*/email"#,
        rootfs: true,
    },
    Script {
        name: "chroot: 5 starts of node",
        before: "true",
        timed: r#"chroot "$1" sh -c 'for i in 1 2 3 4 5; do node -e "require(\"http\")"; done'"#,
        rootfs: true,
    },
    Script {
        name: "chroot: pip install of a wheel",
        before: r#"cat >"$1/work/wheel.py" <<'END'
import zipfile
with zipfile.ZipFile('/work/p-1-py3-none-any.whl', 'w') as z:
    for i in range(300):
        z.writestr(f'p/m{i}.py', f'x = {i}\n')
    z.writestr('p/__init__.py', '')
    z.writestr('p-1.dist-info/METADATA', 'Metadata-Version: 2.1\nName: p\nVersion: 1\n')
    z.writestr('p-1.dist-info/WHEEL', 'Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
    z.writestr('p-1.dist-info/RECORD', '')
END
            chroot "$1" python3 /work/wheel.py"#,
        timed: r#"chroot "$1" python3 -m pip install -q --no-index --no-cache-dir --root-user-action=ignore \
            --target /work/site /work/p-1-py3-none-any.whl"#,
        rootfs: true,
    },
    Script {
        name: "chroot: npm ci",
        before: r#"mkdir -p "$1/work/npm/package/lib"; cd "$1/work/npm"
            printf '{"name":"p","version":"1.0.0"}' >package/package.json
            for i in $(seq 500); do echo "// $i" >package/lib/m$i.js; done
            tar czf p.tgz package; rm -r package; echo '{}' >package.json
            chroot "$1" sh -c 'cd /work/npm; npm install --offline --silent --no-audit --no-fund ./p.tgz'
            rm -r node_modules"#,
        timed: r#"chroot "$1" sh -c 'cd /work/npm; npm ci --offline --silent --no-audit --no-fund'
            test -e "$1/work/npm/node_modules/p/lib/m500.js""#,
        rootfs: true,
    },
    Script {
        name: "chroot: apt-get install of a package",
        before: r#"cd "$2"; [ -e p.deb ] || { mkdir -p p/DEBIAN p/opt/p
            printf 'Package: p\nVersion: 1\nArchitecture: all\nMaintainer: n <n@n>\nDescription: p\n' >p/DEBIAN/control
            for f in $(seq 500); do echo $f >p/opt/p/$f; done; dpkg-deb -b p p.deb >/dev/null; }; cp p.deb "$1/work/""#,
        timed: r#"chroot "$1" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y /work/p.deb >/dev/null 2>&1"#,
        rootfs: true,
    },
];

macro_rules! rows {
    ($($n:literal)*) => {
        &[$(row(Group::Programs, SCRIPTS[$n].name, |bed| run(bed, &SCRIPTS[$n]))),*]
    };
}

pub(crate) const ALL: &[Workload] = rows![0 1 2 3 4 5 6 7 8 9 10 11];

fn run(bed: &mut Bed<'_>, script: &Script) -> Result<Sample, String> {
    if script.rootfs && !bed.layers.rootfs {
        return Err(NOTHING.into());
    }
    let args = [bed.path(), bed.outside()];
    sh(&format!("{PREPARE}{}", script.before), &args)?;
    messages::counted(|| {
        let start = Instant::now();
        sh(script.timed, &args)?;
        Ok(Sample::time(start.elapsed()))
    })
}
