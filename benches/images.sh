# Sourced by load/run.sh, push/run.sh and pull/run.sh: options, the program, the image of the measurement, rounds
# and medians. The script defines `usage`, which prints its head, `once CONTESTANT`, which runs it and
# writes a line of figures to $work/CONTESTANT.times, a function for each contestant, and their names in
# `contestants`. list.sh and containerd.sh have no such image.

# options LETTERS [OPTIONS OF THE SCRIPT...] : sets rounds, mib, layers, images and dir from the options that
# LETTERS names for getopts, and program.
options() {
    local letters=$1 option OPTIND=1
    shift
    while getopts "$letters" option; do
        case $option in
        n) rounds=$OPTARG ;;
        s) mib=$OPTARG ;;
        l) layers=$OPTARG ;;
        i) images=$OPTARG ;;
        d) dir=$OPTARG ;;
        *) usage; exit 2 ;;
        esac
    done
    shift $((OPTIND - 1))
    program=${1:-}
}

# prepare NAME PACKAGES [OPTIONS OF THE SCRIPT...] : sets program, rounds, work and image, and makes the
# image of $layers layers, which -l changes.
prepare() {
    local name=$1 packages=$2 mib=600 dir=
    shift 2
    rounds=5
    options n:s:l:d: "$@"
    start "$name"
    # shellcheck disable=SC2086 # names of packages
    ci/install.sh $packages
    image=$work/image.tar
    python3 benches/load/make-image.py "$image" "$mib" "$layers"
}

# start NAME : sets program, if it is empty, to the one that it builds, and work, in $dir or a temporary
# directory.
start() {
    if [ -z "$program" ]; then
        cargo build --release --quiet --bin unionfs
        program=$PWD/target/release/unionfs
    fi
    work=$(mktemp -d "${dir:-${TMPDIR:-/tmp}}/bench-$1.XXXXXX")
    trap finish EXIT
}

# skopeo_untar SOURCE : copies an image to a directory and unpacks its layers, as a contestant.
skopeo_untar() {
    skopeo copy -q --src-tls-verify=false "$1" "dir:$work/out"
    local layer at=0
    for layer in $(jq -r '.layers[].digest' "$work/out/manifest.json"); do
        mkdir "$work/out/$((at += 1))"
        tar -xf "$work/out/${layer#sha256:}" -C "$work/out/$at"
    done
}

# finish : removes the directory of the measurement.
finish() {
    rm -rf "$work"
}

# timed COMMAND... : runs it, and sets `times` to its elapsed time and its CPU times.
timed() {
    { time "$@" >"$work/output"; } 2>"$work/time"
    times=$(tail -n 1 "$work/time")
    # Also what the command has said.
    cat "$work/time" >&2
}

# synced COMMAND... : runs it, and waits until all is on the disk.
synced() {
    "$@" && sync -f "$work"
}

# alternate : runs the contestants in turn, each first in another round.
alternate() {
    local round turn count=${#contestants[@]}
    for ((round = 0; round < rounds; round++)); do
        for ((turn = 0; turn < count; turn++)); do
            once "${contestants[(round + turn) % count]}"
        done
    done
}

# report [UNIT] : prints the medians of all contestants. UNIT is that of a fourth figure.
report() {
    local contestant
    for contestant in "${contestants[@]}"; do
        printf '%-14s %6s s, CPU %s s user, %s s system%s\n' "$contestant" \
            "$(median 1 "$contestant")" "$(median 2 "$contestant")" "$(median 3 "$contestant")" \
            "${1:+, $(median 4 "$contestant") $1}"
    done
}

# median COLUMN CONTESTANT : prints the median of a column of its figures.
median() {
    cut -d' ' -f"$1" "$work/$2.times" | sort -n | sed -n "$(((rounds + 1) / 2))p"
}

# elapsed time, CPU time of the user and of the system, in seconds
TIMEFORMAT='%R %U %S'
