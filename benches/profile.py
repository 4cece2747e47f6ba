#!/usr/bin/env python3
"""Where the time of an operation goes: flame graphs and a table, for docs/PROFILE.md.

Mounts a small tree with UNIONFS, through /dev/fuse and over io_uring, and with kernel
overlayfs, runs each workload on all of them, and writes OUT/profile.md and
OUT/flame-WORKLOAD[-uring].svg of client and server. The table has for each operation the wall
time and whose it is (SHARES). The processor times of client and server come from a run without
perf, and perf's samples of another run divide them. With --publish the table and the graphs of
PUBLISHED go to docs/ too. Called by `just profile`. Needs root, git, mkfs.ext4, perf and inferno-*
(`cargo install inferno`); build UNIONFS with frame pointers.
"""
import argparse
import collections
import contextlib
import mmap
import pathlib
import random
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


def writes(name, flags, size):
    fd = os.open(name, os.O_CREAT | os.O_WRONLY | flags)
    block = bytes(size)
    yield 20000
    for _ in range(20000):
        os.write(fd, block)
    os.close(fd)


def write(top):
    return writes(f"{top}/data", 0, 4096)


def append(top):
    return writes(f"{top}/log", os.O_APPEND, 100)


def open_close(top):
    yield 20000
    for _ in range(20000):
        os.close(os.open(f"{top}/d1/f1", os.O_RDONLY))


def seqread(top):
    """Of a file in the page cache of the layer; an operation is a read of 128 KiB."""
    buffer = bytearray(128 << 10)
    with open(f"{top}/big", "rb", buffering=0) as file:
        yield BIG // len(buffer)
        while file.readinto(buffer):
            pass


