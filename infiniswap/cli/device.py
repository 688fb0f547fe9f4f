"""infiniswap device: the verbs for whole devices."""

from infiniswap.cli.main import LazyGroup

command = LazyGroup(
    "device",
    {"serve": "device_serve", "list": "device_list", "stop": "device_stop"},
    "Serve, list and stop devices.",
)
