//! Files: links, attributes, permissions, descriptors, data.

use super::check;

scenarios! {
    hard_links_across_copy_up: "
        stat h1
        write h1 0 CHANGED
        read h2
        read merged/h3
        stat merged/h3
        unlink h2
        stat h1
        chmod merged/h3 600
        stat h1
        link h1 h4
        stat h1
        rename h1 merged/h3
        unlink h1
        stat h1";
    link_lower_files: "
        link plain.txt p2
        stat p2
        write p2 0 CHANGED
        read plain.txt
        link merged m2
        link no.txt x
        link plain.txt both.txt
        link plain.txt removed.txt
        link fifo fifo2
        link link-rel link2
        stat link2
        link null merged/gone
        link plain.txt no/x";
    link_and_rename_links: "
        create a 644
        link a b
        link a merged/c
        rename a b
        stat a
        unlink a
        rename b merged/c
        stat merged/c
        link merged/c opaque/old
        unlink merged/c
        read opaque/old";
    symlinks: "
        symlink plain.txt s
        read s
        write s 0 CHANGED
        readlink s
        symlink x s
        symlink /absolute/path abs
        readlink abs
        symlink x removed.txt
        write link-rel 3 Y
        chown link-dangling 1 2
        stat link-dangling
        create link-dangling 644
        rename link-dir merged/ld
        symlink - bad
        utimens link-rel 1000000000.1 1000000001.999999999";
    special_files: "
        mknod f 10640 0 0
        mknod c 20600 1 3
        mknod b 60600 7 1
        mknod s 140755 0 0
        mknod r 100600 0 0
        mknod c 20600 1 3
        mknod w 20600 0 0
        stat c
        stat b
        stat w
        chmod null 600
        chown fifo 5 6
        as 1000 1000
        mknod sticky/c 20600 1 3
        mknod sticky/f 10666 0 0
        mknod sticky/r 100666 0 0";
    chmod_everything: "
        chmod plain.txt 4755
        chmod merged 1700
        chmod deep/a/b/c/leaf 0
        chmod suid 755
        chmod opaque 2755
        chmod fifo 600
        chmod link-rel 600
        chmod . 711
        chmod no.txt 600
        as 1000 1000
        chmod plain.txt 666
        chmod both.txt 666
        chmod of-1000/f 6777
        stat of-1000/f";
    chown_everything: "
        chown plain.txt 2 3
        chown merged 4 5
        chown suid 7 8
        stat suid
        chown link-rel 9 10
        chown deep/a - 77
        chown h1 11 -
        stat h2
        chown null 1 1
        chown caps 3 3
        getxattr caps security.capability
        as 1000 1001
        chown of-1000/f 1000 1001
        chown of-1000/f 5 -
        chown both.txt 1000 -";
    times: "
        utimens plain.txt 1000000000.1 1000000001.2
        utimens merged 1000000002.3 1000000003.4
        utimens deep/a/b/c/leaf 1.0 -1.5
        utimens h1 1000000004.5 1000000005.6
        utimens new 1.1 2.2
        touch both.txt
        touch top.txt
        as 1000 1000
        touch both.txt
        touch of-1000/f
        utimens both.txt 1.1 2.2";
    xattrs: "
        setxattr plain.txt user.a 1
        setxattr plain.txt user.a 2 create
        setxattr plain.txt user.b 2 replace
        setxattr plain.txt user.a 22 replace
        getxattr plain.txt user.a
        setxattr tagged user.colour red
        removexattr tagged trusted.note
        removexattr tagged trusted.note
        listxattr tagged
        setxattr merged user.dir 1
        setxattr merged/bottom trusted.t 1
        setxattr link-rel trusted.t 1
        setxattr link-rel user.t 1
        setxattr fifo user.t 1
        setxattr removed.txt user.t 1
        setxattr plain.txt bad 1
        setxattr plain.txt user. 1
        as 1000 1000
        setxattr both.txt user.a 1
        setxattr of-1000/f user.a 1
        setxattr of-1000/f trusted.a 1
        getxattr tagged trusted.note
        listxattr tagged";
    xattr_dies_with_its_file: "
        setxattr plain.txt user.a 1
        unlink plain.txt
        create plain.txt 644
        listxattr plain.txt
        unlink tagged
        mkdir tagged 755
        listxattr tagged";
    capabilities: "
        getxattr caps security.capability
        chmod caps 600
        getxattr caps security.capability
        rename caps merged/caps
        getxattr merged/caps security.capability
        write merged/caps 0 x
        getxattr merged/caps security.capability";
    suid_cleared_by_writing: "
        chmod suid 6777
        as 1000 1000
        write suid 0 x
        stat suid
        as 0 0
        chmod suid 6777
        as 1000 1000
        truncate suid 3
        stat suid
        as 0 0
        chmod suid 6777
        write suid 0 y
        stat suid
        chown suid 5 5
        stat suid";
    acl_inheritance: "
        create acl-dir/f 666
        getxattr acl-dir/f system.posix_acl_access
        mkdir acl-dir/d 777
        getxattr acl-dir/d system.posix_acl_default
        symlink x acl-dir/s
        mknod acl-dir/p 10666 0 0
        setacl merged default 1001 6
        umask 077
        create merged/new 666
        stat merged/new
        mkdir merged/newdir 777
        create merged/newdir/x 666";
    acl_changes: "
        setacl plain.txt access 1000 4
        stat plain.txt
        getxattr plain.txt system.posix_acl_access
        chmod acl.txt 700
        getxattr acl.txt system.posix_acl_access
        removexattr acl.txt system.posix_acl_access
        stat acl.txt
        setacl plain.txt default 1000 4
        removexattr acl-dir system.posix_acl_default
        create acl-dir/f 666";
    acl_permits: "
        as 1000 5
        read acl.txt
        access acl.txt 6
        write acl.txt 0 x
        as 1001 5
        read acl.txt
        access acl.txt 4
        write acl.txt 0 x";
    umask: "
        umask 027
        create a 666
        mkdir b 777
        mknod c 10666 0 0
        create merged/d 777
        umask 777
        create e 666
        mkdir f 777
        umask 0
        create g 666
        mkdir removed-dir 777
        create removed.txt 666";
    permissions: "
        as 1000 1000
        read closed/f
        readdir closed
        stat closed/f
        unlink plain.txt
        create x 644
        mkdir x 755
        rename plain.txt y
        write both.txt 0 x
        read plain.txt
        access plain.txt 4
        access plain.txt 2
        access null 6
        write of-1000/f 0 x
        unlink of-1000/f
        rmdir of-1000
        truncate big.bin 0
        link both.txt of-1000/l
        rename of-1000/f x";
    sticky: "
        as 1000 1000
        unlink sticky/of-1001
        rename sticky/of-1001 sticky/x
        rename sticky/of-1000 sticky/of-1001
        rename sticky/of-1000 sticky/mine
        unlink sticky/mine
        create sticky/new 600
        as 1001 1001
        unlink sticky/new
        unlink sticky/of-1001
        rename sticky/new sticky/x exchange
        readdir sticky";
    setgid_inheritance: "
        mkdir setgid/d 755
        stat setgid/d
        create setgid/f 644
        stat setgid/f
        symlink x setgid/s
        stat setgid/s
        mknod setgid/p 10644 0 0
        mkdir setgid/d/e 755
        as 1000 1000
        create setgid/mine 2755
        stat setgid/mine
        mkdir setgid/mydir 755
        stat setgid/mydir
        chmod setgid/mine 2775
        stat setgid/mine";
    /// Without a stat of the unlinked lower file: the kernel still reports nlink 1.
    open_then_unlink: "
        open 1 plain.txt b
        hwrite 1 0 CHANGED
        unlink plain.txt
        hread 1 0 100
        hwrite 1 3 XX
        hstat 1
        htruncate 1 4
        hchmod 1 600
        hread 1 0 100
        hstat 1
        create plain.txt 644
        hread 1 0 10
        close 1
        open 2 big.bin r
        unlink big.bin
        hread 2 1000 5
        close 2
        open 3 new bc 600
        unlink new
        hwrite 3 0 data
        hread 3 0 10
        close 3";
    open_then_rename: "
        open 1 plain.txt b
        hwrite 1 0 CHANGED
        rename plain.txt merged/p
        hwrite 1 0 AGAIN
        read merged/p
        rename merged m2
        hwrite 1 2 X
        read m2/p
        rename both.txt m2/p
        hread 1 0 10
        hstat 1
        open 2 m2 d
        rename m2 m3
        hlist 2
        close 2
        close 1";
    open_flags: "
        open 1 plain.txt r
        open 2 merged r
        open 3 merged w
        open 4 merged d
        hlist 4
        open 5 plain.txt d
        open 6 link-rel n
        open 7 no.txt r
        open 8 no.txt wcx 640
        open 9 no.txt wcx 640
        open 10 both.txt wt
        open 11 link-dir wc
        open 12 fresh/x wc
        open 13 removed.txt r
        open 14 both.txt wa
        hwrite 14 0 appended
        read both.txt";
    fallocate_modes: "
        fallocate plain.txt 0 0 8192
        fallocate big.bin 3 4096 65536
        read big.bin
        fallocate big.bin 1 300000 100000
        stat big.bin
        fallocate both.txt 16 0 4
        read both.txt
        fallocate sparse.bin 0 0 4096
        fallocate merged 0 0 1
        fallocate plain.txt 0 0 0
        fallocate plain.txt 2 0 4096";
    copy_file_ranges: "
        copyrange plain.txt 0 new 0 100
        create new 644
        copyrange plain.txt 0 new 0 100
        read new
        copyrange big.bin 1000 both.txt 0 200000
        read both.txt
        copyrange big.bin 0 big.bin 250000 100000
        copyrange big.bin 0 big.bin 10 100000
        copyrange top.txt 2 empty.txt 5 100
        read empty.txt
        copyrange big.bin 400000 new 0 10";
    seeking: "
        seekdata sparse.bin 0
        seekhole sparse.bin 1048576
        seekdata sparse.bin 1100000
        seekdata sparse.bin 5000000
        seekhole plain.txt 0
        seekdata empty.txt 0
        write sparse.bin 2097152 island
        seekhole sparse.bin 2097152
        truncate sparse.bin 8388608
        seekdata sparse.bin 4194304";
    writes_in_directories_of_every_depth: "
        write deep/a/b/c/leaf 0 X
        create deep/a/b/f 644
        mkdir deep/a/d 755
        stat deep
        stat deep/a
        chmod deep/a/b/c/leaf 600
        utimens deep 1000000000.5 1000000000.5
        unlink deep/a/b/f
        write merged/sub/b 0 X
        write opaque/new 0 X";
    long_and_odd_names: "
        rename \\xff\\xfe\\x20bytes \\xfd\\x0a\\x01
        create \\xc3\\x28 644
        create a:b,c=d\\\\e 600
        unlink new\\x0aline
        mkdir \\x2a\\x3f\\x20 755
        symlink \\xff \\xfe
        readlink \\xfe
        create nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn 644
        create mmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmm 644
        readdir .";
}
