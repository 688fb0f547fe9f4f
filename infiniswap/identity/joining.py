"""The joining host's end of an invitation: asking the server that the code names, and keeping what comes of it."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from infiniswap.identity.certificates import Described
from infiniswap.identity.files import CA_CERT, CA_KEY, CRL, HOST_CERT, HOST_KEY, TlsPaths, write_file
from infiniswap.identity.identity import Identity
from infiniswap.identity.inviting import JOIN, JOINED, SCHEME
from infiniswap.identity.join_code import JoinCode
from infiniswap.identity.requests import key_pem
from infiniswap.shared.address import HostPort
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.json_client import JsonClient
from infiniswap.shared.private_files import check_folder

TIMEOUT_S = 15.0
ANSWER_BYTES_MAX = 17 << 20  # a revocation list may have 16 MiB
# In this order: who reads between two finds a pair that does not fit, keeps the old one, and looks again.
_FILES = (HOST_KEY, HOST_CERT, CA_CERT, CRL)


class _Pinned(http.client.HTTPSConnection):
    """A connection to the server that a code names, whoever has signed its certificate; others are sent nothing."""

    def __init__(self, address: HostPort, code: JoinCode) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # looked at below, before a byte of ours is sent
        super().__init__(address.host, address.port, timeout=TIMEOUT_S, context=context)
        self._address = address
        self._code = code

    def connect(self) -> None:
        """UserError: another server answers."""
        super().connect()
        shown = self.sock.getpeercert(binary_form=True)
        if shown is None or not self._code.is_of(shown):
            self.close()
            raise UserError(
                f"{self._address} shows another certificate than the one that the code names: the code is of another "
                "invitation, or somebody stands in between; nothing was sent",
                ExitCode.REFUSED,
            )


class JoinClient(JsonClient):
    """Both steps; use it as a context manager."""

    def __init__(self, address: HostPort, code: JoinCode) -> None:
        """Connects at the first request."""
        self._address = address
        self._code = code
        super().__init__(_Pinned(address, code), timeout_s=TIMEOUT_S, answer_bytes_max=ANSWER_BYTES_MAX)

    def join(self, request: bytes, now: datetime) -> Mapping[str, str]:
        """The answer to a request for a certificate (PEM). UserError."""
        answer = self._ask(JOIN, {"request": request.decode(), "clock": now.timestamp()})
        wanted = ("certificate", "authority", "revoked")
        if not isinstance(answer, dict) or not all(isinstance(answer.get(key), str) for key in wanted):
            raise self.failed("answers, but not as an invitation of this version")
        return {key: answer[key] for key in wanted}

    def confirm(self, serial: str) -> None:
        """Say that the certificate is good. UserError: it does not count."""
        try:
            self._ask(JOINED, {"serial": serial})
        except UserError as error:
            message = f"{error}; nothing was written: 'infiniswap cluster invite' once more"
            raise UserError(message, error.code) from None

    def _ask(self, purpose: str, content: Mapping[str, object]) -> Any:
        body = json.dumps(content).encode()
        headers = {"Authorization": f"{SCHEME} {self._code.proof(purpose, body)}"}
        return self._request("POST", f"/v1/{purpose}", body, headers)

    def failed(self, what: str) -> UserError:
        """The pinned server answers what cannot be used."""
        return UserError(f"{self._address} {what}", ExitCode.FAILED)

    def silent(self, what: str) -> UserError:
        """It may be back."""
        return UserError(f"{self._address} {what}", ExitCode.UNREACHABLE)

    def unreachable(self, error: OSError) -> UserError:
        """Nobody listens, or something else."""
        if isinstance(error, ssl.SSLError):
            message = f"{self._address} is no invitation: it does not speak TLS 1.3; nothing was sent"
            return UserError(message, ExitCode.REFUSED)
        if isinstance(error, socket.gaierror):
            return UserError(f"{self._address}: no such host", ExitCode.UNREACHABLE)
        if isinstance(error, ConnectionRefusedError):
            message = f"{self._address}: nobody listens there; is 'infiniswap cluster invite' still open?"
            return UserError(message, ExitCode.UNREACHABLE)
        if isinstance(error, http.client.RemoteDisconnected):
            return UserError(f"{self._address} closed the connection without an answer", ExitCode.UNREACHABLE)
        return UserError(f"{self._address} cannot be reached: {error.strerror or error}", ExitCode.UNREACHABLE)

    def refused(self, status: int, reason: str | None) -> UserError:
        """The inviter's sentence."""
        return UserError(f"{self._address} refuses: {reason or f'HTTP status {status}'}", ExitCode.REFUSED)


def check_free(folder: Path, *, replace: bool) -> None:
    """UserError when there is an identity in the folder that is not to be replaced, or never is."""
    check_folder(folder, "directory", "give --directory")
    if (folder / CA_KEY).exists():
        raise UserError(
            f"{folder / CA_KEY} exists: this host has the authority of a cluster; nothing was changed", ExitCode.IN_USE
        )
    for name in (HOST_CERT, HOST_KEY, CA_CERT):
        if (folder / name).exists() and not replace:
            raise UserError(
                f"{folder / name} exists: this host is in a cluster already ('infiniswap cluster show'); --replace "
                "takes the new certificate in its place; nothing was changed",
                ExitCode.IN_USE,
            )


@contextmanager
def stage(folder: Path) -> Iterator[Path]:
    """A folder beside it, for what is not in force yet; gone afterwards. UserError."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise UserError(f"cannot write to {folder.parent}: {error.strerror}", ExitCode.RESOURCES) from None
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def lay_out(staged: Path, key: ec.EllipticCurvePrivateKey, answer: Mapping[str, str]) -> Described:
    """Write an identity to the folder, and look whether it is of use. UserError."""
    try:
        authority = x509.load_pem_x509_certificate(answer["authority"].encode())
        x509.load_pem_x509_certificate(answer["certificate"].encode())
        good = x509.load_pem_x509_crl(answer["revoked"].encode()).is_signature_valid(authority.public_key())  # type: ignore[arg-type]
    except (ValueError, TypeError):
        good = False
    if not good:
        raise UserError("what the authority sent cannot be used: it is damaged, or does not belong together")
    write_file(staged / HOST_KEY, key_pem(key), secret=True)
    write_file(staged / HOST_CERT, answer["certificate"].encode())
    write_file(staged / CA_CERT, authority.public_bytes(Encoding.PEM))
    write_file(staged / CRL, answer["revoked"].encode())
    return Identity(TlsPaths.of_folder(staged)).own


def put(staged: Path, folder: Path) -> None:
    """Have it in force: in one step where the folder is new. UserError."""
    try:
        if not folder.exists():
            staged.rename(folder)
        else:
            for name in _FILES:
                (staged / name).replace(folder / name)
        for each in (folder, folder.parent):
            fd = os.open(each, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}", ExitCode.RESOURCES) from None


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C counts afterwards: what is within takes TIMEOUT_S at most, and is done wholly or not at all."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
