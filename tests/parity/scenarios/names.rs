//! Names: looked up, created, removed, renamed, over and out of every layer.

use super::check;

scenarios! {
    nothing: "";
    look_at_everything: "
        readdir .
        readdir merged
        readdir opaque
        stat removed.txt
        stat removed-dir/f
        read both.txt
        read big.bin
        readlink link-dangling
        read link-dangling
        stat null
        stat block
        listxattr tagged
        getxattr tagged user.colour
        getxattr tagged user.none
        stat \\xff\\xfe\\x20bytes
        read plain.txt/x
        readdir plain.txt
        readlink plain.txt
        stat no/such";
    write_lower_file: "
        write plain.txt 0 CHANGED
        read plain.txt
        write both.txt 100 far -
        write empty.txt 0 x
        write top.txt 0 a a
        write no.txt 0 x
        write merged 0 x";
    overwrite_truncating: "
        write plain.txt 0 short t
        read plain.txt
        create both.txt 644 t
        create big.bin 644 x
        create big.bin 600";
    truncate_lower: "
        truncate big.bin 1000
        read big.bin
        truncate plain.txt 0
        truncate empty.txt 70000
        truncate sparse.bin 2000000
        truncate merged 0";
    create_new_files: "
        create new 640
        create merged/new 4755
        create deep/a/b/c/new 600
        create no/new 600
        create plain.txt/new 600
        create setgid/new 2755
        as 1000 1000
        create sticky/new 666
        create setgid/newer 2775
        create of-1000/new 666
        create deep/no 666
        create closed/no 666";
    create_over_whiteouts: "
        create removed.txt 600
        create removed-dir 600
        create merged/gone 600
        read merged/gone
        readdir merged";
    mkdir_over_whiteouts: "
        mkdir removed-dir 700
        readdir removed-dir
        mkdir removed.txt 755
        create removed.txt/f 644
        mkdir merged/gone 755
        readdir merged/gone";
    other_types_over_whiteouts: "
        symlink target removed.txt
        mknod removed-dir 10644 0 0
        mknod merged/gone 20600 1 5
        stat removed-dir
        stat merged/gone";
    mkdir_new: "
        mkdir d 755
        mkdir d/e 700
        mkdir d 755
        mkdir plain.txt 755
        mkdir no/d 755
        mkdir merged/d 2775
        mkdir setgid/d 755
        mkdir deep/a/d 1777
        as 1000 1000
        mkdir setgid/mine 755
        mkdir d/no 755";
    rmdir_all_kinds: "
        rmdir empty
        mkdir empty 700
        rmdir empty
        rmdir merged
        rmdir plain.txt
        rmdir removed-dir
        rmdir no
        rmdir link-dir
        mkdir new 755
        rmdir new
        unlink opaque/new
        rmdir opaque
        readdir .";
    rmdir_holding_only_whiteouts: "
        unlink deep/a/b/c/leaf
        rmdir deep/a/b/c
        rmdir deep/a/b
        rmdir deep/a
        rmdir deep
        mkdir deep 755
        readdir deep
        mkdir deep/a 755
        readdir deep/a";
    remove_merged_tree: "
        unlink merged/top
        unlink merged/middle
        unlink merged/bottom
        unlink merged/h3
        unlink merged/over
        unlink merged/sub/t
        unlink merged/sub/b
        rmdir merged/sub
        rmdir merged
        readdir .
        mkdir merged 711
        readdir merged
        create merged/over 644
        readdir merged";
    unlink_all_kinds: "
        unlink plain.txt
        unlink plain.txt
        unlink top.txt
        unlink both.txt
        unlink link-rel
        unlink link-dangling
        unlink fifo
        unlink null
        unlink block
        unlink h1
        stat h2
        unlink merged
        unlink removed.txt
        unlink no/such
        create new 644
        unlink new
        readdir .";
    recreate_as_other_types: "
        unlink plain.txt
        mkdir plain.txt 755
        create plain.txt/f 644
        unlink both.txt
        symlink x both.txt
        unlink fifo
        create fifo 644
        rmdir empty
        create empty 644
        unlink null
        mkdir null 755
        unlink dir-to-file
        mkdir dir-to-file 755
        readdir dir-to-file
        unlink file-to-dir/in
        rmdir file-to-dir
        create file-to-dir 644";
    again_and_again: "
        unlink plain.txt
        create plain.txt 644
        unlink plain.txt
        mkdir plain.txt 755
        rmdir plain.txt
        create plain.txt 600
        rename plain.txt both.txt
        unlink both.txt
        stat both.txt
        readdir .";
    rename_files: "
        rename plain.txt renamed.txt
        read renamed.txt
        rename top.txt both.txt
        rename both.txt merged/moved
        rename merged/bottom bottom
        rename empty.txt removed.txt
        rename fifo merged/fifo
        rename link-rel deep/link
        rename null deep/a/null
        rename no.txt x
        rename renamed.txt no/x
        rename renamed.txt renamed.txt
        readdir merged";
    rename_file_and_directory_clash: "
        rename plain.txt merged
        rename empty plain.txt
        rename plain.txt plain.txt/x
        rename deep deep/a/x
        rename deep/a/b deep/a
        rename empty merged
        rename merged empty
        rename empty removed-dir";
    rename_noreplace: "
        rename plain.txt both.txt noreplace
        rename plain.txt removed.txt noreplace
        rename merged empty noreplace
        rename merged removed-dir noreplace
        rename no.txt x noreplace
        readdir removed-dir";
    rename_exchange: "
        rename plain.txt both.txt exchange
        rename top.txt merged exchange
        rename deep empty exchange
        rename plain.txt removed.txt exchange
        rename h1 link-rel exchange
        rename opaque file-to-dir exchange
        readdir top.txt
        readdir empty
        read merged
        rename top.txt/sub opaque exchange
        readdir top.txt
        readdir opaque";
    rename_exchange_below_itself: "
        rename deep deep/a exchange
        rename deep/a/b deep exchange
        rename plain.txt plain.txt exchange";
    rename_whiteout_flag: "
        rename plain.txt x whiteout
        create new 644
        rename new newer whiteout
        rename empty y whiteout";
    rename_merged_directory: "
        rename merged moved
        readdir moved
        read moved/bottom
        write moved/bottom 0 CHANGED
        create moved/new 644
        unlink moved/top
        readdir moved
        rename moved moved2
        read moved2/middle
        mkdir merged 755
        readdir merged";
    rename_directory_into_another: "
        rename merged deep/a/m
        readdir deep/a/m
        rename deep/a empty/a
        readdir empty/a/m/sub
        rename empty/a/m/sub sub
        write sub/b 0 X
        unlink sub/t
        rename opaque deep/o
        readdir deep/o";
    rename_redirected_within_redirected: "
        rename deep d2
        rename d2/a d2/a2
        rename d2/a2/b b2
        read b2/c/leaf
        rename b2/c d2/c
        write d2/c/leaf 0 X
        rename d2 deep
        read deep/c/leaf
        readdir deep";
    rename_directory_over_empty: "
        rename merged empty
        readdir empty
        unlink deep/a/b/c/leaf
        rename empty deep/a/b/c
        readdir deep/a/b/c
        mkdir new 755
        rename new removed-dir
        readdir removed-dir";
    rename_new_directories: "
        mkdir n 755
        mkdir n/m 755
        create n/m/f 644
        rename n merged/n
        rename merged/n/m m
        rename m removed-dir
        readdir removed-dir
        rename merged/n plain.txt
        unlink plain.txt
        rename merged/n plain.txt
        readdir plain.txt";
    rename_then_recreate_source: "
        rename merged elsewhere
        create merged 644
        unlink merged
        rename elsewhere merged
        readdir merged
        rename plain.txt p
        mkdir plain.txt 755
        rmdir plain.txt
        rename p plain.txt
        read plain.txt";
}
