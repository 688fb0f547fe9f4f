"""How commands reach a memory daemon: with this host's certificate where it has one, else in the clear."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

import click

from infiniswap.identity.files import NO_FOLDER, TlsPaths, usual_folder
from infiniswap.shared.address import HostPort
from infiniswap.shared.donor_client import DonorClient
from infiniswap.shared.errors import UserError

if TYPE_CHECKING:
    from infiniswap.identity.identity import Identity

Command = TypeVar("Command", bound=Callable[..., Any])

_KEY, _INSECURE_KEY = "infiniswap.tls_dir", "infiniswap.insecure"  # in click's context


def _remember(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    context.meta[_KEY] = value


def _remember_insecure(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    context.meta[_INSECURE_KEY] = value


def tls_option(command: Command) -> Command:
    """Add --tls-dir and --insecure, which connect() goes by."""
    insecure = click.option(
        "--insecure",
        is_flag=True,
        expose_value=False,
        callback=_remember_insecure,
        help="Show no certificate, and speak in the clear.",
    )
    return click.option(
        "--tls-dir",
        metavar="DIR",
        expose_value=False,
        callback=_remember,
        help="Folder of this host's certificate [default: $INFINISWAP_TLS_DIR, or /etc/infiniswap/tls where there is "
        "one].",
    )(insecure(command))


def is_insecure() -> bool:
    """Whether --insecure was given."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_INSECURE_KEY))


def usual_identity() -> Identity | None:
    """This host's certificate as --tls-dir or the environment names it, else the usual one. UserError: it is wrong."""
    context = click.get_current_context(silent=True)
    meta = {} if context is None else context.meta
    given = meta.get(_KEY)
    if is_insecure():
        if given:
            raise UserError("--insecure shows no certificate, and --tls-dir names one: leave one away")
        return None
    folder = usual_folder() if not given else None if given == NO_FOLDER else Path(given)
    if folder is None:
        return None
    from infiniswap.identity.identity import Identity

    return Identity(TlsPaths.of_folder(folder))


class Donors:
    """This host's way to many daemons: its certificate is read and tried once, at the first."""

    def __init__(self) -> None:
        """Nothing is read yet."""
        self._lock = Lock()
        self._identity: Identity | UserError | None = None
        self._read = False

    def connect(self, address: HostPort, timeout_s: float | None = None) -> DonorClient:
        """A client of that daemon, as the function of that name makes it; from several threads."""
        with self._lock:
            if not self._read:
                try:
                    self._identity = usual_identity()
                except UserError as error:
                    self._identity = error
                self._read = True
        if isinstance(self._identity, UserError):
            raise self._identity
        return _client(address, timeout_s, self._identity)


def connect(address: HostPort, timeout_s: float | None = None) -> DonorClient:
    """A client of the daemon there; timeout_s: None for the usual one. UserError: the certificate is wrong."""
    return _client(address, timeout_s, usual_identity())


def _client(address: HostPort, timeout_s: float | None, identity: Identity | None) -> DonorClient:
    return DonorClient(address, tls=identity) if timeout_s is None else DonorClient(address, timeout_s, identity)
