"""Trust bundles and CRLs as the agent holds them: on disk, so that they are there while the server is not."""

from __future__ import annotations

import hashlib
import logging
import ssl
import threading
from collections.abc import Callable
from urllib.parse import quote

import msgspec

from handclasp.agent.generations import replace_file
from handclasp.agent.state import StateDirectory
from handclasp.client.api import ApiClient, Text
from handclasp.errors import HandclaspError, Kind
from handclasp.pki.chains import split_pem

_log = logging.getLogger("handclasp.agent")
Change = Callable[[str], None]
"""Called with the trust domain of which something has changed; quick, and raising nothing."""


class Anchors:
    """The bundles of all trust domains that an agent has to do with. Methods may be called from several threads."""

    def __init__(self, state: StateDirectory, client: ApiClient, hurry: Callable[[], None] = lambda: None) -> None:
        self._state, self._client, self._hurry = state, client, hurry
        self._lock = threading.Lock()
        self._watched: set[str] = set()
        self._listeners: list[Change] = []
        self._held: dict[str, bytes] = {}
        self._tags: dict[str, str] = {}

    def bundle(self, trust_domain: str) -> bytes:
        """Return the trust bundle (PEM), or nothing when none is known yet."""
        return self._get(f"{trust_domain}.pem")

    def crl(self, trust_domain: str) -> bytes:
        """Return all CRLs (PEM), or nothing."""
        return self._get(f"{trust_domain}.crl.pem")

    def jwks(self, trust_domain: str) -> bytes:
        """Return the bundle as SPIFFE JWKS (JSON), or nothing; it is there for what is watched."""
        return self._get(f"{trust_domain}.jwks.json")

    def watch(self, trust_domain: str, on_change: Change | None = None) -> None:
        """Have everything of a trust domain (bundle, CRLs, JWKS) refreshed from now on, the first time very soon.

        ``on_change`` hears of changes of every trust domain, in a worker thread.
        """
        with self._lock:
            new = trust_domain not in self._watched
            self._watched.add(trust_domain)
            if on_change is not None and on_change not in self._listeners:
                self._listeners.append(on_change)
        if new:
            self._hurry()

    def watched(self) -> set[str]:
        """Return what is watched."""
        with self._lock:
            return set(self._watched)

    def offer(self, trust_domain: str, bundle: str) -> bool:
        """Take a bundle that came with a certificate where there is none yet; return whether it is the one that is held now."""
        data = normalized(bundle)
        with self._lock:
            if not self._read(f"{trust_domain}.pem"):
                self._put(f"{trust_domain}.pem", data)
            return self._read(f"{trust_domain}.pem") == data

    def refresh(self, trust_domain: str, *, crl: bool, foreign: bool = False) -> bool:
        """Ask the server for what has changed; return whether something has. Raises what the client raises.

        ``foreign``: no certificate of ours is of this trust domain. A partner may revoke all its roots, or not be one any more: then there
        is nothing to trust, and that is taken. Of our own, an empty bundle is refused: it would make every service refuse everybody.
        """
        try:
            changed = self._refresh_all(trust_domain, crl=crl, foreign=foreign)
        except HandclaspError as error:
            if not foreign or error.kind is not Kind.NOT_FOUND:
                raise
            changed = self._drop(trust_domain)
        if changed:
            self._tell(trust_domain)
        return changed

    def _refresh_all(self, trust_domain: str, *, crl: bool, foreign: bool) -> bool:
        watched = trust_domain in self.watched()
        shape = perhaps_empty if foreign else normalized
        changed = self._refresh(f"{trust_domain}.pem", lambda tag: self._client.bundle(trust_domain, etag=tag), shape)
        if crl or watched:
            try:
                changed |= self._refresh(f"{trust_domain}.crl.pem", lambda tag: self._client.crls(trust_domain, etag=tag), str.encode)
            except HandclaspError as error:
                if crl or error.kind is not Kind.NOT_FOUND:  # a trust domain of others has no CRLs here
                    raise
        if watched:
            path = f"/v1/bundles/{quote(trust_domain)}"
            changed |= self._refresh(f"{trust_domain}.jwks.json", lambda tag: self._client.text(path, etag=tag), checked_jwks)
        return changed

    def _drop(self, trust_domain: str) -> bool:
        """Hold nothing of a trust domain any more, on disk neither; return whether there was something."""
        changed = False
        for name in (f"{trust_domain}.pem", f"{trust_domain}.crl.pem", f"{trust_domain}.jwks.json"):
            with self._lock:
                changed |= bool(self._read(name))
                (self._state.root / "anchors" / name).unlink(missing_ok=True)
                self._held[name] = b""
                self._tags.pop(name, None)
        return changed

    def _tell(self, trust_domain: str) -> None:
        with self._lock:
            listeners = tuple(self._listeners)
        for listener in listeners:
            try:
                listener(trust_domain)
            except Exception:  # a part that listens may fail as it likes: bundles are refreshed on
                _log.exception("%s: whoever listens for its changes failed", trust_domain)

    def _refresh(self, name: str, fetch: Callable[[str], Text], shape: Callable[[str], bytes]) -> bool:
        answer = fetch(self._tags.get(name, ""))
        if not answer.changed:
            return False
        data = shape(answer.text)
        with self._lock:
            changed = data != self._read(name)
            if changed:
                self._put(name, data)
            self._tags[name] = answer.etag
        return changed

    def _get(self, name: str) -> bytes:
        with self._lock:
            return self._read(name)

    def _read(self, name: str) -> bytes:
        if name not in self._held:
            try:
                data = (self._state.root / "anchors" / name).read_bytes()
            except OSError:
                return b""
            if not data.endswith((b"-----\n", b"}", b"}\n")):  # cut off by a power loss: the server has it whole
                return b""
            self._held[name] = data
        return self._held[name]

    def _put(self, name: str, data: bytes) -> None:
        replace_file(self._state.root / "anchors" / name, data, 0o644)
        self._held[name] = data


class _Jwks(msgspec.Struct):
    keys: list[dict[str, object]]


def checked_jwks(text: str) -> bytes:
    """Return a JWKS document as it came; raise ``unavailable`` for what is none."""
    try:
        msgspec.json.decode(text, type=_Jwks)
    except (msgspec.DecodeError, RecursionError) as error:
        raise HandclaspError(Kind.UNAVAILABLE, f"the server sent a bundle that is no JWKS: {error}") from error
    return text.encode()


def perhaps_empty(bundle: str) -> bytes:
    """The same as :func:`normalized`, and nothing for a bundle without a certificate."""
    return normalized(bundle) if bundle.strip() else b""


def normalized(bundle: str) -> bytes:
    """Return a bundle in one form whatever the order and spacing it came in, so that only a real change is delivered.

    Raises ``bad_certificate`` for one without a certificate: an empty bundle would make every service refuse everybody.
    """
    anchors = sorted(set(split_pem(bundle)), key=lambda der: hashlib.sha256(der).digest())
    if not anchors:
        raise HandclaspError(Kind.BAD_CERTIFICATE, "the server sent a trust bundle without a certificate")
    return "".join(ssl.DER_cert_to_PEM_cert(der) for der in anchors).encode("ascii")
