#!/bin/bash
# Real programs in memory cgroups at half of what they touch page to remote memory, and their results are right; with zswap in
# front pages are in both tiers, and come back right from both after the device service and a daemon were killed. Pages are sealed,
# and the backup is a log.
# vm: memory=1408 cores=2 disk=1G deadline=1500
# needs: redis-server curl jq
. "$CHECKOUT/scripts/vm/guest/lib.sh"
quick_commands
jobs=$CHECKOUT/scripts/vm/jobs

scratch /scratch
start_daemons 3 96MiB
start_device swap0 --size 256MiB --slab-size 8MiB --backup /scratch/swap0.log --backup-layout log --map eager --encrypt
infiniswap device attach swap0 --swap --priority 10
cat /proc/swaps
out_before=$(vmstat_value pswpout)

say "numpy: 40 MiB of numbers and the interpreter in 34 MiB"
in_cgroup numpy 34M python "$jobs/numpy_job.py" 40 /run/until /run/progress &
job=$!
while_job $job read_above swap0 2500 remote # how soon depends on how far the backup is behind
touch /run/until
wait $job

say "redis: 32 MiB of values in 20 MiB"
in_cgroup redis 20M redis-server --port 0 --unixsocket /run/redis.sock --save '' --daemonize no > "$LOGS/redis" &
wait_until 300 redis-cli -s /run/redis.sock ping
python "$jobs/redis_job.py" /run/redis.sock 4000 8192 fill
at_least "bytes of redis out" "$(cat /sys/fs/cgroup/redis/memory.swap.current)" $((8 << 20))
python "$jobs/redis_job.py" /run/redis.sock 4000 8192 check
redis-cli -s /run/redis.sock shutdown nosave

at_least "pages out" $(($(vmstat_value pswpout) - out_before)) 5000
at_least "pages in" "$(vmstat_value pswpin)" 5000
kept_as swap0 log
at_least "pages written to peers" "$(ask swap0 /v1/stats .writes.remote)" 5000
infiniswap doctor swap0 || die "the doctor finds a failure"
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
kill -9 "${DAEMON_PIDS[1]}"
wait_until 300 asked swap0 /v1/stats '.failures.peers_lost >= 1'
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
