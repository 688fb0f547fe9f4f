"""The code of an invitation: which server is to be trusted, and the secret that shows who was invited. Pure.

Its 220 bits are 44 letters and digits (Crockford's base 32), in groups of four:

- 128 of the SHA-256 of the server's certificate. The inviter makes that certificate honestly, so what somebody in
  between needs is another one with the same 128 bits, a second preimage: 2^128 tries, within minutes. Collisions,
  which take 2^64, help nobody.
- 80 of a random secret. It is guessed at the server alone, which ends after a few tries; nobody else ever sees what
  was made with it.
- 12 that find what was mistyped: the whole, as a number, is a multiple of 4093. As that is a prime, one wrong
  character, or two neighbours exchanged, is always found.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field

from infiniswap.shared.errors import UserError

FINGERPRINT_BYTES, SECRET_BYTES = 16, 10
_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LOOK_ALIKES = str.maketrans("OIL", "011")
_CHECK_BITS, _PRIME = 12, 4093
_CHARACTERS, _GROUP = 44, 4
_SEPARATORS = re.compile(r"[\s-]+")
_LABEL = b"infiniswap cluster join 1"


@dataclass(frozen=True, slots=True)
class JoinCode:
    """One code. fingerprint: the first bytes of the SHA-256 of the server's certificate (DER)."""

    fingerprint: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def of(cls, certificate: bytes) -> JoinCode:
        """A new one, for the server with that certificate (DER)."""
        return cls(_fingerprint(certificate), secrets.token_bytes(SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> JoinCode:
        """As somebody typed it, in whatever case and grouping. UserError, which does not repeat it."""
        plain = _SEPARATORS.sub("", text).upper().translate(_LOOK_ALIKES)
        if len(plain) != _CHARACTERS:
            groups = _CHARACTERS // _GROUP
            raise UserError(
                f"the code has {len(plain)} letters and digits, and should have {_CHARACTERS}: copy the whole line "
                f"that 'infiniswap cluster invite' printed, all {groups} groups"
            )
        number = 0
        for character in plain:
            digit = _DIGITS.find(character)
            if digit < 0:
                raise UserError(f"the code is mistyped: '{character}' is in none")
            number = number << 5 | digit
        if number % _PRIME:
            raise UserError("the code is mistyped: compare it with what 'infiniswap cluster invite' printed")
        content = (number >> _CHECK_BITS).to_bytes(FINGERPRINT_BYTES + SECRET_BYTES, "big")
        return cls(content[:FINGERPRINT_BYTES], content[FINGERPRINT_BYTES:])

    @property
    def text(self) -> str:
        """As it is printed."""
        number = int.from_bytes(self.fingerprint + self.secret, "big") << _CHECK_BITS
        number += -number % _PRIME
        plain = "".join(_DIGITS[number >> 5 * at & 31] for at in reversed(range(_CHARACTERS)))
        return "-".join(plain[at : at + _GROUP] for at in range(0, _CHARACTERS, _GROUP))

    def is_of(self, certificate: bytes) -> bool:
        """Whether the server that shows this certificate (DER) is the one that was meant."""
        return hmac.compare_digest(self.fingerprint, _fingerprint(certificate))

    def proof(self, purpose: str, body: bytes) -> str:
        """That who sends body, to the server of this code and for that purpose, has the secret: HMAC-SHA256, in hex."""
        content = b"\0".join((_LABEL, purpose.encode(), self.fingerprint.hex().encode(), body))
        return hmac.new(self.secret, content, hashlib.sha256).hexdigest()

    def is_proven(self, purpose: str, body: bytes, proof: str) -> bool:
        """Whether proof is that; takes the same time for every wrong one."""
        return hmac.compare_digest(self.proof(purpose, body).encode(), proof.encode(errors="replace"))


def _fingerprint(certificate: bytes) -> bytes:
    return hashlib.sha256(certificate).digest()[:FINGERPRINT_BYTES]
