# Helpers for scenarios; source it: . "$CHECKOUT/scripts/vm/guest/lib.sh"
# A scenario fails at its first failing command, and names it.
set -euo pipefail
trap 'echo "FAILED (exit $?) at line $LINENO: $BASH_COMMAND"; dmesg | tail -n 20' ERR

say() { echo "--- $*"; }
die() { echo "FAILED: $*"; exit 1; }

# wait_until SECONDS COMMAND... : until COMMAND succeeds.
wait_until() {
    local end=$((SECONDS + $1))
    shift
    until "$@" > /dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || die "not within its time: $*"
        sleep 0.1
    done
}

# expect_failure CODE COMMAND... : COMMAND must end with CODE and say one line, no traceback.
expect_failure() {
    local wanted=$1 code=0 text
    shift
    text=$("$@" 2>&1) || code=$?
    echo "$text"
    [ "$code" = "$wanted" ] || die "exit code $code instead of $wanted: $*"
    [[ $text != *Traceback* ]] || die "a traceback from: $*"
}

load_nbd() { modprobe nbd nbds_max=0 max_part=0; }

# scratch [DISK] : mounts the machine's scratch disk (`# vm: disk=SIZE`) and prints the folder.
scratch() {
    local disk=${1:-/dev/vda} folder
    folder=/scratch/$(basename "$disk")
    mkdir -p "$folder"
    mkfs.ext4 -q -F -E lazy_itable_init=1,lazy_journal_init=1 "$disk"
    mount "$disk" "$folder"
    echo "$folder"
}

# vmstat_value NAME : a counter of /proc/vmstat.
vmstat_value() { awk -v name="$1" '$1 == name { print $2 }' /proc/vmstat; }

# in_cgroup NAME MEMORY COMMAND... : runs COMMAND in a new memory cgroup with that limit.
in_cgroup() {
    local folder=/sys/fs/cgroup/$1 limit=$2
    shift 2
    mkdir -p "$folder"
    echo "$limit" > "$folder/memory.max"
    bash -c 'echo $$ > "$0/cgroup.procs"; exec "$@"' "$folder" "$@"
}
