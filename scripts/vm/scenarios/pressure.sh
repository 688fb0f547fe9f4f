#!/bin/bash
# A machine of 512 MiB, a third less than its programs touch, swaps to a donor in another machine for two minutes and more, with
# no control group: nobody has memory. A task that waits for long panics it; none does, and every byte is right.
# vm: machines=2 memory=512 cores=2 disk=1G deadline=1500
# needs: curl jq
. "$CHECKOUT/scripts/vm/guest/lib.sh"
# Results go to the host by 9p, which needs half a MiB in one piece for a request: the device's log must not wait for that.
LOGS=/run/logs
mkdir -p $LOGS
# What the service is to do without, so that one sees what it is for (scripts/vm/open/pressure-without.sh).
WITHOUT=${WITHOUT:-}
without() { [[ " $WITHOUT " == *" $1 "* ]]; }
PRESSURE_S=120
# No deadlock ends by itself, so this does not depend on how fast the machine is; what is merely slow does not wait that long.
HUNG_TASK_S=${HUNG_TASK_S:-$((PATIENCE * 60))}

DONOR=10.99.0.2
if [ "$VM" = 2 ]; then
    DAEMON_HOST=$DONOR
    DAEMON_OPTIONS=(--insecure)
    start_daemons 1 256MiB
    daemons_ready
    # A network is never silent. Once the other machine's processors slept with no timer left (docs/vm.md): a packet wakes them.
    /bin/busybox ping 10.99.0.1 > /dev/null &
    wait # until the other machine ends
fi

scratch /scratch
PEERS=(--peer "$DONOR:7401")
options=(--size 512MiB --slab-size 8MiB --backup /scratch/swap0.img --map eager --insecure --no-encrypt)
if without real-time; then options+=(--no-real-time); fi
if without threads; then options+=(--backup-engine io_uring); fi
if without io-flusher; then
    echo -1000 > /proc/$$/oom_score_adj # which it could not do itself
    infiniswap() { setpriv --bounding-set=-sys_resource "$CHECKOUT/.venv/bin/infiniswap" "$@"; }
fi
start_device swap0 "${options[@]}" # while the donor still starts
infiniswap device attach swap0 --swap
unset -f infiniswap
echo 0 > /proc/$$/oom_score_adj
wait_until 300 asked swap0 /v1/status '.mapped_slabs >= 1'
echo "slabs at the donor: $(ask swap0 /v1/status .mapped_slabs)"
swapon --show
available=$(awk '/^MemAvailable:/ { print int($2 / 1024) }' /proc/meminfo)
service=$(ask swap0 /v1/status .pid)
grep -E '^(VmRSS|VmLck):' "/proc/$service/status"
# Flags (field 9) and policy (41) of each thread, as the kernel has them: 0x80000 is PF_MEMALLOC_NOIO, 2 is SCHED_RR.
marked=$(cat "/proc/$service"/task/*/stat | sed 's/.*) //' | awk '{ if (int($7 / 524288) % 2) n++ } END { print n + 0 }')
raised=$(cat "/proc/$service"/task/*/stat | sed 's/.*) //' | awk '$39 == 2 { n++ } END { print n + 0 }')
echo "vm.min_free_kbytes is $(cat /proc/sys/vm/min_free_kbytes); of $(awk '/^Threads:/ { print $2 }' "/proc/$service/status") threads" \
    "$marked are I/O flushers, $raised real-time; the backup is written by $(ask swap0 /v1/status .backup_engine)"
if without io-flusher; then [ "$marked" = 0 ]; else [ "$marked" -ge 2 ]; fi
if without real-time; then [ "$raised" = 0 ]; else [ "$raised" -ge 2 ]; fi

sysctl -qw kernel.hung_task_timeout_secs="$HUNG_TASK_S" kernel.hung_task_panic=1 kernel.panic_on_oops=1
each=$((available * 2 / 3))
say "$available MiB are available; two programs go over $each MiB each; a task that waits for $HUNG_TASK_S s is a panic"
begun=$SECONDS out=$(vmstat_value pswpout) in=$(vmstat_value pswpin)
paged() {
    echo "after $((SECONDS - begun)) s: $(($(vmstat_value pswpout) - out)) pages out, $(($(vmstat_value pswpin) - in)) in," \
        "stalled for $(sed -n 's/^some.*total=//p' /proc/pressure/memory) us, all for $(sed -n 's/^full.*total=//p' /proc/pressure/memory) us"
}
jobs=()
for number in 1 2; do
    python "$CHECKOUT/scripts/vm/jobs/block_job.py" $each /run/until /run/progress$number &
    jobs+=($!)
done
told=0
under_pressure() {
    # A word now and then, from which one sees how far a machine got that did not come to the end.
    if [ $((SECONDS - begun)) -ge $((told + 15)) ]; then told=$((SECONDS - begun)); paged > /dev/ttyS0; fi
    [ $((SECONDS - begun)) -ge $PRESSURE_S ] && [ $(($(vmstat_value pswpout) - out)) -ge 8000 ] &&
        [ $(($(vmstat_value pswpin) - in)) -ge 4000 ]
}
while_job "${jobs[0]}" under_pressure
say "under pressure for $((SECONDS - begun)) s"
paged
grep -E '^(MemFree|MemAvailable|Dirty|SwapFree):' /proc/meminfo | xargs
touch /run/until
for job in "${jobs[@]}"; do wait "$job"; done
paged
at_least "pages written to the donor" "$(ask swap0 /v1/stats .writes.remote)" 4000
asked swap0 /v1/stats '.failures.lost_pages == 0 and .failures.checksum_mismatches == 0'
infiniswap device detach swap0
stop_device swap0
no_io_errors
if dmesg | grep 'blocked for more than'; then die "the kernel saw a task that waits"; fi
# A slow machine may take longer than the kernel's time-out for a request; then it is sent again, and nothing is lost.
echo "connections that the kernel gave up: $(dmesg | grep -cE 'nbd.*(timed out|Send data failed)' || true)"
echo "page allocation failures, each of which somebody coped with: $(dmesg | grep -c 'page allocation failure' || true)"
say "all right"
