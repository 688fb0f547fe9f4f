"""A secured daemon and hosts that come to it with certificates, good ones or others, one plain request at a time."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infiniswap.identity.identity import Identity, utc_now
from infiniswap.nbd.client import NbdClient
from infiniswap.shared.address import HostPort, parse_host_port
from tests.support.certificates import Cluster, paths
from tests.support.services import ANSWER_TIMEOUT_S, Daemon, Services
from tests.support.waiting import wait_for

MIB = 1 << 20
DEVICE_ID = "00000000-0000-4000-8000-000000000000"


class Unchecked(Identity):
    """A host that starts whatever its own files say, as one with a wrong clock or evil in mind."""

    def __init__(self, folder: Path) -> None:
        """Nothing is read."""
        self.paths = paths(folder)
        self._now = utc_now
        self._clients = {}

    def fault(self, certificate: Mapping[str, Any]) -> str | None:
        """It finds fault with nobody."""
        return None


@dataclass
class World:
    """A secured daemon at 127.0.0.1, and the cluster."""

    cluster: Cluster
    other: Cluster
    daemon: Daemon
    services: Services
    tls: tuple[str, ...] = ()  # the daemon's own options for that

    @property
    def address(self) -> HostPort:
        """Of its control API."""
        return parse_host_port(self.daemon.address, "address")

    def said(self, words: str) -> str:
        """The last line of its log with these words, as soon as there is one."""

        def found() -> str:
            return next((line for line in reversed(self.daemon.log.splitlines()) if words in line), "")

        return wait_for(found, what=f"'{words}' in the daemon's log")

    def host(self, name: str, *more: str) -> Host:
        """One of the cluster, with a certificate of that name."""
        return Host(self.address, Identity(paths(self.cluster.host(name, *more))))


def make_world(folder: Path, services: Services, *options: str, memory: str = "64MiB") -> World:
    """The daemon is node1 of the cluster."""
    cluster, other = Cluster.make(folder), Cluster.make(folder, "other")
    cluster.host("node1")
    tls = ("--tls-dir", str(cluster.folder / "node1"))
    daemon = services.daemon(memory, *tls, *options)
    return World(cluster, other, daemon, services, tls)


@dataclass(frozen=True, slots=True)
class Answer:
    """Of the control API: status, and what its JSON says."""

    status: int
    content: Mapping[str, Any]

    @property
    def error(self) -> str:
        """The sentence of a refusal."""
        return str(self.content.get("error", ""))


@dataclass(frozen=True, slots=True)
class SecureLease:
    """As its taker knows it."""

    lease_id: str
    token: str = field(repr=False)
    export: str = field(repr=False)
    pages: tuple[str, int] = ("", 0)  # where page connections go


@dataclass(frozen=True, slots=True)
class Host:
    """Asks one daemon; each time on a connection of its own."""

    address: HostPort
    identity: Identity | None  # None: in the clear

    def ask(self, method: str, path: str, *, token: str | None = None, body: object = None) -> Answer:
        """What it says. OSError: it does not let us in."""
        host, port = self.address
        connection: http.client.HTTPConnection
        if self.identity is None:
            connection = http.client.HTTPConnection(host, port, timeout=ANSWER_TIMEOUT_S)
        else:
            context = self.identity.client(host)
            connection = http.client.HTTPSConnection(host, port, timeout=ANSWER_TIMEOUT_S, context=context)
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return Answer(answer.status, json.loads(answer.read() or b"{}"))
        finally:
            connection.close()

    def of(self, lease: SecureLease, method: str, what: str = "", body: object = None) -> Answer:
        """Ask about a lease, with its token."""
        return self.ask(method, f"/v1/leases/{lease.lease_id}{what}", token=lease.token, body=body)

    def ask_for_lease(self, size_bytes: int = 4 * MIB) -> Answer:
        """POST /v1/leases."""
        body = {"device": "vol", "device_id": DEVICE_ID, "size_bytes": size_bytes, "slab_bytes": MIB}
        return self.ask("POST", "/v1/leases", body=body)

    def lease(self, size_bytes: int = 4 * MIB) -> SecureLease:
        """A new one."""
        answer = self.ask_for_lease(size_bytes)
        assert answer.status == http.client.CREATED, answer
        told = answer.content
        host, port = told["address"]
        return SecureLease(told["lease"], told["token"], told["export"], (host, port))

    def ticket(self, lease: SecureLease) -> str:
        """A fresh one."""
        answer = self.of(lease, "POST", "/tickets", {})
        assert answer.status == http.client.CREATED, answer
        return str(answer.content["export"])

    def connect(self, lease: SecureLease) -> NbdClient:
        """To its pages."""
        return NbdClient(lease.pages, self.ticket(lease), ANSWER_TIMEOUT_S)

    def stats(self) -> Mapping[str, Any]:
        """GET /v1/stats."""
        return self.ask("GET", "/v1/stats").content
