#!/bin/bash
# The device over RDMA and TCP, the kernel's NVMe over both, nbdkit, and what the RDMA port itself can carry: scripts/bench --vm.
# Not among the scenarios: it shows figures and proves nothing. BENCH_ARGUMENTS: for scripts/benchmark/vm/guest.py.
# vm: memory=3072 cores=2 deadline=1500
# needs: ib_read_lat:perftest fio nbdkit
. "$CHECKOUT/scripts/vm/guest/lib.sh"

# Soft-RoCE on an interface of its own, whose packets hold a page (4096 bytes and 80 of headers).
address=10.98.0.1
modprobe dummy numdummies=0
ip link add rdma0 type dummy
ip link set rdma0 mtu 4200 up
ip address add $address/24 dev rdma0
infiniswap rdma setup --netdev rdma0

ulimit -l unlimited
folder=/run/bench
mkdir -p $folder
load_nbd
cd "$CHECKOUT"
code=0
# shellcheck disable=SC2086  # several words
python -m scripts.benchmark.vm.guest --address $address --folder $folder --output "$OUT" ${BENCH_ARGUMENTS-} || code=$?
cp $folder/*.log "$LOGS" || true
[ $code = 0 ] || die "the measurement ended with exit code $code"
no_io_errors
cat "$OUT/bench-vm.md"
