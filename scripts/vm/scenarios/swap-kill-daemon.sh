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
every_peer_holds_slabs() { asked swap0 /v1/peers '[.[] | .slabs > 0] | all'; }
wait_until 300 every_peer_holds_slabs
wait_until 300 test -s /run/progress
at_least "pages out before the kill" "$(vmstat_value pswpout)" 3000

say "killing daemon 2 after $(cat /run/progress) passes"
kill -9 "${DAEMON_PIDS[2]}"
wait_until 300 asked swap0 /v1/stats '.failures.peers_lost >= 1'
passes=$(cat /run/progress)
job_goes_on $job /run/progress "$passes"
touch /run/until
wait $job
ask swap0 /v1/peers '.[] | "\(.peer) \(.state) \(.slabs) slabs \(.last_error)"'
at_least "pages read from the backup or from pending buffers" "$(ask swap0 /v1/stats '.reads.backup + .reads.pending')" 1
infiniswap device detach swap0
stop_device swap0
no_io_errors
say "all right"
