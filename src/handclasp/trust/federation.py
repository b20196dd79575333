"""Federation: other trust domains whose bundles are fetched from their bundle endpoints and kept (SPIFFE Federation, sections 3 to 5).

A fetch that fails in any way changes nothing but the note of it: the last good bundle stays. How often a bundle is fetched is what its
publisher asks for, within bounds; after failures first sooner, then less and less often.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, delete, insert, select, update

from handclasp.access.egress import check_url
from handclasp.authority.authorities import Authorities
from handclasp.clock import Clock
from handclasp.errors import HandclaspError, Kind
from handclasp.log.entries import make_entry
from handclasp.pki import chains
from handclasp.pki.bundles import SpiffeBundle, parse_spiffe_bundle, read_bundle
from handclasp.pki.names import check_spiffe_id, check_trust_domain, trust_domain_of
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write

PROFILES = ("https_web", "https_spiffe")
DEFAULT_HINT = 300  # seconds, SPIFFE Federation 4.1: what to use where a bundle says nothing
SHORTEST, LONGEST = 10, 86_400
"""Seconds between two fetches: a publisher's slip must neither make us a nuisance nor make us deaf."""
FIRST_RETRY = 10.0
STALE_HINTS = 3
"""A bundle is stale when it was not refreshed for this many of its own refresh hints."""
AT_ONCE = 8
MAX_LISTED = 100  # keys named in one log entry
TIME_FOR_ALL = 20.0  # seconds for one fetch from the first byte to the last; less than a request may take

By = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Peer:
    """A federated trust domain. Times in ms."""

    trust_domain: str
    url: str
    profile: str
    endpoint_id: str | None
    bundle: str
    """SPIFFE JWKS; empty until there is one."""
    sequence: int | None
    refresh_hint: int
    fetched_at: int | None
    tried_at: int | None
    problem: str | None
    created_at: int

    def read(self) -> SpiffeBundle:
        """Return what the stored bundle says; an empty one where there is none."""
        return parse_spiffe_bundle(self.bundle.encode(), self.trust_domain) if self.bundle else SpiffeBundle()

    @property
    def interval(self) -> float:
        """Seconds between two fetches."""
        return float(min(max(self.refresh_hint, SHORTEST), LONGEST))

    def age(self, now: int) -> float:
        """Return for how many seconds it was not refreshed."""
        return max(0.0, (now - (self.fetched_at or self.created_at)) / 1000)

    def state(self, now: int) -> str:
        """Return ``waiting``, ``ok`` or ``stale``."""
        if not self.bundle:
            return "waiting"
        return "stale" if self.age(now) > STALE_HINTS * self.interval else "ok"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a bundle is fetched, and how the server there is known."""

    url: str
    endpoint_id: str | None
    """``https_spiffe``: the SPIFFE ID that it must show; None for ``https_web``."""
    anchors: tuple[bytes, ...] = ()
    """``https_spiffe``: DER of what its certificate is verified with."""


Fetch = Callable[[Endpoint], Awaitable[bytes]]
"""Return the body of a bundle endpoint's answer; raise ``HandclaspError`` unless it is there, is itself, and answered with 200."""


def newer(known: SpiffeBundle, found: SpiffeBundle) -> str | None:
    """Return why ``found`` must not take the place of ``known``; None when it may.

    A sequence number that goes back is an old bundle, played again or from a backup: keys that were taken out would come back. It may go
    back where nothing else differs, so that a publisher that counts anew is not refused for ever.
    """
    if known.sequence is None or found.sequence is None or found.sequence >= known.sequence or known.content == found.content:
        return None
    return f"its sequence went back from {known.sequence} to {found.sequence}, with other keys: the bundle from before is kept"


