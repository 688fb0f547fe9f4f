#!/bin/bash
# Soft-RoCE links: made, listed, judged by the doctor and removed, also while a program has one open; every refusal. Over one of
# them a lease's keys open exactly its own slabs for exactly as long as they are mapped, and pages that move cost the daemon next
# to no processor time; `infiniswap bench` measures a peer by RDMA and by TCP.
# vm: memory=1024 cores=2 deadline=1500
# needs: rdma:iproute2 /usr/lib/python3/dist-packages/pyverbs:python3-pyverbs curl jq
. "$CHECKOUT/scripts/vm/guest/lib.sh"
quick_commands

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

daemon=(infiniswapd --memory 192MiB --headroom 32MiB --lease-ttl-s "$LEASE_TTL_S" --listen 127.0.0.1:7401 --stop-timeout-s 0 --log-level info)

say "a daemon without a device"
expect_failure 6 "${daemon[@]}" --rdma required

say "keys"
infiniswap rdma setup --netdev lo
"${daemon[@]}" --rdma required > "$LOGS/daemon.out" 2> "$LOGS/daemon.err" &
pid=$!
wait_until 300 ready_or_gone "$LOGS/daemon.out" $pid
timeout 600 python "$CHECKOUT/scripts/vm/jobs/rdma_keys.py" http://127.0.0.1:7401 $pid

say "infiniswap bench reads from the daemon by RDMA and by TCP, and gives everything back"
infiniswap bench --peer 127.0.0.1:7401 --disk none --memory 16MiB --seconds 1 --json > "$OUT/bench.json" || die "bench: $(cat "$OUT/bench.json")"
jq -c '.places[] | [.way, .one, .many]' "$OUT/bench.json"
jq -e '[.places[].way] == ["RDMA", "TCP"] and all(.places[]; .one.p50_us > 0 and .one.p50_us <= .one.p99_us and .many.reads_s > 0)' "$OUT/bench.json"
jq -r '.verdict[], .notes[]' "$OUT/bench.json"
[ "$(curl -sf http://127.0.0.1:7401/v1/stats | jq '[.leases, .rdma.regions, .rdma.queue_pairs] | map(tostring) | join(" ")' -r)" = "0 0 0" ]

say "what the daemon said, and its end"
kill $pid
wait $pid
cat "$LOGS/daemon.err"
grep -q "RDMA device rxe0 has gone; .* though --rdma required" "$LOGS/daemon.err"
# Beside it only the refusal that the job has asked for.
[ "$(grep WARNING "$LOGS/daemon.err" | grep -vc "refused a POST .*: 409 slabs of this lease")" = 1 ]
if grep -E "ERROR|Traceback|Exception" "$LOGS/daemon.err"; then die "the daemon was not at ease"; fi
say "all right"
