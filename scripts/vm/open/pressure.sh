#!/bin/bash
# What does not hold yet (docs/vm.md, "A host without any memory"), so no test runs it: scripts/vm/run scripts/vm/open/pressure.sh
# A machine of 512 MiB, a third less than its programs touch, swaps for minutes to a donor in another machine. A task that waits
# for two minutes panics it: none should, and every byte should be right.
# vm: machines=2 memory=512 cores=2 disk=1G deadline=1500
# needs: curl jq
. "$CHECKOUT/scripts/vm/guest/lib.sh"
# Results go to the host by 9p, which needs half a MiB in one piece for a request: the device's log must not wait for that.
LOGS=/run/logs
mkdir -p $LOGS

DONOR=10.99.0.2
if [ "$VM" = 2 ]; then
    DAEMON_HOST=$DONOR
    start_daemons 1 256MiB
    daemons_ready
    wait # until the other machine ends
fi

donor_serves() { curl -sf "http://$DONOR:7401/v1/health"; }
scratch /scratch
wait_until 600 donor_serves
PEERS=(--peer "$DONOR:7401")
# No deadlock ends by itself, so this does not depend on how fast the machine is; what is merely slow does not wait that long.
sysctl -qw kernel.hung_task_timeout_secs=120 kernel.hung_task_panic=1 kernel.panic_on_oops=1
start_device swap0 --size 512MiB --slab-size 8MiB --backup /scratch/swap0.img --map eager
infiniswap device attach swap0 --swap
swapon --show
available=$(awk '/^MemAvailable:/ { print int($2 / 1024) }' /proc/meminfo)
grep -E '^(VmRSS|VmLck):' "/proc/$(ask swap0 /v1/status .pid)/status"

# No control group: it is the machine that has no memory, for everybody.
each=$((available * 2 / 3))
say "$available MiB are available; two programs go over $each MiB each"
begun=$SECONDS out=$(vmstat_value pswpout) in=$(vmstat_value pswpin)
jobs=()
for number in 1 2; do
    python "$CHECKOUT/scripts/vm/jobs/block_job.py" $each /run/until /run/progress$number &
    jobs+=($!)
done
under_pressure() {
    [ $((SECONDS - begun)) -ge 120 ] && [ $(($(vmstat_value pswpout) - out)) -ge 40000 ] &&
        [ $(($(vmstat_value pswpin) - in)) -ge 20000 ] && [ -s /run/progress1 ] && [ -s /run/progress2 ]
}
while_job "${jobs[0]}" under_pressure
say "after $((SECONDS - begun)) s: $(($(vmstat_value pswpout) - out)) pages out, $(($(vmstat_value pswpin) - in)) in"
grep -E '^(MemFree|MemAvailable|Dirty|SwapFree):' /proc/meminfo | xargs
cat /proc/pressure/memory
touch /run/until
for job in "${jobs[@]}"; do wait "$job"; done
at_least "pages written to the donor" "$(ask swap0 /v1/stats .writes.remote)" 10000
asked swap0 /v1/stats '.failures.lost_pages == 0 and .failures.checksum_mismatches == 0'
infiniswap device detach swap0
stop_device swap0
no_io_errors
if dmesg | grep 'blocked for more than'; then die "the kernel saw a task that waits"; fi
echo "page allocation failures, each of which somebody coped with: $(dmesg | grep -c 'page allocation failure' || true)"
say "all right"
