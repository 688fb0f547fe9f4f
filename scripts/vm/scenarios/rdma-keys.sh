#!/bin/bash
# A lease's keys open exactly its own slabs for exactly as long as they are mapped, over soft-RoCE; and pages that move by
# RDMA cost the daemon next to no processor time.
# vm: memory=1024 cores=2 deadline=900
# needs: rdma:iproute2 /usr/lib/python3/dist-packages/pyverbs:python3-pyverbs
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

say "what the daemon said, and its end"
kill $pid
wait $pid
cat "$LOGS/daemon.err"
grep -q "RDMA device rxe0 has gone; .* though --rdma required" "$LOGS/daemon.err"
# Beside it only the refusal that the job has asked for.
[ "$(grep WARNING "$LOGS/daemon.err" | grep -vc "refused a POST .*: 409 slabs of this lease")" = 1 ]
if grep -E "ERROR|Traceback|Exception" "$LOGS/daemon.err"; then die "the daemon was not at ease"; fi
say "all right"
