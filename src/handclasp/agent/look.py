"""Look at what a service really serves: a TLS handshake, and the fingerprint of the leaf that came with it."""

from __future__ import annotations

import hashlib
import time

from handclasp.agent.dial import dial
from handclasp.agent.targets.base import Interrupted, Look, Wait
from handclasp.client.connections import unverified_context
from handclasp.client.material import Credential, load_credential
from handclasp.client.starttls import begin
from handclasp.errors import HandclaspError, Kind

PAUSES = (1, 2, 4, 8, 16)
"""Seconds between looks; the last repeats. A service may take a while to come back from its reload."""

__all__ = ["PAUSES", "Interrupted", "Wait", "look", "served_leaf"]


def look(place: Look, expected: str, credential: Credential, *, timeout: float, wait: Wait) -> None:
    """Return when the service at ``place`` serves the leaf with the SHA-256 ``expected``; raise ``delivery_failed`` after ``timeout``.

    The first look is at once, later ones 1, 2, 4, 8, 16 s apart, the last one at the end of the time. Nothing is verified, because only one
    certificate in the world will do; ``credential`` is shown where the service asks for one.
    """
    deadline = time.monotonic() + timeout
    seen, attempt = "", 0
    while True:
        remaining = deadline - time.monotonic()
        try:
            served = served_leaf(place, credential, timeout=max(min(remaining, 10), 0.5))
        except OSError as error:  # ssl.SSLError is one
            seen = f"no handshake ({getattr(error, 'reason', None) or error.strerror or error})"
        else:
            if served == expected:
                return
            seen = f"serves the certificate {served[:16]}… and not {expected[:16]}…"
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            break
        if wait(min(PAUSES[min(attempt, len(PAUSES) - 1)], remaining)):
            raise Interrupted
        attempt += 1
    raise HandclaspError(Kind.DELIVERY_FAILED, f"the service at {place.where} {seen}, {timeout:g} s after it was told")


def served_leaf(place: Look, credential: Credential | None, *, timeout: float) -> str:
    """Return the SHA-256 (hex) of the leaf that a service serves; raise ``OSError`` when there is no handshake."""
    context = unverified_context()
    if credential is not None:
        load_credential(context, credential)
    with dial(place.host, place.port, place.socket, timeout=timeout) as plain:
        begin(place.starttls, plain, timeout=timeout)
        plain.settimeout(timeout)
        with context.wrap_socket(plain, server_hostname=place.server_name) as connection:
            leaf = connection.getpeercert(binary_form=True)
    if not leaf:
        raise OSError("it showed no certificate")
    return hashlib.sha256(leaf).hexdigest()
