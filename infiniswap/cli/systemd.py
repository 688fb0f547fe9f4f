"""infiniswap systemd: the verbs for the service manager."""

from infiniswap.cli.main import LazyGroup

command = LazyGroup("systemd", {"install": "systemd_install"}, "Units for systemd.")
