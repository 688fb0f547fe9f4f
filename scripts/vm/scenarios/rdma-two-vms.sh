#!/bin/bash
# Swap over RDMA between two machines that know each other by certificates, its pages sealed, without an option for either:
# slabs move, a daemon restarts, slabs go by force, the donor loses power; results right.
# vm: machines=2 memory=1408 cores=2 disk=1G deadline=1500
# needs: rdma:iproute2 /usr/lib/python3/dist-packages/pyverbs:python3-pyverbs curl jq nc:netcat-openbsd
. "$CHECKOUT/scripts/vm/guest/lib.sh"

soft_roce eth0
DONOR=10.99.0.2
if [ "$VM" = 2 ]; then
    join_cluster
    DAEMON_HOST=$DONOR
    DAEMON_OPTIONS=(--operators anyone --keep-memory /run/holder@)
    start_daemons 2 160MiB
    daemons_ready
    nc -l -p 7998 > /run/order # until the other machine says so
    say "daemon 2 is killed, and started again"
    kill -9 "${DAEMON_PIDS[2]}"
    nc -l -p 7999 > /run/order
    say "power is cut"
    echo o > /proc/sysrq-trigger
    sleep 60
fi

donor() { curl -sf "${CERTIFICATE[@]}" "https://$DONOR:$1" "${@:2}"; }
donors_serve() { donor 7401/v1/health && donor 7402/v1/health; }
quick_commands
scratch /scratch
found_cluster
wait_until 600 donors_serve
PEERS=(--peer "$DONOR:7401" --peer "$DONOR:7402")
start_device swap0 --size 256MiB --slab-size 8MiB --backup /scratch/swap0.img --map eager --peer-grace-ms 300000
[ -s /run/infiniswap/state/swap0/seals ] # for the peers are on another host
over_rdma() { asked swap0 /v1/peers 'all(.state == "up" and .transport == "rdma")'; }
wait_until 300 over_rdma
infiniswap peers swap0 -o peer,via,path,slabs
infiniswap device attach swap0 --swap --timeout 60

in_cgroup job 11M python "$CHECKOUT/scripts/vm/jobs/block_job.py" 12 /run/until /run/progress &
job=$!
while_job $job test -s /run/progress
while_job $job swapped_out 3000
while_job $job read_above swap0 1000 remote
holds_pages() { asked swap0 /v1/slabs 'map(.remote_pages) | add >= 500'; }
while_job $job holds_pages

operator() { donor "$1/v1/$2" -X POST -d "${3:-{\}}" > "/run/$2"; }
slabs_at() { ask swap0 /v1/peers ".[] | select(.peer == \"$DONOR:$1\").slabs"; }
counted() { ask swap0 /v1/stats ".counters.$1"; }
both_hold() { [ "$(slabs_at 7401)" -gt 0 ] && [ "$(slabs_at 7402)" -gt 0 ]; }
say "daemon 1 is drained: its slabs move to daemon 2 with their pages"
while_job $job both_hold
operator 7401 drain '{"deadline_s": 1200}'
none_at_1() { [ "$(slabs_at 7401)" = 0 ]; }
while_job $job none_at_1
at_least "slabs that moved" "$(counted moves_done)" 1
at_least "pages taken along" "$(counted moved_pages)" 100
donor 7401/v1/status | jq -e '.drain.forced == [] and .drain.moved >= 1' > /dev/null
operator 7401 uncordon
while_job $job read_above swap0 $(($(pages_from swap0 remote) + 300)) remote
[ "$(counted peers_lost)" = 0 ] || die "a peer was lost while slabs moved"

say "daemon 2 is killed and started again with its memory: held, and resumed"
echo kill > "/dev/tcp/$DONOR/7998"
resumed() { [ "$(counted peers_resumed)" -ge 1 ]; }
while_job $job resumed
while_job $job over_rdma
[ "$(counted peers_lost)" = 0 ] || die "a peer was lost by a restart that keeps memory"
while_job $job read_above swap0 $(($(pages_from swap0 remote) + 300)) remote

say "slabs are taken by force from a device that stands still, and it goes on"
pid=$(ask swap0 /v1/status .pid)
kill -STOP "$pid"
operator 7402 drain '{"deadline_s": 2}'
forced() { donor 7402/v1/status | jq -e '.drain.state == "done" and .drain.forced_slabs >= 1'; }
wait_until 300 forced
kill -CONT "$pid"
operator 7402 uncordon
while_job $job over_rdma
job_goes_on $job /run/progress $(($(cat /run/progress) + 1))
echo "lost by force: $(counted peers_lost) peers, $(counted slabs_lost) slabs"
asked swap0 /v1/stats '.failures.lost_pages == 0 and .failures.checksum_mismatches == 0'
while_job $job holds_pages
lost=$(counted peers_lost)

elsewhere=$(pages_from swap0 backup pending)

say "the donor goes after $(cat /run/progress) passes"
echo off > "/dev/tcp/$DONOR/7999"
wait_until 300 asked swap0 /v1/stats ".failures.peers_lost >= $((lost + 2))"
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
