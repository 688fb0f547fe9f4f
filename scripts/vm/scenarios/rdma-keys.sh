#!/bin/bash
# A lease's keys open exactly its own slabs for exactly as long as they are mapped, over soft-RoCE; and pages that move by
# RDMA cost the daemon next to no processor time.
# vm: memory=1024 cores=2 deadline=900
# needs: rdma:iproute2 python3-pyverbs ibverbs-providers
. "$CHECKOUT/scripts/vm/guest/lib.sh"

modprobe crc32_generic
modprobe rdma_rxe
rdma link add rxe0 type rxe netdev lo
wait_until 60 test -e /dev/infiniband/uverbs0

start_daemons 1 192MiB --rdma required --log-level info
daemons_ready
timeout 600 python "$CHECKOUT/scripts/vm/jobs/rdma_keys.py" "http://127.0.0.1:$((DAEMON_PORT + 1))" "${DAEMON_PIDS[1]}"

say "all right"
