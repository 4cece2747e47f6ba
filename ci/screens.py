#!/usr/bin/env python3
"""Records docs/guide/screens.md: what commands show on a terminal of 100 columns.

Usage: ci/screens.py UNIONFS SAMPLE_STORE [OUT]

UNIONFS is the program, SAMPLE_STORE the built example of that name. Needs root, tmux, unshare(1) and FUSE.
The terminal is one of tmux, in a mount namespace in which a temporary directory is /mnt and the stores of
other engines are hidden. `pull` gets its image from a slow registry of this script. Nothing of it stays.
"""
import http.server
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

COLUMNS, LINES = 100, 50
OUT = pathlib.Path(__file__).parent.parent / "docs" / "guide" / "screens.md"
PORT = 5000
# Not shown: what the screens need.
BEFORE = [
    "unionfs load -q -i sample.tar",
    "unionfs mount --name work sample:2 /mnt",
    "echo hello > /mnt/etc/motd",
    "unionfs mount -r sample:1",
]
# The heading, the command, and the text that ends the wait before the command has ended.
SCREENS = [
    ("Images", "unionfs images", None),
    ("Mounts, and read-write layers that are not mounted", "unionfs ps -a", None),
    ("Disk usage", "unionfs df", None),
    ("Layers", "unionfs layers", None),
    ("Changes between two images", "unionfs diff sample:1 sample:2", None),
    ("A pull that is under way", f"unionfs pull localhost:{PORT}/team/app:2", "downloading"),
    ("The system", "unionfs doctor", None),
]
HIDDEN = ["/var/lib/docker", "/var/lib/containers", "/var/lib/containerd"]


class Registry(http.server.BaseHTTPRequestHandler):
    """Gives out one image of an OCI layout, slowly."""

    layout = pathlib.Path()

    def do_GET(self):
        blobs = self.layout / "blobs" / "sha256"
        what = self.path.rsplit("/", 1)[-1]
        if self.path.rstrip("/") == "/v2":
            return self.answer(b"{}", "application/json")
        if "/manifests/" in self.path and not what.startswith("sha256:"):
            index = json.loads((self.layout / "index.json").read_text())
            what = index["manifests"][0]["digest"]
        file = blobs / what.removeprefix("sha256:")
        if not file.is_file():
            return self.send_error(404)
        kind = "octet-stream" if "/blobs/" in self.path else "vnd.oci.image.manifest.v1+json"
        return self.answer(file.read_bytes(), f"application/{kind}")

    do_HEAD = do_GET

    def answer(self, body, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        step = max(1, len(body) // 40)
        for at in range(0, len(body), step):
            self.wfile.write(body[at : at + step])
            if len(body) > 100_000:
                time.sleep(0.1)

    def log_message(self, *_):
        pass


class Terminal:
    """A terminal of tmux."""

    def __init__(self, top, env):
        self.tmux = ["tmux", "-f", "/dev/null", "-S", f"{top}/tmux"]
        hide = "".join(f"[ -d {d} ] && mount -t tmpfs none {d}; " for d in HIDDEN)
        new = f"{' '.join(self.tmux)} new-session -d -x {COLUMNS} -y {LINES} \"env PS1='$ ' bash --norc --noprofile\""
        script = f"mount --bind {top}/mnt /mnt; {hide}{new}"
        subprocess.run(["unshare", "--mount", "bash", "-c", script], cwd=top, env=env, check=True)

    def run(self, command, end=None):
        """Runs a command on a clear screen, and returns the screen without the prompt at its end."""
        self.call("send-keys", "-R", "clear; tmux clear-history", "Enter")
        self.wait(lambda lines: lines == ["$"])
        self.call("send-keys", command, "Enter")
        if end:
            return self.wait(lambda lines: len(lines) > 1 and any(end in line for line in lines))
        return self.wait(lambda lines: len(lines) > 1 and lines[-1] == "$")[:-1]

    def wait(self, done):
        for _ in range(600):
            text = self.call("capture-pane", "-p")
            lines = [line.rstrip() for line in text.rstrip().split("\n")]
            if done(lines):
                return lines
            time.sleep(0.1)
        sys.exit("the terminal did not get there:\n" + "\n".join(lines))

    def call(self, *args):
        done = subprocess.run([*self.tmux, *args], check=True, capture_output=True, text=True)
        return done.stdout


def record(unionfs, sample_store):
    with tempfile.TemporaryDirectory(prefix="unionfs-screens.") as top:
        for name in ("bin", "mnt", "run", "home"):
            os.mkdir(f"{top}/{name}")
        os.symlink(os.path.abspath(unionfs), f"{top}/bin/unionfs")
        keep = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        env = dict(
            keep,
            HOME=f"{top}/home",
            LC_ALL="C.UTF-8",
            PATH=f"{top}/bin:{keep['PATH']}",
            TERM="screen",
            UNIONFS_STORE=f"{top}/store",
            UNIONFS_RUNTIME_DIR=f"{top}/run",
        )
        quiet = {"check": True, "env": env, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([sample_store, f"{top}/docker"], **quiet)
        save = [unionfs, "--root", f"{top}/docker", "save", "sample:1", "sample:2"]
        subprocess.run([*save, "-o", f"{top}/sample.tar"], **quiet)
        # An image with layers that take a while.
        os.makedirs(f"{top}/large/usr/lib")
        for number in range(3):
            pathlib.Path(f"{top}/large/usr/lib/{number}").write_bytes(os.urandom(4_000_000))
            made = f"layer:{number}"
            if number == 0:
                subprocess.run([unionfs, "import", f"{top}/large", made], **quiet)
        copy = [unionfs, "copy", "layer:0", f"oci:{top}/layout:2"]
        subprocess.run(copy, **quiet)
        subprocess.run([unionfs, "rmi", "layer:0"], **quiet)
        Registry.layout = pathlib.Path(f"{top}/layout")
        server = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Registry)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        terminal = Terminal(top, env)
        try:
            for command in BEFORE:
                terminal.run(command)
            screens = [(title, terminal.run(command, end)) for title, command, end in SCREENS]
            terminal.run("", "$")
            terminal.wait(lambda lines: lines[-1] == "$")
            terminal.run("for dir in $(unionfs ps -q); do unionfs umount $dir; done")
        finally:
            terminal.call("kill-server")
            server.shutdown()
    return [(title, [line.replace(top, "/tmp/demo") for line in lines]) for title, lines in screens]


def page(screens):
    yield "# Screens"
    yield ""
    yield f"What commands show on a terminal of {COLUMNS} columns. `ci/screens.py` records this page with tmux."
    for title, lines in screens:
        yield from ("", f"## {title}", "", "```text", *lines, "```")


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    screens = record(*sys.argv[1:3])
    out = pathlib.Path(sys.argv[3]) if len(sys.argv) == 4 else OUT
    out.write_text("\n".join(page(screens)) + "\n")
    print(out.read_text())


if __name__ == "__main__":
    main()
