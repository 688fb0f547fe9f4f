#!/bin/bash
# The same programs with half of their memory, swapping to this device, to throttled disks and to zram: right everywhere.
# vm: memory=1536 cores=2 disk=1G disk=64M,iops=120,bps=100M disk=64M,iops=20000,bps=400M deadline=1500
# needs: redis-server redis-benchmark:redis-tools memcached gcc jq curl
. "$CHECKOUT/scripts/vm/guest/lib.sh"

scratch /scratch
start_daemons 3 48MiB
start_device swap0 --size 64MiB --slab-size 8MiB --backup /scratch/swap0.img --map eager
cd "$CHECKOUT"
python -m scripts.benchmark.swap --device swap0 --disk hdd=/dev/vdb --disk ssd=/dev/vdc --data 24MiB --percent 50 \
    --runtime-s 2 --directory /scratch --output "$OUT" --no-plot

# Every job on every medium was measured, and with half of its memory it did swap.
jq -e '[.samples[] | select(.percent == 50 and .pages_in > 0)] | length == 16' "$OUT/swap.json" > /dev/null ||
    die "not every job swapped"
at_least "pages read from peers" "$(ask swap0 /v1/stats .reads.remote)" 100 # the rest was still on its way to the backup
[ "$(wc -l < /proc/swaps)" = 1 ]
stop_device swap0
no_io_errors
say "all right"
