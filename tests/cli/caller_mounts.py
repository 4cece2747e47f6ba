"""caller_mounts.py PROGRAM MOUNTPOINT UID EXTRA [ARGUMENT...]: mounts as Apptainer does, then becomes
PROGRAM ARGUMENT... /dev/fd/N of the user UID. EXTRA are further options of the mount. Without a
mountpoint ("-") the device is open but not mounted."""
import ctypes, os, sys
program, mountpoint, uid, extra, *arguments = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open("/dev/fuse", os.O_RDWR)
os.set_inheritable(fd, True)
if mountpoint != "-":
    options = f"fd={fd},rootmode=40000,user_id={uid},group_id={uid}{extra}"
    if libc.mount(b"caller", mountpoint.encode(), b"fuse", 0, options.encode()) != 0:
        sys.exit("mount: " + os.strerror(ctypes.get_errno()))
if uid != "0":
    os.setgroups([])
    os.setresgid(int(uid), int(uid), int(uid))
    os.setresuid(int(uid), int(uid), int(uid))
os.execv(program, ["fuse-overlayfs", *arguments, f"/dev/fd/{fd}"])
