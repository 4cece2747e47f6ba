"""operations.py DIR: does what depends on owners in DIR, and prints a line for each result."""
import errno, os, struct, sys

root = sys.argv[1]

def run(label, user, action, groups=()):
    """Runs `action` as the user in a process of its own."""
    uid, gid = user
    result, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups(list(groups))
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            os.umask(0o022)
            os.chdir(root)
            answer = repr(action())
        except OSError as error:
            answer = errno.errorcode.get(error.errno, str(error.errno))
        os.write(say, answer.encode())
        os._exit(0)
    os.close(say)
    print(label, "as", f"{uid}:{gid}:", os.read(result, 65536).decode())
    os.close(result)
    os.waitpid(pid, 0)

def stat(path):
    def action():
        found = os.lstat(path)
        return "%o %d:%d" % (found.st_mode, found.st_uid, found.st_gid)
    return action

def then(*actions):
    return lambda: [action() for action in actions][-1]

def call(function, *args, **named):
    return lambda: function(*args, **named)

def write(path, flags=os.O_WRONLY):
    def action():
        fd = os.open(path, flags, 0o666)
        os.write(fd, b"x")
        os.close(fd)
    return action

def read(path):
    return lambda: open(path).read()

def xattr(path, name):
    return lambda: os.getxattr(path, name, follow_symlinks=False).hex()

NO_ID = 0xFFFFFFFF
ACL, DEFAULT, CAPABILITY = (
    "system.posix_acl_access", "system.posix_acl_default", "security.capability")
CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY
ROOT = (0, 0)

def acl(*entries):
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)

for path in ["root", "in", "out", "suid", "sgid", "aclin", "aclout", "capv2", "dirin", "dirout",
             "dirsg", "link"]:
    run("stat " + path, ROOT, stat(path))
for user in [ROOT, (1005, 2005), (1000, 2000), (65534, 65534), (5, 5), (1009, 2009)]:
    uid = user[0]
    for path in ["root", "in", "out"]:
        run("write " + path, user, write(path))
        run("chmod " + path, user, call(os.chmod, path, 0o640))
        run("utime " + path, user, call(os.utime, path))
    # Root makes files in a union, as podman needs it, and the kernel refuses.
    for directory in ["dirin", "dirsg", "."] if user != ROOT else []:
        new = f"{directory}/n{uid}"
        run("create " + new, user, then(write(new, CREATE), stat(new)))
        run("mkdir " + new, user, then(call(os.mkdir, new + "d", 0o775), stat(new + "d")))
        run("symlink " + new, user, then(call(os.symlink, "x", new + "s"), stat(new + "s")))
    if user == ROOT:
        continue
    run("unlink", user, call(os.unlink, f"dirin/n{uid}"))
    run("link", user, call(os.link, "out", f"dirin/l{uid}"))
for owner in [(1003, 2003), (3, -1), (-1, 3), (1003, -1), (0, 0), (1009, 2009), (65534, 65534),
              (1010, -1)]:
    for path in ["in", "out", "root", "link"]:
        change = call(os.chown, path, *owner, follow_symlinks=False)
        run(f"chown {path} {owner}", ROOT, then(change, stat(path)))
for user, groups in [((1003, 2003), [2004]), ((1009, 2009), [2004]), ((1009, 2009), [5])]:
    change = call(os.chown, "in", -1, groups[0])
    run("change of the group", user, then(change, stat("in")), groups)
for path in ["suid", "sgid"]:
    run("write clears", (1005, 2005), then(write(path), stat(path)))
run("getxattr aclin", ROOT, xattr("aclin", ACL))
for path in ["aclin", "aclout"]:
    for user in [(1007, 9), (7, 9), (1008, 2008), (55, 55), (1002, 2002)]:
        run("read " + path, user, read(path))
for someone in [1004, 4, 65534, 1010]:
    value = acl((1, 6, NO_ID), (2, 4, someone), (4, 4, NO_ID), (16, 4, NO_ID), (32, 0, NO_ID))
    run(f"acl of {someone}", ROOT, then(call(os.setxattr, "in", ACL, value), xattr("in", ACL)))
    value = acl((1, 6, NO_ID), (4, 4, NO_ID), (8, 4, someone), (16, 4, NO_ID), (32, 0, NO_ID))
    run(f"default of {someone}", ROOT,
        then(call(os.setxattr, "dirin", DEFAULT, value), xattr("dirin", DEFAULT)))
run("create under default", (1005, 2005), then(write("dirin/acl", CREATE), xattr("dirin/acl", ACL)))
run("chmod with acl", ROOT, then(call(os.chmod, "aclin", 0o600), xattr("aclin", ACL)))
for path in ["capv2", "capv3"]:
    run("capability of " + path, ROOT, xattr(path, CAPABILITY))
for words in [(0x02000001, 1, 0, 0, 0)] + [
        (0x03000001, 1, 0, 0, 0, root_id) for root_id in (1000, 1003, 3, 0)]:
    value = struct.pack("<%dI" % len(words), *words)
    run(f"capability {words}", ROOT,
        then(call(os.setxattr, "in", CAPABILITY, value), xattr("in", CAPABILITY)))
run("rename", (1000, 2000), call(os.rename, "out", "out2"))
run("rmdir", ROOT, call(os.rmdir, "dirout"))
run("unlink root", (1000, 2000), call(os.unlink, "root"))
