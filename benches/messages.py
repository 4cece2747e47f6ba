#!/usr/bin/env python3
"""Which messages programs cost, by kind, beside the least that Linux forces.

Runs programs (tar, cp, git, dpkg, npm, rm) on a mount of ours with default options and on one with
io=cached, and counts the messages by `unionfs stats`. Then it runs the same program on an ordinary
directory under strace(1), and works out from the system calls what Linux 6.18 sends at least
(class Kernel). Prints a table; with --publish it also goes into docs/BUDGETS.md. Called by `just
messages`. Needs root and strace.
"""
import argparse
import collections
import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time

import pages

# The position of the table in docs/BUDGETS.md.
BEGIN, END = "<!-- table of `just messages --publish` -->", "<!-- end of the table -->"
PAGE = pathlib.Path(__file__).parent.parent / "docs/BUDGETS.md"
MODES = {"default": [], "io=cached": ["io=cached"]}

# Name, what the lower has, what is made on the mount before, what is counted. Every script runs in
# the mount; $IN is a directory outside of it.
PROGRAMS = [
    ("untar", "", "", 'exec tar xf "$IN/src.tar"'),
    ("cp -a", 'tar xf "$IN/src.tar"', "", "exec cp -a src copy"),
    ("git clone", 'git clone -q "$IN/src" origin', "", "exec git clone -q --no-local origin clone"),
    ("dpkg -i", "mkdir -p root/var/lib/dpkg/info root/var/lib/dpkg/updates root/var/lib/dpkg/triggers; touch root/var/lib/dpkg/status",
     "", 'exec dpkg --root=root --log=/dev/null -i "$IN/p.deb"'),
    ("npm ci", 'cp -r "$IN/npm" .', "", "cd npm; exec npm ci --offline --silent --no-audit --no-fund --cache \"$IN/cache\""),
    ("rm -rf of a lower tree", 'tar xf "$IN/src.tar"', "", "exec rm -rf src"),
    ("rm -rf of a new tree", "", 'tar xf "$IN/src.tar"', "exec rm -rf src"),
]
ENV = dict(os.environ, GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_NOSYSTEM="1", GIT_TERMINAL_PROMPT="0",
           GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0="safe.directory", GIT_CONFIG_VALUE_0="*", HOME="/nonexistent",
           # strace does not see what node does through io_uring.
           UV_USE_IO_URING="0")

INPUT = r"""
for d in $(seq 20); do mkdir -p src/d$d; for f in $(seq 25); do echo "int f$f;" >src/d$d/f$f.c; done; done
tar cf src.tar src
git -C src init -q .; git -C src add .; git -C src -c user.name=n -c user.email=e commit -q -m all
mkdir -p p/DEBIAN p/opt/p
printf 'Package: p\nVersion: 1\nArchitecture: all\nMaintainer: n <n@n>\nDescription: p\n' >p/DEBIAN/control
for f in $(seq 500); do echo $f >p/opt/p/$f; done; dpkg-deb -b p p.deb >/dev/null
mkdir -p npm/package/lib; cd npm; printf '{"name":"p","version":"1.0.0"}' >package/package.json
for i in $(seq 500); do echo "// $i" >package/lib/m$i.js; done
tar czf p.tgz package; rm -r package; echo '{}' >package.json
npm install --offline --silent --no-audit --no-fund --cache ../cache ./p.tgz; rm -r node_modules
"""


def bash(script, where, inputs, **more):
    subprocess.run(["bash", "-euc", script], cwd=where, env=dict(ENV, IN=str(inputs)), check=True,
                   stdout=subprocess.DEVNULL, **more)


def stats(unionfs, mnt):
    out = subprocess.run([unionfs, "stats", mnt, "--json"], check=True, stdout=subprocess.PIPE).stdout
    return collections.Counter(json.loads(out)["requests"])


