#!/bin/bash
# The network between device and donors loses packets, stalls and goes away: swap goes on with right results, and over RDMA again.
# Without certificates, by --insecure; pages are sealed all the same. The backup is a log.
# vm: machines=2 memory=1408 cores=2 disk=1G deadline=1500
# needs: rdma:iproute2 /usr/lib/python3/dist-packages/pyverbs:python3-pyverbs curl jq tc:iproute2
. "$CHECKOUT/scripts/vm/guest/lib.sh"

soft_roce eth0
DONOR=10.99.0.2
if [ "$VM" = 2 ]; then
    DAEMON_HOST=$DONOR
    DAEMON_OPTIONS=(--insecure)
    start_daemons 2 160MiB
    daemons_ready
    wait "$DAEMONS" # the first machine's end is the end of both
fi

donors_serve() { curl -sf "http://$DONOR:7401/v1/health" && curl -sf "http://$DONOR:7402/v1/health"; }
over_rdma() { asked swap0 /v1/peers 'all(.state == "up" and .transport == "rdma")'; }
lost() { ask swap0 /v1/stats .failures.peers_lost; }
more_passes() { job_goes_on $job /run/progress $(($(cat /run/progress) + ${1:-1})); }
quick_commands
scratch /scratch
wait_until 600 donors_serve
PEERS=(--peer "$DONOR:7401" --peer "$DONOR:7402")
start_device swap0 --size 64MiB --slab-size 8MiB --backup /scratch/swap0.log --backup-layout log --map eager --insecure
[ -s /run/infiniswap/state/swap0/seals ]
wait_until 300 over_rdma
infiniswap device attach swap0 --swap

in_cgroup job 18M python "$CHECKOUT/scripts/vm/jobs/block_job.py" 24 /run/until /run/progress &
job=$!
while_job $job test -s /run/progress
while_job $job read_above swap0 1000 remote

say "one packet in a hundred is lost"
tc qdisc add dev eth0 root netem loss 1%
more_passes 1
tc -s qdisc show dev eth0 | grep dropped
tc qdisc del dev eth0 root
say "paths lost by packet loss: $(lost)"
while_job $job over_rdma

say "the link goes for a moment"
ip link set eth0 down
sleep 1 # shorter than the peer time-out: what is in flight is sent again
ip link set eth0 up
more_passes 1
say "paths lost so far: $(lost)"
while_job $job over_rdma

say "the link goes"
ip link set eth0 down
nothing_there() { asked swap0 /v1/peers 'all(.slabs == 0)'; }
while_job $job nothing_there
more_passes 1
say "paths lost so far: $(lost)"
ip link set eth0 up
say "the link is back"
while_job $job over_rdma
while_job $job read_above swap0 $(($(pages_from swap0 remote) + 500)) remote
more_passes 1
touch /run/until
wait $job
kept_as swap0 log
asked swap0 /v1/stats '.failures.lost_pages == 0 and .failures.checksum_mismatches == 0'
infiniswap device detach swap0
stop_device swap0
no_io_errors
say "all right"
