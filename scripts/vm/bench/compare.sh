#!/bin/bash
# The same programs with half of their memory, swapping to this device, to a throttled disk, to both behind zswap, and to zram:
# right everywhere, and behind zswap with no more memory charged.
# vm: memory=1536 cores=2 disk=1G disk=64M,iops=120,bps=100M deadline=1500
# needs: redis-server redis-benchmark:redis-tools memcached gcc jq curl
. "$CHECKOUT/scripts/vm/guest/lib.sh"

scratch /scratch
start_daemons 3 48MiB
start_device swap0 --size 64MiB --slab-size 8MiB --backup /scratch/swap0.img --map eager
cd "$CHECKOUT"
python -m scripts.benchmark.swap --device swap0 --disk hdd=/dev/vdb --zswap infiniswap,hdd --data 24MiB --percent 50 \
    --runtime-s 2 --directory /scratch --output "$OUT" --no-plot

# Every job on every medium was measured, and with half of its memory it did swap.
jq -e '[.samples[] | select(.percent == 50 and .pages_in > 0)] | length == 20' "$OUT/swap.json" > /dev/null ||
    die "not every job swapped"
# Behind zswap pages come from there; compressed ones are among what is charged to the program, whose limit is what it is without.
for behind in infiniswap hdd; do
    jq -e --arg medium "zswap-$behind" '[.samples[] | select(.medium == $medium)] | length == 4 and
        (map(.zswap_in) | add) > 100 and (map(.zswap_bytes) | max) > 65536 and
        all(.zswap_bytes < .charged_bytes and .charged_bytes <= .limit_bytes * 9 / 8)' "$OUT/swap.json" > /dev/null ||
        die "zswap before $behind did not do what it is there for"
done
# Nobody has more memory than another: of each job the limits are alike, for it is half of what it had.
jq -e '[.samples | group_by(.job)[] | map(.limit_bytes) | max < 1.1 * min] | all' "$OUT/swap.json" > /dev/null || die "unequal limits"
jq -e '[.samples[] | select(.medium | startswith("zswap") | not)] | all(.zswap_in == 0 and .zswap_bytes == 0)' "$OUT/swap.json" > /dev/null
[ "$(cat /sys/module/zswap/parameters/enabled)" = N ]
at_least "pages read from peers" "$(ask swap0 /v1/stats .reads.remote)" 100 # the rest was still on its way to the backup
[ "$(wc -l < /proc/swaps)" = 1 ]
stop_device swap0
no_io_errors
say "all right"
