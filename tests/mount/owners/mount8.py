
# mount8.py DIRECTORY FIRST: puts an idmapped copy of a mount in its place, with the system calls of mount(8) for
# X-mount.idmap (libmount/src/hook_idmap.c).
directory, first = sys.argv[1:3]
users = f"0 {first} 65536\n"
tree = mapped_tree(directory, user_namespace(users, users))
checked(libc.umount2(directory.encode(), 2), "umount2")
move(tree, directory)
