# Sourced by load/run.sh, push/run.sh and pull/run.sh: options, the program, the image of the measurement, rounds
# and medians. The script defines `usage`, which prints its head, `once CONTESTANT`, which runs it and
# writes a line of figures to $work/CONTESTANT.times, and a function for each contestant. list.sh and
# containerd.sh use only the program, the rounds and the medians.

# prepare NAME PACKAGES [OPTIONS OF THE SCRIPT...] : sets program, rounds, work and image, and makes the
# image of $layers layers, which -l changes.
prepare() {
    local name=$1 packages=$2 mib=600 dir=
    shift 2
    rounds=5
    while getopts n:s:l:d: option; do
        case $option in
        n) rounds=$OPTARG ;;
        s) mib=$OPTARG ;;
        l) layers=$OPTARG ;;
        d) dir=$OPTARG ;;
        *) usage; exit 2 ;;
        esac
    done
    shift $((OPTIND - 1))
    start "$name" "$dir" "${1:-}"
    # shellcheck disable=SC2086 # names of packages
    ci/install.sh $packages
    image=$work/image.tar
    python3 benches/load/make-image.py "$image" "$mib" "$layers"
}

# start NAME DIRECTORY PROGRAM : sets program, which is built if PROGRAM is empty, and work, in
# DIRECTORY or a temporary one.
start() {
    program=$3
    if [ -z "$program" ]; then
        cargo build --release --quiet --bin unionfs
        program=$PWD/target/release/unionfs
    fi
    work=$(mktemp -d "${2:-${TMPDIR:-/tmp}}/bench-$1.XXXXXX")
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

# alternate CONTESTANT... : runs them in turn, each first in another round.
alternate() {
    local round turn contestants=("$@")
    for ((round = 0; round < rounds; round++)); do
        for ((turn = 0; turn < $#; turn++)); do
            once "${contestants[(round + turn) % $#]}"
        done
    done
}

# median COLUMN CONTESTANT : prints the median of a column of its figures.
median() {
    cut -d' ' -f"$1" "$work/$2.times" | sort -n | sed -n "$(((rounds + 1) / 2))p"
}

# elapsed time, CPU time of the user and of the system, in seconds
TIMEFORMAT='%R %U %S'
