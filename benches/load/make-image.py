#!/usr/bin/env python3
"""make-image.py FILE [MIB [LAYERS]] : an image archive as `docker save` writes it, always the same
bytes, by default of 600 MiB in 8 layers. Called by run.sh.

What is in a layer is like what packages install: some 3,500 files of a few KiB in 250 directories,
some of 1 to 8 MiB, one of 16, symlinks and hard links. Half of the content compresses well."""
import hashlib
import io
import json
import math
import random
import sys
import tarfile

WORDS = [b"return", b"static", b"unsigned", b"struct", b"include", b"    ", b"\n", b" = ", b"();\n"]


class Hashing:
    """Writes through, and hashes."""

    def __init__(self, out):
        self.out, self.hash, self.size = out, hashlib.sha256(), 0

    def write(self, data):
        self.hash.update(data)
        self.size += len(data)
        return self.out.write(data)


def content(rng, size):
    """Text for the first half, noise for the rest."""
    text = b"".join(rng.choices(WORDS, k=512))
    half = (text * (size // (2 * len(text)) + 1))[: size // 2]
    return half + rng.randbytes(size - len(half))


def sizes(rng, total):
    """Two parts in five small, of which the median is 4 KiB; the others big."""
    small, big = total * 2 // 5, total * 3 // 5
    while small > 0:
        size = min(int(math.exp(rng.gauss(math.log(4096), 1.3))), 512 << 10)
        small -= size
        yield size
    yield 16 << 20
    big -= 16 << 20
    while big > 0:
        size = min(rng.randint(1 << 20, 8 << 20), big)
        big -= size
        yield size


def layer(out, number, total):
    """One layer's tar."""
    rng = random.Random(number)
    tar = tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20)

    def add(name, kind=tarfile.REGTYPE, mode=0o644, data=b"", link=""):
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.linkname = kind, mode, link
        info.size, info.mtime = len(data), 1_700_000_000 + rng.randint(0, 10_000_000)
        tar.addfile(info, io.BytesIO(data))

    top = f"usr/lib/package-{number}"
    for path in ("usr", "usr/lib", top):
        add(path, tarfile.DIRTYPE, 0o755)
    files = list(sizes(rng, total))
    rng.shuffle(files)
    for at, size in enumerate(files):
        directory = f"{top}/part-{at // 14:03}"
        if at % 14 == 0:
            add(directory, tarfile.DIRTYPE, 0o755)
        name = f"{directory}/file-{at:05}"
        add(name, mode=rng.choice((0o644, 0o644, 0o755)), data=content(rng, size))
        if at % 40 == 0:
            add(f"{name}.so", tarfile.SYMTYPE, 0o777, link=f"file-{at:05}")
        if at % 200 == 0:
            add(f"{name}-same", tarfile.LNKTYPE, link=name)
    tar.close()


def main():
    path = sys.argv[1]
    mib, layers = (int(arg) for arg in (sys.argv[2:] + ["600", "8"][len(sys.argv) - 2 :]))
    diff_ids, names = [], []
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:

        def add(name, data, size):
            info = tarfile.TarInfo(name)
            info.size = size
            archive.addfile(info, data)

        for number in range(layers):
            made = io.BytesIO()
            hashing = Hashing(made)
            layer(hashing, number, (mib << 20) // layers)
            made.seek(0)
            diff_ids.append("sha256:" + hashing.hash.hexdigest())
            names.append(hashing.hash.hexdigest() + "/layer.tar")
            add(names[-1], made, hashing.size)
        config = {
            "architecture": "amd64",
            "os": "linux",
            "created": "2024-01-01T00:00:00Z",
            "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created_by": f"layer {number}"} for number in range(layers)],
        }
        config = json.dumps(config).encode()
        config_name = hashlib.sha256(config).hexdigest() + ".json"
        add(config_name, io.BytesIO(config), len(config))
        manifest = [{"Config": config_name, "RepoTags": ["bench-load:1"], "Layers": names}]
        manifest = json.dumps(manifest).encode()
        add("manifest.json", io.BytesIO(manifest), len(manifest))


main()
