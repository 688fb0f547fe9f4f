#!/bin/bash
# Real programs in memory cgroups at half of what they touch page to remote memory, and their results are right.
# vm: memory=1408 cores=2 disk=1G deadline=1500
# needs: redis-server curl jq
. "$CHECKOUT/scripts/vm/guest/lib.sh"
quick_commands
jobs=$CHECKOUT/scripts/vm/jobs

scratch /scratch
start_daemons 3 96MiB
start_device swap0 --size 256MiB --slab-size 8MiB --backup /scratch/swap0.img --map eager
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
at_least "pages written to peers" "$(ask swap0 /v1/stats .writes.remote)" 5000
infiniswap doctor swap0 || die "the doctor finds a failure"
infiniswap device detach swap0
[ "$(wc -l < /proc/swaps)" = 1 ]
stop_device swap0
no_io_errors
say "all right"
