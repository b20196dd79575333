"""The API client: one base method, problem documents as errors, careful retries, and thin names for the calls programs make.

Plain ``http.client`` over ``ssl`` (``docs/decisions/http-client.md``). Connections are kept alive and may be used from several threads;
each call has a connection of its own while it runs. Files given as trust or credential are followed: when they change, the next call uses
a new connection with what they hold now.
"""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar, overload
from urllib.parse import quote, urlencode

import msgspec

from handclasp import wire
from handclasp.client.connections import Connections, CredentialSource, Followed, Reply, unverified_context
from handclasp.client.material import Credential
from handclasp.errors import HandclaspError, Kind

if TYPE_CHECKING:
    from handclasp.wire import ownership
    from handclasp.wire.discovery import LeaseRequest, PartLease, PartRecord, PartRecorded
    from handclasp.wire.filescans import FileRecorded, FileScanList, FileSightings
    from handclasp.wire.observations import Recorded, Sightings

__all__ = ["ApiClient", "Credential", "Followed", "Raw", "Text", "unverified_context"]

T = TypeVar("T")
IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})
ATTEMPTS = 4
PATIENCE = 30.0
"""A Retry-After longer than this (seconds) is left to the caller, who may have better things to do than to sleep."""

_KIND_OF_STATUS = {
    401: Kind.NOT_AUTHENTICATED,
    403: Kind.NOT_ALLOWED,
    404: Kind.NOT_FOUND,
    405: Kind.METHOD_NOT_ALLOWED,
    409: Kind.CONFLICT,
    413: Kind.TOO_LARGE,
    415: Kind.UNSUPPORTED_MEDIA_TYPE,
    429: Kind.RATE_LIMITED,
    504: Kind.TIMEOUT,
}


class Raw(NamedTuple):
    """A document, and the tag that asks for it again only when it has changed (``changed`` is False for an answer without a body)."""

    body: bytes
    etag: str
    changed: bool


class Text(NamedTuple):
    """The same, as text."""

    text: str
    etag: str
    changed: bool


