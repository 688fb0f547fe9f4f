"""A renewed certificate on its way to its host, with the revocation list: nothing of it is secret, all is signed."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from infiniswap.identity.certificates import Described, check_pair, describe, read_certificate, read_key
from infiniswap.identity.files import CA_CERT, CRL, FILE_BYTES_MAX, HOST_CERT, HOST_KEY, TlsPaths, read_file, write_file
from infiniswap.identity.identity import Identity
from infiniswap.identity.joining import stage
from infiniswap.shared.errors import ExitCode, UserError

_LIST = b"-----BEGIN X509 CRL-----"
_MEND = "give what 'infiniswap cluster renew HOST' printed on the authority's host"


def renewal_of(certificate: x509.Certificate, revoked: bytes) -> bytes:
    """Both in PEM format, one after the other."""
    return certificate.public_bytes(Encoding.PEM) + revoked


def read_renewal(stream: BinaryIO) -> bytes:
    """All of it; UserError when it is too much."""
    content = stream.read(FILE_BYTES_MAX + 1)
    if len(content) > FILE_BYTES_MAX:
        raise UserError(f"that is no renewed certificate: it has more than {FILE_BYTES_MAX} bytes; {_MEND}")
    return content


def take(folder: Path, content: bytes) -> Described:
    """Have it in force, if it is this host's and of the authority that it trusts. UserError: nothing was changed."""
    first, separator, rest = content.partition(_LIST)
    authority = read_certificate(folder / CA_CERT, "the authority's certificate")
    before = describe(read_certificate(folder / HOST_CERT))
    key = read_key(folder / HOST_KEY)
    try:
        certificate, revoked = x509.load_pem_x509_certificate(first), x509.load_pem_x509_crl(separator + rest)
        signed = revoked.is_signature_valid(authority.public_key())  # type: ignore[arg-type]
        listed = _number(revoked)
        known = _number(x509.load_pem_x509_crl(read_file(folder / CRL, "the revocation list")))
    except (ValueError, TypeError):
        raise UserError(f"that is no renewed certificate; {_MEND}") from None
    if not signed:
        raise UserError("that is of another authority than this host's; nothing was changed", ExitCode.REFUSED)
    own = describe(certificate)
    with stage(folder) as staged:
        write_file(staged / HOST_CERT, certificate.public_bytes(Encoding.PEM))
        check_pair(certificate, key, Path("(the renewed one)"), folder / HOST_KEY)
        write_file(staged / CRL, separator + rest)
        Identity(TlsPaths(staged / HOST_CERT, folder / HOST_KEY, folder / CA_CERT, staged / CRL))
    if own.subject != before.subject or own.not_after < before.not_after or listed < known:
        raise UserError(
            f"that is older than what '{before.subject}' has, or another host's; nothing was changed", ExitCode.REFUSED
        )
    write_file(folder / CRL, separator + rest)
    write_file(folder / HOST_CERT, certificate.public_bytes(Encoding.PEM))
    return own


def _number(revoked: x509.CertificateRevocationList) -> int:
    """How new a list is; ValueError: it does not say."""
    try:
        return revoked.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        raise ValueError from None
