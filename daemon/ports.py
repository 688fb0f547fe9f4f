"""Where the daemon is reached: the sockets for control and pages, and the addresses that devices are told."""

from __future__ import annotations

import ipaddress
import os
import socket

from aiohttp import web

from infiniswap.nbd.listener import open_tcp_socket, sockets_from_environment
from infiniswap.shared.address import HostPort
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.loopback import listens_here_alone
from infiniswap.shared.passed import Passed

PORT_MAX = 65535


class Ports:
    """Two addresses, as the options want them; open() once or, after it has failed, again.

    Pages have the port above control's where none is asked for, so that a firewall's rule can name both; any free one
    where control has.
    """

    def __init__(self, listen: HostPort, data_listen: HostPort | None, passed: list[Passed]) -> None:
        """passed: sockets for pages that a service manager handed over, which are used instead of data_listen."""
        self.http_address = self._listen = listen
        self._derived = data_listen is None
        if data_listen is None:
            data_listen = HostPort(listen.host, listen.port + 1 if listen.port else 0)
        self.data_address = self._data_listen = data_listen
        self._passed = passed

    def beyond_loopback(self) -> HostPort | None:
        """The first of the addresses that other hosts reach. Looks names up."""
        wanted = [self._listen]
        if not self._passed:
            wanted.append(self._data_listen)
        for it in self._passed:
            with socket.socket(fileno=os.dup(it.fd)) as sock:
                if sock.family in (socket.AF_INET, socket.AF_INET6):
                    wanted.append(HostPort(*sock.getsockname()[:2]))
        return next((each for each in wanted if listens_here_alone(each.host) is False), None)

    @property
    def left_to_chance(self) -> bool:
        """Whether one of the ports is not one that was asked for."""
        return not self._listen.port or not (self._passed or (self._data_listen.port and not self._derived))

    def open(self, http_port: int = 0, data_port: int = 0) -> tuple[socket.socket, list[socket.socket]]:
        """Sockets for control and for pages; sets the addresses. UserError.

        The ports are those to take where the options do not say: of before a restart, which devices know.
        """
        http_socket = open_tcp_socket(self._listen.host, self._listen.port or http_port)
        try:
            data_sockets = self._open_data(data_port)
        except BaseException:
            http_socket.close()
            raise
        self.http_address = HostPort(self._listen.host, http_socket.getsockname()[1])
        return http_socket, data_sockets

    def _open_data(self, port: int) -> list[socket.socket]:
        passed = sockets_from_environment(self._passed)
        sockets = passed or [self._open_pages(port)]
        first = sockets[0]
        if first.family not in (socket.AF_INET, socket.AF_INET6):
            raise UserError("LISTEN_FDS: the first socket must be a TCP socket, because devices are told its address")
        host, port = first.getsockname()[:2]
        self.data_address = HostPort(host if passed else self._data_listen.host, port)
        return sockets

    def _open_pages(self, before: int) -> socket.socket:
        host, port = self._data_listen
        if not self._derived:
            return open_tcp_socket(host, port or before)
        port = before or port
        if port > PORT_MAX:
            raise UserError(f"there is no port above --listen {self._listen} for page I/O: say --data-listen HOST:PORT")
        try:
            return open_tcp_socket(host, port)
        except UserError as error:
            if error.code != ExitCode.IN_USE or not port:
                raise
            hint = "page I/O has the port above --listen's, --data-listen HOST:PORT chooses another"
            raise UserError(f"{error}; {hint}", error.code) from None

    def data_address_for(self, request: web.Request) -> tuple[str, int]:
        """Where the asking client reaches the data port: a wildcard is the address by which it reached us."""
        host, port = self.data_address
        if _is_wildcard(host) and request.transport is not None:
            host = request.transport.get_extra_info("sockname")[0]
        return host, port


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_unspecified
    except ValueError:
        return False
