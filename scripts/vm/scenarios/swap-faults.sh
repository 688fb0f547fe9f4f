#!/bin/bash
# Under swap by one program that checks every number: the device service stands still until the kernel gives up a connection,
# then all of them, with hardly any memory left; it is killed with -9, and ended by SIGTERM; one of three daemons is killed.
# It goes on each time, with right results, and no process is killed.
# vm: memory=1280 cores=2 disk=1G deadline=1500
# needs: curl jq
. "$CHECKOUT/scripts/vm/guest/lib.sh"
quick_commands

scratch /scratch
start_daemons 3 96MiB
start_device swap0 --size 256MiB --slab-size 8MiB --backup /scratch/swap0.img --map eager
infiniswap device attach swap0 --swap --timeout 6 --dead-conn-timeout 900
in_cgroup job 18M python "$CHECKOUT/scripts/vm/jobs/block_job.py" 24 /run/until /run/progress &
job=$!
while_job $job test -s /run/progress
while_job $job swapped_out 3000

said() { dmesg | grep -cE "$1" || true; }
said_more() { [ "$(said "$1")" -gt "$2" ]; }

# stand_still MESSAGE : stops the service until the kernel says so; its connections and the program must then come back.
stand_still() {
    local pid before replaced begun_ms
    pid=$(ask swap0 /v1/status .pid)
    replaced=$(ask swap0 /v1/status .nbd_replaced)
    before=$(said "$1")
    kill -STOP "$pid"
    while_job $job said_more "$1" "$before"
    kill -CONT "$pid"
    begun_ms=$(date +%s%3N)
    wait_until 60 asked swap0 /v1/status ".nbd_dead == 0 and .nbd_replaced > $replaced"
    say "all connections are there again after $(($(date +%s%3N) - begun_ms)) ms of this slow machine"
    ask swap0 /v1/status '"\(.nbd): \(.nbd_connections) connections, \(.nbd_dead) dead, \(.nbd_replaced) replaced"'
    job_goes_on $job /run/progress "$(cat /run/progress)"
}

say "the service stands still until one connection is given up"
# The first when requests wait for answers, the second when the socket takes no more of them.
stand_still 'Connection timed out|Request send failed, requeueing'

say "until all are given up, and memory is short"
python -c '
import ctypes, mmap, time
free = [int(line.split()[1]) for line in open("/proc/meminfo") if line.startswith("MemAvailable")][0] << 10
held = mmap.mmap(-1, free - (96 << 20), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
start = ctypes.addressof(ctypes.c_char.from_buffer(held))
assert ctypes.CDLL(None).mlock(ctypes.c_void_p(start), ctypes.c_size_t(len(held))) == 0
open("/run/short", "w").close()
time.sleep(36000)
' &
hog=$!
wait_until 120 test -e /run/short
grep MemAvailable /proc/meminfo
stand_still 'failed to find a fallback'
kill $hog

infiniswap doctor swap0 | grep 'all 4 to /dev/nbd0 are alive'
asked swap0 /v1/stats '.failures.lost_pages == 0 and .failures.checksum_mismatches == 0'
ready=$(count_ready swap0)

# end_device SIGNAL : ends the service, waits for its successor and for the program to go on.
end_device() {
    local pid passes
    pid=$(ask swap0 /v1/status .pid)
    passes=$(cat /run/progress)
    say "$1 for the device service after $passes passes"
    kill "-$1" "$pid"
    ready=$((ready + 1))
    wait_until 300 device_ready swap0 "$ready"
    job_goes_on $job /run/progress $((passes + 1))
}

replaced_before=$(grep -c 'connections replaced' "$LOGS/swap0.err" || true)
replaced_again() { [ "$(grep -c 'connections replaced' "$LOGS/swap0.err")" -gt "$replaced_before" ]; }
end_device KILL
wait_until 60 replaced_again
end_device TERM
wait_until 60 asked swap0 /v1/status '.connections >= 4'
at_least "sockets that the kernel took again" "$(said 'reconnected socket')" 8
asked swap0 /v1/stats '.failures.lost_pages == 0 and .failures.checksum_mismatches == 0'

# The one to be killed must have something to lose: its slabs may hold nothing but pages that were freed since.
victim=$DAEMON_HOST:$((DAEMON_PORT + 2))
holds_pages() { asked swap0 /v1/slabs "map(select(.peer == \"$victim\") | .remote_pages) | add >= 500"; }
while_job $job holds_pages
elsewhere=$(pages_from swap0 backup pending)
lost=$(ask swap0 /v1/stats .failures.peers_lost)

say "killing daemon 2 after $(cat /run/progress) passes"
kill -9 "${DAEMON_PIDS[2]}"
wait_until 300 asked swap0 /v1/stats ".failures.peers_lost > $lost"
while_job $job read_above swap0 "$elsewhere" backup pending
job_goes_on $job /run/progress $(($(cat /run/progress) + 1))
touch /run/until
wait $job
ask swap0 /v1/peers '.[] | "\(.peer) \(.state) \(.slabs) slabs \(.last_error)"'
echo "pages read from the backup or from pending buffers: $(($(pages_from swap0 backup pending) - elsewhere))"
infiniswap device detach swap0
stop_device swap0
no_io_errors
say "all right"
