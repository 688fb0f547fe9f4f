"""The cluster's authority: a key that vouches for hosts, what it has issued, and what it has taken back.

Keys are P-256 with ECDSA (FIPS 186-5): every TLS library takes them, and they sign in 30 µs.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from infiniswap.identity import HOST_DAYS
from infiniswap.identity.certificates import check_pair, describe, read_certificate, read_key
from infiniswap.identity.files import (
    BUNDLES,
    CA_CERT,
    CA_KEY,
    CRL,
    HOST_CERT,
    HOST_KEY,
    HOSTS,
    LEDGER,
    LOCK,
    make_folder,
    read_file,
    write_file,
)
from infiniswap.identity.requests import NAMES_MAX, alternatives, check_host, key_pem, named, new_key
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.private_files import LockedError, take_lock

CA_LIFE = timedelta(days=3650)
BACKDATED = timedelta(hours=1)  # clocks of a cluster are not quite the same
ISSUED_MAX = 100_000  # certificates that are remembered
BUSY_S = 10.0  # that another command may take with this folder
BUSY_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was issued, as the ledger remembers it; until: seconds since 1970."""

    host: str
    serial: str
    until: float
    revoked: float = 0.0  # when, in seconds since 1970; 0: it was not

    @classmethod
    def parse(cls, entry: dict[str, Any]) -> Issued:
        """The entry as it was written; else ValueError, TypeError, KeyError or OverflowError."""
        issued = cls(str(entry["host"]), str(entry["serial"]), float(entry["until"]), float(entry["revoked"]))
        for time_s in (issued.until, issued.revoked):
            datetime.fromtimestamp(time_s, UTC)  # which a revocation list has them as
        int(issued.serial, 16)
        return issued


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


