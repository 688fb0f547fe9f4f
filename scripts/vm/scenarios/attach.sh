#!/bin/bash
# A file system on the device, attached by netlink and by nbd-client: a real tree survives the way there and back. TRIM from it
# and from swap reaches the daemons, which give the memory back to their hosts. A device with two shards is a stripe and two areas.
# vm: memory=1280 cores=2 disk=1G deadline=1500
# needs: nbd-client curl jq
. "$CHECKOUT/scripts/vm/guest/lib.sh"
quick_commands

tree=$(python -c 'import os; print(os.path.dirname(os.__file__))')/asyncio
scratch /scratch

# round ATTACHED-DEVICE : mkfs, copy, fsck, compare.
round() {
    mkfs.ext4 -q "$1"
    mkdir -p /mnt/device
    mount "$1" /mnt/device
    cp -a "$tree" /mnt/device/tree
    umount /mnt/device
    fsck.ext4 -fn "$1"
    mount "$1" /mnt/device
    diff -r "$tree" /mnt/device/tree
    umount /mnt/device
}

say "attach without a service, without a module"
expect_failure 3 infiniswap device attach disk
expect_failure 3 infiniswap device detach disk

start_daemons 2 96MiB
start_device disk --size 128MiB --slab-size 8MiB --backup /scratch/disk.img --sparse --map eager

say "by netlink"
node=$(infiniswap device attach disk --connections 2)
[ "$node" = /dev/nbd0 ]
expect_failure 4 infiniswap device attach disk
expect_failure 4 infiniswap device attach disk --index 0 --runtime-dir /run/other --socket /run/infiniswap/disk.sock
round "$node"
mount "$node" /mnt/device
expect_failure 4 infiniswap device detach disk
umount /mnt/device
infiniswap device detach disk
[ ! -e /sys/block/nbd0/pid ]

say "a foreign signature is not made swap, and nothing stays attached"
expect_failure 5 infiniswap device attach disk --swap
[ ! -e /sys/block/nbd0/pid ]
[ "$(wc -l < /proc/swaps)" = 1 ]

say "an attach that is killed in the middle"
"$CHECKOUT/.venv/bin/infiniswap" device attach disk --index 3 > /dev/null &
attach=$!
end=$((SECONDS + 300))
until [ -e /sys/block/nbd3/pid ]; do # at once: it has not much left to do
    [ "$SECONDS" -lt "$end" ] || die "nothing is attached"
done
kill -9 $attach
wait $attach || true
infiniswap device detach disk
[ ! -e /sys/block/nbd3/pid ]

say "by nbd-client"
nbd-client -unix /run/infiniswap/disk.sock /dev/nbd0 -N disk -C 2 -b 4096
wait_until 30 test -e /sys/block/nbd0/pid
round /dev/nbd0
mount /dev/nbd0 /mnt/device
expect_failure 5 infiniswap device stop disk
expect_failure 4 infiniswap device attach disk
infiniswap device list --json | jq -e 'any(.state == "foreign" and .nbd == "/dev/nbd0")'
infiniswap doctor disk | grep '/dev/nbd0 attached by others'
umount /mnt/device
nbd-client -d /dev/nbd0
wait_until 30 test ! -e /sys/block/nbd0/pid
nbd-client -unix /run/infiniswap/disk.sock /dev/nbd0 -N disk -C 4 -b 4096 -swap
wait_until 30 test -e /sys/block/nbd0/pid
mkswap -f /dev/nbd0
swapon /dev/nbd0
expect_failure 5 infiniswap device stop disk
expect_failure 4 infiniswap device attach disk --swap
swapoff /dev/nbd0
nbd-client -d /dev/nbd0
wait_until 30 asked disk /v1/status '.connections == 0'

at_least "pages written to peers" "$(ask disk /v1/stats .writes.remote)" 256

