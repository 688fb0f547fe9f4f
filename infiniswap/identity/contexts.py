"""TLS as both ends have it: 1.3 alone, each with a certificate, no sessions that would outlive a revocation."""

from __future__ import annotations

import contextlib
import ssl
from datetime import datetime
from typing import Any

from infiniswap.identity.files import TlsPaths
from infiniswap.shared.errors import UserError
from infiniswap.shared.tls_reasons import explain

_STEPS_MAX = 16  # of a handshake within this process; it takes four


class NamedContext(ssl.SSLContext):
    """A context for one server, which is checked by the name that the user gave, whichever address was connected to."""

    expected = ""

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """As asyncio calls it."""
        return super().wrap_bio(*arguments, **{**options, "server_hostname": self.expected})


def _furnish(context: ssl.SSLContext, paths: TlsPaths) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(paths.cert, paths.key)
    context.load_verify_locations(paths.ca)
    if paths.crl is not None:
        context.load_verify_locations(paths.crl)
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF


def server_context(paths: TlsPaths) -> ssl.SSLContext:
    """For those who connect to us. OSError, ssl.SSLError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _furnish(context, paths)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # each connection shows its certificate, and it is looked at as the list is now
    return context


def client_context(paths: TlsPaths, name: str) -> NamedContext:
    """For connections to the host of that name or address. OSError, ssl.SSLError."""
    context = NamedContext(ssl.PROTOCOL_TLS_CLIENT)  # which checks the name and wants a certificate
    context.expected = name.partition("%")[0].rstrip(".")
    _furnish(context, paths)
    return context


def tried_server_context(paths: TlsPaths, now: datetime) -> ssl.SSLContext:
    """As server_context(), once it has let our own certificate in: a handshake with ourselves. UserError."""
    try:
        server, client = server_context(paths), client_context(paths, "self")
        client.check_hostname = False
        ends = _ends(server, client)
        for _ in range(_STEPS_MAX):
            done = 0
            for end in ends:
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
                    done += 1
            if done == len(ends):
                return server
    except ssl.SSLError as error:
        said = explain(error, now).removeprefix("its certificate is not taken: ")
        raise UserError(f"the certificate {paths.cert} is of no use here: {said}") from None
    except OSError as error:
        raise UserError(f"cannot use the certificate {paths.cert}: {error.strerror}") from None
    raise UserError(f"the certificate {paths.cert} is of no use here: no handshake comes of it")


def _ends(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    return client.wrap_bio(back, there, server_side=False), server.wrap_bio(there, back, server_side=True)
