
# nspawn.py DIRECTORY FIRST: puts a mount whose owners are mapped in the place of DIRECTORY, with the
# system calls of systemd-nspawn --private-users-ownership=map (remount_idmap_fd of
# src/shared/mount-util.c): the users from FIRST on, and root of the machine as one more user.
directory, first = sys.argv[1:3]
BIND_AND_BELOW, NOFOLLOW = 0x5000, 8
users = f"0 {first} 65536\n2147483646 0 1\n"
namespace = user_namespace(users, users)
# Its directory is a mount of its own.
path = directory.encode()
checked(libc.mount(path, path, None, BIND_AND_BELOW, None), "mount")
tree = mapped_tree(directory, namespace)
checked(libc.umount2(path, NOFOLLOW), "umount2")
move(tree, directory)
