"""The cluster's authority: a key that vouches for hosts, what it has issued, and what it has taken back.

Keys are P-256 with ECDSA (FIPS 186-5): every TLS library takes them, and they sign in 30 µs.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from infiniswap.identity import HOST_DAYS
from infiniswap.identity.certificates import check_pair, describe, read_certificate, read_key
from infiniswap.identity.files import (
    BUNDLES,
    CA_CERT,
    CA_KEY,
    CRL,
    HOST_CERT,
    HOST_KEY,
    LEDGER,
    make_folder,
    read_file,
    write_file,
)
from infiniswap.shared.errors import ExitCode, UserError

CA_LIFE = timedelta(days=3650)
BACKDATED = timedelta(hours=1)  # clocks of a cluster are not quite the same
NAMES_MAX = 64  # of a host
ISSUED_MAX = 100_000  # certificates that are remembered
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,64}}\Z){_LABEL}(\.{_LABEL})*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was issued, as the ledger remembers it; until: seconds since 1970."""

    host: str
    serial: str
    until: float
    revoked: float = 0.0  # when, in seconds since 1970; 0: it was not


def check_host(name: str) -> str:
    """A DNS name or an address that a certificate can be for, or UserError."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        if not _NAME.fullmatch(name):
            raise UserError(f"'{name}' is no host name and no address that a certificate could be for") from None
        return name.lower()


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """As it is written to a file."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


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
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_named(name))
            .issuer_name(_named(name))
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
        names = list(dict.fromkeys(check_host(name) for name in names))
        if not names or len(names) > NAMES_MAX:
            raise UserError(f"a host has 1 to {NAMES_MAX} names and addresses, not {len(names)}")
        until = min(now + timedelta(days=days), describe(self.certificate).not_after)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_named(names[0]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(self._identifier(), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        told = describe(certificate)
        self._write_ledger([*self.ledger(), Issued(names[0], told.serial, told.not_after.timestamp())])
        return certificate.public_bytes(Encoding.PEM), key_pem(key)

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
        write_file(bundle / CRL, read_file(self.folder / CRL, "the revocation list"))
        return bundle

    def revoke(self, host: str, now: datetime) -> int:
        """Take back every certificate that the host has; how many there were. UserError: none was issued to it."""
        host, ledger = check_host(host), self.ledger()
        mine = [entry for entry in ledger if entry.host == host]
        if not mine:
            known = ", ".join(sorted({entry.host for entry in ledger}))
            raise UserError(f"no certificate was issued to '{host}'; there are {known}", ExitCode.NOT_FOUND)
        new = [
            replace(entry, revoked=now.timestamp()) if entry.host == host and not entry.revoked else entry
            for entry in ledger
        ]
        self._write_ledger(new)
        self._write_list(new, now)
        return sum(1 for entry in mine if not entry.revoked)

    def ledger(self) -> list[Issued]:
        """All that was issued, the first one first. UserError."""
        path = self.folder / LEDGER
        try:
            content = json.loads(read_file(path, "the list of what was issued"))
            return [
                Issued(str(it["host"]), str(it["serial"]), float(it["until"]), float(it["revoked"])) for it in content
            ]
        except (ValueError, TypeError, KeyError):
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