def places(count):
    """Pages of the big file, each once, in a random order that is always the same."""
    pages = list(range(BIG // 4096))
    random.Random(1).shuffle(pages)
    return [page * 4096 for page in pages[:count]]


def randread(top):
    fd = os.open(f"{top}/big2", os.O_RDONLY)
    offsets = places(20000)
    yield len(offsets)
    for offset in offsets:
        os.pread(fd, 4096, offset)
    os.close(fd)


def mmapread(top):
    fd = os.open(f"{top}/big3", os.O_RDONLY)
    offsets = places(20000)
    with mmap.mmap(fd, BIG, prot=mmap.PROT_READ) as mapped:
        yield len(offsets)
        for offset in offsets:
            mapped[offset]
    os.close(fd)


def untar(top):
    os.mkdir(f"{top}/untar")
    yield COUNT
    subprocess.run(["tar", "-C", f"{top}/untar", "-xf", BED / "files.tar"], check=True)


def git_clone(top):
    yield COUNT
    subprocess.run(["git", "clone", "-q", BED / "repository", f"{top}/clone"], check=True)
    subprocess.run(["git", "-C", f"{top}/clone", "status", "--short"], check=True)


# The directory of the layers and of what workloads read. main() sets it.
BED = None
# The length of the files that are read, in bytes.
BIG = 256 << 20
# The walk comes first, because it must be cold.
WORKLOADS = [walk, open_close, create, rename, unlink, mkdir, chmod, write, append, seqread, randread,
             mmapread, untar, git_clone]
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

# Whose time it is: the program and the file systems as without FUSE; the FUSE module of the kernel, on
# both sides, and the switches between them; the calls of the server on the layers; the server's own
# code; neither ran.
SHARES = ["program", "FUSE", "layers", "server", "waiting"]
# The beginnings of functions of the kernel that are FUSE's.
FUSE_CALLS = ("fuse_", "io_uring", "__io_uring")
# Those in which the scheduler switches to another thread.
SWITCHES = ("schedule_[k]", "__schedule_[k]", "exit_to_user_mode_loop")
# System calls of the server that are no work on the layers.
OWN_CALLS = tuple("__x64_sys_" + call for call in (
    "futex", "sched_", "mmap", "munmap", "mprotect", "madvise", "clock_", "poll", "epoll_", "rt_sig"))


def run_ns(pid):
    """Processor time of a process's threads so far, in ns."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat") as f:
            total += int(f.read().split()[0])
    return total


def used():
    """Processor time of this process and of its children so far, in seconds."""
    times = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(t.ru_utime + t.ru_stime for t in times)


def measure(workload, top, server):
    """Microseconds per operation: wall time, processor time of the client and of the server."""
    steps = workload(top)
    count = next(steps)
    before = run_ns(server) if server else 0
    mine = used()
    start = time.perf_counter()
    for _ in steps:
        pass
    wall = time.perf_counter() - start
    client = used() - mine
    total = (run_ns(server) - before) / 1e9 if server else 0
    return [x / count * 1e6 for x in (wall, client, total)]


def sample(workload, top, flame):
    """Runs a workload with perf, and draws it. Returns the numbers of samples of the client and of the
    server, by share."""
    steps = workload(top)
    next(steps)
    data = flame + ".data"
    perf = subprocess.Popen(
        ["perf", "record", "-q", "-a", "-g", "-e", "cpu-clock", "-F", "5000", "-o", data],
        stderr=subprocess.DEVNULL)
    time.sleep(1)
    for _ in steps:
        pass
    perf.send_signal(2)
    perf.wait()
    script = subprocess.run(["perf", "script", "-i", data], stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, check=True).stdout
    os.unlink(data)
    draw(flame, f"{os.path.basename(flame)[6:]}: client and server", fold(script))
    shares = {True: collections.Counter(), False: collections.Counter()}
    for is_server, frames, count in fold(script, "--kernel"):
        shares[is_server][share(is_server, frames)] += count
    return shares[False], shares[True]


def share(is_server, frames):
    """Whose time a sample is, by its functions. Those of the kernel end with _[k]."""
    if any(frame.startswith(FUSE_CALLS) for frame in frames):
        return "FUSE"
    # The caller that an answer has woken takes the CPU.
    if is_server and any(frame.startswith(SWITCHES) for frame in frames):
        return "FUSE"
    if not is_server:
        return "program"
    calls = [frame for frame in frames if frame.startswith("__x64_sys_")]
    return "layers" if any(not call.startswith(OWN_CALLS) for call in calls) else "server"


def fold(script, *options):
    """The samples of client and server: whether it is the server's, its functions, the number of them.
    Idle processors and the profiler itself are left out. The threads of the server are merged."""
    folded = subprocess.run(["inferno-collapse-perf", *options], input=script, stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, check=True).stdout
    for line in folded.decode(errors="replace").splitlines():
        stack, count = line.rsplit(" ", 1)
        comm, *frames = stack.split(";")
        if not comm.startswith(("swapper", "perf", "kworker", "ksoftirqd", "rcu", "migration", "kdamond")):
            yield comm.startswith("unionfs"), frames, int(count)


def draw(flame, title, samples):
    lines = [";".join(["unionfs" if is_server else "client", *frames]) + f" {count}"
             for is_server, frames, count in samples]
    svg = subprocess.run(["inferno-flamegraph", "--title", title, "--minwidth", "0.5"],
                         input="\n".join(lines).encode(), stdout=subprocess.PIPE, check=True).stdout
    with open(flame + ".svg", "wb") as f:
        f.write(svg)


def make_lower(lower):
    for d in range(300):
        os.makedirs(f"{lower}/d{d}")
        for f in range(10):
            with open(f"{lower}/d{d}/f{f}", "w") as file:
                file.write(str(f))
    for name in ("big", "big2", "big3"):
        with open(f"{lower}/{name}", "wb") as file:
            for _ in range(BIG >> 20):
                file.write(random.Random(1).randbytes(1 << 20))


def make_inputs(bed):
    """What is unpacked and cloned: COUNT small files."""
    repository = f"{bed}/repository"
    for d in range(COUNT // 50):
        os.makedirs(f"{repository}/d{d}")
        for f in range(50):
            with open(f"{repository}/d{d}/f{f}", "w") as file:
                file.write(f"{d} {f}\n" * 100)
    subprocess.run(["tar", "-C", repository, "-cf", f"{bed}/files.tar", "."], check=True)
    git = ["git", "-C", repository, "-c", "user.name=n", "-c", "user.email=e@localhost"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "files"], check=True)


@contextlib.contextmanager
def disk():
    """A new ext4 with a journal: one without looks at each inode that was deleted in the last minutes
    before it takes a free one, which would add to each create."""
    with tempfile.TemporaryDirectory(prefix="unionfs-profile.") as top:
        image, bed = f"{top}/image", f"{top}/bed"
        with open(image, "wb") as file:
            file.truncate(8 << 30)
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
        os.mkdir(bed)
        subprocess.run(["mount", "-o", "loop", image, bed], check=True)
        try:
            yield bed
        finally:
            subprocess.run(["umount", bed], check=True)


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
            found = subprocess.run(["pgrep", "-f", f"{top}/m$"], check=True, stdout=subprocess.PIPE)
            # The keeper of the mount has the same command line.
            server = max(map(int, found.stdout.split()), key=threads)
        yield f"{top}/m", server
    finally:
        subprocess.run(["umount", f"{top}/m"], check=True)


def row(times, samples):
    """The cells of a row: wall time, and what is SHARES' of it."""
    wall, client, server = times
    client_samples, server_samples = samples or (collections.Counter(program=1), collections.Counter(server=1))
    parts = collections.Counter(waiting=max(0, wall - client - server))
    for time_used, counted in ((client, client_samples), (server, server_samples)):
        for name, count in counted.items():
            parts[name] += time_used * count / sum(counted.values())
    return [wall, *(parts[name] for name in SHARES)]


def threads(pid):
    return len(os.listdir(f"/proc/{pid}/task"))


def table(rows):
    yield "| operation | subject | wall | " + " | ".join(SHARES) + " |"
    yield "| --- | --- | ---: |" + " ---: |" * len(SHARES)
    order = [w.__name__ for w in WORKLOADS]
    for name, subject, cells in sorted(rows, key=lambda r: order.index(r[0])):
        yield f"| {name} | {subject} | " + " | ".join(f"{x:.1f}" for x in cells) + " |"


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
    times, rows = {}, []
    global BED
    with disk() as bed:
        BED = pathlib.Path(bed)
        os.mkdir(BED / "lower")
        make_lower(f"{bed}/lower")
        make_inputs(bed)
        os.sync()
        # First the times without the profiler, which slows the workloads down; then the graphs.
        for subject in subjects:
            with mounted(args.unionfs, bed, subject, args.options) as (top, server):
                for workload in WORKLOADS:
                    times[workload, subject[0]] = measure(workload, top, server)
        for subject in subjects:
            samples = {}
            if subject[1]:
                with mounted(args.unionfs, bed, subject, args.options) as (top, _):
                    for workload in WORKLOADS:
                        name = workload.__name__ + ("-uring" if subject[2] else "")
                        samples[workload] = sample(workload, top, str(args.out / f"flame-{name}"))
            for workload in WORKLOADS:
                cells = row(times[workload, subject[0]], samples.get(workload))
                rows.append((workload.__name__, subject[0], cells))
    text = "\n".join(table(rows))
    (args.out / "profile.md").write_text(text + "\n")
    print(text)
    if args.publish:
        publish(args.out, text)


main()
