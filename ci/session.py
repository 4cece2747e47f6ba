#!/usr/bin/env python3
"""Records docs/session.svg: runs a short session on a sample store and draws its real output.

Usage: ci/session.py UNIONFS SAMPLE_STORE [OUT]

UNIONFS is the program, SAMPLE_STORE the built example of that name. Needs root, unshare(1) and
FUSE. The session runs in a mount namespace of its own, in which a temporary directory is /mnt, and
with a store and a runtime directory of its own. Nothing of it stays.
"""
import html
import os
import pathlib
import subprocess
import sys
import tempfile

COMMANDS = [
    "unionfs load --quiet -i sample.tar",
    "unionfs images",
    "unionfs mount --name work sample:2 /mnt",
    "echo hello > /mnt/etc/motd",
    "head -2 /mnt/etc/os-release",
    "rm -r /mnt/usr/share/doc",
    "unionfs diff work",
    "unionfs commit --quiet work sample:3",
    "unionfs umount /mnt",
    "unionfs images",
]
OUT = pathlib.Path(__file__).parent.parent / "docs" / "session.svg"
# Of the picture, in pixels: a character's width at this font size, a line's height.
FONT, WIDTH, HEIGHT, MARGIN, BAR = 14, 8.43, 20, 20, 32
BACKGROUND, FRAME, TEXT, PROMPT = "#1e2127", "#2b2f37", "#d7dae0", "#7fb685"


def record(unionfs, sample_store):
    """The session's lines: those of a prompt begin with `$ `."""
    lines = []
    with tempfile.TemporaryDirectory(prefix="unionfs-session.") as top:
        for name in ("bin", "mnt", "run"):
            os.mkdir(f"{top}/{name}")
        os.symlink(os.path.abspath(unionfs), f"{top}/bin/unionfs")
        env = dict(
            os.environ,
            PATH=f"{top}/bin:{os.environ['PATH']}",
            UNIONFS_STORE=f"{top}/store",
            UNIONFS_RUNTIME_DIR=f"{top}/run",
        )
        quiet = {"check": True, "env": env, "stdout": subprocess.DEVNULL}
        subprocess.run([sample_store, f"{top}/docker"], **quiet)
        save = [unionfs, "--root", f"{top}/docker", "save", "--quiet", "sample:1", "sample:2"]
        subprocess.run([*save, "-o", f"{top}/sample.tar"], **quiet)
        # A shell that lives through the session, as a user's does, and says when each command has ended.
        script = f"mount --bind {top}/mnt /mnt && exec bash"
        shell = subprocess.Popen(
            ["unshare", "--mount", "bash", "-c", script],
            cwd=top,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        end = "--end of the command: "
        for command in COMMANDS:
            shell.stdin.write(f"{command}\necho '{end}'$?\n")
            shell.stdin.flush()
            lines.append(f"$ {command}")
            while not (line := shell.stdout.readline()).startswith(end):
                if not line:
                    sys.exit("the shell has ended")
                lines.append(line.rstrip("\n"))
            if line != f"{end}0\n":
                sys.exit("\n".join(lines))
        shell.stdin.close()
        shell.wait()
    return lines


def draw(lines):
    """The SVG of a terminal with these lines."""
    width = round(max(map(len, lines)) * WIDTH + 2 * MARGIN)
    height = len(lines) * HEIGHT + BAR + MARGIN
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img">'
    )
    yield "<title>A terminal session with unionfs</title>"
    yield f'<rect width="{width}" height="{height}" rx="8" fill="{BACKGROUND}"/>'
    yield f'<path d="M0 {BAR - 6}V8a8 8 0 0 1 8-8H{width - 8}a8 8 0 0 1 8 8V{BAR - 6}z" fill="{FRAME}"/>'
    for at, colour in enumerate(("#e06c75", "#e5c07b", "#98c379")):
        yield f'<circle cx="{18 + 20 * at}" cy="13" r="6" fill="{colour}"/>'
    yield (
        f'<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, \'DejaVu Sans Mono\', monospace" '
        f'font-size="{FONT}" fill="{TEXT}" xml:space="preserve">'
    )
    for at, line in enumerate(lines):
        y = BAR + 14 + at * HEIGHT
        text = html.escape(line, quote=False)
        if text.startswith("$ "):
            text = f'<tspan fill="{PROMPT}">$</tspan><tspan font-weight="bold">{text[1:]}</tspan>'
        # The length makes columns stand where they stood, in every font.
        length = round(len(line) * WIDTH, 1)
        if line:
            yield f'<text x="{MARGIN}" y="{y}" textLength="{length}">{text}</text>'
    yield "</g></svg>"


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    lines = record(*sys.argv[1:3])
    out = pathlib.Path(sys.argv[3]) if len(sys.argv) == 4 else OUT
    out.write_text("\n".join(draw(lines)) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
