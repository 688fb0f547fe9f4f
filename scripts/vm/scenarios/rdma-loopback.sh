#!/bin/bash
# Three daemons and a device in one machine over soft-RoCE: the tests that a device passes over TCP, unchanged.
# vm: memory=1408 cores=2 deadline=1500
# needs: rdma:iproute2 /usr/lib/python3/dist-packages/pyverbs:python3-pyverbs curl jq fio qemu-io:qemu-utils nbdinfo:libnbd-bin
. "$CHECKOUT/scripts/vm/guest/lib.sh"

soft_roce lo
cd "$CHECKOUT"
export INFINISWAP_TEST_TRANSPORT=rdma INFINISWAP_TEST_PACE=60 INFINISWAP_TEST_LOAD=0.25
say "libnbd, nbdinfo, nbdcopy, qemu-img and fio with verify; daemons and the device killed under load"
python -m pytest -p no:cacheprovider -q -x --timeout 2700 --durations 20 -k "(device and not tcp) or faults" \
    tests/interop/test_libnbd.py tests/interop/test_tools.py tests/interop/test_qemu.py tests/interop/test_fio.py \
    "tests/faults/test_daemons.py::test_killed_at_random_under_load[log]" \
    "tests/faults/test_device_killed.py::test_under_load[raw-60000]"
