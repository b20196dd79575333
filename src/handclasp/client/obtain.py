"""A credential that comes straight from the server, and is renewed in the background while its keys stay in memory."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Sequence

from handclasp import wire
from handclasp.client import renewal
from handclasp.client.api import ApiClient
from handclasp.client.csr import new_request
from handclasp.client.material import Credential, Material
from handclasp.clock import Clock, parse_rfc3339, system_clock
from handclasp.errors import HandclaspError, Kind

_log = logging.getLogger("handclasp.client")
_REISSUE = frozenset({Kind.SUPERSEDED, Kind.NOT_FOUND})
"""Refusals of a renewal after which a new certificate may be asked for: this one is no longer the newest, or not known."""


class ApiSource:
    """Obtains a certificate at construction (raises what the client raises) and renews it in the server's window from then on.

    The first is issued on the client's own token or credential, each renewal on the certificate being renewed, with a new key. While the
    server is away the last good certificate stays in use; once it has expired, the client's token is tried again.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        identity: str | None = None,
        dns: Sequence[str] = (),
        ip: Sequence[str] = (),
        profile: str | None = None,
        ttl: str | None = None,
        key_type: str = "p256",
        clock: Clock = system_clock,
    ) -> None:
        self.problem = ""
        self._client, self._clock, self._key_type, self._ttl = client, clock, key_type, ttl
        self._identity, self._dns, self._ip, self._profile = identity, list(dns), list(ip), profile
        self._random = random.SystemRandom().random
        self._stop = threading.Event()
        self._take(*self._issue())
        self._thread = threading.Thread(target=self._follow, name="handclasp-renewal", daemon=True)
        self._thread.start()

    def current(self) -> Material:
        """Return the newest credential."""
        return self._material

    def close(self) -> None:
        """Stop renewing; waits for a renewal that is under way."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _issue(self) -> tuple[bytes, wire.Issued]:
        key, csr = new_request(self._key_type, identity=self._identity, dns=self._dns, ip=self._ip)
        request = wire.IssueRequest(csr=csr, identity=self._identity, dns=self._dns, ip=self._ip, profile=self._profile, ttl=self._ttl)
        return key, self._client.issue(request)

    def _renew(self) -> tuple[bytes, wire.Issued]:
        if self._clock() >= self._not_after:
            return self._issue()
        key, csr = new_request(self._key_type, identity=self._identity, dns=self._dns, ip=self._ip)
        try:
            with self._client.with_credential(self._material.credential) as holder:
                return key, holder.renew(self._sha256, wire.RenewRequest(csr=csr, ttl=self._ttl))
        except HandclaspError as error:
            if error.kind not in _REISSUE:
                raise
        return self._issue()

    def _take(self, key: bytes, issued: wire.Issued) -> None:
        material = Material(Credential((issued.certificate + issued.chain).encode(), key), issued.bundle.encode())
        material.check()
        now = self._clock()
        self._window = parse_rfc3339(issued.renew_after), parse_rfc3339(issued.renew_before)
        self._not_after, self._sha256 = parse_rfc3339(issued.not_after), issued.sha256
        self._next = renewal.draw_renewal(*self._window, self._not_after, now, self._random)
        self._material = material  # last: whoever sees it sees a complete one

    def _follow(self) -> None:
        while not self._stop.wait(min(max(self._next - self._clock(), 0) / 1000, 60)):  # in steps: the clock may jump
            if self._clock() < self._next:
                continue
            try:
                self._take(*self._renew())
                self.problem = ""
            except Exception as error:  # whatever went wrong, the last good certificate stays in use and the next try comes
                self._failed(error)

    def _failed(self, error: Exception) -> None:
        known = isinstance(error, HandclaspError)
        self.problem = error.detail if isinstance(error, HandclaspError) else f"{type(error).__name__}: {error}"
        _log.warning("renewal of %s failed: %s", self._identity or self._sha256, self.problem, exc_info=None if known else error)
        after, before = self._window
        self._next = renewal.retry_at(
            self._clock(),
            renew_after=after,
            renew_before=before,
            not_after=self._not_after,
            random=self._random,
            retry_after=error.retry_after if isinstance(error, HandclaspError) else None,
        )
