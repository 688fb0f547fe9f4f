"""What a failed TLS handshake means, in a sentence: which certificate is wrong, how, and what is to be done.

Either end finds fault with the other's certificate by itself; what the other found comes as an alert (RFC 8446, 6.2).
"""

from __future__ import annotations

import ssl
from datetime import datetime

# X509_V_ERR_* of openssl/x509_vfy, as ssl.SSLCertVerificationError.verify_code has them.
_NO_CRL, _NOT_YET, _EXPIRED, _CRL_NOT_YET, _CRL_EXPIRED = 3, 9, 10, 11, 12
_SELF_SIGNED, _SELF_SIGNED_CHAIN, _NO_ISSUER, _NO_LEAF_ISSUER = 18, 19, 20, 21
_REVOKED, _PURPOSE, _HOST_NAME, _IP_ADDRESS = 23, 26, 62, 64
_BAD_SIGNATURE = 7

_STRANGER = "it is not of this cluster: another authority than the one of --tls-ca has signed it"
_CLOCK = "is this host's clock right? It says {now}"

# Of the other end's certificate, by verify_code.
_FAULTS = {
    _EXPIRED: f"it has expired: issue it anew ('infiniswap cluster issue'); if it has not, {_CLOCK}",
    _NOT_YET: f"it is not valid yet: {_CLOCK}",
    _SELF_SIGNED: "it is self-signed: take one of the cluster's ('infiniswap cluster issue')",
    _SELF_SIGNED_CHAIN: _STRANGER,
    _NO_ISSUER: _STRANGER,
    _NO_LEAF_ISSUER: _STRANGER,
    _BAD_SIGNATURE: _STRANGER,
    _REVOKED: "it was revoked ('infiniswap cluster show' on the authority's host)",
    _PURPOSE: "it is not meant for this: it must be for servers and clients alike",
    _HOST_NAME: "it is for another host than {name}: issue one with that name, or name the peer as it is called there",
    _IP_ADDRESS: "it is not for the address {name}: issue one with it ('infiniswap cluster issue HOST ADDRESS')",
    _NO_CRL: "the revocation list of --tls-crl is not of the authority that signed it",
    _CRL_EXPIRED: f"the revocation list of --tls-crl has expired: copy a newer one; if it has not, {_CLOCK}",
    _CRL_NOT_YET: f"the revocation list of --tls-crl is not valid yet: {_CLOCK}",
}
# How faults are counted, by verify_code; all others are "other".
_KINDS = {
    _EXPIRED: "expired",
    _NOT_YET: "not_yet_valid",
    _REVOKED: "revoked",
    **dict.fromkeys(
        (_SELF_SIGNED, _SELF_SIGNED_CHAIN, _NO_ISSUER, _NO_LEAF_ISSUER, _BAD_SIGNATURE), "unknown_authority"
    ),
}
_NO_CERTIFICATE = ("NO_CERTIFICATE", "PEER_DID_NOT_RETURN_A_CERTIFICATE")
_OLD = ("UNSUPPORTED_PROTOCOL", "VERSION_TOO_LOW", "NO_PROTOCOLS_AVAILABLE")
# What the other end says of ours: the end of OpenSSL's word for the alert, which differs in its beginning by release.
_ALERTS = {
    "ALERT_CERTIFICATE_REQUIRED": "it wants a certificate, and got none: give --tls-cert, --tls-key and --tls-ca",
    "ALERT_CERTIFICATE_EXPIRED": "it says that our certificate has expired: issue it anew, or look at its clock",
    "ALERT_CERTIFICATE_REVOKED": "it says that our certificate was revoked",
    "ALERT_UNKNOWN_CA": "our certificate is not of its cluster: another authority than its own has signed it",
    "ALERT_BAD_CERTIFICATE": "it says that our certificate is not valid: not yet by its clock, or damaged",
    "ALERT_CERTIFICATE_UNKNOWN": "it does not take our certificate; its log says why",
    "ALERT_UNSUPPORTED_CERTIFICATE": "it says that our certificate is not meant for this",
    "ALERT_PROTOCOL_VERSION": "it has no TLS 1.3 in common with us",
    "ALERT_HANDSHAKE_FAILURE": "it has no way to encrypt in common with us",
    "ALERT_INTERNAL_ERROR": "it could not look at our certificate; its log says why",
    "ALERT_DECRYPT_ERROR": "it could not check our certificate's signature",
}
NO_TLS = (
    "it does not speak TLS: infiniswapd there has no certificate (infiniswap cluster), or another program listens; "
    "nothing was sent to it in the clear, which --insecure here would do"
)
_PLAIN = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG")


def find_error(error: BaseException | None) -> ssl.SSLError | None:
    """The error of TLS that led to error, through whatever it was wrapped in."""
    seen = 0
    while error is not None and seen < 8:  # no chain of ours is longer
        # aiohttp's errors are of ssl's classes as well, and have the real one in an attribute.
        inner = getattr(error, "os_error", None) or getattr(error, "certificate_error", None)
        if isinstance(error, ssl.SSLError) and inner is None:
            return error
        error = inner if isinstance(inner, BaseException) else error.__cause__ or error.__context__
        seen += 1
    return None


def kind(error: ssl.SSLError) -> str:
    """What was wrong with the other end, in a word that is counted by (HandshakeCounts)."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _KINDS.get(error.verify_code, "other")
    reason = _reason(error)
    if any(words in reason for words in _NO_CERTIFICATE):
        return "no_certificate"
    return "protocol" if reason in _OLD or reason in _PLAIN else "other"


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "").upper().replace(" ", "_")


def explain(error: ssl.SSLError, now: datetime, name: str = "") -> str:
    """What is wrong with the other end, or what it finds wrong with us; the beginning is who it is.

    now: what this host's clock says; name: as the other end was called.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        fault = _FAULTS.get(error.verify_code)
        if fault is None:
            return f"its certificate is not taken: {error.verify_message}"
        return "its certificate is not taken: " + fault.format(now=f"{now:%Y-%m-%d %H:%M} UTC", name=name or "it")
    reason = _reason(error)
    for end, sentence in _ALERTS.items():
        if reason.endswith(end):
            return sentence
    if any(words in reason for words in _NO_CERTIFICATE):
        return "it shows no certificate"
    if reason in _OLD:
        return "it speaks no TLS 1.3"
    if reason in _PLAIN:
        return NO_TLS
    return f"TLS failed: {(error.reason or error.strerror or type(error).__name__).lower().replace('_', ' ')}"
