#!/bin/bash
# One of three daemons is killed while a program swaps to them: its results are right, and no process is killed.
# vm: memory=1408 cores=2 disk=1G deadline=1500
# needs: curl jq
. "$CHECKOUT/scripts/vm/guest/lib.sh"

scratch /scratch
start_daemons 3 96MiB
start_device swap0 --size 256MiB --slab-size 8MiB --backup /scratch/swap0.img --map eager
infiniswap device attach swap0 --swap

in_cgroup job 28M python "$CHECKOUT/scripts/vm/jobs/numpy_job.py" 32 /run/until /run/progress &
job=$!
while_job $job test -s /run/progress
while_job $job swapped_out 3000
# The one to be killed must have something to lose: its slabs may hold nothing but pages that were freed since.
victim=$DAEMON_HOST:$((DAEMON_PORT + 2))
holds_pages() { asked swap0 /v1/slabs "map(select(.peer == \"$victim\") | .remote_pages) | add >= 500"; }
while_job $job holds_pages
elsewhere=$(pages_from swap0 backup pending)

say "killing daemon 2 after $(cat /run/progress) passes"
kill -9 "${DAEMON_PIDS[2]}"
wait_until 300 asked swap0 /v1/stats '.failures.peers_lost >= 1'
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
