"""infiniswap peer: the verbs for the memory daemons of a running device."""

from infiniswap.cli.main import LazyGroup

command = LazyGroup(
    "peer",
    {"add": "peer_add", "remove": "peer_remove"},
    "Add peers to a running device, and remove them.",
)
