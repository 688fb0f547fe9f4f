"""infiniswap donor: the verbs for a memory daemon, wherever it runs."""

from infiniswap.cli.main import LazyGroup

command = LazyGroup(
    "donor",
    {
        "status": "donor_status",
        "cordon": "donor_cordon",
        "uncordon": "donor_uncordon",
        "drain": "donor_drain",
        "export": "donor_export",
    },
    "Look at a memory daemon, take its host out of service and back. HOST:PORT is its --listen address; "
    "unless it was started with --operators anyone, it takes this from its own host alone.",
)