@contextlib.contextmanager
def mounted(unionfs, top, options, prepare_lower):
    for part in ("lower", "upper", "work", "m"):
        os.makedirs(f"{top}/{part}")
    prepare_lower(f"{top}/lower")
    stack = f"lowerdir={top}/lower,upperdir={top}/upper,workdir={top}/work"
    subprocess.run([unionfs, "-o", ",".join([stack, *options]), f"{top}/m"], check=True)
    try:
        yield f"{top}/m"
    finally:
        subprocess.run(["umount", f"{top}/m"], check=True)


def count(unionfs, bed, inputs, program, options):
    """The messages of a program, by kind."""
    _, lower, before, script = program
    with tempfile.TemporaryDirectory(dir=bed) as top, \
            mounted(unionfs, top, options, lambda at: bash(lower, at, inputs)) as mnt:
        bash(before, mnt, inputs)
        # What asking itself costs.
        stats(unionfs, mnt)
        first = stats(unionfs, mnt)
        start = stats(unionfs, mnt)
        asking = start - first
        bash(script, mnt, inputs)
        # FORGET comes later.
        time.sleep(0.5)
        sent = stats(unionfs, mnt) - start - asking
    for noise in ("INTERRUPT", "STATFS"):
        sent.pop(noise, None)
    return sent


class Kernel:
    """What Linux 6.18 sends at least for system calls below a directory, if the server gives every
    answer an unlimited lifetime. `passes` is whether files are passed through. The rules, with the
    functions of the kernel, stand in docs/BUDGETS.md."""

    def __init__(self, top, passes):
        self.top, self.passes = top, passes
        self.sent = collections.Counter()
        self.names, self.absent = {top}, set()
        # Files and directories whose attributes are not known any more, and those whose access time.
        self.stale, self.stale_atime = set(), set()
        # Directories whose listing is known, and files whose time of birth is.
        self.listed, self.born = set(), set()
        # Files of which the kernel has the data, or has asked for the capability.
        self.has_data, self.asked = set(), set()
        self.appended = set()
        self.present, self.dirs = {top}, {top}
        for where, dirs, files in os.walk(top):
            self.dirs.update(f"{where}/{name}" for name in dirs)
            self.present.update(f"{where}/{name}" for name in dirs + files)
        # Files that have not been copied up.
        self.lower = set(self.present)

    def inside(self, path):
        return path.startswith(self.top + "/") or path == self.top

    def look(self, path):
        """Names on the way to a path, and the path."""
        if not self.inside(path):
            return
        parts = path[len(self.top):].split("/")
        for n in range(2, len(parts) + 1):
            part = self.top + "/".join(parts[:n])
            if part in self.names or part in self.absent:
                continue
            self.sent["LOOKUP"] += 1
            (self.names if part in self.present else self.absent).add(part)
            if part not in self.present:
                return

    def attributes(self, path):
        if path in self.stale:
            self.sent["GETATTR"] += 1
            self.stale.discard(path)

    def stat(self, path, with_birth):
        self.look(path)
        if path not in self.present:
            return
        is_stale = path in self.stale or path in self.stale_atime
        if with_birth and (is_stale or path not in self.born):
            self.sent["STATX"] += 1
            self.born.add(path)
        elif is_stale:
            self.sent["GETATTR"] += 1
        self.stale.discard(path)
        self.stale_atime.discard(path)

    def list(self, path, ends):
        """One getdents(2)."""
        if path in self.listed:
            return
        self.sent["READDIRPLUS"] += 1
        self.names.update(p for p in self.present if os.path.dirname(p) == path)
        self.stale_atime.add(path)
        if ends:
            self.listed.add(path)

    def change(self, path):
        """A change of the directory of `path`: the permission check needs its attributes."""
        where = os.path.dirname(path)
        self.look(where)
        self.attributes(where)
        self.stale.add(where)
        self.listed.discard(where)

    def make(self, path, kind):
        self.change(path)
        self.sent["LOOKUP"] += 1
        self.sent[kind] += 1
        self.present.add(path)
        self.names.add(path)
        self.absent.discard(path)
        if kind == "MKDIR":
            self.dirs.add(path)

    def exists(self, path):
        """A name that was to be made and exists: it is looked up again, which brings its attributes."""
        self.look(os.path.dirname(path))
        self.sent["LOOKUP"] += 1
        self.names.add(path)
        self.stale.discard(path)
        self.stale_atime.discard(path)

    def remove(self, path, kind):
        self.look(path)
        self.change(path)
        self.sent[kind] += 1
        self.sent["FORGET"] += 1
        self.forget(path)
        self.absent.add(path)

    def forget(self, path):
        for known in (self.present, self.names, self.stale, self.stale_atime, self.has_data, self.asked, self.dirs,
                      self.listed, self.born):
            known.discard(path)

    def open(self, path, flags):
        if "O_APPEND" in flags:
            self.appended.add(path)
        if "O_CREAT" in flags and path not in self.present:
            # Without O_EXCL a name that is known to be absent is not looked up again.
            known = "O_EXCL" not in flags and path in self.absent
            self.make(path, "CREATE" if self.passes else "MKNOD")
            self.sent["LOOKUP"] -= known
            self.sent["RELEASE"] += self.passes
            return
        self.look(path)
        if path not in self.present or path in self.dirs or "O_PATH" in flags:
            return
        if "O_TRUNC" in flags:
            self.set_attributes(path)
        if self.passes and path not in self.absent:
            self.sent["OPEN"] += 1
            self.sent["RELEASE"] += 1

    def set_attributes(self, path):
        self.look(path)
        self.sent["SETATTR"] += 1
        self.lower.discard(path)
        self.stale.discard(path)
        self.asked.discard(path)

    def capability(self, path):
        if path not in self.asked:
            self.sent["GETXATTR"] += 1
            self.asked.add(path)

    def write(self, path):
        self.capability(path)
        self.stale.add(path)
        # Files that are open with O_APPEND are not passed through.
        self.sent["WRITE"] += not self.passes or path in self.appended
        # A page that is written in part is read later.
        self.has_data.discard(path)

    def read(self, path):
        # Files of a lower are not passed through.
        if path not in self.has_data and (path in self.lower or not self.passes):
            self.sent["READ"] += 1
            self.has_data.add(path)
            self.stale_atime.add(path)


