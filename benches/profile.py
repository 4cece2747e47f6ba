#!/usr/bin/env python3
"""Where the time of an operation goes: flame graphs and a table, for docs/PROFILE.md.

Mounts a small tree with UNIONFS, through /dev/fuse and over io_uring, and with kernel
overlayfs, runs each workload on all of them, and writes OUT/profile.md (per operation: wall
time, processor time of the client and of the server in user mode and in the kernel, and what
is left: waiting, when neither ran) and OUT/flame-WORKLOAD[-uring].svg of client and
server. With --publish the table and the graphs of PUBLISHED go to docs/ too. Called by `just
profile`. Needs root, perf and inferno-* (`cargo install inferno`); build UNIONFS with frame
pointers.
"""
import argparse
import contextlib
import pathlib
import shutil
import os
import resource
import subprocess
import sys
import tempfile
import time

import pages

COUNT = 3000


def names(top, count=COUNT):
    return [f"{top}/f{i}" for i in range(count)]


def make(top):
    for name in names(top):
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY))


def create(top):
    os.mkdir(f"{top}/new")
    yield COUNT
    for name in names(f"{top}/new"):
        fd = os.open(name, os.O_CREAT | os.O_WRONLY)
        os.write(fd, b"x")
        os.close(fd)


def unlink(top):
    os.mkdir(f"{top}/gone")
    make(f"{top}/gone")
    yield COUNT
    for name in names(f"{top}/gone"):
        os.unlink(name)


def rename(top):
    os.mkdir(f"{top}/moved")
    make(f"{top}/moved")
    yield COUNT
    for name in names(f"{top}/moved"):
        os.rename(name, name + "x")


def mkdir(top):
    yield COUNT
    for name in names(top):
        os.mkdir(name)


def walk(top):
    yield 3300
    for dir, dirs, files in os.walk(top):
        for name in files:
            os.lstat(f"{dir}/{name}")


def chmod(top):
    yield 1000
    for d in range(100):
        for f in range(10):
            os.chmod(f"{top}/d{d}/f{f}", 0o600)


def write(top):
    fd = os.open(f"{top}/data", os.O_CREAT | os.O_WRONLY)
    block = bytes(4096)
    yield 20000
    for _ in range(20000):
        os.write(fd, block)
    os.close(fd)


def open_close(top):
    yield 20000
    for _ in range(20000):
        os.close(os.open(f"{top}/d1/f1", os.O_RDONLY))


# The walk comes first, because it must be cold.
WORKLOADS = [walk, open_close, create, rename, unlink, mkdir, chmod, write]
# Name, whether it is unionfs, options.
SUBJECTS = [
    ("kernel", False, []),
    ("unionfs", True, []),
    ("unionfs transport=uring", True, ["transport=uring"]),
]
SWITCH = pathlib.Path("/sys/module/fuse/parameters/enable_uring")
DOCS = pathlib.Path(__file__).parent.parent / "docs"
PUBLISHED = ["walk", "create", "unlink", "write", "walk-uring", "rename-uring", "unlink-uring"]
# The position of the table in docs/PROFILE.md.
BEGIN, END = "<!-- table of `just profile --publish` -->", "<!-- end of the table -->"


