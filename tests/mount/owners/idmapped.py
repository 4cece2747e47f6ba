
# idmapped.py SOURCE TARGET USERS GROUPS: mounts SOURCE on TARGET with its owners mapped.
# USERS and GROUPS are lines of uid_map(5), "0 1000 10".
source, target, users, groups = sys.argv[1:5]
move(mapped_tree(source, user_namespace(users, groups)), target)