# Given back means: the kernel counts less memory for the daemons, and fewer blocks for the backup.
shrunk() { [ "$(lent_kib)" -lt "$1" ]; }
grown() { [ "$(lent_kib)" -ge "$1" ]; }
backup_kib() { du -k /scratch/disk.img | cut -f1; }
backup_shrunk() { [ "$(backup_kib)" -lt "$1" ]; }

say "fstrim"
node=$(infiniswap device attach disk)
mkfs.ext4 -q -F "$node"
mount "$node" /mnt/device
empty=$(lent_kib)
# What is written before its slab is mapped goes to the backup alone: written again until the daemons hold it.
written() {
    head -c 48M /dev/urandom | dd of=/mnt/device/file bs=1M iflag=fullblock conv=notrunc,fsync status=none
    grown $((empty + (40 << 10)))
}
wait_until 300 written
wait_until 300 asked disk /v1/stats '.pending_bytes == 0'
at_least "KiB on the backup" "$(backup_kib)" $((48 << 10))
rm /mnt/device/file
sync # ext4 trims only what a committed transaction has freed
fstrim -v /mnt/device
wait_until 300 shrunk $((empty + (8 << 10)))
wait_until 300 backup_shrunk $((16 << 10))
umount /mnt/device
wipefs -aq "$node"
infiniswap device detach disk

say "trim from swap"
infiniswap device attach disk --swap
wait_until 300 shrunk $((4 << 10))
in_cgroup job 24M python -c '
import os
data = bytearray(b"\xa5" * (64 << 20))
while not os.path.exists("/run/go"):  # paged out again until the daemons hold it
    for page in range(0, len(data), 4096):
        data[page] = 0xa5
assert data.count(0xa5) == 64 << 20
' &
job=$!
while_job $job grown $((32 << 10))
peak=$(lent_kib)
trims=$(ask disk /v1/stats .counters.trim_requests)
touch /run/go
wait $job
# The kernel trims a cluster of 2 MiB when all of it is free, and keeps a few freed pages in hand for each processor.
wait_until 300 asked disk /v1/stats ".counters.trim_requests > $trims"
wait_until 300 shrunk $((peak - (8 << 10)))
infiniswap device detach disk

say "swapon trims what is left"
infiniswap device attach disk --swap
wait_until 300 shrunk $((4 << 10))
infiniswap device detach disk
stop_device disk

say "two shards: a file system on the stripe over them"
start_device pair --size 128MiB --slab-size 8MiB --backup /scratch/pair.img --sparse --map eager --shards 2
node=$(infiniswap device attach pair)
[ "$node" = /dev/dm-0 ]
round "$node"
mount "$node" /mnt/device
expect_failure 4 infiniswap device detach pair
expect_failure 5 infiniswap device stop pair
umount /mnt/device
wipefs -aq "$node"
infiniswap device detach pair
[ ! -e /sys/block/dm-0 ] && [ ! -e /sys/block/nbd0/pid ] && [ ! -e /sys/block/nbd1/pid ]

say "two swap areas of one priority; a shard is killed"
infiniswap device attach pair --swap --priority 10
cat /proc/swaps
[ "$(awk 'NR > 1 { print $5 }' /proc/swaps | xargs)" = "10 10" ]
rm -f /run/until /run/progress
in_cgroup pair 34M python "$CHECKOUT/scripts/vm/jobs/numpy_job.py" 40 /run/until /run/progress &
job=$!
on_both() { awk 'NR > 1 && $4 < 2048 { few = 1 } END { exit few }' /proc/swaps; }
while_job $job on_both
while_job $job test -e /run/progress
again() { pid=$(ask pair~1 /v1/status .pid) && [ "$pid" != "$1" ]; }
killed=$(ask pair~1 /v1/status .pid)
kill -9 "$killed"
wait_until 300 again "$killed"
job_goes_on $job /run/progress "$(cat /run/progress)"
touch /run/until
wait $job
infiniswap device detach pair
[ "$(wc -l < /proc/swaps)" = 1 ]
stop_device pair
no_io_errors
say "all right"
