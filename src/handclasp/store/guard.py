"""What may stop a write, decided under the log head's lock: its token, its identity token, its key, the certificate it renews.

What one transaction has to know is read with a query each; then every write of the batch is judged in its order, in memory, and only what
was accepted takes effect. So nothing of a refused write is ever stored: no key that now belongs to someone, no predecessor superseded by a
certificate that does not exist.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from handclasp.errors import HandclaspError, Kind
from handclasp.store.backend import Backend
from handclasp.store.chunks import in_chunks
from handclasp.store.statements import Statements
from handclasp.store.writes import CertificateRow, Write

_AT_ONCE = 256
"""Values in one query: SQLite compiles a statement for each number of them."""


def name_taken(name: str, claimant: str, granted: Iterable[str], holder: str | None) -> HandclaspError | None:
    """Return why ``claimant`` may not become the agent ``name``; None when it may.

    ``granted`` are the grants of the certificates of that name that are still good; ``holder`` is who enrolled as it last.
    """
    if claimant.startswith("token:"):
        others = [grant for grant in granted if grant != claimant]
    else:
        others = [grant for grant in granted if not grant.startswith("enrolment:") or holder != claimant]
    if not others:
        return None
    return HandclaspError(
        Kind.NAME_NOT_ALLOWED,
        f"{name} is an agent that somebody else enrolled, and its certificate is still good",
        hint="choose another name, revoke that certificate, or make a token that allows exactly this name",
    )


class Guard:
    """Judges the writes of one transaction. Made for it, and thrown away with it."""

    def __init__(self, backend: Backend, sql: Statements, now: int, identity_ids: dict[str, int]) -> None:
        self._backend = backend
        self._sql = sql
        self._now = now
        self._known = identity_ids
        self.new_ids: dict[str, int] = {}
        """Identities that this transaction read or made: to be remembered when it is committed, and not before."""
        self._keys: dict[bytes, tuple[int | None, int | None]] = {}
        self._claimed: dict[bytes, str] = {}
        self._revoked: dict[bytes, int | None] = {}
        self._successors: dict[bytes, bytes | None] = {}
        """By certificate, the one that is in its place now; also for those that this transaction makes."""
        self._left: dict[str, float | None] = {}
        self._spent: Counter[str] = Counter()
        self._agents: dict[str, tuple[set[str], str | None]] = {}
        """By agent's name: what its certificates that are still good were granted by, and who enrolled as it last."""
        self._accepted: list[CertificateRow] = []
        self._superseded: list[tuple[bytes, int, bytes]] = []

    async def read(self, writes: Sequence[Write]) -> None:
        """Read everything that judging these writes needs."""
        holders = [write for write in writes if write.certificate is not None]
        rows = [write.certificate for write in holders if write.certificate is not None]
        unknown = {row.identity for row in rows if row.identity not in self._known}
        for name, identity_id in await self._fetch("SELECT name, id FROM identity", "name", unknown):
            self.new_ids[name] = identity_id
        for spki, *state in await self._fetch(
            "SELECT spki_sha256, identity_id, blocked_at FROM key", "spki_sha256", {row.spki_sha256 for row in rows}
        ):
            self._keys[bytes(spki)] = (state[0], state[1])
        predecessors = {row.predecessor for row in rows if row.predecessor is not None}
        await self._read_line(predecessors)
        await self._read_line({successor for successor in self._successors.values() if successor is not None})
        await self._read_agents({row.identity for row, write in zip(rows, holders, strict=True) if write.claimant is not None})
        tokens = {write.spend_token for write in writes if write.spend_token is not None}
        for token_id, uses, used, revoked_at in await self._fetch("SELECT id, uses, used, revoked_at FROM token", "id", tokens):
            self._left[token_id] = None if revoked_at is not None else uses - used if uses else float("inf")

    async def _read_agents(self, names: set[str]) -> None:
        if not names:
            return
        good = f"c.revoked_at IS NULL AND c.superseded_at IS NULL AND c.not_after > {int(self._now)}"
        live = (
            "SELECT name, granted_by, holder FROM (SELECT i.name AS name, c.granted_by AS granted_by, a.holder AS holder FROM identity i"  # noqa: S608  (a number of ours)
            f" JOIN certificate c ON c.identity_id = i.id LEFT JOIN agent a ON a.identity_id = i.id WHERE {good}) AS live"
        )
        for name, granted_by, holder in await self._fetch(live, "name", names):
            granted, _ = self._agents.get(name, (set(), None))
            self._agents[name] = ({*granted, granted_by}, holder)

    async def _read_line(self, certificates: Iterable[bytes]) -> None:
        select = "SELECT sha256, revoked_at, superseded_by FROM certificate"
        for sha256, revoked_at, superseded_by in await self._fetch(select, "sha256", certificates):
            self._revoked[bytes(sha256)] = revoked_at
            self._successors[bytes(sha256)] = None if superseded_by is None else bytes(superseded_by)

    async def _fetch(self, select: str, column: str, values: Iterable[Any]) -> list[Any]:
        found: list[Any] = []
        for some in in_chunks(list(values), _AT_ONCE):
            found += await self._backend.fetch(*self._sql.of_these(select, column, some))
        return found

    def id_of(self, identity: str) -> int | None:
        """Return an identity's row; None when it has none yet."""
        return self._known.get(identity) or self.new_ids.get(identity)

    def refusal(self, write: Write) -> HandclaspError | None:
        """Return why the write may not happen, after those that were accepted before it; None when it may."""
        row = write.certificate
        if row is not None:
            refused = self._key_refusal(row)
            if refused is not None:
                return refused
            if row.predecessor is not None and (refused := self._line_refusal(row.predecessor)) is not None:
                return refused
            if write.claimant is not None:
                refused = name_taken(row.identity, write.claimant, *self._agents.get(row.identity, (set(), None)))
                if refused is not None:
                    return refused
        if write.spend_token is not None:
            left = self._left.get(write.spend_token)
            if left is None:
                return HandclaspError(Kind.TOKEN_REVOKED, "this token was revoked")
            if self._spent[write.spend_token] >= left:
                return HandclaspError(Kind.TOKEN_SPENT, "this token has no use left", hint="ask its owner for a new one")
        return None

    def _line_refusal(self, predecessor: bytes) -> HandclaspError | None:
        """A line has one end. A second renewal of the same certificate takes the place of the first, whose answer must have been lost.

        If the first one was itself renewed, its answer was not lost: then two hold the key, and the line goes on with one of them only.
        """
        if self._revoked.get(predecessor, 0) is not None:  # .get: one that is not there is as good as revoked
            return HandclaspError(Kind.REVOKED, "the certificate being renewed is revoked")
        successor = self._successors[predecessor]
        if successor is not None and self._successors.get(successor) is not None:
            words = "the certificate being renewed was renewed before, and its successor too"
            return HandclaspError(
                Kind.SUPERSEDED, words, hint="renew with the newest certificate; if you have it nowhere, somebody else does: revoke"
            )
        return None

    def _key_refusal(self, row: CertificateRow) -> HandclaspError | None:
        """A key belongs to the first identity that was certified with it, and a blocked key to nobody."""
        claimed = self._claimed.get(row.spki_sha256)
        known = self._keys.get(row.spki_sha256)
        if known is not None and known[1] is not None:
            return HandclaspError(Kind.BLOCKED_KEY, "this key is blocked", hint="make a new key")
        if (known is not None and known[0] != self.id_of(row.identity)) or claimed not in (None, row.identity):
            return HandclaspError(Kind.REUSED_KEY, "this key belongs to another identity", hint="make one key for each identity")
        return None

    def take(self, write: Write) -> None:
        """Count an accepted write, for those that are judged after it."""
        if write.certificate is not None:
            row = write.certificate
            self._accepted.append(row)
            if row.predecessor is not None:
                lost = self._successors[row.predecessor]
                self._superseded += [(row.sha256, self._now, older) for older in (row.predecessor, lost) if older is not None]
                self._successors[row.predecessor] = row.sha256
                if lost is not None:
                    self._successors[lost] = row.sha256
            self._successors[row.sha256] = None
            if row.predecessor is None and row.profile == "agent":  # also one that claimed nothing: its token names it
                granted, _ = self._agents.get(row.identity, (set(), None))
                self._agents[row.identity] = ({*granted, row.granted_by}, write.claimant or row.granted_by)
            if write.certificate.spki_sha256 not in self._keys:
                self._claimed[write.certificate.spki_sha256] = write.certificate.identity
        if write.spend_token is not None:
            self._spent[write.spend_token] += 1

    async def make_identities(self, rows: Sequence[CertificateRow]) -> list[str]:
        """Make the identities that these certificates need and that are not there; return which."""
        missing = {row.identity: row.owner for row in reversed(rows) if self.id_of(row.identity) is None}
        if missing:
            await self._backend.many(self._sql.add_identity, [(name, owner, self._now) for name, owner in missing.items()])
            self.new_ids.update(await self._fetch("SELECT name, id FROM identity", "name", missing))
        return list(missing)

    def forget_identities(self, names: Iterable[str]) -> None:
        """Take back what :meth:`make_identities` returned: the savepoint in which they were made was undone."""
        for name in names:
            self.new_ids.pop(name, None)

    async def take_effect(self) -> None:
        """Store what the accepted writes mean for identities, keys and tokens."""
        await self.make_identities(self._accepted)
        claims = [(spki, self.id_of(identity), self._now) for spki, identity in self._claimed.items()]
        spent = [(count, self._now, token_id) for token_id, count in self._spent.items()]
        for sql, rows in ((self._sql.add_key, claims), (self._sql.spend_token, spent)):
            if rows:
                await self._backend.many(sql, rows)

    async def supersede(self) -> None:
        """Store which certificates have a newer one in their place; after the new ones are stored, which may be among them."""
        if self._superseded:
            await self._backend.many(self._sql.supersede, self._superseded)
