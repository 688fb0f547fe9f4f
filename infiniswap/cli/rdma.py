"""infiniswap rdma: the verbs for this host's RDMA ports."""

from infiniswap.cli.main import LazyGroup

command = LazyGroup(
    "rdma",
    {"list": "rdma_list", "setup": "rdma_setup", "teardown": "rdma_teardown"},
    "List this host's RDMA ports; make one of an ordinary network interface (soft-RoCE), and remove it.",
)
