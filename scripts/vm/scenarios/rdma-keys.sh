#!/bin/bash
# A lease's keys open exactly its own slabs for exactly as long as they are mapped, over soft-RoCE; and pages that move by
# RDMA cost the daemon next to no processor time; `infiniswap bench` measures a peer by RDMA and by TCP.
# vm: memory=1024 cores=2 deadline=900
# needs: rdma:iproute2 /usr/lib/python3/dist-packages/pyverbs:python3-pyverbs curl jq
. "$CHECKOUT/scripts/vm/guest/lib.sh"

daemon=(infiniswapd --memory 192MiB --headroom 32MiB --lease-ttl-s "$LEASE_TTL_S" --listen 127.0.0.1:7401 --stop-timeout-s 0 --log-level info)

say "without a device"
expect_failure 6 "${daemon[@]}" --rdma required

say "with one"
soft_roce lo
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