CALL = re.compile(r"^(\d+\.\d+) (\w+)\((.*)\) += (0x[0-9a-f]+|-?\d+|\?)(?:<([^>]*)>)?(.*)$")
TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"')
# A path that ends with "." or "..".
NO_NAME = re.compile(r'"(?:[^"]*/)?\.\.?/*"')
FD = re.compile(r"^(?:AT_FDCWD|\d+)<([^>]*)>")
TRACED = "%file,%desc,%process,fchdir"


def trace(top, script, inputs):
    """The system calls of a script that ended well: (name, arguments, result, working directory), in order."""
    with tempfile.TemporaryDirectory() as out:
        command = ["strace", "-D", "-ff", "-ttt", "-y", "-s", "4096", "-e", f"trace={TRACED}", "-o", f"{out}/t",
                   "bash", "-euc", script]
        subprocess.run(command, cwd=top, env=dict(ENV, IN=str(inputs)), check=True, timeout=300,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # With -D the tracer ends after the program.
        time.sleep(1)
        lines = []
        for file in pathlib.Path(out).iterdir():
            pid = int(file.suffix[1:])
            for line in file.read_text(errors="surrogateescape").splitlines():
                if found := CALL.match(line):
                    lines.append((float(found[1]), pid, found))
    lines.sort(key=lambda line: line[0])
    cwd = collections.defaultdict(lambda: top)
    opened = {}
    for _, pid, found in lines:
        name, args, result, at = found[2], found[3], found[4], found[5]
        if at:
            opened[pid, result] = at
        # tar changes modes of directories in this way.
        args = re.sub(r"/proc/self/fd/(\d+)", lambda fd: opened.get((pid, fd[1]), fd[0]), args)
        if name in ("clone", "clone3", "fork", "vfork") and result.isdigit():
            cwd[int(result)] = cwd[pid]
        elif name == "chdir" and result == "0":
            cwd[pid] = os.path.normpath(os.path.join(cwd[pid], TEXT.search(args)[1]))
        elif name == "fchdir" and result == "0":
            cwd[pid] = FD.match(args)[1]
        yield name, args, result, cwd[pid]


OF_DESCRIPTORS = {"read", "pread64", "readv", "write", "pwrite64", "writev", "getdents64", "ioctl", "fgetxattr",
                  "flistxattr", "fsetxattr", "fremovexattr", "copy_file_range", "lseek", "fallocate"}


def paths(name, args, cwd):
    """The paths of a call: names, each after the directory it is relative to, or a descriptor."""
    found, where = [], cwd
    if name in OF_DESCRIPTORS:
        # A text is data, or the name of an xattr.
        return [part[1] for part in re.finditer(r"\b\d+<([^>]*)>", args)]
    for part in re.finditer(r'(?:AT_FDCWD|\b\d+)<([^>]*)>|"((?:[^"\\]|\\.)*)"', args):
        if part[2] is None:
            where = part[1]
            found.append((where, True))
        else:
            if found and found[-1][1]:
                found.pop()
            found.append((os.path.normpath(os.path.join(where, part[2])), False))
            where = cwd
    return [path for path, _ in found]


def least(inputs, program, passes):
    _, lower, before, script = program
    # In memory: the system calls are the same, and dpkg syncs each file.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as top:
        top = os.path.realpath(top)
        bash(lower, top, inputs)
        bash(before, top, inputs)
        kernel = Kernel(top, passes)
        if before:
            # The mount has made these itself.
            kernel.names |= kernel.present
            kernel.lower.clear()
        for name, args, result, cwd in trace(top, script, inputs):
            apply(kernel, name, args, result, paths(name, args, cwd))
        return +kernel.sent


STATS = {"newfstatat", "statx", "stat", "lstat", "access", "faccessat", "faccessat2", "fstat", "readlink", "readlinkat"}
SETS = {"chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "lchown", "fchown", "fchownat", "utimensat", "ftruncate"}
MADE = {"mkdir": "MKDIR", "mkdirat": "MKDIR", "symlink": "SYMLINK", "symlinkat": "SYMLINK", "mknodat": "MKNOD",
        "mknod": "MKNOD", "link": "LINK", "linkat": "LINK"}


def apply(kernel, name, args, result, where):
    """Adds the messages of one system call."""
    if not where or not any(kernel.inside(path) for path in where):
        return
    path, failed = where[0], result.startswith("-") or result == "?"
    if name in ("open", "openat", "creat"):
        flags = args + ("O_CREAT|O_TRUNC" if name == "creat" else "")
        kernel.look(path) if failed else kernel.open(path, flags)
    elif name in MADE:
        if failed and NO_NAME.search(args):
            # EEXIST without a message (`filename_create`).
            kernel.look(where[-1])
        else:
            kernel.exists(where[-1]) if failed else kernel.make(where[-1], MADE[name])
    elif name in ("unlink", "unlinkat", "rmdir"):
        is_dir = name == "rmdir" or "AT_REMOVEDIR" in args
        if failed:
            kernel.look(path)
            # The directory is not empty: the server says so.
            kernel.sent["RMDIR"] += is_dir and path in kernel.dirs
        else:
            kernel.remove(path, "RMDIR" if is_dir else "UNLINK")
    elif name.startswith("rename") and not failed:
        old, new = where
        kernel.look(old)
        kernel.change(old)
        if os.path.dirname(old) != os.path.dirname(new):
            kernel.change(new)
        kernel.sent["LOOKUP"] += 1
        kernel.sent["RENAME"] += 1
        if new in kernel.present:
            kernel.sent["FORGET"] += 1
            # What is known of the file that had the name is no more, its data neither.
            kernel.forget(new)
        for known in (kernel.present, kernel.names, kernel.has_data, kernel.asked, kernel.dirs, kernel.listed,
                      kernel.born, kernel.lower):
            moved = {p for p in known if p == old or p.startswith(old + "/")}
            known -= moved
            known |= {new + p[len(old):] for p in moved}
        # Nothing keeps the old name: its entry has moved (`__d_move`).
        kernel.absent.discard(new)
        # Its ctime has changed (`fuse_rename_common`).
        kernel.stale.discard(old)
        kernel.stale.add(new)
    elif name in STATS:
        kernel.look(path)
        if name.startswith("readlink") and not failed:
            kernel.sent["READLINK"] += path not in kernel.has_data
            kernel.has_data.add(path)
        elif "stat" in name and not failed:
            kernel.stat(path, name == "statx" and ("STATX_BTIME" in args or "STATX_ALL" in args))
    elif name in SETS and not failed:
        if "chown" in name and path not in kernel.dirs:
            kernel.sent["GETXATTR"] += 1
        kernel.set_attributes(path)
    elif name in ("write", "pwrite64", "writev") and not failed:
        kernel.write(path)
    elif name in ("read", "pread64", "readv", "mmap") and not failed and result != "0":
        if name != "mmap" or "MAP_ANONYMOUS" not in args:
            kernel.read(path)
    elif name == "getdents64" and not failed:
        kernel.list(path, ends=result == "0")
    elif name in ("getxattr", "lgetxattr", "fgetxattr"):
        kernel.look(path)
        kernel.sent["GETXATTR"] += 1
    elif name in ("listxattr", "llistxattr", "flistxattr"):
        kernel.look(path)
        kernel.sent["LISTXATTR"] += 1
    elif name == "ioctl" and "FICLONE" not in args and path not in kernel.dirs:
        kernel.sent["IOCTL"] += 1
    elif name in ("fsync", "fdatasync") and not failed:
        kernel.sent["FSYNCDIR" if path in kernel.dirs else "FSYNC"] += 1
    elif name in ("setxattr", "lsetxattr", "fsetxattr"):
        kernel.sent["SETXATTR"] += 1
    elif name in ("removexattr", "lremovexattr", "fremovexattr"):
        kernel.sent["REMOVEXATTR"] += 1
    elif name == "copy_file_range" and not failed and result != "0":
        kernel.capability(where[-1])
        kernel.sent["COPY_FILE_RANGE"] += 1
        kernel.stale.add(where[-1])
    elif name == "fallocate" and not failed:
        kernel.capability(path)
        kernel.sent["FALLOCATE"] += 1
    elif name == "lseek" and not failed and ("SEEK_DATA" in args or "SEEK_HOLE" in args):
        kernel.sent["LSEEK"] += 1


HEAD = """| program | mount | messages | forced | by kind: sent (forced) |
| --- | --- | ---: | ---: | --- |"""


def line(name, mode, sent, forced):
    """A line of Markdown: all kinds of a program in one cell, the most frequent first."""
    kinds = sorted(set(sent) | set(forced), key=lambda kind: (-sent[kind], kind))
    cells = ", ".join(f"{kind} {sent[kind]:,} ({forced[kind]:,})" for kind in kinds)
    return f"| {name} | {mode} | {sum(sent.values()):,} | {sum(forced.values()):,} | {cells} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("unionfs", metavar="UNIONFS", type=os.path.abspath)
    parser.add_argument("--only", metavar="TEXT", default="", help="only programs whose names contain TEXT")
    parser.add_argument("--publish", action="store_true", help="also write to docs/")
    args = parser.parse_args()
    programs = [p for p in PROGRAMS if args.only in p[0]]
    if not shutil.which("npm"):
        print("npm is not installed: no figures for it")
        programs = [p for p in programs if "npm" not in p[0]]
    lines = [HEAD]
    print(HEAD)
    with tempfile.TemporaryDirectory(prefix="unionfs-messages.") as bed:
        inputs = pathlib.Path(bed) / "in"
        inputs.mkdir()
        script = INPUT if shutil.which("npm") else INPUT.split("mkdir -p npm")[0]
        bash(script, inputs, inputs)
        for program in programs:
            for mode, options in MODES.items():
                sent = count(args.unionfs, bed, inputs, program, options)
                forced = least(inputs, program, passes=mode == "default")
                lines.append(line(program[0], mode, sent, forced))
                print(lines[-1], flush=True)
    if args.publish:
        pages.publish(PAGE, BEGIN, END, "\n".join(lines))


main()
