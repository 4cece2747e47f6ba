#!/usr/bin/env python3
"""Where the time of an operation goes: flame graphs and a table, for docs/PROFILE.md.

usage: profile.py UNIONFS OUT [-o OPTION]...

Mounts a small tree with UNIONFS and with kernel overlayfs, runs each workload on both, and
writes OUT/profile.md (per operation: wall time, processor time of the client and of the
server in user mode and in the kernel, and what is left: nobody ran, both waited to be woken)
and OUT/flame-WORKLOAD.svg of the whole machine meanwhile. Called by `just profile`. Needs
root, perf and inferno-* (`cargo install inferno`); build UNIONFS with frame pointers.
"""
import os
import resource
import subprocess
import sys
import tempfile
import time

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


# The walk comes first: it is to be cold.
WORKLOADS = [walk, open_close, create, rename, unlink, mkdir, chmod, write]


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
        draw(flame, f"{workload.__name__}: the whole machine")
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
    # Idle processors and the profiler itself are not of interest; threads of the pool are one.
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


def main():
    unionfs, out = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
    options = [o for o in sys.argv[3:] if o != "-o"]
    os.makedirs(out, exist_ok=True)
    rows = []
    for flames in (False, True):
        with tempfile.TemporaryDirectory(prefix="unionfs-profile.") as bed:
            lower = f"{bed}/lower"
            for d in range(300):
                os.makedirs(f"{lower}/d{d}")
                for f in range(10):
                    with open(f"{lower}/d{d}/f{f}", "w") as file:
                        file.write(str(f))
            for subject in ("kernel", "unionfs"):
                if flames and subject == "kernel":
                    continue
                top = f"{bed}/{subject}"
                for part in ("", "/upper", "/work", "/m"):
                    os.mkdir(top + part)
                stack = f"lowerdir={lower},upperdir={top}/upper,workdir={top}/work"
                if subject == "kernel":
                    command = ["mount", "-t", "overlay", "overlay", "-o", stack, f"{top}/m"]
                else:
                    command = [unionfs, "-o", ",".join([stack, *options]), f"{top}/m"]
                subprocess.run(command, check=True)
                try:
                    server = None
                    if subject == "unionfs":
                        server = int(subprocess.run(["pgrep", "-n", "-f", f"{top}/m$"], check=True,
                                                    stdout=subprocess.PIPE).stdout)
                    for workload in WORKLOADS:
                        flame = f"{out}/flame-{workload.__name__}" if flames else None
                        row = measure(workload, f"{top}/m", server, flame)
                        if not flames:
                            rows.append((workload.__name__, subject, row))
                finally:
                    subprocess.run(["umount", f"{top}/m"], check=True)
    with open(f"{out}/profile.md", "w") as report:
        for file in (report, sys.stdout):
            print("| operation | subject | wall | client | server, user | server, kernel | nobody ran |", file=file)
            print("| --- | --- | ---: | ---: | ---: | ---: | ---: |", file=file)
            for name, subject, row in sorted(rows, key=lambda r: [w.__name__ for w in WORKLOADS].index(r[0])):
                cells = " | ".join(f"{x:.1f}" for x in row)
                print(f"| {name} | {subject} | {cells} |", file=file)


main()