class Federation:
    """The federated trust domains of one installation. For one event loop; changes are durable on return."""

    def __init__(self, store: Store, authorities: Authorities, clock: Clock, fetch: Fetch, *, local: bool = False) -> None:
        """``local`` also allows endpoints on loopback addresses, for test set-ups."""
        self._store = store
        self._authorities = authorities
        self._clock = clock
        self._fetch = fetch
        self._local = local
        self._failures: dict[str, int] = {}
        self._next: dict[str, tuple[int | None, float]] = {}
        self._random = random.SystemRandom()

    # --- what there is ------------------------------------------------------------------------------------------------------------------

    async def all(self) -> list[Peer]:
        """Return every federated trust domain, by name."""
        return [_peer(row) for row in await self._store.rows(select(tables.federation).order_by(tables.federation.c.trust_domain))]

    async def find(self, trust_domain: str) -> Peer:
        """Return one. Raises ``not_found``."""
        row = await self._store.row(select(tables.federation).where(tables.federation.c.trust_domain == trust_domain))
        if row is None:
            hint = "`handclasp federation list` shows those that are"
            raise HandclaspError(Kind.NOT_FOUND, "this trust domain is not federated", hint=hint)
        return _peer(row)

    async def put(
        self, trust_domain: str, *, url: str, profile: str, endpoint_id: str | None, bundle: str | None, by: By
    ) -> tuple[Peer, int]:
        """Add a trust domain, or change how its bundle is fetched; return it and the log entry's index.

        A ``bundle`` (PEM or SPIFFE) takes the place of what is stored, whatever its sequence: the administrator knows better. Raises
        ``bad_name``, ``bad_request``, ``bad_certificate``, ``not_allowed`` (the egress guard), ``conflict`` for a trust domain of our own.
        """
        await self._check(trust_domain, url, profile, endpoint_id)
        data, read = read_bundle(bundle, trust_domain) if bundle is not None else (b"", SpiffeBundle())
        now = self._clock()
        table = tables.federation
        known = next((peer for peer in await self.all() if peer.trust_domain == trust_domain), None)
        if profile == "https_spiffe" and not read.authorities and not (bundle is None and known is not None and known.bundle):
            hint = "give its bundle, fetched in a way that you trust (--bundle FILE)"
            raise HandclaspError(Kind.BAD_REQUEST, "https_spiffe needs a bundle with anchors to begin with", hint=hint)
        values: dict[str, Any] = {"url": url, "profile": profile, "endpoint_id": endpoint_id, "tried_at": None, "problem": None}
        if bundle is not None or known is None:
            hint_seconds = DEFAULT_HINT if read.refresh_hint is None else read.refresh_hint
            values |= {"bundle": data.decode(), "sequence": read.sequence, "refresh_hint": hint_seconds}
            values |= {"fetched_at": None, "created_at": now}
        conflict = HandclaspError(Kind.CONFLICT, "somebody else changed this federation at the same moment", hint="try again")
        if known is None:
            change = Change(insert(table).values(trust_domain=trust_domain, **values), expect=1, conflict=conflict)
        else:
            change = Change(update(table).where(table.c.trust_domain == trust_domain).values(**values), expect=1, conflict=conflict)
        what: dict[str, Any] = {"trust_domain": trust_domain, "url": url, "profile": profile}
        if endpoint_id is not None:
            what["endpoint_id"] = endpoint_id
        if bundle is not None:
            what |= difference(known.read() if known is not None else SpiffeBundle(), read)
        index = await self._commit("federation.added" if known is None else "federation.changed", what, by, [change])
        return await self.find(trust_domain), index

    async def remove(self, trust_domain: str, *, by: By) -> int:
        """Trust a trust domain's bundle no more; return the log entry's index. Raises ``not_found``."""
        await self.find(trust_domain)
        gone = HandclaspError(Kind.NOT_FOUND, "this trust domain is not federated")
        change = Change(delete(tables.federation).where(tables.federation.c.trust_domain == trust_domain), expect=1, conflict=gone)
        return await self._commit("federation.removed", {"trust_domain": trust_domain}, by, [change])

    async def _check(self, trust_domain: str, url: str, profile: str, endpoint_id: str | None) -> None:
        check_trust_domain(trust_domain)
        await self._authorities.refresh()
        if trust_domain in self._authorities.trust_domains:
            raise HandclaspError(Kind.CONFLICT, f"{trust_domain} is served here: it is not federated with itself")
        if profile not in PROFILES:
            raise HandclaspError(Kind.BAD_REQUEST, f"{profile[:100]!r} is not a profile", hint=" or ".join(PROFILES))
        if check_url(url, insecure=self._local).scheme != "https":
            raise HandclaspError(Kind.BAD_REQUEST, "a bundle endpoint has an https:// address")
        if profile == "https_web":
            if endpoint_id is not None:
                raise HandclaspError(Kind.BAD_REQUEST, "an endpoint ID belongs to https_spiffe; https_web goes by the name in the address")
            return
        if endpoint_id is None:
            raise HandclaspError(
                Kind.BAD_REQUEST, "https_spiffe needs the SPIFFE ID of the endpoint", hint="such as spiffe://TD/handclasp/server"
            )
        check_spiffe_id(endpoint_id)
        if trust_domain_of(endpoint_id) != trust_domain:
            raise HandclaspError(Kind.BAD_REQUEST, f"{endpoint_id} is not in {trust_domain}, whose bundle verifies the endpoint")

    # --- fetching -----------------------------------------------------------------------------------------------------------------------

    async def poll(self) -> list[Peer]:
        """Fetch every bundle whose time has come, and return all federated trust domains as they are then. The leader's job."""
        peers = await self.all()
        now = self._clock()
        due = [peer.trust_domain for peer in peers if self._is_due(peer, now)]
        if not due:
            return peers
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(trust_domain: str) -> None:
            async with gate:
                try:
                    await self.refresh(trust_domain)
                except HandclaspError as error:
                    if error.kind is not Kind.NOT_FOUND:  # removed meanwhile
                        raise

        await asyncio.gather(*(one(trust_domain) for trust_domain in due))
        return await self.all()

    def _is_due(self, peer: Peer, now: int) -> bool:
        """Tell whether it is time to fetch. The moment is drawn once for each attempt, so that a fleet does not ask in step."""
        if peer.tried_at is None or peer.tried_at > now:  # never, or the clock was set back
            return True
        drawn = self._next.get(peer.trust_domain)
        if drawn is None or drawn[0] != peer.tried_at:
            drawn = self._next[peer.trust_domain] = (peer.tried_at, self._wait(peer))
        return now >= peer.tried_at + drawn[1] * 1000

    def _wait(self, peer: Peer) -> float:
        if peer.problem is None:
            return peer.interval * self._random.uniform(0.9, 1.0)
        failures = self._failures.get(peer.trust_domain, 1)
        return min(FIRST_RETRY * 2.0 ** min(failures - 1, 16), max(peer.interval, DEFAULT_HINT)) * self._random.uniform(0.5, 1.0)

    async def refresh(self, trust_domain: str) -> Peer:
        """Fetch one bundle now, keep it if it is good, note the problem if not; return how things are then. Raises ``not_found``."""
        peer = await self.find(trust_domain)
        try:
            if trust_domain in self._authorities.trust_domains:
                raise HandclaspError(Kind.CONFLICT, "this trust domain is served here by now: remove its federation")
            known = peer.read()
            async with asyncio.timeout(TIME_FOR_ALL):
                data = await self._fetch(_endpoint(peer, known))
            found = parse_spiffe_bundle(data, trust_domain)
            problem = newer(known, found)
        except TimeoutError:
            problem = "the endpoint did not answer in time"
        except HandclaspError as error:
            problem = error.detail
        if problem is not None:
            self._failures[trust_domain] = self._failures.get(trust_domain, 0) + 1
            return await self._note(peer, None, {"problem": problem[:500]})
        self._failures.pop(trust_domain, None)
        hint = DEFAULT_HINT if found.refresh_hint is None else found.refresh_hint
        values = {"problem": None, "fetched_at": self._clock(), "refresh_hint": hint, "sequence": found.sequence, "bundle": data.decode()}
        changed = None if peer.bundle and known.content == found.content else {"sequence": str(found.sequence), **difference(known, found)}
        return await self._note(peer, changed, values)

    async def _note(self, peer: Peer, changed: Mapping[str, Any] | None, values: Mapping[str, Any]) -> Peer:
        """Write what an attempt came to, unless somebody changed the federation since it began."""
        table = tables.federation
        mine = (
            table.c.trust_domain == peer.trust_domain,
            table.c.created_at == peer.created_at,
            table.c.url == peer.url,
            table.c.profile == peer.profile,
            table.c.endpoint_id.is_not_distinct_from(peer.endpoint_id),
            table.c.bundle == peer.bundle,
        )
        conflict = HandclaspError(Kind.CONFLICT, "this federation was changed meanwhile")
        change = Change(update(table).where(*mine).values(tried_at=self._clock(), **values), expect=1, conflict=conflict)
        try:
            if changed is None:
                await self._store.ledger.commit(Write([], [change]))
            else:
                what = {"trust_domain": peer.trust_domain, **changed}
                await self._commit("federation.changed", what, {"kind": "server"}, [change])
        except HandclaspError as error:
            if error.kind is not Kind.CONFLICT:
                raise
        return await self.find(peer.trust_domain)

    async def _commit(self, type_: str, what: Mapping[str, Any], by: By, changes: Sequence[Change]) -> int:
        subjects = [f"federation:{what['trust_domain']}"]
        entry = make_entry(type_, at=self._clock(), who=by, what=what, subjects=subjects)
        return await self._store.ledger.commit(Write([entry], changes))


