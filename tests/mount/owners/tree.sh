# Makes the tree for operations.py in the current directory.
set -e
chmod 777 .
for f in root in out suid sgid aclin aclout capv2 capv3 capv3out; do echo $f > $f; done
chown 5:5 in suid sgid aclin aclout
chown 20:20 out
chmod 666 out
chmod 4777 suid
chmod 2777 sgid
chmod 600 aclin aclout
setfacl -m u:7:r,g:8:r aclin
setfacl -m u:7:r,u:55:r,g:55:r aclout
mkdir dirin dirout dirsg
chown 5:5 dirin
chown 20:20 dirout
chown 0:5 dirsg
chmod 777 dirin dirout
chmod 2777 dirsg
ln -s x link
chown -h 5:5 link
python3 - <<'E'
import os, struct
def capability(*words): return struct.pack("<%dI" % len(words), *words)
os.setxattr("capv2", "security.capability", capability(0x02000001, 1, 0, 0, 0))
os.setxattr("capv3", "security.capability", capability(0x03000001, 1, 0, 0, 0, 3))
os.setxattr("capv3out", "security.capability", capability(0x03000001, 1, 0, 0, 0, 30))
E
