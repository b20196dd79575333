"""Challenges: made without a trace, recognised by their code, used once.

A challenge is its end, a nonce, and a code over both by a key that every process of the installation derives from the same secret. So a
flood of requests for challenges fills no table. Which ones were used is kept by the ledger, until they would have ended.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Callable

from handclasp.access.evidence.proven import refused
from handclasp.access.principals import Once
from handclasp.clock import Clock

LIFETIME = 60.0
"""Seconds between the challenge and the enrolment."""
_CONTEXT = b"handclasp enrolment challenge v1"
_NONCE, _CODE = 16, 32


class Challenges:
    """Makes and recognises challenges. ``secret`` is of the installation, and is only ever used through a derivation."""

    def __init__(self, secret: bytes, clock: Clock, random: Callable[[int], bytes] = os.urandom) -> None:
        self._key = hmac.digest(secret, _CONTEXT, "sha256")
        self._clock, self._random = clock, random

    def make(self) -> tuple[str, int]:
        """Return a new challenge and when it ends (ms)."""
        expires_at = self._clock() + round(LIFETIME * 1000)
        body = expires_at.to_bytes(8, "big") + self._random(_NONCE)
        return base64.urlsafe_b64encode(body + hmac.digest(self._key, body, "sha256")).decode().rstrip("="), expires_at

    def check(self, text: str) -> Once:
        """Return what is spent when the challenge is used. Raises ``not_authenticated`` for one that is not ours, or has ended."""
        try:
            data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError) as error:
            raise refused("its challenge is not one of this server") from error
        body, code = data[:-_CODE], data[-_CODE:]
        if len(body) != 8 + _NONCE or not hmac.compare_digest(hmac.digest(self._key, body, "sha256"), code):
            raise refused("its challenge is not one of this server", "ask for a challenge first")
        expires_at = int.from_bytes(body[:8], "big")
        if not 0 < expires_at - self._clock() <= LIFETIME * 1000:
            raise refused("its challenge has ended", "ask for another one")
        # The body and not the text: base64 can write the same bytes in more than one way.
        return Once("challenge", hashlib.sha256(body).hexdigest(), expires_at)
