#!/bin/bash
# A device service stands still under swap until the kernel gives up a connection, then until it has given up all of them,
# with hardly any memory left: they are replaced within seconds, and the program's results are right.
# vm: memory=1024 cores=2 disk=1G deadline=1500
# needs: curl jq
. "$CHECKOUT/scripts/vm/guest/lib.sh"

scratch /scratch
start_daemons 2 96MiB
start_device swap0 --size 256MiB --slab-size 8MiB --backup /scratch/swap0.img --map eager
infiniswap device attach swap0 --swap --timeout 6
in_cgroup job 28M python "$CHECKOUT/scripts/vm/jobs/numpy_job.py" 32 /run/until /run/progress &
job=$!
while_job $job test -s /run/progress
while_job $job swapped_out 3000

said() { dmesg | grep -c "$1" || true; }
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

say "until one is given up"
stand_still 'Connection timed out'

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
touch /run/until
wait $job
asked swap0 /v1/stats '.failures.lost_pages == 0 and .failures.checksum_mismatches == 0'
infiniswap device detach swap0
stop_device swap0
no_io_errors
say "all right"
