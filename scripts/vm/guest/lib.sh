# shellcheck shell=bash
# Helpers for scenarios; source it: . "$CHECKOUT/scripts/vm/guest/lib.sh"
# A scenario fails at its first failing command, and names it.
set -euo pipefail
trap 'echo "FAILED (exit $?) at line $LINENO: $BASH_COMMAND"; evidence' ERR

LOGS=$OUT/logs
mkdir -p "$LOGS"

say() { echo "--- $*"; }
die() { echo "FAILED: $*"; evidence; exit 1; }

# evidence : what helps to understand a failure.
evidence() {
    tail -n 8 "$LOGS"/* 2> /dev/null || true
    dmesg | tail -n 20
}

# Machines differ by more than three times, and have other work too: every limit is multiplied by this. A limit only ends what
# hangs; a scenario waits for what it shows, and never supposes that something has happened, or still goes on, by now.
PATIENCE=4

# wait_until SECONDS COMMAND... : until COMMAND succeeds.
wait_until() {
    local end=$((SECONDS + PATIENCE * $1)) looks=0
    shift
    until "$@" > /dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || die "not within its time: $*"
        rest $((looks += 1))
    done
}

# rest LOOKS : looking costs an emulated machine a good part of a second, which what is waited for could use.
rest() { if [ "$1" -lt 4 ]; then sleep 0.5; else sleep 2; fi; }

# expect_failure CODE COMMAND... : COMMAND must end with CODE and say something, but no traceback.
expect_failure() {
    local wanted=$1 code=0 text
    shift
    text=$("$@" 2>&1) || code=$?
    echo "$text"
    [ "$code" = "$wanted" ] || die "exit code $code instead of $wanted: $*"
    [ -n "$text" ] || die "no word about the failure of: $*"
    [[ $text != *Traceback* ]] || die "a traceback from: $*"
}

# at_least WHAT NUMBER MINIMUM
at_least() {
    echo "$1: $2"
    [ "$2" -ge "$3" ] || die "$1 is $2, less than $3"
}

load_nbd() { modprobe nbd nbds_max=0 max_part=0; }

# scratch FOLDER [DISK] : mounts the machine's scratch disk (`# vm: disk=SIZE`).
scratch() {
    mkdir -p "$1"
    mkfs.ext4 -q -F -E lazy_itable_init=1,lazy_journal_init=1 "${2:-/dev/vda}"
    mount "${2:-/dev/vda}" "$1"
}

# quick_commands : from now on `infiniswap` takes a tenth of the time: see guest/commands.py. Children of one process run the
# commands; who must be able to kill one calls "$CHECKOUT/.venv/bin/infiniswap".
quick_commands() {
    mkdir -p /run/commands
    mkfifo /run/commands/orders
    (
        trap - ERR
        python "$CHECKOUT/scripts/vm/guest/commands.py" /run/commands/orders > "$LOGS/commands.out" 2> "$LOGS/commands.err" || true
        echo "FAILED: guest/commands.py has ended, and no command with it: $(tail -n 1 "$LOGS/commands.err")"
        kill $$ # who waits for a command would wait for ever
    ) &
    ln -s "$CHECKOUT/scripts/vm/guest/infiniswap" /run/commands/infiniswap
    PATH=/run/commands:$PATH
}

# vmstat_value NAME : a counter of /proc/vmstat.
vmstat_value() { awk -v name="$1" '$1 == name { print $2 }' /proc/vmstat; }

# in_cgroup NAME LIMIT COMMAND... : runs COMMAND in a new memory cgroup with that limit.
in_cgroup() {
    local folder=/sys/fs/cgroup/$1 limit=$2
    shift 2
    mkdir -p "$folder"
    echo "$limit" > "$folder/memory.max"
    in_group "$folder" "$@"
}

# in_group FOLDER COMMAND... : runs COMMAND in that control group; FOLDER may be empty for this shell's own.
in_group() {
    # shellcheck disable=SC2016
    bash -c '[ -z "$0" ] || echo $$ > "$0/cgroup.procs"; exec "$@"' "$@"
}

# ---- a memory cluster in this machine ----
DAEMON_HOST=127.0.0.1
DAEMON_PORT=7400
DAEMON_HEADROOM=32MiB
DAEMON_GROUP= # a folder below /sys/fs/cgroup
DAEMON_OPTIONS=() # more of them; @ is the daemon's number
LEASE_TTL_S=900 # a restart that takes a second elsewhere takes a minute here
PEERS=()
DAEMONS=
declare -A DAEMON_PIDS=()

# start_daemons COUNT MEMORY : daemons 1 to COUNT on DAEMON_HOST, ready with the next device (start_device); DAEMON_PIDS has
# their processes. They keep DAEMON_HEADROOM free, and belong to control group DAEMON_GROUP.
start_daemons() {
    local number
    [ -z "$DAEMON_GROUP" ] || mkdir -p "$DAEMON_GROUP"
    rm -f "$LOGS"/daemon[0-9]*.{out,err}
    in_group "$DAEMON_GROUP" \
        python "$CHECKOUT/scripts/vm/guest/daemons.py" "$1" $DAEMON_HOST $DAEMON_PORT "$LOGS" --memory "$2" --headroom "$DAEMON_HEADROOM" \
        --lease-ttl-s "$LEASE_TTL_S" "${DAEMON_OPTIONS[@]}" > /run/daemons 2> "$LOGS/daemons.err" &
    DAEMONS=$!
    for number in $(seq "$1"); do
        PEERS+=(--peer "$DAEMON_HOST:$((DAEMON_PORT + number))")
    done
}

# daemons_ready : waits for them; two commands that start at once take less time than one after the other.
daemons_ready() {
    local number
    [ -n "$DAEMONS" ] || return 0 # they run in another machine
    for number in $(seq $((${#PEERS[@]} / 2))); do
        wait_until 300 ready_or_gone "$LOGS/daemon$number.out" "$DAEMONS"
        grep -q ^ready "$LOGS/daemon$number.out" || die "daemon $number did not start"
        DAEMON_PIDS[$number]=$(sed -n "${number}p" /run/daemons)
    done
}

# peers_up NAME : all of them are known to the device.
peers_up() { asked "$1" /v1/peers '[.[].state] | all(. == "up")'; }

ready_or_gone() { grep -q ^ready "$1" || ! kill -0 "$2"; }

# serve_device NAME OPTION... : the device service in the foreground, as its supervisor starts it. Its own time-outs are
# those of a slow machine, too: a path that takes seconds to make fails again and again, and RDMA is given up.
serve_device() {
    infiniswap device serve "$@" --state-dir /run/infiniswap/state --lock-memory "${PEERS[@]}" \
        --peer-timeout-ms 20000 --request-deadline-ms 5000
}

# start_device NAME OPTION... : the device service, started again by itself whenever it ends while /run/NAME.wanted is there.
start_device() {
    touch "/run/$1.wanted"
    ready=$(count_ready "$1")
    (
        trap - ERR
        while [ -e "/run/$1.wanted" ]; do
            serve_device "$@" >> "$LOGS/$1.out" 2>> "$LOGS/$1.err" || true
        done
    ) &
    daemons_ready
    wait_until 300 device_ready "$1" $((ready + 1))
    wait_until 300 peers_up "$1"
}

count_ready() { grep -c ^ready "$LOGS/$1.out" 2> /dev/null || true; }
device_ready() { [ "$(count_ready "$1")" -ge "$2" ]; }

# stop_device NAME : an orderly stop, which must say nothing wrong.
stop_device() {
    rm "/run/$1.wanted"
    infiniswap device stop "$1"
}

# kept_as NAME LAYOUT : its backup is kept in that way; a log has pages.
kept_as() {
    local log='"a log: \(.log_live_pages) pages, \(.log_free_segments) of \(.log_segments) segments free, \(.log_cleaned_segments) cleaned"'
    ask "$1" /v1/status "if .backup_layout == \"log\" then $log else .backup_layout end"
    asked "$1" /v1/status ".backup_layout == \"$2\" and (\"$2\" == \"raw\" or .log_live_pages > 0)" ||
        die "the backup of $1 is not kept as $2, or nothing is on it"
}

# while_job JOB COMMAND... : until COMMAND succeeds, which the job's work brings about; a job that ends is a failure.
while_job() {
    local job=$1 end=$((SECONDS + PATIENCE * 600)) looks=0
    shift
    until "$@" > /dev/null 2>&1; do
        kill -0 "$job" 2> /dev/null || die "the job has ended before: $*"
        [ "$SECONDS" -lt "$end" ] || die "the job goes on, but not within its time: $*"
        rest $((looks += 1))
    done
}

# job_goes_on JOB PROGRESS PASSES : until the file PROGRESS tells of more passes.
job_goes_on() { while_job "$1" passes_above "$2" "$3"; }
passes_above() { [ "$(cat "$1")" -gt "$2" ]; }

# ask NAME PATH [JQ] : the device's control API.
ask() { curl -sf --unix-socket "/run/infiniswap/$1.control" "http://device$2" | jq -r "${3:-.}"; }

# asked NAME PATH JQ : true when the JQ condition holds for the answer.
asked() { [ "$(ask "$1" "$2" "$3")" = true ]; }

# pages_from NAME SOURCE... : pages that the device has read from these sources (remote, pending, backup, zero).
pages_from() {
    local name=$1 source sum=0
    shift
    for source in "$@"; do
        sum=$((sum + $(ask "$name" /v1/stats ".reads.$source")))
    done
    echo "$sum"
}

# read_above NAME NUMBER SOURCE... : more than so many.
read_above() {
    local name=$1 number=$2
    shift 2
    [ "$(pages_from "$name" "$@")" -gt "$number" ]
}

# swapped_out PAGES : the kernel has written so many pages to swap since it was started.
swapped_out() { [ "$(vmstat_value pswpout)" -ge "$1" ]; }

# lent_kib : memory that all daemons hold for slabs, from the kernel's own count of their shared memory.
lent_kib() {
    local pid sum=0 kib
    for pid in "${DAEMON_PIDS[@]}"; do
        kib=$(awk '/^RssShmem:/ { print $2 }' "/proc/$pid/status" 2> /dev/null || true)
        sum=$((sum + ${kib:-0}))
    done
    echo "$sum"
}

no_io_errors() {
    if dmesg | grep -iE 'I/O error|Read-error on swap|Buffer I/O|Out of memory|oom-kill'; then die "the kernel saw errors"; fi
}

# ---- a cluster of two machines, which know each other by certificates ----
TLS=/etc/infiniswap/tls
# shellcheck disable=SC2034
CERTIFICATE=(--cacert "$TLS/ca.pem" --cert "$TLS/host.pem" --key "$TLS/host.key") # for curl

# found_cluster : the first machine has the authority, and sends the second one its files.
found_cluster() {
    infiniswap cluster init node1 10.99.0.1
    infiniswap cluster issue node2 10.99.0.2
    wait_until 600 send_files
}
send_files() { tar -C $TLS/issued/node2 -c . | nc -N 10.99.0.2 7997; }

# join_cluster : the second machine has them afterwards.
join_cluster() {
    mkdir -p $TLS
    chmod 700 $TLS
    nc -l -p 7997 | tar -C $TLS -x --no-same-permissions
    chmod 600 $TLS/host.key
}

# ---- soft-RoCE ----
# soft_roce NETDEV : an RDMA device on NETDEV; of lo the packets are as large as a page.
soft_roce() {
    modprobe crc32_generic
    modprobe rdma_rxe
    rdma link add rxe0 type rxe netdev "$1"
}

# reboot_machine : an orderly reboot of a machine that keeps its root (`# vm: keep=1`); the scenario begins anew.
reboot_machine() {
    touch /run/reboot # which guest/systemd asks for: the end of this is not the scenario's
    sync
    systemctl --no-block reboot
    sleep infinity
}
