"""nspawn.py DIRECTORY FIRST: puts a mount whose owners are mapped in the place of DIRECTORY, with the
system calls of systemd-nspawn --private-users-ownership=map (remount_idmap_fd of
src/shared/mount-util.c): the users from FIRST on, and root of the machine as one more user."""
import ctypes, os, struct, sys
CLONE_NEWUSER, OPEN_TREE, MOUNT_SETATTR, MOVE_MOUNT = 0x10000000, 428, 442, 429
libc = ctypes.CDLL(None, use_errno=True)
directory, first = sys.argv[1].encode(), sys.argv[2]

def checked(result, what):
    if result < 0:
        sys.exit(what + ": " + os.strerror(ctypes.get_errno()))
    return result

ready, say_ready = os.pipe()
done, say_done = os.pipe()
pid = os.fork()
if pid == 0:
    checked(libc.unshare(CLONE_NEWUSER), "unshare")
    os.write(say_ready, b"x")
    os.read(done, 1)
    os._exit(0)
os.read(ready, 1)
for file in ("uid_map", "gid_map"):
    with open(f"/proc/{pid}/{file}", "w") as out:
        out.write(f"0 {first} 65536\n2147483646 0 1\n")
namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
os.write(say_done, b"x")
os.waitpid(pid, 0)
CLONE, EMPTY_PATH, IDMAP, NOFOLLOW = 0x80001, 0x1000, 0x100000, 8
# Its directory is a mount of its own.
checked(libc.mount(directory, directory, None, 0x5000, None), "mount")
# The path is absolute, so no descriptor is needed.
tree = checked(libc.syscall(OPEN_TREE, -9, directory, CLONE), "open_tree")
attr = struct.pack("QQQQ", IDMAP, 0, 0, namespace)
checked(libc.syscall(MOUNT_SETATTR, tree, b"", EMPTY_PATH, attr, len(attr)), "mount_setattr")
checked(libc.umount2(directory, NOFOLLOW), "umount2")
checked(libc.syscall(MOVE_MOUNT, tree, b"", -9, directory, 4), "move_mount")
