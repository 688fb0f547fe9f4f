"""infiniswap rdma: the verbs for this host's RDMA ports."""

from infiniswap.cli.main import LazyGroup

command = LazyGroup(
    "rdma",
    {"list": "rdma_list", "setup": "rdma_setup", "teardown": "rdma_teardown"},
    "List this host's RDMA ports; make one in software. "
    "That is soft-RoCE, over an ordinary network interface; it can be removed again.",
)
