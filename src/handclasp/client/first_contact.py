"""First contact: get the trust bundle of a server that is not trusted yet, knowing nothing but its root's fingerprint.

The first connection verifies nothing, so what it brings is used for one thing: to find the one root whose SHA-256 is the fingerprint. The
bundle itself is then asked for again over a connection that this root verified. (A bundle taken whole from the first connection would let
whoever is in the middle add a root of their own beside the genuine one.)
"""

from __future__ import annotations

import hashlib
import re
import ssl

import msgspec

from handclasp.client.connections import Connections, unverified_context
from handclasp.errors import HandclaspError, Kind
from handclasp.pki.chains import split_pem

_FINGERPRINT = re.compile(r"sha256:([0-9a-fA-F]{64})")


class Bundle(msgspec.Struct, kw_only=True):
    """The trust bundle of one trust domain, as PEM."""

    trust_domain: str
    pem: str


class Bundles(msgspec.Struct, kw_only=True):
    """Answer of ``GET /v1/bundles``."""

    items: list[Bundle]


def parse_fingerprint(text: str) -> bytes:
    """Return the 32 bytes of ``sha256:<64 hex digits>``; raise ``bad_setting`` for anything else."""
    match = _FINGERPRINT.fullmatch(text.strip())
    if match is None:
        raise HandclaspError(Kind.BAD_SETTING, f"{text!r} is not a fingerprint", hint="write sha256: and the 64 hex digits of the root")
    return bytes.fromhex(match[1])


def fetch_bundle(url: str, fingerprint: str, *, timeout: float = 30) -> Bundle:
    """Return the trust bundle of the server at ``url`` whose root has ``fingerprint`` (``sha256:<hex>``).

    Raises ``verify_failed`` when the server shows no such root, or has no certificate under it; ``bad_certificate`` when what it shows is
    no bundle; ``unavailable`` when it is not there.
    """
    wanted = parse_fingerprint(fingerprint)
    root = _find(_ask(url, timeout, context=unverified_context()), wanted)
    if root is None:
        raise HandclaspError(
            Kind.VERIFY_FAILED,
            f"the server at {url} shows no root with the fingerprint {fingerprint}",
            hint="compare it with `handclasp ca show` on the server; if they are the same, someone is in between",
        )
    for item in _ask(url, timeout, ca=ssl.DER_cert_to_PEM_cert(root)).items:
        if item.pem and root in split_pem(item.pem):
            return item
    raise HandclaspError(Kind.VERIFY_FAILED, f"the server at {url} no longer shows the root {fingerprint}")


def _ask(url: str, timeout: float, *, ca: str | None = None, context: ssl.SSLContext | None = None) -> Bundles:
    connections = Connections(url.rstrip("/"), ca=ca, credential=None, timeout=timeout, context=context)
    try:
        reply = connections.exchange("GET", "/v1/bundles", None, {"Accept": "application/json", "User-Agent": "handclasp"})
    finally:
        connections.close()
    if reply.status != 200:
        raise HandclaspError(Kind.UNAVAILABLE, f"{url} answered with status {reply.status}", hint="is this its address?")
    try:
        return msgspec.json.decode(reply.body, type=Bundles)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HandclaspError(
            Kind.UNAVAILABLE, f"{url} answered something that is not a Handclasp answer: {error}", hint="is this its address?"
        ) from error


def _find(bundles: Bundles, wanted: bytes) -> bytes | None:
    for item in bundles.items:
        for der in split_pem(item.pem) if item.pem else ():
            if hashlib.sha256(der).digest() == wanted:
                return der
    return None
