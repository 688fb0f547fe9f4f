"""Certificates as they are read: what they say, and whether a key is theirs. Works with cryptography 38 and later."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from infiniswap.identity.files import check_key_file, read_file
from infiniswap.shared.errors import UserError

_BEGIN = b"-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class Described:
    """A certificate for people. names: as others may call its host; serial: as openssl shows it, in hex."""

    subject: str
    names: tuple[str, ...]
    issuer: str
    not_before: datetime
    not_after: datetime
    serial: str
    fingerprint: str  # SHA-256

    def problem(self, now: datetime) -> str | None:
        """Why it counts for nothing at that time, if so."""
        if now > self.not_after:
            return f"it has expired on {self.not_after:%Y-%m-%d %H:%M} UTC"
        if now < self.not_before:
            return (
                f"it is not valid before {self.not_before:%Y-%m-%d %H:%M} UTC, and this host's clock says "
                f"{now:%Y-%m-%d %H:%M}: is it right?"
            )
        return None


def _time(certificate: x509.Certificate, which: str) -> datetime:
    """not_valid_before or not_valid_after: releases before 42 have them without a zone alone."""
    aware = getattr(certificate, f"{which}_utc", None)
    found = aware if aware is not None else getattr(certificate, which).replace(tzinfo=UTC)
    assert isinstance(found, datetime)
    return found


def _common_name(name: x509.Name) -> str:
    found = [str(attribute.value) for attribute in name.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return found[0] if found else name.rfc4514_string()


def alternative_names(certificate: x509.Certificate | x509.CertificateSigningRequest) -> tuple[str, ...]:
    """DNS names and addresses that it is for."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return (*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress)))


def describe_names(request: x509.CertificateSigningRequest) -> tuple[str, tuple[str, ...]]:
    """How a request calls its host, and what it is to be for. ValueError and others of cryptography's."""
    return _common_name(request.subject), alternative_names(request)


def describe(certificate: x509.Certificate) -> Described:
    """What it says of itself."""
    return Described(
        subject=_common_name(certificate.subject),
        names=alternative_names(certificate),
        issuer=_common_name(certificate.issuer),
        not_before=_time(certificate, "not_valid_before"),
        not_after=_time(certificate, "not_valid_after"),
        serial=f"{certificate.serial_number:X}",
        fingerprint=":".join(f"{byte:02X}" for byte in certificate.fingerprint(SHA256())),
    )


def read_certificate(path: Path, what: str = "the certificate") -> x509.Certificate:
    """The first in a PEM file, which is the host's own where more of the chain follow. UserError."""
    content = read_file(path, what)
    if _BEGIN not in content:
        raise UserError(f"{what} {path} is no certificate in PEM format (it lacks '{_BEGIN.decode()}')")
    try:
        return x509.load_pem_x509_certificate(content[content.index(_BEGIN) :])
    except ValueError:
        raise UserError(f"{what} {path} cannot be read: it is damaged") from None


def read_key(path: Path, what: str = "the key") -> Any:
    """A private key in PEM format without a pass phrase, of whatever kind. UserError, also when others could read it.

    The name of the type of all kinds differs between releases.
    """
    check_key_file(path)
    content = read_file(path, what)
    try:
        return load_pem_private_key(content, password=None)
    except TypeError:
        raise UserError(f"{what} {path} has a pass phrase, and nobody could type it at a start: take it off") from None
    except ValueError:
        raise UserError(f"{what} {path} is no private key in PEM format") from None


def check_pair(certificate: x509.Certificate, key: Any, cert_path: Path, key_path: Path) -> None:
    """UserError unless the key is the certificate's."""

    def public(of: Any) -> bytes:
        return bytes(of.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))

    if public(certificate) != public(key):
        raise UserError(f"the key {key_path} is not that of the certificate {cert_path}: they do not belong together")


def read_revoked(path: Path) -> frozenset[str]:
    """Serial numbers, in hex, that a revocation list in PEM format has. UserError."""
    content = read_file(path, "the revocation list")
    try:
        return frozenset(f"{entry.serial_number:X}" for entry in x509.load_pem_x509_crl(content))
    except ValueError:
        raise UserError(f"the revocation list {path} cannot be read: it is no CRL in PEM format") from None
