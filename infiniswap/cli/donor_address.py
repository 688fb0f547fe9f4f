"""The argument that all donor verbs have: which memory daemon."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from infiniswap.cli.donor_client import tls_option
from infiniswap.cli.param_type import ParamType
from infiniswap.shared.address import CONTROL_PORT, HostPort, parse_host_port
from infiniswap.shared.errors import UserError

Command = TypeVar("Command", bound=Callable[..., Any])


def without_scheme(text: str) -> str:
    """The address in a daemon's URL, as its ready line has it; what is none stays as it is."""
    return text.removeprefix("http://").removeprefix("https://").removesuffix("/")


class Address(ParamType[HostPort]):
    """HOST[:PORT] of a daemon's control API."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> HostPort:
        """Click's usage error for what is none; a URL, as the daemon's ready line has it, is taken, too."""
        try:
            return parse_host_port(without_scheme(str(value)), "the address", default_port=CONTROL_PORT)
        except UserError as error:
            self.fail(str(error), param, ctx)


def address_argument(command: Command) -> Command:
    """Add HOST[:PORT], handed on as parameter address, and how it is reached (donor_client.connect)."""
    return click.argument("address", type=Address(), metavar="HOST[:PORT]")(tls_option(command))
