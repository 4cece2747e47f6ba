# parts.sh : functions that measure the parts of a run in seconds. ci/all.sh and the scripts that it runs source this
# file. It defines
#
#   part NAME       ends the part before, and begins one; without NAME none begins
#   print_parts     prints the parts of all scripts in one line, in the script that was started first
#
# UNIONFS_PARTS is the file that all these scripts write to.

parts_are_mine=
if [ -z "${UNIONFS_PARTS:-}" ]; then
    parts_are_mine=1
    UNIONFS_PARTS=$(mktemp)
    UNIONFS_BEGUN=$(date +%s)
    export UNIONFS_PARTS UNIONFS_BEGUN
fi
part_name=
part_begun=0

part() {
    local now
    now=$(date +%s)
    [ -z "$part_name" ] || echo "$part_name $((now - part_begun))" >>"$UNIONFS_PARTS"
    part_name=${1:-}
    part_begun=$now
    [ -z "$part_name" ] || echo "== $((now - UNIONFS_BEGUN)) s: $part_name"
}

print_parts() {
    [ -n "$parts_are_mine" ] || return 0
    [ ! -s "$UNIONFS_PARTS" ] \
        || echo "== $(($(date +%s) - UNIONFS_BEGUN)) s: $(paste -s -d '|' "$UNIONFS_PARTS" | sed 's/|/, /g')"
    rm -f "$UNIONFS_PARTS"
}
