"""Keys of hosts, and what a host sends of its own to have it certified: a certificate signing request (PKCS #10)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from infiniswap.identity.certificates import describe_names
from infiniswap.shared.errors import UserError

NAMES_MAX = 64  # of a host
REQUEST_BYTES_MAX = 8192  # one with 64 names has about 4,000
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,64}}\Z){_LABEL}(\.{_LABEL})*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Requested:
    """What a request says: how its host calls itself, by what else it can be reached, and its key."""

    name: str
    names: tuple[str, ...]  # with name
    key: ec.EllipticCurvePublicKey


def new_key() -> ec.EllipticCurvePrivateKey:
    """A host's, drawn here."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """As it is written to a file."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def check_host(name: str) -> str:
    """A DNS name or an address that a certificate can be for, or UserError."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        if not _NAME.fullmatch(name):
            raise UserError(f"'{name}' is no host name and no address that a certificate could be for") from None
        return name.lower()


def named(name: str) -> x509.Name:
    """As the subject of a certificate."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def alternatives(names: Sequence[str]) -> x509.SubjectAlternativeName:
    """What a certificate is for; names: as check_host() has them."""

    def general(name: str) -> x509.GeneralName:
        try:
            return x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            return x509.DNSName(name)

    return x509.SubjectAlternativeName([general(name) for name in names])


def make_request(names: Sequence[str], key: ec.EllipticCurvePrivateKey) -> bytes:
    """A request in PEM format; names[0] is how the host calls itself. UserError."""
    names = list(dict.fromkeys(check_host(name) for name in names))[:NAMES_MAX]
    builder = x509.CertificateSigningRequestBuilder().subject_name(named(names[0]))
    request = builder.add_extension(alternatives(names), critical=False).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM)


def read_request(content: bytes) -> Requested:
    """What it says; its signature shows that who sends it has the key. UserError."""
    try:
        if len(content) > REQUEST_BYTES_MAX:
            raise ValueError
        request = x509.load_pem_x509_csr(content)
        key = request.public_key()
        name, names = describe_names(request)
        names = tuple(dict.fromkeys(check_host(each) for each in (name, *names)))
        good = request.is_signature_valid and len(names) <= NAMES_MAX
    except (
        ValueError,
        TypeError,
        UserError,
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ):
        raise UserError("the request for a certificate cannot be read") from None
    if not good or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise UserError("the request for a certificate is none of 'infiniswap cluster join'")
    return Requested(names[0], names, key)
