# automount.py MOUNTPOINT COMMAND... : puts an automount point on a directory, with the system calls of systemd for
# x-systemd.automount (src/core/automount.c: a direct mount of autofs(5)), reads the directory as another program does,
# and runs COMMAND, which must mount. As in systemd (`same_pgrp` of mount units), COMMAND is in the process group of
# this process: only its accesses do not wait for the mount.
import ctypes
import fcntl
import os
import struct
import subprocess
import sys

libc = ctypes.CDLL(None, use_errno=True)
# AUTOFS_IOC_READY and AUTOFS_IOC_FAIL of linux/auto_fs.h; autofs_ptype_missing_direct.
READY, FAIL, MISSING_DIRECT = 0x9360, 0x9361, 5
mountpoint, *command = sys.argv[1:]
os.setpgid(0, 0)
ours, theirs = os.pipe()
options = f"fd={theirs},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct"
if libc.mount(b"systemd-1", mountpoint.encode(), b"autofs", 0, options.encode()) != 0:
    sys.exit("autofs: " + os.strerror(ctypes.get_errno()))
os.close(theirs)
point = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
user = subprocess.Popen(["ls", "-A", mountpoint], stdout=subprocess.PIPE, text=True, start_new_session=True)
version, kind, token = struct.unpack_from("iiI", os.read(ours, 304))
assert (version, kind) == (5, MISSING_DIRECT), (version, kind)
mount = subprocess.Popen(command)
try:
    code = mount.wait(timeout=60)
except subprocess.TimeoutExpired:
    code = "it waits for itself"
# Without an answer all would wait forever.
fcntl.ioctl(point, READY if code == 0 else FAIL, token)
if code != 0:
    sys.exit(f"the mount fails: {code}")
print(*sorted(user.communicate()[0].split()))
sys.exit(user.returncode)