def run_ns(pid):
    """Processor time of a process's threads so far, and its share in user mode, in ns."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat") as f:
            total += int(f.read().split()[0])
    with open(f"/proc/{pid}/stat") as f:
        user, system = map(int, f.read().rsplit(") ", 1)[1].split()[11:13])
    return total, user, system


def measure(workload, top, server, flame):
    """A row: microseconds per operation."""
    steps = workload(top)
    count = next(steps)
    perf = None
    if flame:
        perf = subprocess.Popen(
            ["perf", "record", "-q", "-a", "-g", "-e", "cpu-clock", "-F", "5000", "-o", flame + ".data"],
            stderr=subprocess.DEVNULL)
        time.sleep(1)
    before = run_ns(server) if server else (0, 0, 0)
    mine = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    for _ in steps:
        pass
    wall = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_SELF)
    after = run_ns(server) if server else (0, 0, 0)
    if perf:
        perf.send_signal(2)
        perf.wait()
        draw(flame, f"{os.path.basename(flame)[6:]}: client and server")
    client = (used.ru_utime - mine.ru_utime) + (used.ru_stime - mine.ru_stime)
    total = (after[0] - before[0]) / 1e9
    ticks = max(1, sum(after[1:]) - sum(before[1:]))
    user = total * (after[1] - before[1]) / ticks
    return [x / count * 1e6 for x in (wall, client, user, total - user, max(0, wall - client - total))]


def draw(flame, title):
    script = subprocess.run(["perf", "script", "-i", flame + ".data"], stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, check=True).stdout
    folded = subprocess.run(["inferno-collapse-perf"], input=script, stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, check=True).stdout
    # Idle processors and the profiler itself are left out. The threads of the server are merged.
    keep = []
    for line in folded.decode(errors="replace").splitlines():
        comm = line.split(";", 1)[0]
        if comm.startswith("unionfs"):
            keep.append("unionfs" + line[len(comm):])
        elif comm.startswith("python"):
            keep.append("client" + line[len(comm):])
    svg = subprocess.run(["inferno-flamegraph", "--title", title, "--minwidth", "0.5"],
                         input="\n".join(keep).encode(), stdout=subprocess.PIPE, check=True).stdout
    with open(flame + ".svg", "wb") as f:
        f.write(svg)
    os.unlink(flame + ".data")


def make_lower(lower):
    for d in range(300):
        os.makedirs(f"{lower}/d{d}")
        for f in range(10):
            with open(f"{lower}/d{d}/f{f}", "w") as file:
                file.write(str(f))


@contextlib.contextmanager
def io_uring_allowed():
    """The switch is the whole machine's: on only while we mount."""
    before = SWITCH.read_text()
    SWITCH.write_text("Y")
    try:
        yield
    finally:
        SWITCH.write_text(before)


@contextlib.contextmanager
def mounted(unionfs, bed, subject, more_options):
    """Yields the mountpoint and the server's process ID, None for the kernel."""
    name, is_ours, options = subject
    top = tempfile.mkdtemp(dir=bed)
    for part in ("upper", "work", "m"):
        os.mkdir(f"{top}/{part}")
    stack = f"lowerdir={bed}/lower,upperdir={top}/upper,workdir={top}/work"
    if is_ours:
        command = [unionfs, "-o", ",".join([stack, *options, *more_options]), f"{top}/m"]
    else:
        command = ["mount", "-t", "overlay", "overlay", "-o", stack, f"{top}/m"]
    with io_uring_allowed() if options else contextlib.nullcontext():
        subprocess.run(command, check=True)
    try:
        server = None
        if is_ours:
            found = subprocess.run(["pgrep", "-n", "-f", f"{top}/m$"], check=True, stdout=subprocess.PIPE)
            server = int(found.stdout)
        yield f"{top}/m", server
    finally:
        subprocess.run(["umount", f"{top}/m"], check=True)


def table(rows):
    yield "| operation | subject | wall | client | server, user | server, kernel | waiting |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    order = [w.__name__ for w in WORKLOADS]
    for name, subject, row in sorted(rows, key=lambda r: order.index(r[0])):
        cells = " | ".join(f"{x:.1f}" for x in row)
        yield f"| {name} | {subject} | {cells} |"


def publish(out, text):
    for name in PUBLISHED:
        shutil.copy(out / f"flame-{name}.svg", DOCS / "bench")
    pages.publish(DOCS / "PROFILE.md", BEGIN, END, text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("unionfs", metavar="UNIONFS", type=os.path.abspath)
    parser.add_argument("out", metavar="OUT", type=pathlib.Path)
    parser.add_argument("-o", dest="options", metavar="OPTION", action="append", default=[],
                        help="a mount option more, for all mounts of ours")
    parser.add_argument("--publish", action="store_true", help="also write to docs/")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    subjects = [s for s in SUBJECTS if SWITCH.exists() or not s[2]]
    rows = []
    with tempfile.TemporaryDirectory(prefix="unionfs-profile.") as bed:
        make_lower(f"{bed}/lower")
        # First the times without the profiler, which slows the workloads down; then the graphs.
        for subject in subjects:
            with mounted(args.unionfs, bed, subject, args.options) as (top, server):
                for workload in WORKLOADS:
                    rows.append((workload.__name__, subject[0], measure(workload, top, server, None)))
        for subject in [s for s in subjects if s[1]]:
            with mounted(args.unionfs, bed, subject, args.options) as (top, server):
                for workload in WORKLOADS:
                    name = workload.__name__ + ("-uring" if subject[2] else "")
                    measure(workload, top, server, str(args.out / f"flame-{name}"))
    text = "\n".join(table(rows))
    (args.out / "profile.md").write_text(text + "\n")
    print(text)
    if args.publish:
        publish(args.out, text)


main()
