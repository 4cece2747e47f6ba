#!/usr/bin/env python3
"""mount.py PROGRAM [--rounds N] [--layers N,N,...] [--other PROGRAM] : how long a mount takes.

Mounts images of 1, 128 and 500 small layers with unionfs, in several ways, and their directories with
kernel overlayfs, in turns. Prints the smallest and the median time until the program returns, and the
ratio to the kernel. Needs root. The kernel's mount is made by a program that makes the system calls
(benches/compare, option --mount-kernel), because mount(8) takes at most a page of options.

--other PROGRAM measures the same with another unionfs beside it, such as an older one or the static
program of ci/package.sh.
"""

import argparse
import ctypes
import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

OVERLAYFS = "redirect_dir=on,metacopy=off"
MNT_DETACH = 2
libc = ctypes.CDLL(None, use_errno=True)


def add(tar, name, data):
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def archive(path, name, count):
    """Writes an archive as `docker save` does, with one image of so many layers."""
    with tarfile.open(path, "w") as tar:
        layers, diff_ids = [], []
        for number in range(count):
            content = io.BytesIO()
            with tarfile.open(fileobj=content, mode="w") as layer:
                for directory in ("etc", "usr"):
                    entry = tarfile.TarInfo(directory)
                    entry.type = tarfile.DIRTYPE
                    entry.mode = 0o755
                    layer.addfile(entry)
                    add(layer, f"{directory}/{number}", str(number).encode())
            data = content.getvalue()
            diff_ids.append("sha256:" + hashlib.sha256(data).hexdigest())
            layers.append(f"{number}.tar")
            add(tar, layers[-1], data)
        rootfs = {"type": "layers", "diff_ids": diff_ids}
        config = {"architecture": "amd64", "os": "linux", "rootfs": rootfs}
        add(tar, "config.json", json.dumps(config).encode())
        image = {"Config": "config.json", "RepoTags": [name], "Layers": layers}
        add(tar, "manifest.json", json.dumps([image]).encode())


def bench_program():
    """Returns the path of the program benches/compare."""
    command = ["cargo", "bench", "--quiet", "--bench", "compare", "--no-run", "--message-format=json"]
    made = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    for line in made.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "compare":
            return message["executable"]
    sys.exit("cargo has made no benches/compare")


class Bed:
    """A store with images, and places to mount them."""

    def __init__(self, program, base):
        self.base = base
        self.env = {
            "PATH": os.environ["PATH"],
            "UNIONFS_STORE": str(base / "store"),
            "UNIONFS_RUNTIME_DIR": str(base / "run"),
        }
        self.program = program
        self.mnt = base / "mnt"
        self.mnt.mkdir()
        self.uppers = 0

    def run(self, *args, program=None):
        command = [program or self.program, *map(str, args)]
        done = subprocess.run(command, env=self.env, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout

    def make(self, count):
        """Returns the name of an image of so many layers, and its directories, top first."""
        name = f"layers:{count}"
        file = self.base / "image.tar"
        archive(file, name, count)
        self.run("load", "--quiet", "-i", file)
        file.unlink()
        self.run("catalog", "build", name)
        layers = json.loads(self.run("layers", "--json", name))
        return name, [layer["path"] for layer in reversed(layers)]

    def upper(self):
        self.uppers += 1
        dirs = [self.base / f"{kind}-{self.uppers}" for kind in ("upper", "work")]
        for directory in dirs:
            directory.mkdir()
        return dirs

    def timed(self, command):
        """Returns the milliseconds until the program returns. The mount is gone afterwards."""
        before = os.stat(self.mnt).st_dev
        start = time.perf_counter()
        process = os.posix_spawn(command[0], command, self.env)
        _, status = os.waitpid(process, 0)
        took = time.perf_counter() - start
        if status != 0 or os.stat(self.mnt).st_dev == before:
            sys.exit(f"{command[:6]}: not mounted, status {status}")
        if libc.umount2(os.fsencode(self.mnt), 0) != 0:
            libc.umount2(os.fsencode(self.mnt), MNT_DETACH)
        # The end of the server takes time too, which is not to be measured with the next mount.
        run = self.base / "run"
        while run.exists() and any(run.iterdir()):
            time.sleep(0.005)
        time.sleep(0.02)
        return took * 1000


def commands(bed, kernel, programs, name, directories):
    """Returns the commands that mount, by what they are called in the table."""
    mnt = str(bed.mnt)

    def by_kernel():
        upper, work = map(str, bed.upper())
        return [kernel, "--bench", "--mount-kernel", OVERLAYFS, mnt, upper, work, *directories]

    def directories_by(program):
        upper, work = bed.upper()
        options = f"lowerdir={':'.join(directories)},upperdir={upper},workdir={work}"
        return [program, "-o", options, mnt]

    def with_upper(program):
        upper, work = map(str, bed.upper())
        return [program, "mount", "--upper", upper, "--work", work, name, mnt]

    table = {"kernel": by_kernel}
    for label, program in programs:
        ways = {
            "image, read-only": lambda p=program: [p, "mount", "--read-only", name, mnt],
            "image, upper": lambda p=program: with_upper(p),
            "image, no catalog": lambda p=program: [
                p, "mount", "--read-only", "-o", "catalog=off", name, mnt,
            ],
            "directories, upper": lambda p=program: directories_by(p),
        }
        for way, command in ways.items():
            table[f"{label}{way}"] = command
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--layers", default="1,128,500")
    parser.add_argument("--other", action="append", default=[], metavar="PROGRAM")
    parser.add_argument("--kernel", help="the program benches/compare, if it is built already")
    args = parser.parse_args()
    kernel = args.kernel or bench_program()
    program = os.path.abspath(args.program)
    programs = [("", program)]
    programs += [(f"{Path(other).name}: ", os.path.abspath(other)) for other in args.other]
    with tempfile.TemporaryDirectory(prefix="unionfs-mount-", dir="/var/tmp") as base:
        bed = Bed(program, Path(base))
        print("| layers | mount | smallest, ms | ratio | median, ms | ratio |")
        print("| ---: | --- | ---: | ---: | ---: | ---: |")
        for count in map(int, args.layers.split(",")):
            name, directories = bed.make(count)
            table = commands(bed, kernel, programs, name, directories)
            times = {way: [] for way in table}
            for _ in range(args.rounds):
                for way, command in table.items():
                    times[way].append(bed.timed(command()))
            least = min(times["kernel"])
            middle = statistics.median(times["kernel"])
            for way, took in times.items():
                a, b = min(took), statistics.median(took)
                print(f"| {count} | {way} | {a:.2f} | {a / least:.2f} | {b:.2f} | {b / middle:.2f} |", flush=True)


if __name__ == "__main__":
    main()
