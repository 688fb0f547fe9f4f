"""Whom an invitation means, what its certificate is for, and what a host must send to be certified."""

from __future__ import annotations

import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from infiniswap.identity.invitation import Invitation
from infiniswap.identity.requests import make_request, new_key, read_request
from infiniswap.shared.errors import UserError


def test_what_a_certificate_is_for() -> None:
    """The name that was invited, and of what the host claims its own address as it was seen; nothing else."""
    invitation = Invitation("node2", ("10.9.0.2",))
    claims = ("node2", "10.0.0.6", "10.0.0.7", "admin")
    local = ["localhost", "127.0.0.1", "::1"]
    assert invitation.names(claims, "10.0.0.6") == ["node2", "10.9.0.2", "10.0.0.6", *local]
    assert invitation.names(claims, "10.0.0.1") == ["node2", "10.9.0.2", *local], "a router's"
    assert invitation.names(claims, "") == ["node2", "10.9.0.2", *local]


@pytest.mark.parametrize(
    ("invited", "claims", "good"),
    [
        ("node2", ("node2",), True),
        ("node2", ("node2.example.org",), True),
        ("node2.example.org", ("node2",), True),
        ("node2.example.org", ("node2.example.com",), False),
        ("node2", ("node20",), False),
        ("10.0.0.6", ("anything", "10.0.0.6"), True),
        ("10.0.0.6", ("anything", "10.0.0.7"), False),
        ("10.0.0.6", ("10.0.0.7",), False),
    ],
)
def test_who_is_meant(invited: str, claims: tuple[str, ...], good: bool) -> None:
    """A host by its name, with or without its domain, or by an address that it has."""
    if good:
        Invitation(invited).check(claims)
    else:
        with pytest.raises(UserError, match=f"the invitation is for '{invited}'"):
            Invitation(invited).check(claims)


def test_requests() -> None:
    """A request says names and key, proves that its sender has the key, and anything else is refused in a line."""
    key = new_key()
    request = make_request(["Node2", "10.0.0.6", "node2"], key)
    wanted = read_request(request)
    assert (wanted.name, wanted.names) == ("node2", ("node2", "10.0.0.6"))
    assert wanted.key.public_numbers() == key.public_key().public_numbers()
    der = bytearray(x509.load_pem_x509_csr(request).public_bytes(Encoding.DER))
    der[-1] ^= 1  # the end of the signature: all else can be read
    forged = ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "CERTIFICATE REQUEST").encode()
    assert not x509.load_pem_x509_csr(forged).is_signature_valid
    for wrong in (b"", b"x" * 9000, request[:100], forged):
        with pytest.raises(UserError, match="the request for a certificate"):
            read_request(wrong)
