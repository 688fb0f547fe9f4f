"""infiniswap config: the verbs for configuration files and what is in force."""

from infiniswap.cli.main import LazyGroup

command = LazyGroup(
    "config",
    {"check": "config_check", "show": "config_show"},
    "Check configuration files, and show what is in force.",
)