class Authority:
    """One folder with a CA: ca.pem, ca.key, crl.pem and the ledger."""

    def __init__(self, folder: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        """See create() and open()."""
        self.folder = folder
        self.certificate = certificate
        self._key = key

    @classmethod
    def create(cls, folder: Path, name: str, now: datetime) -> Authority:
        """A new one, called name for people. UserError: the folder has one already."""
        make_folder(folder)
        for file in (CA_CERT, CA_KEY, HOST_CERT, HOST_KEY):
            if (folder / file).exists():
                raise UserError(
                    f"{folder / file} exists: this host is in a cluster already ('infiniswap cluster show'); "
                    "nothing was changed",
                    ExitCode.IN_USE,
                )
        key = new_key()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(named(name))
            .issuer_name(named(name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(now + CA_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        authority = cls(folder, certificate, key)
        write_file(folder / CA_KEY, key_pem(key), secret=True)
        write_file(folder / CA_CERT, certificate.public_bytes(Encoding.PEM))
        authority._write_ledger([])
        authority._write_list([], now)
        return authority

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """The one that is there. UserError: there is none, or its files are wrong."""
        if not (folder / CA_KEY).exists():
            raise UserError(
                f"{folder} has no {CA_KEY}: this is done on the host where 'infiniswap cluster init' was run",
                ExitCode.NOT_FOUND,
            )
        certificate = read_certificate(folder / CA_CERT, "the authority's certificate")
        key = read_key(folder / CA_KEY, "the authority's key")
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise UserError(f"the authority's key {folder / CA_KEY} is none of 'infiniswap cluster init'")
        check_pair(certificate, key, folder / CA_CERT, folder / CA_KEY)
        return cls(folder, certificate, key)

    def issue(self, names: Sequence[str], now: datetime, days: float = HOST_DAYS) -> tuple[bytes, bytes]:
        """Certificate and key (PEM) of a host: names[0] is what it is called, all are what it can be reached by."""
        key = new_key()
        certificate = self.certify(names, key.public_key(), now, days)
        self.remember(certificate)
        return certificate.public_bytes(Encoding.PEM), key_pem(key)

    def certify(
        self, names: Sequence[str], key: ec.EllipticCurvePublicKey, now: datetime, days: float = HOST_DAYS
    ) -> x509.Certificate:
        """The certificate of a host that has that key. It is in the ledger before anybody sees it. UserError."""
        names = list(dict.fromkeys(check_host(name) for name in names))
        if not names or len(names) > NAMES_MAX:
            raise UserError(f"a host has 1 to {NAMES_MAX} names and addresses, not {len(names)}")
        until = min(now + timedelta(days=days), describe(self.certificate).not_after)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(named(names[0]))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(alternatives(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(self._identifier(), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        told = describe(certificate)
        with self._alone():
            self._write_ledger([*self.ledger(), Issued(names[0], told.serial, told.not_after.timestamp())])
        return certificate

    def remember(self, certificate: x509.Certificate) -> None:
        """Keep a certificate, which is no secret, as its host's present one: it is renewed from that."""
        path = self._kept(describe(certificate).subject)
        make_folder(path.parent)
        write_file(path, certificate.public_bytes(Encoding.PEM))

    def renew(self, host: str, now: datetime, days: float = HOST_DAYS) -> x509.Certificate:
        """A new certificate of another host, for the same key and the same names. UserError."""
        path = self._kept(check_host(host))
        if not path.exists():
            raise UserError(
                f"{path} is not there, so nobody knows the key of '{host}': 'infiniswap cluster invite {host}' here, "
                "and there the line that it prints, with --replace",
                ExitCode.NOT_FOUND,
            )
        before = read_certificate(path)
        told, key = describe(before), before.public_key()
        entry = next((entry for entry in self.ledger() if entry.serial == told.serial), None)
        if entry is None or entry.revoked:
            raise UserError(f"the certificate of '{host}' was revoked: it is not renewed", ExitCode.REFUSED)
        if told.subject != check_host(host) or not isinstance(key, ec.EllipticCurvePublicKey):
            raise UserError(f"{path} is not that of '{host}'")
        certificate = self.certify([told.subject, *told.names], key, now, days)
        self.remember(certificate)
        return certificate

    def public_list(self) -> bytes:
        """The revocation list (PEM)."""
        return read_file(self.folder / CRL, "the revocation list")

    def _kept(self, host: str) -> Path:
        return self.folder / HOSTS / f"{host.replace(':', '_')}.pem"

    def write_host(self, names: Sequence[str], now: datetime, days: float = HOST_DAYS) -> None:
        """Issue to this host: its files stand beside the authority's."""
        certificate, key = self.issue(names, now, days)
        # The key first: who reads between the two finds a pair that does not fit, keeps the old one, and looks again.
        write_file(self.folder / HOST_KEY, key, secret=True)
        write_file(self.folder / HOST_CERT, certificate)

    def write_bundle(self, names: Sequence[str], now: datetime, days: float = HOST_DAYS) -> Path:
        """Issue to another host: a folder with all that it needs, to be copied there."""
        host = check_host(names[0])
        certificate, key = self.issue(names, now, days)
        bundle = self.folder / BUNDLES / host.replace(":", "_")
        make_folder(bundle)
        write_file(bundle / HOST_KEY, key, secret=True)
        write_file(bundle / HOST_CERT, certificate)
        write_file(bundle / CA_CERT, self.certificate.public_bytes(Encoding.PEM))
        write_file(bundle / CRL, self.public_list())
        return bundle

    def revoke(self, host: str, now: datetime) -> int:
        """Take back every certificate that the host has; how many there were. UserError: none was issued to it."""
        host = check_host(host)
        known = {entry.host for entry in self.ledger()}
        if host not in known:
            raise UserError(
                f"no certificate was issued to '{host}'; there are {', '.join(sorted(known))}", ExitCode.NOT_FOUND
            )
        return self._take_back(now, host=host)

    def revoke_one(self, serial: str, now: datetime) -> None:
        """Take back one certificate, with that serial number (hex)."""
        self._take_back(now, serial=serial)

    def _take_back(self, now: datetime, *, host: str = "", serial: str = "") -> int:
        """Those of the host, or with the serial number; how many there were."""
        with self._alone():
            before = self.ledger()
            after = [
                replace(entry, revoked=now.timestamp())
                if (entry.host == host or entry.serial == serial) and not entry.revoked
                else entry
                for entry in before
            ]
            self._write_ledger(after)
            self._write_list(after, now)
        return sum(1 for one, other in zip(before, after, strict=True) if one != other)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other command changes the ledger meanwhile: an entry that got lost could not be revoked. UserError."""
        deadline_s = time.monotonic() + BUSY_S
        while True:
            try:
                fd = take_lock(self.folder / LOCK)
                break
            except LockedError:
                if time.monotonic() >= deadline_s:
                    message = f"another command works on {self.folder}; try again when it has ended"
                    raise UserError(message, ExitCode.IN_USE) from None
            except OSError as error:
                raise UserError(f"cannot lock {self.folder}: {error.strerror}", ExitCode.RESOURCES) from None
            time.sleep(BUSY_LOOK_S)
        try:
            yield
        finally:
            os.close(fd)

    def ledger(self) -> list[Issued]:
        """All that was issued, the first one first. UserError."""
        path = self.folder / LEDGER
        try:
            return [Issued.parse(entry) for entry in json.loads(read_file(path, "the list of what was issued"))]
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            raise UserError(f"{path} cannot be read: it is not as it was written", ExitCode.REFUSED) from None

    def _write_ledger(self, ledger: Sequence[Issued]) -> None:
        if len(ledger) > ISSUED_MAX:
            raise UserError(f"{ISSUED_MAX} certificates were issued, that is the most", ExitCode.RESOURCES)
        content = json.dumps([asdict(entry) for entry in ledger], indent=1)
        write_file(self.folder / LEDGER, content.encode(), secret=True)

    def _write_list(self, ledger: Sequence[Issued], now: datetime) -> None:
        """The revocation list. It is good as long as the authority: a host that gets no newer one must go on."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - BACKDATED)
            .next_update(describe(self.certificate).not_after)
            .add_extension(x509.CRLNumber(int(now.timestamp() * 1000)), critical=False)
            .add_extension(self._identifier(), critical=False)
        )
        for entry in ledger:
            if entry.revoked:
                taken = (
                    x509.RevokedCertificateBuilder()
                    .serial_number(int(entry.serial, 16))
                    .revocation_date(datetime.fromtimestamp(entry.revoked, now.tzinfo))
                    .build()
                )
                builder = builder.add_revoked_certificate(taken)
        content = builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)
        write_file(self.folder / CRL, content)

    def _identifier(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
