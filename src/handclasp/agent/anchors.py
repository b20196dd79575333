"""Trust bundles and CRLs as the agent holds them: on disk, so that they are there while the server is not."""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import Callable

from handclasp.agent.generations import replace_file
from handclasp.agent.state import StateDirectory
from handclasp.client.api import ApiClient, Text
from handclasp.errors import HandclaspError, Kind
from handclasp.pki.chains import split_pem


class Anchors:
    """The bundles of all trust domains that an agent has to do with. Methods may be called from several threads."""

    def __init__(self, state: StateDirectory, client: ApiClient) -> None:
        self._state, self._client = state, client
        self._lock = threading.Lock()
        self._held: dict[str, bytes] = {}
        self._tags: dict[str, str] = {}

    def bundle(self, trust_domain: str) -> bytes:
        """Return the trust bundle (PEM), or nothing when none is known yet."""
        return self._get(f"{trust_domain}.pem")

    def crl(self, trust_domain: str) -> bytes:
        """Return all CRLs (PEM), or nothing."""
        return self._get(f"{trust_domain}.crl.pem")

    def offer(self, trust_domain: str, bundle: str) -> bool:
        """Take a bundle that came with a certificate where there is none yet; return whether it is the one that is held now."""
        data = normalized(bundle)
        with self._lock:
            if not self._read(f"{trust_domain}.pem"):
                self._put(f"{trust_domain}.pem", data)
            return self._read(f"{trust_domain}.pem") == data

    def refresh(self, trust_domain: str, *, crl: bool) -> bool:
        """Ask the server for what has changed; return whether something has. Raises what the client raises."""
        changed = self._refresh(f"{trust_domain}.pem", lambda tag: self._client.bundle(trust_domain, etag=tag), normalized)
        if crl:
            changed |= self._refresh(f"{trust_domain}.crl.pem", lambda tag: self._client.crls(trust_domain, etag=tag), str.encode)
        return changed

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
                self._held[name] = (self._state.root / "anchors" / name).read_bytes()
            except FileNotFoundError:
                return b""
        return self._held[name]

    def _put(self, name: str, data: bytes) -> None:
        replace_file(self._state.root / "anchors" / name, data, 0o644)
        self._held[name] = data


def normalized(bundle: str) -> bytes:
    """Return a bundle in one form whatever the order and spacing it came in, so that only a real change is delivered.

    Raises ``bad_certificate`` for one without a certificate: an empty bundle would make every service refuse everybody.
    """
    anchors = sorted(set(split_pem(bundle)), key=lambda der: hashlib.sha256(der).digest())
    if not anchors:
        raise HandclaspError(Kind.BAD_CERTIFICATE, "the server sent a trust bundle without a certificate")
    return "".join(ssl.DER_cert_to_PEM_cert(der) for der in anchors).encode("ascii")
