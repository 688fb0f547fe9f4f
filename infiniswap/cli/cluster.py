"""infiniswap cluster: the verbs for the certificates by which the hosts of a cluster know each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from infiniswap.cli.main import LazyGroup
from infiniswap.identity import HOST_DAYS, HOST_DAYS_MAX
from infiniswap.shared.paths import tls_dir

Command = TypeVar("Command", bound=Callable[..., Any])


def directory_option(command: Command) -> Command:
    """Add --directory (None: the usual one)."""
    return click.option(
        "--directory",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Where the files are [default: /etc/infiniswap/tls].",
    )(command)


def days_option(command: Command) -> Command:
    """Add --days."""
    return click.option(
        "--days",
        type=click.IntRange(1, HOST_DAYS_MAX),
        default=HOST_DAYS,
        metavar="N",
        help=f"How long the certificate is good [default: {HOST_DAYS}].",
    )(command)


def folder_of(directory: Path | None) -> Path:
    """The folder meant by --directory."""
    return (tls_dir() if directory is None else directory).absolute()


command = LazyGroup(
    "cluster",
    {
        "init": "cluster_init",
        "invite": "cluster_invite",
        "join": "cluster_join",
        "issue": "cluster_issue",
        "renew": "cluster_renew",
        "revoke": "cluster_revoke",
        "show": "cluster_show",
    },
    "Certificates by which the hosts of a cluster know each other. One host has the authority, and invites the others "
    "(invite); the line that it prints is typed there (join).",
)
