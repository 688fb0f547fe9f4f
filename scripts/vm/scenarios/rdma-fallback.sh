#!/bin/bash
# The RDMA device is removed under load: pages go on over TCP; once it is back, over RDMA again. No wrong page, no error.
# vm: memory=1408 cores=2 disk=1G deadline=1500
# needs: rdma:iproute2 /usr/lib/python3/dist-packages/pyverbs:python3-pyverbs curl jq
. "$CHECKOUT/scripts/vm/guest/lib.sh"

infiniswap rdma setup --netdev lo
scratch /scratch
start_daemons 2 160MiB
start_device swap0 --size 256MiB --slab-size 8MiB --backup /scratch/swap0.img --map eager
all_over() { asked swap0 /v1/peers "all(.state == \"up\" and .transport == \"$1\")"; }
holding() { asked swap0 /v1/peers 'all(.slabs > 0)'; }
all_over rdma || die "not over RDMA"
infiniswap device attach swap0 --swap

in_cgroup job 28M python "$CHECKOUT/scripts/vm/jobs/numpy_job.py" 32 /run/until /run/progress &
job=$!
wait_until 300 test -s /run/progress
wait_until 300 holding
at_least "pages read from peers" "$(ask swap0 /v1/stats .reads.remote)" 1000

say "the RDMA device is removed"
infiniswap rdma teardown --timeout 120
wait_until 300 all_over tcp
wait_until 300 holding
remote=$(ask swap0 /v1/stats .reads.remote)
job_goes_on $job /run/progress $(($(cat /run/progress) + 1))
at_least "pages read from peers over TCP" $(($(ask swap0 /v1/stats .reads.remote) - remote)) 500
ask swap0 /v1/peers '.[] | "\(.peer) \(.transport) \(.slabs) slabs, \(.rdma_error)"'

say "the RDMA device is back"
infiniswap rdma setup --netdev lo
wait_until 300 all_over rdma
wait_until 300 holding
remote=$(ask swap0 /v1/stats .reads.remote)
job_goes_on $job /run/progress $(($(cat /run/progress) + 1))
at_least "pages read from peers over RDMA" $(($(ask swap0 /v1/stats .reads.remote) - remote)) 500
touch /run/until
wait $job
asked swap0 /v1/stats '.failures.lost_pages == 0 and .failures.checksum_mismatches == 0'
infiniswap device detach swap0
stop_device swap0
no_io_errors
say "all right"
