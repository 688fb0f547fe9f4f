#!/bin/bash
# The RDMA device is removed under load: pages go on over TCP; once it is back, over RDMA again. No wrong page, no error.
# vm: memory=1408 cores=2 disk=1G deadline=1500
# needs: rdma:iproute2 /usr/lib/python3/dist-packages/pyverbs:python3-pyverbs curl jq
. "$CHECKOUT/scripts/vm/guest/lib.sh"
quick_commands

infiniswap rdma setup --netdev lo
scratch /scratch
start_daemons 2 160MiB
start_device swap0 --size 256MiB --slab-size 8MiB --backup /scratch/swap0.img --map eager
all_over() { asked swap0 /v1/peers "all(.state == \"up\" and .transport == \"$1\")"; }
holding() { asked swap0 /v1/peers 'all(.slabs > 0)'; }
wait_until 300 all_over rdma
infiniswap device attach swap0 --swap

in_cgroup job 11M python "$CHECKOUT/scripts/vm/jobs/block_job.py" 12 /run/until /run/progress &
job=$!
while_job $job test -s /run/progress
while_job $job holding
while_job $job read_above swap0 1000 remote

say "the RDMA device is removed"
infiniswap rdma teardown --timeout 120
while_job $job all_over tcp
while_job $job holding
while_job $job read_above swap0 $(($(pages_from swap0 remote) + 500)) remote
job_goes_on $job /run/progress $(($(cat /run/progress) + 1))
ask swap0 /v1/peers '.[] | "\(.peer) \(.transport) \(.slabs) slabs, \(.rdma_error)"'

say "the RDMA device is back"
infiniswap rdma setup --netdev lo
while_job $job all_over rdma
while_job $job holding # the one that was drained last holds nothing at first, and gets slabs back little by little
while_job $job read_above swap0 $(($(pages_from swap0 remote) + 500)) remote
job_goes_on $job /run/progress $(($(cat /run/progress) + 1))
touch /run/until
wait $job
asked swap0 /v1/stats '.failures.lost_pages == 0 and .failures.checksum_mismatches == 0'
infiniswap device detach swap0
stop_device swap0
no_io_errors
say "all right"
