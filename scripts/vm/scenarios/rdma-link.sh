#!/bin/bash
# Soft-RoCE links: made, listed, judged by the doctor and removed, also while a program has one open; every refusal.
# vm: memory=768 cores=2 deadline=900
. "$CHECKOUT/scripts/vm/guest/lib.sh"
quick_commands

[ -d /usr/lib/python3/dist-packages/pyverbs ] || die "apt-get install python3-pyverbs ibverbs-providers"

gone() { ! ls -d /sys/class/infiniband/* /sys/class/infiniband_verbs/uverbs* /dev/infiniband/uverbs* 2> /dev/null; }

modprobe dummy numdummies=0
ip link add dummy0 type dummy

say "refusals, which touch nothing"
[ ! -e /sys/module/rdma_rxe ]
expect_failure 3 infiniswap rdma setup --netdev nosuch
expect_failure 1 infiniswap rdma setup --netdev dummy0
ip link set dummy0 up
expect_failure 1 infiniswap rdma setup --netdev dummy0
expect_failure 3 infiniswap rdma teardown
[ ! -e /sys/module/rdma_rxe ]

say "setup, and again"
ip address add 10.98.0.1/24 dev dummy0
infiniswap rdma setup --netdev dummy0 | tee /run/setup
grep -q '^rxe0/1: soft-RoCE on dummy0, GID [1-9][0-9]* ::ffff:10.98.0.1$' /run/setup
infiniswap rdma setup --netdev dummy0 | tee /run/setup
grep -q '^rxe0/1: .*, there already$' /run/setup
expect_failure 4 infiniswap rdma setup --netdev dummy0 --name other
expect_failure 4 infiniswap rdma setup --netdev lo --name rxe0

say "list and doctor"
infiniswap rdma list | tee /run/list
grep -Eq '^rxe0/1 +ACTIVE +Ethernet +dummy0 +1500 +[0-9]+ +::ffff:10.98.0.1 +RoCE v2$' /run/list
infiniswap doctor | tee /run/doctor
grep -q '^ok .*rxe0/1' /run/doctor

say "teardown"
infiniswap rdma setup --netdev lo --name loop
expect_failure 2 infiniswap rdma teardown
infiniswap rdma teardown --netdev lo --timeout 200
[ ! -e /sys/class/infiniband/loop ]

say "teardown while a program has it open"
/usr/bin/python3 -c '
import time, pyverbs.device
context = pyverbs.device.Context(name="rxe0")
print("open", flush=True)
time.sleep(3600)' > /run/open &
program=$!
wait_until 120 grep -q open /run/open
infiniswap rdma teardown rxe0 --timeout 20 > /run/held 2>&1 && die "removed under a program"
cat /run/held
grep -q "waiting for python3 (pid $program) to close rxe0" /run/held
grep -q "still open after 20 s.* by python3 (pid $program)" /run/held
expect_failure 4 infiniswap rdma setup --netdev dummy0
kill "$program"
wait_until 60 gone
infiniswap rdma teardown --if-present
say "all right"
