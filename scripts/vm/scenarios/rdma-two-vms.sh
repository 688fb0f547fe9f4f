#!/bin/bash
# Device in one machine, daemons in another, swap over RDMA between them; the donor loses power: results right.
# vm: machines=2 memory=1408 cores=2 disk=1G deadline=1500
# needs: rdma:iproute2 /usr/lib/python3/dist-packages/pyverbs:python3-pyverbs curl jq nc:netcat-openbsd
. "$CHECKOUT/scripts/vm/guest/lib.sh"

soft_roce eth0
DONOR=10.99.0.2
if [ "$VM" = 2 ]; then
    DAEMON_HOST=$DONOR
    start_daemons 2 160MiB
    daemons_ready
    nc -l -p 7999 > /run/order # until the other machine says so
    say "power is cut"
    echo o > /proc/sysrq-trigger
    sleep 60
fi

donors_serve() { curl -sf "http://$DONOR:7401/v1/health" && curl -sf "http://$DONOR:7402/v1/health"; }
quick_commands
scratch /scratch
wait_until 600 donors_serve
PEERS=(--peer "$DONOR:7401" --peer "$DONOR:7402")
start_device swap0 --size 256MiB --slab-size 8MiB --backup /scratch/swap0.img --map eager
over_rdma() { asked swap0 /v1/peers 'all(.state == "up" and .transport == "rdma")'; }
wait_until 300 over_rdma
infiniswap peers swap0 -o peer,via,path,slabs
infiniswap device attach swap0 --swap

in_cgroup job 18M python "$CHECKOUT/scripts/vm/jobs/block_job.py" 24 /run/until /run/progress &
job=$!
while_job $job test -s /run/progress
while_job $job swapped_out 3000
while_job $job read_above swap0 1000 remote
holds_pages() { asked swap0 /v1/slabs 'map(.remote_pages) | add >= 500'; }
while_job $job holds_pages
elsewhere=$(pages_from swap0 backup pending)

say "the donor goes after $(cat /run/progress) passes"
echo off > "/dev/tcp/$DONOR/7999"
wait_until 300 asked swap0 /v1/stats '.failures.peers_lost >= 2'
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
