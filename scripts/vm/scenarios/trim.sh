#!/bin/bash
# TRIM from a file system and from swap reaches the daemons, which give the memory back to their hosts.
# vm: memory=1280 cores=2 disk=1G deadline=1500
# needs: curl jq
. "$CHECKOUT/scripts/vm/guest/lib.sh"
quick_commands

scratch /scratch
start_daemons 2 96MiB
start_device trim0 --size 128MiB --slab-size 8MiB --backup /scratch/trim0.img --sparse --map eager

# Given back means: the kernel counts less memory for the daemons, and fewer blocks for the backup.
shrunk() { [ "$(lent_kib)" -lt "$1" ]; }
grown() { [ "$(lent_kib)" -ge "$1" ]; }
backup_kib() { du -k /scratch/trim0.img | cut -f1; }
backup_shrunk() { [ "$(backup_kib)" -lt "$1" ]; }

say "fstrim"
node=$(infiniswap device attach trim0)
mkfs.ext4 -q "$node"
mkdir -p /mnt/device
mount "$node" /mnt/device
empty=$(lent_kib)
# What is written before its slab is mapped goes to the backup alone: written again until the daemons hold it.
written() {
    head -c 48M /dev/urandom | dd of=/mnt/device/file bs=1M iflag=fullblock conv=notrunc,fsync status=none
    grown $((empty + (40 << 10)))
}
wait_until 300 written
wait_until 300 asked trim0 /v1/stats '.pending_bytes == 0'
at_least "KiB on the backup" "$(backup_kib)" $((48 << 10))
rm /mnt/device/file
sync # ext4 trims only what a committed transaction has freed
fstrim -v /mnt/device
wait_until 300 shrunk $((empty + (8 << 10)))
wait_until 300 backup_shrunk $((16 << 10))
umount /mnt/device
infiniswap device detach trim0

say "swap"
node=$(infiniswap device attach trim0)
wipefs -aq "$node"
infiniswap device detach trim0
infiniswap device attach trim0 --swap
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
trims=$(ask trim0 /v1/stats .counters.trim_requests)
touch /run/go
wait $job
# The kernel trims a cluster of 2 MiB when all of it is free, and keeps a few freed pages in hand for each processor.
wait_until 300 asked trim0 /v1/stats ".counters.trim_requests > $trims"
wait_until 300 shrunk $((peak - (8 << 10)))
infiniswap device detach trim0

say "swapon trims what is left"
infiniswap device attach trim0 --swap
wait_until 300 shrunk $((4 << 10))
infiniswap device detach trim0
stop_device trim0
no_io_errors
say "all right"