def difference(before: SpiffeBundle, after: SpiffeBundle) -> dict[str, Any]:
    """Return which anchors (by fingerprint) and JWT keys (by ``kid``) come and go, for the log: 100 of each at most."""
    found: dict[str, Any] = {}
    old_anchors, new_anchors = ({chains.fingerprint(one).hex() for one in bundle.authorities} for bundle in (before, after))
    for name, old, new in (("anchors", old_anchors, new_anchors), ("jwt_keys", set(before.jwt_keys), set(after.jwt_keys))):
        for word, some in (("added", new - old), ("removed", old - new)):
            if some:
                found[f"{name}_{word}"] = sorted(some)[:MAX_LISTED]
        found[name] = len(new)
    return found


def _endpoint(peer: Peer, known: SpiffeBundle) -> Endpoint:
    if peer.profile == "https_web":
        return Endpoint(peer.url, None)
    if not known.authorities:
        words = "there is no anchor left to verify the endpoint with: give a bundle anew"
        raise HandclaspError(Kind.VERIFY_FAILED, words, hint="handclasp federation add --bundle FILE")
    return Endpoint(peer.url, peer.endpoint_id, known.authorities)


def _peer(row: Row[Any]) -> Peer:
    return Peer(
        row.trust_domain, row.url, row.profile, row.endpoint_id, row.bundle, row.sequence, row.refresh_hint, row.fetched_at, row.tried_at,
        row.problem, row.created_at,
    )  # fmt: skip