class ApiClient:
    """Speaks to one server.

    ``ca``: bundle file, ``sha256:<hex>`` of a root (then the bundle is fetched on first use), PEM text, or None for the system's store.
    ``credential``: client certificate and key, as two PEM files that are followed, or as :class:`Credential` in memory.
    A :class:`Followed` credential is read anew when its signature changes.
    ``context`` replaces both; ``TLSContext.client_context()`` is one. ``dates`` is told the ``Date`` of each answer and how many seconds
    it took. ``timeout`` is seconds for connecting and for each wait,
    ``attempts`` how often a call that may be repeated is tried.

    Every call raises :class:`HandclaspError`: the server's kind, detail and hint where it answered, ``unavailable`` where it did not,
    ``verify_failed`` where it is not the server that we trust.
    """

    def __init__(
        self,
        url: str,
        *,
        ca: str | None = None,
        token: str | None = None,
        credential: CredentialSource | None = None,
        timeout: float = 30,
        context: ssl.SSLContext | None = None,
        attempts: int = ATTEMPTS,
        sleep: Callable[[float], None] = time.sleep,
        dates: Callable[[str, float], None] | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._ca = ca
        self._token = token
        self._timeout = timeout
        self._sleep, self._attempts, self._dates = sleep, attempts, dates
        self._connections = Connections(
            self.url, ca=ca, credential=credential, timeout=timeout, context=context, find_bundle=self._find_bundle
        )
        self._random = random.SystemRandom()

    def __enter__(self) -> ApiClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the idle connections; the client may be used again."""
        self._connections.close()

    def rest(self) -> None:
        """Close idle connections but one, for a program that works in bursts: each costs memory here, and a place at the server."""
        self._connections.rest()

    def _find_bundle(self, fingerprint: str) -> str:
        from handclasp.client.first_contact import fetch_bundle

        return fetch_bundle(self.url, fingerprint, timeout=self._timeout).pem

    def with_credential(self, credential: CredentialSource) -> ApiClient:
        """Return a client for the same server that shows ``credential`` and no token: a certificate is renewed by its holder."""
        return ApiClient(
            self.url,
            ca=self._ca,
            credential=credential,
            timeout=self._timeout,
            attempts=self._attempts,
            sleep=self._sleep,
            dates=self._dates,
        )

    # --- the base method ------------------------------------------------------------------------------------------------------------

    @overload
    def call(
        self, method: str, path: str, *, body: msgspec.Struct | None = None, params: Mapping[str, Any] | None = None, response: type[T]
    ) -> T: ...
    @overload
    def call(
        self, method: str, path: str, *, body: msgspec.Struct | None = None, params: Mapping[str, Any] | None = None, response: None = None
    ) -> None: ...
    def call(
        self,
        method: str,
        path: str,
        *,
        body: msgspec.Struct | None = None,
        params: Mapping[str, Any] | None = None,
        response: type[T] | None = None,
    ) -> T | None:
        """Send ``body`` as JSON and return the answer decoded as ``response``. Parameters that are None are left out.

        GET, HEAD, PUT and DELETE are tried up to four times where the server was not there or said it was busy; other methods once.
        """
        data = None if body is None else msgspec.json.encode(body)
        reply = self._send(method, path, params, data, {"Content-Type": "application/json"} if data is not None else {})
        return None if response is None else self.decode(reply.body, response)

    def decode(self, body: bytes, response: type[T]) -> T:
        """Decode a JSON answer; raise ``unavailable`` for what is not one (a proxy's error page with status 200)."""
        try:
            return msgspec.json.decode(body, type=response)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise HandclaspError(
                Kind.UNAVAILABLE, f"{self.url} answered something that is not a Handclasp answer: {error}", hint="is this its address?"
            ) from error

    def raw(
        self,
        path: str,
        *,
        etag: str = "",
        params: Mapping[str, Any] | None = None,
        method: str = "GET",
        data: bytes | None = None,
        content_type: str = "application/octet-stream",
    ) -> Raw:
        """Return the bytes at ``path``; ``etag`` is the tag of those we have. ``data`` is sent as it is."""
        headers = {"If-None-Match": etag} if etag else {}
        if data is not None:
            headers["Content-Type"] = content_type
        reply = self._send(method, path, params, data, headers)
        return Raw(reply.body, reply.headers.get("etag", etag if reply.status == 304 else ""), reply.status != 304)

    def text(
        self, path: str, *, etag: str = "", params: Mapping[str, Any] | None = None, method: str = "GET", text: str | None = None
    ) -> Text:
        """Return the text at ``path``; ``text`` is sent as ``text/plain``."""
        data = None if text is None else text.encode()
        body, tag, changed = self.raw(path, etag=etag, params=params, method=method, data=data, content_type="text/plain; charset=utf-8")
        return Text(body.decode("utf-8", "replace"), tag, changed)

    # --- thin names -----------------------------------------------------------------------------------------------------------------

    def issue(self, request: wire.IssueRequest) -> wire.Issued:
        """Obtain a certificate. Not repeated on failure: the server may have issued before the answer was lost."""
        return self.call("POST", "/v1/certificates", body=request, response=wire.Issued)

    def renew(self, sha256: str, request: wire.RenewRequest) -> wire.Issued:
        """Renew the certificate ``sha256``, which must be this client's credential."""
        return self.call("POST", f"/v1/certificates/{quote(sha256)}:renew", body=request, response=wire.Issued)

    def revoke(self, sha256: str, request: wire.RevokeRequest) -> wire.Revoked:
        """Revoke a certificate."""
        return self.call("POST", f"/v1/certificates/{quote(sha256)}:revoke", body=request, response=wire.Revoked)

    def renewal_info(self, sha256: str, *, etag: str = "") -> tuple[wire.RenewalInfo, str] | None:
        """Return the server's present renewal window for a certificate and its tag, or None when it is the one with ``etag``."""
        body, tag, changed = self.raw(f"/v1/certificates/{quote(sha256)}:renewal-info", etag=etag)
        return (self.decode(body, wire.RenewalInfo), tag) if changed else None

    def renewal_list(self, query: wire.RenewalQuery) -> wire.RenewalList:
        """Return the present renewal windows of several certificates; none, and the same tag, when nothing changed since ``query.tag``."""
        return self.call("POST", "/v1/certificates:renewal-info", body=query, response=wire.RenewalList)

    def bundle(self, trust_domain: str, *, etag: str = "") -> Text:
        """Return the trust bundle of a trust domain (PEM)."""
        return self.text(f"/v1/bundles/{quote(trust_domain)}.pem", etag=etag)

    def crls(self, trust_domain: str, *, etag: str = "") -> Text:
        """Return every CRL of a trust domain (PEM)."""
        return self.text(f"/v1/crls/{quote(trust_domain)}.pem", etag=etag)

    def jwt_svid(self, request: wire.JwtSvidRequest) -> wire.JwtSvid:
        """Obtain a JWT-SVID, with an agent's certificate, or with one's own for oneself. Not repeated on failure."""
        return self.call("POST", "/v1/jwt-svids", body=request, response=wire.JwtSvid)

    def report_agent(self, report: wire.AgentReport) -> wire.Reported:
        """Tell the server what this agent looks after, with the agent's certificate."""
        return self.call("PUT", "/v1/agents/self", body=report, response=wire.Reported)

    def challenge(self) -> wire.Challenge:
        """Return a challenge, to be signed for an enrolment by certificate."""
        return self.call("POST", "/v1/agents:challenge", response=wire.Challenge)

    def enrol(self, request: wire.EnrolRequest) -> wire.Enrolled:
        """Obtain an agent's certificate by evidence. Not repeated on failure, as :meth:`issue`."""
        return self.call("POST", "/v1/agents:enroll", body=request, response=wire.Enrolled)

    def workloads(self, *, etag: str = "") -> tuple[wire.WorkloadList, str] | None:
        """Return what this agent may serve on its socket, and the tag of that; None when it is still the one with ``etag``."""
        body, tag, changed = self.raw("/v1/agents/self/workloads", etag=etag)
        return (self.decode(body, wire.WorkloadList), tag) if changed else None

    def file_scans(self, *, etag: str = "") -> tuple[FileScanList, str] | None:
        """Return the scans of files that are due for this agent, and the tag of that; None when it is still the one with ``etag``."""
        from handclasp.wire.filescans import FileScanList

        body, tag, changed = self.raw("/v1/agents/self/scans", etag=etag)
        return (self.decode(body, FileScanList), tag) if changed else None

    def file_sightings(self, found: FileSightings) -> FileRecorded:
        """Tell what this agent found in files. Telling it twice is harmless."""
        from handclasp.wire.filescans import FileRecorded

        return self.call("POST", "/v1/agents/self/sightings", body=found, response=FileRecorded)

    def lease_part(self, request: LeaseRequest) -> PartLease:
        """Lease a part of a scan, as a collector; the answer's ``scan`` is None where there is nothing to do."""
        from handclasp.wire.discovery import PartLease

        return self.call("POST", "/v1/scans:lease", body=request, response=PartLease)

    def record_part(self, scan: str, part: int, record: PartRecord) -> PartRecorded:
        """Hand in what was read of a leased part. Recording the same twice is harmless, only the scan's numbers count it twice."""
        from handclasp.wire.discovery import PartRecorded

        return self.call("POST", f"/v1/scans/{quote(scan)}/parts/{part}:record", body=record, response=PartRecorded)

    def import_sightings(self, source: str, sightings: Sightings) -> Recorded:
        """Hand in certificates that were somewhere. Twice the same is the same as once."""
        from handclasp.wire.discovery import ImportRequest
        from handclasp.wire.observations import Recorded

        body = ImportRequest(sightings=sightings)
        return self.call("POST", f"/v1/sources/{quote(source)}:import", body=body, response=Recorded)

    def stream(self, path: str, params: Mapping[str, Any] | None = None) -> Iterator[bytes]:
        """Yield the answer to a GET as it comes, whatever its size. Not repeated on failure; what breaks off raises ``unavailable``."""
        headers = {"Accept": "*/*", "User-Agent": "handclasp"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        refused: Reply | None = None
        for piece in self._connections.pieces(path + _query(params), headers):
            if piece.status == 200:
                yield piece.body
            else:
                refused = piece if refused is None else Reply(piece.status, piece.headers, refused.body + piece.body[:65536])
        if refused is not None:
            self._refuse(refused)

    def import_owners(self, wanted: ownership.OwnerImport) -> ownership.OwnerImported:
        """Bring a directory of owners in, whole; the same again changes nothing."""
        from handclasp.wire.ownership import OwnerImported

        return self.call("PUT", "/v1/owners", body=wanted, response=OwnerImported)

    def assign(self, identity: str, wanted: ownership.AssignRequest) -> wire.Done:
        """Say who owns an identity, its tier or its environment."""
        return self.call("POST", f"/v1/identities/{quote(identity, safe='')}:assign", body=wanted, response=wire.Done)

    def assignments(self, identity: str) -> ownership.Assignments:
        """Return who owns an identity, and everything that says so or says otherwise."""
        from handclasp.wire.ownership import Assignments

        return self.call("GET", f"/v1/identities/{quote(identity, safe='')}:assignments", response=Assignments)

    # --- sending --------------------------------------------------------------------------------------------------------------------

    def _send(self, method: str, path: str, params: Mapping[str, Any] | None, data: bytes | None, headers: dict[str, str]) -> Reply:
        target = path + _query(params)
        headers = {"Accept": "application/json, application/problem+json, */*", "User-Agent": "handclasp", **headers}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        attempts = self._attempts if method in IDEMPOTENT else 1
        for attempt in range(1, attempts + 1):
            try:
                started = time.monotonic()
                reply = self._connections.exchange(method, target, data, headers)
                if self._dates is not None:
                    self._dates(reply.headers.get("date", ""), time.monotonic() - started)
                if reply.status in (200, 201, 202, 204, 304):
                    return reply
                self._refuse(reply)
            except HandclaspError as error:
                wait = self._wait(error, attempt, attempts)
                if wait is None:
                    raise
            self._sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _wait(self, error: HandclaspError, attempt: int, attempts: int) -> float | None:
        """Seconds until the next attempt, or None when there is none: full jitter, so that a fleet does not come back in step."""
        retryable = error.kind in (Kind.UNAVAILABLE, Kind.TIMEOUT, Kind.RATE_LIMITED)
        if attempt >= attempts or not retryable or (error.retry_after or 0) > PATIENCE:
            return None
        return (error.retry_after or 0) + self._random.uniform(0, 0.2 * 2**attempt)

    def _refuse(self, reply: Reply) -> NoReturn:
        retry_after = _retry_after(reply.headers.get("retry-after", ""))
        try:
            problem = msgspec.json.decode(reply.body, type=wire.Problem)
            kind = Kind(problem.kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
            kind = _KIND_OF_STATUS.get(reply.status, Kind.UNAVAILABLE if reply.status >= 500 or reply.status < 400 else Kind.BAD_REQUEST)
            raise HandclaspError(kind, f"{self.url} answered with status {reply.status}", retry_after=retry_after) from None
        raise HandclaspError(kind, problem.detail or problem.title, hint=problem.hint, retry_after=retry_after)


def _query(params: Mapping[str, Any] | None) -> str:
    pairs = [(name, value) for name, value in (params or {}).items() if value is not None]
    return "?" + urlencode(pairs, doseq=True) if pairs else ""


def _retry_after(text: str) -> float | None:
    """Seconds of a Retry-After header (RFC 9110 section 10.2.3): a number or a date."""
    if not text:
        return None
    if text.strip().isascii() and text.strip().isdigit():
        return float(min(int(text.strip()[:9]), 86400))
    from email.utils import parsedate_to_datetime

    try:
        return min(max(0.0, parsedate_to_datetime(text).timestamp() - time.time()), 86400.0)
    except (ValueError, TypeError, OverflowError):
        return None
