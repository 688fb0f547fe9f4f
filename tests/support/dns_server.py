"""A name server on a port of the loopback interface: SRV records that a test changes, or silence."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterable
from typing import Self

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from infiniswap.shared.address import HostPort


class DnsServer:
    """Answers in a thread of its own. Use it as a context manager."""

    def __init__(self, domain: str, *, ttl_s: int = 1) -> None:
        """domain: whose records of _infiniswap._tcp it has."""
        self.records: Iterable[HostPort] = ()
        self.silent = False
        self.rcode = dns.rcode.NOERROR
        self.asked = 0
        self._name = f"_infiniswap._tcp.{domain}."
        self._ttl_s = ttl_s
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.1)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="dns-server")

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def _serve(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                data, client = self._socket.recvfrom(4096)
                self.asked += 1
                if not self.silent:
                    self._socket.sendto(self._answer(data), client)

    def _answer(self, data: bytes) -> bytes:
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        answer.set_rcode(self.rcode)
        texts = [f"0 0 {port} {host}." for host, port in self.records]
        asked = query.question[0].name.to_text().lower()
        if texts and asked == self._name and self.rcode == dns.rcode.NOERROR:
            answer.answer.append(dns.rrset.from_text(self._name, self._ttl_s, "IN", "SRV", *texts))
        return answer.to_wire()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10.0)
        self._socket.close()
        assert not self._thread.is_alive()
