#!/bin/bash
# A file system on the device, attached by netlink and by nbd-client: a real tree survives the way there and back.
# vm: memory=1024 cores=2 disk=1G deadline=1500
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

start_daemons 1 96MiB
start_device disk --size 96MiB --slab-size 8MiB --backup /scratch/disk.img --map eager

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
stop_device disk
no_io_errors
say "all right"
