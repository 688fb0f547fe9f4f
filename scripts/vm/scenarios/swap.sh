#!/bin/bash
# Real programs in memory cgroups at half of what they touch page to remote memory, and their results are right. Under one that checks every
# number the device service stands still until the kernel gives up a connection, then all of them, with hardly any memory left; it is killed
# with -9, and ended by SIGTERM; a daemon is killed: it goes on each time, and no process is killed. With zswap in front pages are in both tiers,
# and come back right from both after the device service and another daemon were killed. Pages are sealed, and the backup is a log.
# vm: memory=1408 cores=2 disk=1G deadline=1500
# needs: redis-server curl jq
. "$CHECKOUT/scripts/vm/guest/lib.sh"
quick_commands
jobs=$CHECKOUT/scripts/vm/jobs

scratch /scratch
start_daemons 3 96MiB
start_device swap0 --size 256MiB --slab-size 8MiB --backup /scratch/swap0.log --backup-layout log --map eager --encrypt
infiniswap device attach swap0 --swap --priority 10 --timeout 6 --dead-conn-timeout 900
cat /proc/swaps
out_before=$(vmstat_value pswpout)

say "numpy: 40 MiB of numbers and the interpreter in 34 MiB"
in_cgroup numpy 34M python "$jobs/numpy_job.py" 40 /run/until /run/progress &
job=$!
while_job $job read_above swap0 2500 remote # how soon depends on how far the backup is behind
touch /run/until
wait $job

say "redis: 16 MiB of values in 14 MiB"
in_cgroup redis 14M redis-server --port 0 --unixsocket /run/redis.sock --save '' --daemonize no > "$LOGS/redis" &
wait_until 300 redis-cli -s /run/redis.sock ping
python "$jobs/redis_job.py" /run/redis.sock 2000 8192 fill
at_least "bytes of redis out" "$(cat /sys/fs/cgroup/redis/memory.swap.current)" $((4 << 20))
python "$jobs/redis_job.py" /run/redis.sock 2000 8192 check
redis-cli -s /run/redis.sock shutdown nosave

at_least "pages out" $(($(vmstat_value pswpout) - out_before)) 5000
at_least "pages in" "$(vmstat_value pswpin)" 5000
kept_as swap0 log
at_least "pages written to peers" "$(ask swap0 /v1/stats .writes.remote)" 5000
infiniswap doctor swap0 || die "the doctor finds a failure"

say "a program of 12 MiB in 11 MiB, which checks every number"
rm -f /run/until /run/progress
in_cgroup job 11M python "$CHECKOUT/scripts/vm/jobs/block_job.py" 12 /run/until /run/progress &
job=$!
while_job $job test -s /run/progress
while_job $job swapped_out $(($(vmstat_value pswpout) + 3000))

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
[ "$(wc -l < /proc/swaps)" = 1 ]

say "zswap in front: numpy once more, in a group whose compressed pages may take 4 MiB"
zswap=/sys/module/zswap/parameters
parameters() { grep -H . $zswap/*; }
before=$(parameters)
infiniswap doctor | grep -A 2 -i zswap || true
infiniswap device attach swap0 --swap --priority 10 --zswap --zswap-max-pool-percent 15 > /run/attached 2>&1
cat /run/attached
grep -q 'compressor zstd (was lzo), enabled Y (was N), max_pool_percent 15 (was 20), shrinker_enabled Y (was N)' /run/attached
[ "$(cat $zswap/enabled $zswap/compressor $zswap/max_pool_percent $zswap/shrinker_enabled | xargs)" = "Y zstd 15 Y" ]
[ "$(cat /sys/block/nbd0/queue/rotational)" = 0 ] # or the kernel stops reading ahead by address on the whole host
group=/sys/fs/cgroup/tiers
mkdir -p $group
echo 4M > $group/memory.zswap.max
rm -f /run/until /run/progress
in_cgroup tiers 34M python "$jobs/numpy_job.py" 40 /run/until /run/progress &
job=$!
stat() { awk -v name="$1" '$1 == name { print $2 }' $group/memory.stat; }
stat_above() { [ "$(stat "$1")" -gt "$2" ]; }
# Pages out are in the group's zswap or on the device, and each tier has some; both give them back, and zswap passes cold ones on.
on_device() { echo $((($(cat $group/memory.swap.current) - $(stat zswapped)) >> 12)); }
in_both() { stat_above zswapped $((2 << 20)) && [ "$(on_device)" -gt 1000 ]; }
while_job $job in_both
say "$(($(stat zswapped) >> 12)) pages in zswap, in $(cat $group/memory.zswap.current) bytes, $(on_device) on the device"
while_job $job stat_above zswpin 500
while_job $job stat_above zswpwb 500
remote=$(pages_from swap0 remote)
while_job $job read_above swap0 $((remote + 500)) remote

say "the device service is killed, then daemon 1"
ready=$(count_ready swap0)
kill -9 "$(ask swap0 /v1/status .pid)"
wait_until 300 device_ready swap0 $((ready + 1))
job_goes_on $job /run/progress "$(cat /run/progress)"
while_job $job in_both
lost=$(ask swap0 /v1/stats .failures.peers_lost)
kill -9 "${DAEMON_PIDS[1]}"
wait_until 300 asked swap0 /v1/stats ".failures.peers_lost > $lost"
job_goes_on $job /run/progress $(($(cat /run/progress) + 1))
while_job $job in_both
touch /run/until
wait $job
kept_as swap0 log
ask swap0 /v1/stats '"\(.failures)"'
infiniswap doctor swap0 | grep 'zswap: on, zstd, 15 %'
infiniswap device detach swap0
[ "$(parameters)" = "$before" ]
[ ! -e /run/infiniswap/zswap.json ]
[ "$(wc -l < /proc/swaps)" = 1 ]
stop_device swap0
no_io_errors
say "all right"
