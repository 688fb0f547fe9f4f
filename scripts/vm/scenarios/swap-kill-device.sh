#!/bin/bash
# The device service is killed with -9 while a program swaps to it, and comes back by itself: the program's results are right.
# vm: memory=1408 cores=2 disk=1G deadline=1500
# needs: curl jq
. "$CHECKOUT/scripts/vm/guest/lib.sh"

scratch /scratch
start_daemons 3 96MiB
start_device swap0 --size 256MiB --slab-size 8MiB --backup /scratch/swap0.img --map eager
infiniswap device attach swap0 --swap --connections 3 --timeout 20 --dead-conn-timeout 900

in_cgroup job 28M python "$CHECKOUT/scripts/vm/jobs/numpy_job.py" 32 /run/until /run/progress &
job=$!
while_job $job test -s /run/progress
while_job $job swapped_out 3000
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

end_device KILL
wait_until 60 grep -q 'connections replaced' "$LOGS/swap0.err"
end_device TERM
wait_until 60 asked swap0 /v1/status '.connections >= 3'
touch /run/until
wait $job
dmesg | grep -c 'reconnected socket'
infiniswap device detach swap0
stop_device swap0
no_io_errors
say "all right"
